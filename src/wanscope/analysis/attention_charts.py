"""Figures of attention over blocks and steps: each word's share and its concentration, and their paired differences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from wanscope.analysis.chart import Chart, Series
from wanscope.analysis.effect_charts import course_chart
from wanscope.analysis.paired_columns import PAD, PADDING, PREFIX
from wanscope.analysis.result import Analysis

SECTION = "Attention over blocks and steps"
LINES = 8  # words in a figure, including the padding
DIFFERENCES = 3  # words with a figure of their paired differences
MEASURES = (
    ("mass", "Share of attention", "Each word's share of all attention; the padding absorbs what no word needs."),
    ("concentration", "Concentration", "1 - H / ln N of a word's map: 0 for a uniform map, 1 for a single position."),
)
OVER = (("block", "block", 0), ("step", "step", 1))  # column, axis label, number of the first one


def attention_charts(analysis: Analysis) -> list[Chart]:
    """Return charts of each measure by block and by step, each followed by those of its paired differences.

    A chart without values is left out, such as those by step if only means over the steps were kept.
    """
    out = []
    for measure, title, about in MEASURES:
        for column, axis, first in OVER:
            chart = _chart(analysis.attention, measure, title, about, column, axis, first)
            if chart.series:
                out += [chart, *_differences(analysis, chart, measure, "state" if column == "step" else "block")]
    return out


def _differences(analysis: Analysis, chart: Chart, measure: str, axis: str) -> Iterator[Chart]:
    parts = dict.fromkeys(test.part for test in analysis.tests.courses if test.metric == PREFIX + measure)
    for part in [part for part in parts if part != PADDING][:DIFFERENCES]:
        if (difference := course_chart(analysis, chart, PREFIX + measure, part, axis)) is not None:
            yield difference


def _chart(
    rows: Sequence[Mapping[str, Any]], measure: str, title: str, about: str, column: str, axis: str, first: int
) -> Chart:
    found: dict[str, dict[int, list[float]]] = {}
    for row in rows:
        if row["measure"] == measure and row[column] is not None and np.isfinite(row["value"]):
            found.setdefault(row["word"], {}).setdefault(row[column], []).append(row["value"])
    over = "blocks" if column == "step" else "steps"
    log = measure == "mass"  # the padding's share is hundreds of times a word's
    return Chart(
        f"attention-{measure}-by-{column}",
        SECTION,
        f"{title} by {column}",
        f"{about} Means over the takes that have the word, and over {over}.",
        axis,
        title,
        tuple(_lines(found, first, log)),
        log,
        360,
    )


def _lines(found: Mapping[str, Mapping[int, Sequence[float]]], first: int, log: bool) -> Iterator[Series]:
    last = [PAD] if PAD in found else []
    words = [word for word in found if word != PAD][: LINES - len(last)]
    for number, word in enumerate(words + last):
        places = sorted(found[word])
        means = [float(np.mean(found[word][place])) for place in places]
        # A logarithmic axis cannot show zero.
        shown = [mean if mean > 0 or not log else None for mean in means]
        yield Series(word, [place + first for place in places], shown, "line", number)
