"""The workspace: the folder that holds `takes/` and `studies/`.

The default is $WANSCOPE_HOME, or else ./wanscope-out. Naming a workspace does not create it.
"""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from wanscope.errors import RequestError, TakeNotFound

DEFAULT_FOLDER = "wanscope-out"
HOME_VARIABLE = "WANSCOPE_HOME"
MANIFEST = "take.json"


TAKE_ID = re.compile(r"[0-9a-f]{16}")
MOST_NAME_BYTES = 255


def is_plain_name(name: str) -> bool:
    """Return whether a text is the name of one file: it names no folder and cannot lead out of the one it is in."""
    unprintable = any(ord(letter) < 32 or ord(letter) == 127 for letter in name)
    return (
        name not in ("", ".", "..")
        and not unprintable
        and not set(name) & {"/", "\\", "\0"}
        and len(name.encode("utf-8", "surrogatepass")) <= MOST_NAME_BYTES
    )


@dataclass(frozen=True)
class Workspace:
    """Where takes and studies are stored. `folder` is absolute."""

    folder: Path

    @classmethod
    def find(cls, folder: str | Path | Workspace | None = None) -> Workspace:
        """Return the workspace at `folder`, or the default one. Raises RequestError where that is not a folder."""
        if isinstance(folder, Workspace):
            return folder
        chosen = Path(os.path.expanduser(folder or os.environ.get(HOME_VARIABLE) or DEFAULT_FOLDER))
        if chosen.exists() and not chosen.is_dir():
            raise RequestError(f"the workspace {chosen} is not a folder", "it is a file", "--output-dir wanscope-out")
        return cls(Path(os.path.abspath(chosen)))

    @property
    def takes(self) -> Path:
        """The folder of all takes."""
        return self.folder / "takes"

    @property
    def studies(self) -> Path:
        """The folder of all studies."""
        return self.folder / "studies"

    @property
    def option(self) -> str:
        """The option that selects this workspace in a suggested command; "" for the default workspace."""
        default = Path(os.path.expanduser(os.environ.get(HOME_VARIABLE) or DEFAULT_FOLDER))
        if self.folder == Path(os.path.abspath(default)):
            return ""
        here = Path.cwd()
        shown = self.folder.relative_to(here) if self.folder.is_relative_to(here) else self.folder
        return f" --output-dir {shlex.quote(str(shown))}"

    def take_folder(self, take: str) -> Path:
        """Return the folder of the take with that id, whether or not it exists yet.

        Raises RequestError for a text that would lead out of `takes/`: ids also come from files of other people.
        """
        if not is_plain_name(take):
            raise RequestError(f"{take!r} is not the id of a take", "an id has 16 digits and letters from a to f")
        return self.takes / take

    def take_ids(self) -> list[str]:
        """Return the ids of the finished takes, sorted."""
        if not self.takes.is_dir():
            return []
        return sorted(p.parent.name for p in self.takes.glob(f"*/{MANIFEST}") if not p.parent.name.startswith("."))

    def find_take(self, name: str | Path) -> Path:
        """Return the folder of a take, given its id, the start of its id, its folder, or a file in or link to it.

        Raises TakeNotFound when there is none, or when several ids begin that way.
        """
        path = Path(name)
        if os.path.exists(path):  # unlike Path.exists, also False where no disk takes such a name
            real = path.resolve()
            folder = real if real.is_dir() else real.parent
            if (folder / MANIFEST).is_file():
                return folder
        known = self.take_ids()
        matches = [take for take in known if take.startswith(str(name))] if str(name) else []
        if len(matches) == 1:
            return self.takes / matches[0]
        if matches:
            shown = ", ".join(matches[:4])
            raise TakeNotFound(
                f"{name} could be any of {len(matches)} takes",
                shown + (", ..." if len(matches) > 4 else ""),
                f"wanscope show {matches[0]}{self.option}",
            )
        why = f"{self.takes} contains {len(known)} take{'s'[: len(known) != 1]}"
        raise TakeNotFound(f"there is no take {name}", why, f"wanscope takes{self.option}")
