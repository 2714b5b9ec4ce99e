"""`wanscope compare`: takes side by side in one labeled MP4."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from wanscope.doors.cli import output
from wanscope.doors.cli.takes import study_names, study_rows
from wanscope.errors import DamagedTake, RequestError, TakeNotFound
from wanscope.take.compare import Grid, side_by_side
from wanscope.take.disk import require_writable
from wanscope.take.store import Take
from wanscope.workspace import Workspace

SIDE_BY_SIDE = "side-by-side.mp4"
NAMED = 3  # ids in the default file name


def run_compare(names: Sequence[str], path: Path | None, output_dir: Path | None, json: bool) -> int:
    workspace = Workspace.find(output_dir)
    if path is not None and path.suffix.lower() != ".mp4":
        raise RequestError(f"--out {path} is not an MP4 file", "the comparison is a video", f"--out {path}.mp4")
    takes, notes = gather(workspace, names)
    target = path or default_path(workspace, names, takes)
    require_writable(target.parent)
    grid = side_by_side(takes, target)
    if json:
        output.document(
            {
                "video": str(grid.path),
                "rows": grid.rows,
                "columns": grid.columns,
                "takes": [take.id for take in takes],
                "notes": [*notes, *grid.notes],
            }
        )
        return 0
    print_grid(grid, len(takes), notes)
    return 0


def print_grid(grid: Grid, count: int, notes: Sequence[str] = ()) -> None:
    for note in (*notes, *grid.notes):
        output.say(f"note: {note}")
    output.say(f"{count} take{'s'[: count != 1]} in {grid.rows} x {grid.columns}: {output.shown_path(grid.path)}")


def gather(workspace: Workspace, names: Sequence[str]) -> tuple[list[Take], list[str]]:
    """Return the takes that the names refer to, in order, and notes on what was left out of a study.

    A take that is named in addition to its study is shown once. Raises RequestError where two names refer to the
    same take or study.
    """
    takes: dict[str, Take] = {}
    notes = []
    named: dict[str, str] = {}  # how each take or study was named
    for name in names:
        if name not in study_names(workspace):
            take = _checked(workspace.find_take(name))
            _named_once(named, f"take {take.id}", name)
            takes.setdefault(take.id, take)
            continue
        _named_once(named, f"study {name}", name)
        left_out = 0
        for row in study_rows(workspace, name):
            try:
                takes.setdefault(row.take, _checked(workspace.take_folder(row.take)))
            except DamagedTake:
                left_out += 1
        if left_out:
            notes.append(f"left out of study {name}: {left_out} missing or damaged")
    if not takes:
        raise TakeNotFound(f"study {' '.join(names)} has no finished take", "there is nothing to compare yet")
    return list(takes.values()), notes


def _named_once(named: dict[str, str], what: str, name: str) -> None:
    if what in named:
        how = "" if named[what] == name else f", as {named[what]} and as {name}"
        raise RequestError(
            f"{what} is named twice{how}",
            "side by side with itself it shows no difference",
            "wanscope takes  (lists what else can be named)",
        )
    named[what] = name


def _checked(folder: Path) -> Take:
    """Open a take and verify the checksum of its video."""
    take = Take.open(folder)
    take.check_video()
    return take


def default_path(workspace: Workspace, names: Sequence[str], takes: Sequence[Take]) -> Path:
    """Return the default output file: in the study's folder for one study, else in the workspace, named by take ids."""
    if len(names) == 1 and names[0] in study_names(workspace):
        return workspace.studies / names[0] / SIDE_BY_SIDE
    ids = [take.id[:8] for take in takes]
    rest = f"-and-{len(ids) - NAMED}-more" if len(ids) > NAMED else ""
    return workspace.folder / f"compare-{'-'.join(ids[:NAMED])}{rest}.mp4"
