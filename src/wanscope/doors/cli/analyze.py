"""`wanscope analyze` and `export`: measure and compare the paths of a study, with a summary in plain words."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wanscope import events
from wanscope.doors.cli import output as out
from wanscope.errors import RequestError
from wanscope.take.disk import size_text

if TYPE_CHECKING:
    from wanscope.analysis.result import Analysis
    from wanscope.analysis.test_result import Test

UNITS = ("seed", "scene")
SHOWN = 12


@dataclass(frozen=True)
class AnalyzeOptions:
    """The options of the command."""

    study: str | None
    batch_dir: str | None
    by: str | None
    contrast: tuple[str, str] | None
    baseline: str | None
    unit: str | None
    out: Path | None
    report: bool
    correction: str = "max-t"


def run_analyze(options: AnalyzeOptions, output_dir: Path | None, json: bool) -> int:
    source = options.study or options.batch_dir
    if source is None:
        raise RequestError("no study is given", "analyze works on the takes of a study", "wanscope analyze STUDY")
    if options.study and options.batch_dir:
        raise RequestError(
            "STUDY and --batch-dir both name the study", "give one of them", f"wanscope analyze {options.study}"
        )
    _check_unit(options.unit)
    from wanscope.analysis.analyze import analyze

    analysis = analyze(
        source,
        workspace=output_dir,
        out=options.out,
        by=options.by,
        contrast=options.contrast,
        baseline=options.baseline,
        unit=options.unit,  # type: ignore[arg-type]
        correction=options.correction,  # type: ignore[arg-type]
        report=options.report,
        on_event=events.ignore if json else _print_event,
    )
    if json:
        out.document(analysis.facts())
        return 0
    _print_analysis(analysis)
    return 0


def _check_unit(unit: str | None) -> None:
    if unit is not None and unit not in UNITS:
        raise RequestError(f"--unit {unit} is not known", "units are seed or scene", "--unit seed")


def _print_event(event: events.Event) -> None:
    if isinstance(event, events.Note):
        out.say(f"note: {event.text}" if event.text.startswith("left out") else event.text)


def _print_analysis(analysis: Analysis) -> None:
    tests = sorted(
        (test for test in analysis.tests.tests if test.p is not None),
        key=lambda t: (not t.confirmatory, t.decisive_p or 0, -abs(t.effect or 0)),
    )
    if tests:
        out.say()
        out.table(
            ("what", "a", "b", "a - b", "effect", "p", "corrected", "pairs", "tokens"),
            [_cells(test) for test in tests[:SHOWN]],
            right=("a - b", "effect", "p", "corrected", "pairs"),
        )
        if len(tests) > SHOWN:
            out.say(f"and {len(tests) - SHOWN} more in tests.csv")
    out.say(f"\n{analysis.summary}\n")
    folder = analysis.folder
    if folder is not None:
        report = analysis.report
        shown = [("tables", f"{out.shown_path(folder)} (metrics, tests, courses, groups: Parquet and CSV)")]
        if report is not None:
            shown.insert(0, ("report", f"{out.shown_path(report)} ({size_text(report.stat().st_size)})"))
        out.facts(shown)


def _cells(test: Test) -> tuple[str, ...]:
    return (
        test.name + (" *" if test.confirmatory else ""),
        test.a,
        test.b,
        "" if test.difference is None else f"{test.difference:+.3g}",
        "" if test.effect is None else f"{test.effect:+.2f}",
        "" if test.p is None else f"{test.p:.3g}",
        "" if test.decisive_p is None else f"{test.decisive_p:.3g}",
        str(test.units),
        "" if test.tokens_a is None or test.tokens_b is None else f"{test.tokens_a:g}, {test.tokens_b:g}",
    )


@dataclass(frozen=True)
class ExportOptions:
    """The options of the command."""

    study: str
    bundle: bool
    out: Path | None
    by: str | None
    contrast: tuple[str, str] | None
    baseline: str | None
    unit: str | None
    correction: str = "max-t"


def run_export(options: ExportOptions, output_dir: Path | None, json: bool) -> int:
    if not options.bundle:
        raise RequestError(
            "nothing to export is given",
            "--bundle is the only form of export",
            f"wanscope export {options.study} --bundle",
        )
    _check_unit(options.unit)
    from wanscope.analysis.bundle import export_bundle
    from wanscope.take.disk import bytes_below, files_below

    folder = export_bundle(
        options.study,
        workspace=output_dir,
        out=options.out,
        by=options.by,
        contrast=options.contrast,
        baseline=options.baseline,
        unit=options.unit,  # type: ignore[arg-type]
        correction=options.correction,  # type: ignore[arg-type]
        on_event=events.ignore if json else _print_event,
    )
    files, size = len(files_below(folder)), bytes_below(folder)
    if json:
        out.document({"folder": str(folder), "files": files, "bytes": size})
    else:
        out.say(f"{files} files, {size_text(size)}: {out.shown_path(folder)}")
    return 0
