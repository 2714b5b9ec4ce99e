"""The content of one figure: its series, labels and caption. figures.py draws it, with Plotly and with matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from wanscope.analysis.metric import Metric

Kind = Literal["line", "thin", "points", "interval", "band"]


@dataclass(frozen=True)
class Series:
    """One data series.

    kind: a line, a thin line in the background, points, points with intervals along x (low, high), or a line with a
    band along y (low, high). group: determines color and dash. legend: whether the legend names it. filled: of each
    point with an interval, whether it is filled; of each point on a line with a band, whether it has a large dot. text:
    the hover text of each point.
    """

    name: str
    x: Sequence[float | str]
    y: Sequence[float | str | None]
    kind: Kind = "line"
    group: int = 0
    legend: bool = True
    low: Sequence[float | None] = ()
    high: Sequence[float | None] = ()
    filled: Sequence[bool] = ()
    text: Sequence[str] = ()


@dataclass(frozen=True)
class Chart:
    """One figure. key: its file name. section: the heading it is shown under. height: in pixels in the report.

    zero_x, zero_y: whether a line marks 0.
    """

    key: str
    section: str
    title: str
    caption: str
    x: str
    y: str
    series: tuple[Series, ...]
    log_y: bool = False
    height: int = 340
    zero_x: bool = False
    zero_y: bool = False
    metric: Metric | None = None


def axis_label(title: str, unit: str) -> str:
    """Return a label short enough for the y axis of a small figure, whose heading has the full title."""
    if len(title) > 26:
        return "" if unit == "1" else unit
    return title if unit == "1" else f"{title} ({unit})"
