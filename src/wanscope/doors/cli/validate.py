"""`wanscope validate`: the report of an instrument that checks itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from wanscope.doors.cli import out
from wanscope.errors import RequestError, nearest
from wanscope.take.disk import guarded, require_writable

KNOWN = ("marbles",)


def run_validate(what: str, pairs: int, path: Path | None, json: bool) -> int:
    if what not in KNOWN:
        raise RequestError(f"there is nothing to validate named {what!r}", nearest(what, KNOWN), "validate marbles")
    if path is not None:
        if path.suffix.lower() != ".json":
            raise RequestError(
                f"--out {path} is not a .json file", "a page is written beside it as .md", "--out r.json"
            )
        require_writable(path.parent)
    from wanscope.wan.environment import prepare

    prepare()
    from wanscope.marbles import validate

    report = validate.validate(pairs, tell=(lambda _: None) if json else out.say)
    if path is not None:
        with guarded(path.parent):
            validate.write(report, path)
    if json:
        out.document(report)
    else:
        _print(report)
        if path is not None:
            out.say(f"The report: {out.shown_path(path)} and {out.shown_path(path.with_suffix('.md'))}")
    return 0 if report["passed"] else 1


def _print(report: dict[str, Any]) -> None:
    from wanscope.marbles import validate

    rows = [row.cells() for row in validate.rows_of(report)]
    out.table(validate.COLUMNS, rows, right=("value", "n"))
    out.say(f"\nThe machine: {report['machine']}.")
    missed = sum(not row["passed"] for row in report["rows"])
    said = f"{missed} bound{'s are' if missed > 1 else ' is'} not met." if missed else "Every bound is met."
    out.say(f"{said} {out.seconds_text(report['seconds'])} on {report['device']}.")
