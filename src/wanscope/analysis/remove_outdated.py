"""Remove files of an earlier analysis that a new one in the same folder did not write.

An old page or old figures next to new tables would contradict them. analysis.json lists the files that an analysis
wrote, and only these are removed: a user's own file stays, whatever its name.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from wanscope import events
from wanscope.spec.strict_json import read_json

REPORT, FACTS = "report.html", "analysis.json"
FILES = "files"  # the key in analysis.json


def remove_outdated(folder: Path, written: Iterable[str], on_event: events.Listener) -> None:
    """Remove the files that the folder's analysis.json lists and that are not in `written`; a note names them."""
    kept = set(written)
    gone = [name for name in _recorded_files(folder) if name not in kept and (folder / name).is_file()]
    for name in gone:
        (folder / name).unlink()
    if gone:
        below = sum("/" in name for name in gone)
        shown = [name for name in gone if "/" not in name] + ([f"{below} files of figures"] if below else [])
        on_event(events.Note(f"removed what an earlier analysis wrote and this one does not: {', '.join(shown)}"))


def _recorded_files(folder: Path) -> list[str]:
    """Return the files that analysis.json lists, relative to the folder; names that lead out of it are left out."""
    try:
        facts = read_json((folder / FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    if not isinstance(facts, dict):
        return []
    names = facts.get(FILES)
    if not isinstance(names, list):  # written by a version that did not list the files
        names = [REPORT] if facts.get("report") else []
    paths = [PurePosixPath(name) for name in names if isinstance(name, str)]
    return sorted(str(path) for path in paths if not path.is_absolute() and ".." not in path.parts)
