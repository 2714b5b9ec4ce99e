"""The commands that turn takes into results: compare, analyze and export. app.py registers them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wanscope.doors.cli.options import Json, OutputDir

StudyArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="STUDY", help="The study's name, its folder, or the workspace that holds it.", show_default=False
    ),
]


def compare(
    takes: Annotated[
        list[str],
        typer.Argument(metavar="ID...", help="Takes, as for `show`, or studies, for all of their takes."),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="The MP4 to write. [default: in the workspace]", show_default=False),
    ] = None,
    output_dir: OutputDir = None,
    json: Json = False,
) -> int:
    """Put takes side by side in one labeled video."""
    from wanscope.doors.cli.compare import run_compare

    return run_compare(takes, out, output_dir, json)


def analyze(
    study: StudyArgument = None,
    batch_dir: Annotated[
        str | None,
        typer.Option(
            "--batch-dir", metavar="DIR", help="Deprecated alias for STUDY: the study's folder, or the workspace."
        ),
    ] = None,
    by: Annotated[
        str | None,
        typer.Option("--by", metavar="SLOT", help="The slot to compare. [default: the design's, or all]"),
    ] = None,
    contrast: Annotated[
        tuple[str, str] | None,
        typer.Option("--contrast", metavar="A B", help="Two values of the slot: takes with A minus takes with B."),
    ] = None,
    baseline: Annotated[
        str | None, typer.Option("--baseline", metavar="C", help="The value that the others are compared with.")
    ] = None,
    unit: Annotated[
        str | None,
        typer.Option(
            "--unit", metavar="seed|scene", help="The unit of replication. [default: scene if there are enough scenes]"
        ),
    ] = None,
    correction: Annotated[
        str,
        typer.Option(
            "--correction",
            metavar="max-t|holm|bh",
            help="The correction for multiple testing: Westfall and Young's max-T, Holm, or Benjamini and Hochberg.",
        ),
    ] = "max-t",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="DIR", help="Where to write. [default: in the study's folder]", show_default=False
        ),
    ] = None,
    report: Annotated[
        bool, typer.Option("--report/--no-report", help="Also make the figures and the HTML page.", show_default=False)
    ] = True,
    output_dir: OutputDir = None,
    json: Json = False,
) -> int:
    """Measure and compare the paths of a study's takes.

    Writes tables, figures, tests and an HTML report that works offline. Takes need --store-latents.
    """
    from wanscope.doors.cli.analyze import AnalyzeOptions, run_analyze

    options = AnalyzeOptions(study, batch_dir, by, contrast, baseline, unit, out, report, correction)
    return run_analyze(options, output_dir, json)


def export(
    study: Annotated[
        str, typer.Argument(metavar="STUDY", help="The study's name, its folder, or the workspace that holds it.")
    ],
    bundle: Annotated[
        bool, typer.Option("--bundle", help="Write recipes, tables, figures, report, versions, checksums and methods.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="The folder to write. [default: exports/STUDY in the workspace]",
            show_default=False,
        ),
    ] = None,
    by: Annotated[str | None, typer.Option("--by", metavar="SLOT", help="As for `analyze`.")] = None,
    contrast: Annotated[
        tuple[str, str] | None, typer.Option("--contrast", metavar="A B", help="As for `analyze`.")
    ] = None,
    baseline: Annotated[str | None, typer.Option("--baseline", metavar="C", help="As for `analyze`.")] = None,
    unit: Annotated[str | None, typer.Option("--unit", metavar="seed|scene", help="As for `analyze`.")] = None,
    correction: Annotated[
        str, typer.Option("--correction", metavar="max-t|holm|bh", help="As for `analyze`.")
    ] = "max-t",
    output_dir: OutputDir = None,
    json: Json = False,
) -> int:
    """Collect a study's results and methods in one folder to publish."""
    from wanscope.doors.cli.analyze import ExportOptions, run_export

    return run_export(ExportOptions(study, bundle, out, by, contrast, baseline, unit, correction), output_dir, json)
