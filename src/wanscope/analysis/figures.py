"""Draw charts twice: with Plotly for the report, where they are interactive, and with matplotlib as PNG and SVG.

Colors are those of Okabe and Ito (2008, jfly.uni-koeln.de/color), which can be distinguished with any kind of color
vision; dashes and markers distinguish the groups a second time.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from wanscope.analysis.chart import Chart, Series
from wanscope.take.disk import guarded

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8A7F00", "#555555")
DASHES = ("solid", "dash", "dot", "dashdot")
LINES = ("-", "--", ":", "-.")
MARKERS = ("circle", "square", "diamond", "triangle-up", "x", "cross", "star", "triangle-down")
SHAPES = ("o", "s", "D", "^", "X", "P", "*", "v")
INK, PALE = "#222222", "#e4e4e4"
DPI = 150
BAND_OPACITY = 0.2


def color(group: int) -> str:
    """Return the color of a group, as #rrggbb."""
    return COLORS[group % len(COLORS)]


# ---- Plotly


def plotly_figure(chart: Chart) -> dict[str, Any]:
    """Return `data` and `layout` of the chart, as values that can be written as JSON."""
    axis = {"gridcolor": PALE, "zerolinecolor": "#bbbbbb", "automargin": True}
    layout: dict[str, Any] = {
        "height": chart.height,
        "margin": {"l": 64, "r": 16, "t": 12, "b": 48},
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": INK},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "hovermode": "closest",
        "legend": {"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0},
        "xaxis": {**axis, "title": {"text": _plain(chart.x)}},
        "yaxis": {**axis, "title": {"text": _plain(chart.y)}, "type": "log" if chart.log_y else "-"},
    }
    if chart.zero_x:
        layout["xaxis"] |= {"zeroline": True, "zerolinewidth": 2, "zerolinecolor": "#888888"}
    if chart.zero_y:
        layout["yaxis"] |= {"zeroline": True, "zerolinewidth": 2, "zerolinecolor": "#888888"}
    bands = [_band(series) for series in chart.series if series.kind == "band"]
    return {"data": [*bands, *(_trace(series) for series in chart.series)], "layout": layout}


def _plain(text: str) -> str:
    """Escape a text, because Plotly interprets some HTML tags and a slot's value must not be one."""
    return html.escape(text, quote=False)


def _trace(series: Series) -> dict[str, Any]:
    name, chosen = _plain(series.name), color(series.group)
    turn = series.group // len(COLORS) + series.group
    trace: dict[str, Any] = {
        "type": "scatter",
        "name": name,
        "x": [_plain(x) if isinstance(x, str) else x for x in series.x],
        "y": [_plain(y) if isinstance(y, str) else y for y in series.y],
        "showlegend": series.legend,
        "legendgroup": str(series.group),
    }
    if series.text:
        trace |= {"text": [_plain(text) for text in series.text], "hovertemplate": "%{text}<br>%{x:.4g}, %{y:.4g}"}
    if series.kind == "line":
        marker = {"size": 4, "color": chosen}
        return trace | {"mode": "lines+markers", "line": {"color": chosen, "dash": DASHES[turn % 4]}, "marker": marker}
    if series.kind == "band":
        marker = {"size": [9 if filled else 3 for filled in series.filled], "color": chosen}
        return trace | {"mode": "lines+markers", "line": {"color": chosen, "dash": DASHES[turn % 4]}, "marker": marker}
    if series.kind == "thin":
        line = {"color": chosen, "width": 1}
        return trace | {"mode": "lines", "line": line, "opacity": 0.3, "hoverinfo": "name"}
    marker = {"size": 9, "color": chosen, "symbol": MARKERS[series.group % len(MARKERS)]}
    if series.kind == "points":
        return trace | {"mode": "markers", "marker": marker}
    pairs = list(zip(series.x, series.low, series.high, strict=True))
    error = {
        "type": "data",
        "symmetric": False,
        "array": [_gap(high, x) for x, _, high in pairs],
        "arrayminus": [_gap(x, low) for x, low, _ in pairs],
        "color": chosen,
        "thickness": 1.5,
    }
    fills = [chosen if filled else "white" for filled in series.filled]
    marker = {"size": 9, "color": fills, "line": {"color": chosen, "width": 2}}
    hover = "%{y}: %{x:.2f}<br>%{text}<extra></extra>"
    return trace | {"mode": "markers", "marker": marker, "error_x": error, "hovertemplate": hover}


def _band(series: Series) -> dict[str, Any]:
    """Return the filled area between the bounds of a series, drawn below its line."""
    known = [
        (x, low, high)
        for x, low, high in zip(series.x, series.low, series.high, strict=True)
        if low is not None and high is not None
    ]
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [x for x, _, _ in known] + [x for x, _, _ in reversed(known)],
        "y": [low for _, low, _ in known] + [high for _, _, high in reversed(known)],
        "fill": "toself",
        "fillcolor": color(series.group),
        "opacity": BAND_OPACITY,
        "line": {"width": 0},
        "hoverinfo": "skip",
        "showlegend": False,
        "legendgroup": str(series.group),
    }


def _gap(upper: Any, lower: Any) -> float:
    return float(upper) - float(lower) if upper is not None and lower is not None else 0.0


# ---- matplotlib


def write_static(charts: Iterable[Chart], folder: Path) -> list[Path]:
    """Write a PNG and an SVG file of every chart and return their paths."""
    import matplotlib

    files = []
    with guarded(folder), matplotlib.rc_context({"svg.hashsalt": "wanscope", "svg.fonttype": "none", "font.size": 9}):
        folder.mkdir(parents=True, exist_ok=True)
        for chart in charts:
            figure = _drawn(chart)
            for kind, metadata in (("png", {"Software": "wanscope"}), ("svg", {"Date": None})):
                path = folder / f"{chart.key}.{kind}"
                figure.savefig(path, format=kind, dpi=DPI, metadata=metadata)
                files.append(path)
    return files


def _drawn(chart: Chart) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    width, height = 6.4, max(2.6, chart.height / 100)
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    # Margins in inches; names on the y axis take about 0.065 per letter. (A layout engine would draw everything twice.)
    names = max((len(y) for series in chart.series for y in series.y if isinstance(y, str)), default=0)
    left = max(0.75, 0.15 + 0.065 * names)
    figure.subplots_adjust(left / width, 0.5 / height, 1 - 0.15 / width, 1 - 0.35 / height)
    axes = figure.add_subplot()
    for series in chart.series:
        _draw(axes, series)
    axes.set_title(_escaped(chart.title), fontsize=10, loc="left")
    axes.set_xlabel(_escaped(chart.x))
    axes.set_ylabel(_escaped(chart.y))
    if chart.log_y:
        axes.set_yscale("log")
    if chart.zero_y and not chart.log_y:
        axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 4), useMathText=True)
    if chart.zero_y:
        axes.axhline(0, color="#888888", linewidth=1)
    if chart.zero_x:
        axes.axvline(0, color="#888888", linewidth=1)
    axes.grid(color=PALE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    if labels:
        axes.legend(handles, [_escaped(label) for label in labels], frameon=False, fontsize=8)
    return figure


def _escaped(text: str) -> str:
    """Escape a text, because matplotlib interprets $...$ as math."""
    return text.replace("$", r"\$")


def _draw(axes: Any, series: Series) -> None:
    chosen, turn = color(series.group), series.group // len(COLORS) + series.group
    label = series.name if series.legend else None
    x = [_escaped(v) if isinstance(v, str) else v for v in series.x]
    y = [math.nan if v is None else _escaped(v) if isinstance(v, str) else v for v in series.y]
    if series.kind == "line":
        axes.plot(x, y, color=chosen, linestyle=LINES[turn % 4], marker=".", markersize=3, linewidth=1.4, label=label)
    elif series.kind == "thin":
        axes.plot(x, y, color=chosen, linewidth=0.6, alpha=0.35)
    elif series.kind == "band":
        low, high = ([math.nan if v is None else v for v in bound] for bound in (series.low, series.high))
        axes.fill_between(x, low, high, color=chosen, alpha=BAND_OPACITY, linewidth=0)
        axes.plot(x, y, color=chosen, linestyle=LINES[turn % 4], linewidth=1.4, label=label)
        large = [(place, value) for place, value, filled in zip(x, y, series.filled, strict=True) if filled]
        axes.plot([p for p, _ in large], [v for _, v in large], color=chosen, linestyle="", marker="o", markersize=5)
    elif series.kind == "points":
        axes.plot(x, y, color=chosen, linestyle="", marker=SHAPES[series.group % 8], markersize=5, label=label)
    else:
        lows = [_gap(v, low) for v, low in zip(series.x, series.low, strict=True)]
        highs = [_gap(high, v) for v, high in zip(series.x, series.high, strict=True)]
        axes.errorbar(x, y, xerr=[lows, highs], fmt="none", ecolor=chosen, elinewidth=1)
        fills = [chosen if filled else "white" for filled in series.filled]
        axes.scatter(x, y, c=fills, edgecolors=chosen, zorder=3, s=26)
