"""`wanscope validate`: reports of wanscope checked against known truth."""

from __future__ import annotations

from collections.abc import Callable
from json import dumps
from pathlib import Path
from typing import Any

from wanscope.doors.cli import output
from wanscope.errors import RequestError, nearest
from wanscope.take.building import write_atomic
from wanscope.take.disk import guarded, require_writable

Tell = Callable[[str], None]
KNOWN = ("marbles", "edits", "attention", "trajectories")
DEFAULT_PAIRS = {"marbles": 200, "edits": 60, "attention": 60, "trajectories": 24}


def run_validate(
    what: str, pairs: int | None, path: Path | None, work: Path | None, share: str, so_far: bool, json: bool
) -> int:
    if what not in KNOWN:
        raise RequestError(
            f"there is nothing to validate named {what!r}", nearest(what, KNOWN), "wanscope validate marbles"
        )
    shares = _share(share)
    if what == "marbles" and work is not None:
        raise RequestError("--work is for longer validations", f"{what} is made in one go", "")
    if what != "edits" and shares != (0, 1):
        raise RequestError("--share is for the validation of edits", f"{what} is made by one process", "")
    if so_far and what != "edits":
        raise RequestError("--so-far is for the validation of edits", f"{what} is reported whole", "")
    if so_far and shares != (0, 1):
        raise RequestError("--so-far and --share exclude each other", "it reports on what all shares have made", "")
    if path is not None:
        if path.suffix.lower() != ".json":
            raise RequestError(
                f"--out {path} is not a .json file", "a page is written next to it as .md", "--out r.json"
            )
        require_writable(path.parent)
    from wanscope.wan.environment import prepare

    prepare()
    tell = (lambda _: None) if json else output.say
    pairs = pairs or DEFAULT_PAIRS[what]
    if what != "marbles":
        work = work or Path("wanscope-validation") / what
        require_writable(work)
        with guarded(work):
            if what == "edits":
                found = _edits(pairs, work, shares, so_far, tell)
            else:
                found = (_attention if what == "attention" else _trajectories)(pairs, work, tell)
        if found is None:
            output.say(
                f"The rows of this share are in {output.shown_path(work)}; run it once more without --share at the end."
            )
            return 0
        _write(*found, path)
        if json:
            output.document(found[0])
        else:
            output.say(found[1])
            _say_where(path)
        return 0
    from wanscope.marbles.validate import model as validate

    report = validate.validate(pairs, tell=tell)
    _write(report, validate.as_markdown(report), path)
    if json:
        output.document(report)
    else:
        _print(report)
        _say_where(path)
    return 0 if report["passed"] else 1


def _share(text: str) -> tuple[int, int]:
    """Parse a share: `2/3` is (1, 3)."""
    first, _, last = text.partition("/")
    if not (first.isdigit() and last.isdigit() and 1 <= int(first) <= int(last)):
        raise RequestError(f"--share {text} is not a share", "it is I/N, from 1/N to N/N", "--share 1/2")
    return int(first) - 1, int(last)


def _edits(
    pairs: int, work: Path, share: tuple[int, int], so_far: bool, tell: Tell
) -> tuple[dict[str, Any], str] | None:
    from wanscope.marbles.validate import edit_tables
    from wanscope.marbles.validate import edits as validate_edits

    settings = validate_edits.EditsSettings(pairs=pairs, share=share, so_far=so_far)
    report = validate_edits.validate(settings, folder=work, tell=tell)
    return None if report is None else (report, edit_tables.as_markdown(report))


def _attention(clips: int, work: Path, tell: Tell) -> tuple[dict[str, Any], str]:
    from wanscope.marbles.validate import attention as validate_attention

    report = validate_attention.validate(validate_attention.AttentionSettings(clips=clips), folder=work, tell=tell)
    return report, validate_attention.as_markdown(report)


def _trajectories(pairs: int, work: Path, tell: Tell) -> tuple[dict[str, Any], str]:
    from wanscope.marbles.validate import trajectories as validate_trajectories
    from wanscope.marbles.validate import trajectory_page

    report = validate_trajectories.validate(
        validate_trajectories.TrajectoriesSettings(pairs=pairs), folder=work, tell=tell
    )
    return report, trajectory_page.as_markdown(report)


def _write(report: dict[str, Any], page: str, path: Path | None) -> None:
    """Write `path` (JSON), and the page next to it."""
    if path is None:
        return
    with guarded(path.parent):
        write_atomic(path, dumps(report, indent=1, ensure_ascii=False) + "\n")
        write_atomic(path.with_suffix(".md"), page)


def _say_where(path: Path | None) -> None:
    if path is not None:
        output.say(f"The report: {output.shown_path(path)} and {output.shown_path(path.with_suffix('.md'))}")


def _print(report: dict[str, Any]) -> None:
    from wanscope.marbles.validate import model as validate

    rows = [row.cells() for row in validate.rows_of(report)]
    output.table(validate.COLUMNS, rows, right=("value", "n"))
    output.say(f"\nThe machine: {report['machine']}.")
    missed = sum(not row["passed"] for row in report["rows"])
    said = f"{missed} bound{'s are' if missed > 1 else ' is'} not met." if missed else "Every bound is met."
    output.say(f"{said} {output.seconds_text(report['seconds'])} on {report['device']}.")
