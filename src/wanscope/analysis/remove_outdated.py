"""Remove files of an earlier analysis that a new one in the same folder did not write.

Old pages or figures would contradict the new tables. analysis.json lists the files that an analysis wrote, and only
these are removed: a user's own files stay, whatever their names.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from wanscope import events
from wanscope.spec.strict_json import read_json

REPORT, FACTS = "report.html", "analysis.json"
FILES = "files"  # the key of the list in analysis.json


def remove_outdated(folder: Path, written: Iterable[str], on_event: events.Listener) -> None:
    """Remove the files that the folder's analysis.json lists and that are not in `written`; a note names them.

    written: the files of the new analysis, relative to the folder. Raises OSError for a file that cannot be removed.
    """
    kept = set(written)
    outdated = [name for name in _recorded_files(folder) if name not in kept and (folder / name).is_file()]
    for name in outdated:
        (folder / name).unlink()
    if outdated:
        figures = sum("/" in name for name in outdated)  # the only files in a subfolder
        shown = [name for name in outdated if "/" not in name]
        shown += [f"{figures} figure file{'s'[: figures != 1]}"] if figures else []
        on_event(events.Note(f"removed files of an earlier analysis that this one does not write: {', '.join(shown)}"))


def _recorded_files(folder: Path) -> list[str]:
    """Return the files that analysis.json lists, relative to the folder, without names that lead out of the folder."""
    try:
        facts = read_json((folder / FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    if not isinstance(facts, dict):
        return []
    names = facts.get(FILES)
    if not isinstance(names, list):  # written by an earlier version, which did not list the files
        names = [REPORT] if facts.get("report") else []
    paths = [PurePosixPath(name) for name in names if isinstance(name, str)]
    return sorted(str(path) for path in paths if not path.is_absolute() and ".." not in path.parts)
