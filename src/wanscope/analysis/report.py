"""`report.html`: a study's videos, tests, figures and recipe on one page that works offline.

The file contains everything: small copies of the videos, Plotly, and the figures' numbers. Its Content-Security-Policy
keeps it from loading anything else. The HTML is in templates/, where every text is escaped; this module collects the
data that the templates show.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wanscope import __version__, events
from wanscope.analysis.attention_charts import attention_charts
from wanscope.analysis.attention_section import section as attention_section
from wanscope.analysis.chart import Chart
from wanscope.analysis.charts import charts
from wanscope.analysis.collection import Member
from wanscope.analysis.effect_charts import FOUND
from wanscope.analysis.figures import plotly_figure, write_static
from wanscope.analysis.metric import Metric
from wanscope.analysis.preview import Preview, make_previews
from wanscope.analysis.remove_outdated import REPORT
from wanscope.analysis.result import Analysis
from wanscope.analysis.test_result import CORRECTIONS, FAMILIES, Test, TestResults
from wanscope.take.building import write_atomic
from wanscope.take.compare import table as rows_and_columns
from wanscope.take.disk import guarded

FIGURES = "figures"
SHOWN_SIDE = 176  # pixels; smaller videos are enlarged on the page
VALUES = "Values"  # a section of many small figures, folded


@dataclass(frozen=True)
class Section:
    """A section of the page. macro: its name in templates/sections.html.jinja. data: the macro's arguments."""

    title: str
    macro: str
    data: Mapping[str, Any]


def write_report(
    analysis: Analysis,
    folder: Path,
    on_event: events.Listener = events.ignore,
) -> list[Path]:
    """Write report.html and figures/ into `folder`, and return the files, the page first."""
    drawn = [*charts(analysis), *attention_charts(analysis)]
    on_event(events.Note(f"drawing {len(drawn)} figures"))
    custom = custom_figures(analysis)
    with guarded(folder):
        figures = write_static(drawn, folder / FIGURES)
        on_event(events.Note(f"making small copies of {len(analysis.members)} videos"))
        page = render_page(analysis, drawn, make_previews([member.take for member in analysis.members]), custom)
        path = folder / REPORT
        write_atomic(path, page)
    return [path, *figures]


def custom_figures(analysis: Analysis) -> list[tuple[Metric, dict[str, Any]]]:
    """Return the figures that metrics draw themselves, as Plotly JSON."""
    return [
        (metric, json.loads(metric.figure(analysis.table.of(metric.name)).to_json()))
        for metric in analysis.table.metrics
        if metric.figure is not None
    ]


def render_page(
    analysis: Analysis,
    drawn: Sequence[Chart],
    clips: Sequence[Preview],
    custom: Sequence[tuple[Metric, dict[str, Any]]] = (),
) -> str:
    """Return the page's text. clips: a preview of each member, in order. custom: metrics and the figures they drew."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from plotly.offline import get_plotlyjs

    templates = Environment(
        loader=PackageLoader("wanscope.analysis"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    members = analysis.members
    figures = {chart.key: plotly_figure(chart) for chart in drawn}
    return templates.get_template("report.html.jinja").render(
        title=f"Study {analysis.name}",
        subtitle=f"{len(members)} takes, {len({m.seed for m in members})} seeds, "
        f"model {members[0].take.recipe.model.name}; made by wanscope {__version__}",
        sections=list(_sections(analysis, drawn, clips, [metric for metric, _ in custom])),
        plotly=get_plotlyjs().replace("</script", "<\\/script"),
        charts=figures | {_key(metric): figure for metric, figure in custom},
    )


def _sections(
    analysis: Analysis, drawn: Sequence[Chart], clips: Sequence[Preview], custom: Sequence[Metric]
) -> Iterator[Section]:
    opening = [chart for chart in drawn if chart.section == FOUND]
    if opening:
        yield Section(FOUND, "figures", {"plots": opening, "folded": "", "single": True})
    yield Section("Summary", "summary", {"blocks": [_block(text) for text in analysis.summary.split("\n\n")]})
    yield Section("Videos", "videos", _videos(analysis, clips))
    yield Section("Tests", "tests", _tests(analysis.tests))
    for title in dict.fromkeys(chart.section for chart in drawn if chart.section != FOUND):
        folded = "Every tested metric, take by take" if title == VALUES else ""
        yield Section(
            title, "figures", {"plots": [c for c in drawn if c.section == title], "folded": folded, "single": False}
        )
    if custom:
        plots = [{"key": _key(m), "title": m.title, "caption": m.about, "height": 380} for m in custom]
        yield Section("Further metrics", "figures", {"plots": plots, "folded": "", "single": False})
    if attention := attention_section(analysis):
        yield Section("Attention", "attention", attention)
    yield Section("How to repeat this", "recipe", _recipe(analysis))
    yield Section("Definitions", "definitions", {"metrics": analysis.table.metrics})


def _key(metric: Metric) -> str:
    """Return the name of the figure that a metric draws itself."""
    return f"custom-{metric.name}"


def _block(text: str) -> dict[str, Any]:
    """Return a paragraph of the summary and the list below it; either may be empty."""
    lines = text.split("\n")
    return {
        "text": " ".join(line for line in lines if not line.startswith("- ")),
        "points": [line[2:] for line in lines if line.startswith("- ")],
    }


def _videos(analysis: Analysis, clips: Sequence[Preview]) -> dict[str, Any]:
    """Return the takes as a grid. If every column has a single seed, columns are headed by seeds and rows by labels."""
    members = analysis.members
    grid = rows_and_columns([member.take for member in members])
    seeds = [{members[i].seed for i in column if i is not None} for column in zip(*grid, strict=True)]
    by_seed = len(grid) > 1 and all(len(found) == 1 for found in seeds)
    rows = []
    for row in grid:
        first = next(members[i] for i in row if i is not None)
        cells = [None if i is None else _clip(members[i], clips[i]) for i in row]
        rows.append({"head": first.group if by_seed else "", "cells": cells})
    return {"heads": [f"seed {seed}" for (seed,) in seeds] if by_seed else [], "rows": rows}


def _clip(member: Member, preview: Preview) -> dict[str, Any]:
    return {
        "name": member.name,
        "label": f"{member.name}: {member.take.recipe.prompt}, seed {member.seed}",
        "preview": preview,
        "width": max(preview.width, SHOWN_SIDE),
    }


def _tests(results: TestResults) -> dict[str, Any]:
    """Return the tests by family: what is significant or confirmatory, by p, and the rest, which the page folds."""
    families = []
    for name, about in FAMILIES.items():
        tests = [test for test in results.tests if test.family_name == name]
        tests = sorted(tests, key=lambda t: (not t.confirmatory, 2.0 if t.p is None else t.p))
        shown = [test for test in tests if test.found or test.confirmatory]
        rest = [test for test in tests if not (test.found or test.confirmatory)]
        if tests:
            families.append(
                {
                    "title": about[:1].upper() + about[1:],
                    "size": sum(test.p is not None for test in tests),
                    "shown": [_row(test) for test in shown],
                    "rest": [_row(test) for test in rest],
                }
            )
    return {"results": results, "method": CORRECTIONS[results.correction], "families": families}


def _row(test: Test) -> dict[str, Any]:
    def n(value: float | None, form: str = ".3g") -> str:
        return "" if value is None else format(value, form)

    def span(low: float | None, high: float | None) -> str:
        return "" if low is None or high is None else f"{low:.3g} to {high:.3g}"

    interval = span(test.low, test.high)
    if interval:
        interval += f" ({test.interval}" + (f", covers {test.coverage:.0%}" if test.coverage is not None else "") + ")"
    unit = "" if test.measure == "1" or test.difference is None else f" {test.measure}"
    # R2 is undefined if the takes of every pair are identical.
    identical = test.difference is not None and math.isnan(test.difference)
    notes = [test.note]
    if test.expected is not None:
        notes.append(f"{test.expected:.3g} expected without a difference")
    if test.tokens_a is not None and test.tokens_b is not None and test.tokens_a != test.tokens_b:
        notes.append(f"tokens {test.tokens_a:g} and {test.tokens_b:g}")
    return {
        "found": test.found,
        "what": test.name + (" *" if test.confirmatory else ""),
        "note": "; ".join(note for note in notes if note),
        "compared": f"all of {test.a}" if test.kind == "omnibus" else f"{test.a} minus {test.b}",
        "numbers": [
            "no difference" if identical else n(test.difference, "+.3g") + unit,
            interval,
            n(test.effect, "+.2f"),
            span(test.effect_low, test.effect_high),
            n(test.p),
            n(test.decisive_p),
            test.units,
        ],
    }


def _recipe(analysis: Analysis) -> dict[str, Any]:
    collection = analysis.collection
    file = None if collection.folder is None else collection.folder / "study.yaml"
    return {
        "study": collection.name,
        "study_file": file.read_text(encoding="utf-8") if file is not None and file.is_file() else None,
        "made": analysis.members[0].take.manifest.environment,
        "members": analysis.members,
        "left_out": analysis.left_out,
    }
