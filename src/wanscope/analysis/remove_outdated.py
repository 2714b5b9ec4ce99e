"""What an earlier analysis left in a folder that a new one is written to: its page or figures next to other tables.

analysis.json names the files that an analysis wrote. Those alone are ever removed, so a file of a user's own stays,
whatever it is called.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from wanscope import events
from wanscope.spec.strict_json import read_json

REPORT, FACTS = "report.html", "analysis.json"
FILES = "files"  # the key in analysis.json


def remove_outdated(folder: Path, written: Iterable[str], on_event: events.Listener) -> None:
    """Remove what the folder's analysis.json says was written and is not among `written`, names in it; say so."""
    kept = set(written)
    gone = [name for name in _recorded(folder) if name not in kept and (folder / name).is_file()]
    for name in gone:
        (folder / name).unlink()
    if gone:
        below = sum("/" in name for name in gone)
        shown = [name for name in gone if "/" not in name] + ([f"{below} files of figures"] if below else [])
        on_event(events.Note(f"removed what an earlier analysis wrote and this one does not: {', '.join(shown)}"))


def _recorded(folder: Path) -> list[str]:
    """Names relative to the folder, none of which leads out of it."""
    try:
        facts = read_json((folder / FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    if not isinstance(facts, dict):
        return []
    names = facts.get(FILES)
    if not isinstance(names, list):  # written before files were named
        names = [REPORT] if facts.get("report") else []
    paths = [PurePosixPath(name) for name in names if isinstance(name, str)]
    return sorted(str(path) for path in paths if not path.is_absolute() and ".." not in path.parts)
