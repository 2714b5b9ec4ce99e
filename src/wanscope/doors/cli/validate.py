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
    rows = []
    for row in report["rows"]:
        digits = 1 if "dB" in row["what"] else 3
        interval = "" if row["low"] is None else f"{row['low']:.3f} to {row['high']:.3f}"
        bound = "" if row["bound"] is None else f"{row['bound']:g} {'met' if row['passed'] else 'NOT MET'}"
        rows.append((row["part"], row["what"], f"{row['value']:.{digits}f}", interval, str(row["count"]), bound))
    out.table(("part", "what", "value", "95% interval", "n", "bound"), rows, right=("value", "n"))
    missed = sum(not row["passed"] for row in report["rows"])
    said = f"{missed} bound{'s are' if missed > 1 else ' is'} not met." if missed else "Every bound is met."
    out.say(f"\n{said} {out.seconds_text(report['seconds'])} on {report['device']}.")
