"""The figures of an analysis. figures.py draws them, with Plotly and with matplotlib.

Every chart labels its axes with units, and its caption states what can be concluded from it and what cannot.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from wanscope.analysis.chart import Chart, Series, axis_label
from wanscope.analysis.effect_charts import course_chart, effect_charts
from wanscope.analysis.metric import Metric
from wanscope.analysis.pairing import factor_value
from wanscope.analysis.result import Analysis

MANY_GROUPS = 12  # with more groups, the thin lines of single takes are left out


@dataclass(frozen=True)
class Groups:
    """The groups by which takes are colored: values of the compared factor if there is only one, else all labels."""

    names: tuple[str, ...]
    of: tuple[int, ...]  # index of each member's group

    @property
    def few(self) -> bool:
        """Whether there are few enough groups to draw single takes."""
        return len(self.names) <= MANY_GROUPS


def groups_of(analysis: Analysis) -> Groups:
    """Return the groups by which an analysis' takes are colored."""
    factors = list(dict.fromkeys(contrast.factor for contrast in analysis.comparison.contrasts))
    if len(factors) == 1:
        labels = [factor_value(member, factors[0]) or "other" for member in analysis.members]
    else:
        labels = [member.group for member in analysis.members]
    names = tuple(dict.fromkeys(labels))
    return Groups(names, tuple(names.index(label) for label in labels))


def charts(analysis: Analysis) -> list[Chart]:
    """Return all charts in the order of the report. Charts without values are left out."""
    groups = groups_of(analysis)
    found = [
        *effect_charts(analysis),
        *_courses(analysis, groups),
        *_joint(analysis, groups),
        *_spectra(analysis, groups),
        *_between(analysis),
        *_scalars(analysis, groups),
    ]
    return [chart for chart in found if any(len(series.x) for series in chart.series)]


def _courses(analysis: Analysis, groups: Groups) -> Iterator[Chart]:
    """Yield one chart per metric with values at each state: thin lines for takes, thick ones for group means."""
    for metric in analysis.table.metrics:
        table = analysis.table.of(metric.name)
        if not table.by_state or metric.figure is not None or any(value.row.part for value in table.values):
            continue
        takes: dict[int, dict[int, float]] = {}
        for value in table.values:
            assert value.row.state is not None
            takes.setdefault(value.member, {})[value.row.state] = value.row.value
        latent = "statistics" in metric.needs
        marks = all(number in (0.0, 1.0) for course in takes.values() for number in course.values())
        chart = Chart(
            metric.name,
            "Latents over the steps" if latent else "Paths over the steps",
            metric.title,
            f"{metric.about} " + ("Group means." if marks else "Thick: group mean; thin: single takes."),
            "step",
            "share of takes" if marks else _label(metric),
            (*(() if marks else _thin(takes, groups, analysis)), *_means(takes, groups)),
            metric=metric,
        )
        yield chart
        if not marks and (difference := course_chart(analysis, chart, metric.name)) is not None:
            yield difference


def _label(metric: Metric) -> str:
    return axis_label(metric.title, metric.unit)


def _thin(takes: dict[int, dict[int, float]], groups: Groups, analysis: Analysis) -> Iterator[Series]:
    if not groups.few:
        return
    for member, course in takes.items():
        states = sorted(course)
        values = [_known(course[state]) for state in states]
        yield Series(analysis.members[member].name, states, values, "thin", groups.of[member], False)


def _means(takes: dict[int, dict[int, float]], groups: Groups) -> Iterator[Series]:
    for number, name in enumerate(groups.names):
        courses = [course for member, course in takes.items() if groups.of[member] == number]
        states = sorted({state for course in courses for state in course})
        means = []
        for state in states:
            known = [course[state] for course in courses if np.isfinite(course.get(state, np.nan))]
            means.append(float(np.mean(known)) if known else None)
        yield Series(name, states, means, "line", number)


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _joint(analysis: Analysis, groups: Groups) -> Iterator[Chart]:
    """Yield the pictures: all paths on their joint principal axes, and the results on theirs."""
    between = analysis.between
    if between is None:
        return
    if between.joint is not None and between.joint.places_NKA.shape[2] >= 2:
        joint = between.joint
        series = []
        seen: set[int] = set()
        for row, member in enumerate(analysis.compared):
            places = joint.places_NKA[row]
            number = groups.of[member]
            text = [f"{analysis.members[member].name}, step {state}" for state in analysis.states]
            x, y = places[:, 0].tolist(), places[:, 1].tolist()
            series.append(Series(groups.names[number], x, y, "line", number, number not in seen, text=text))
            seen.add(number)
        how = "all latents" if joint.exact else f"{joint.landmarks} landmark latents"
        shares = ", ".join(f"{share:.0%}" for share in joint.share_A[:2])
        yield Chart(
            "joint-paths",
            "Pictures",
            "All paths on their joint principal axes",
            f"Axes computed from {how}. They hold {shares} of the squared distances; the rest is not visible. The "
            "first axes mostly separate seeds, and paths of any content look similar: compare pairs with the same "
            "seed, and rely on the tests for differences.",
            "first axis (rms)",
            "second axis (rms)",
            tuple(series),
            height=460,
        )
    places = analysis.groups.places_KNA
    if places is not None and places.shape[2] >= 2 and len(analysis.compared) > 2:
        last = []
        for number, name in enumerate(groups.names):
            rows = [row for row, member in enumerate(analysis.compared) if groups.of[member] == number]
            text = [analysis.members[analysis.compared[row]].name for row in rows]
            x, y = places[-1, rows, 0].tolist(), places[-1, rows, 1].tolist()
            last.append(Series(name, x, y, "points", number, text=text))
        yield Chart(
            "results",
            "Pictures",
            "The results on their principal axes",
            "Exact principal coordinates of the last latents of all takes. These are two of many axes: groups that "
            "overlap here may be separate on others, and the seed changes a result more than most words do.",
            "first axis (rms)",
            "second axis (rms)",
            tuple(last),
            height=420,
        )


def _spectra(analysis: Analysis, groups: Groups) -> Iterator[Chart]:
    for name, section, x, log in (
        ("explained", "Paths as a whole", "principal axis", True),
        ("frequency_power", "Paths as a whole", "frequency (cycles per step)", True),
    ):
        if name in {metric.name for metric in analysis.table.metrics}:
            yield _by_part(analysis, groups, name, section, x, log, None)
    if analysis.states and "radial_power" in {metric.name for metric in analysis.table.metrics}:
        last = analysis.states[-1]
        yield _by_part(
            analysis,
            groups,
            "radial_power",
            "Latents over the steps",
            "frequency (cycles per latent pixel)",
            True,
            last,
        )


def _by_part(
    analysis: Analysis, groups: Groups, name: str, section: str, x: str, log: bool, state: int | None
) -> Chart:
    """Return a chart of a metric's group means over its parts, which are numbers."""
    table = analysis.table.of(name)
    found: dict[int, dict[float, list[float]]] = {}
    for value in table.values:
        if value.row.state == state and np.isfinite(value.row.value):
            parts = found.setdefault(groups.of[value.member], {})
            parts.setdefault(float(value.row.part), []).append(value.row.value)
    series = []
    for number, group in enumerate(groups.names):
        parts = found.get(number, {})
        places = sorted(parts)
        means = [float(np.mean(parts[place])) for place in places]
        # A logarithmic axis cannot show zero.
        shown = [mean if mean > 0 or not log else None for mean in means]
        series.append(Series(group, places, shown, "line", number))
    where = "" if state is None else " At the last state."
    about = f"{table.metric.about}{where} Group means."
    return Chart(
        name, section, table.metric.title, about, x, _label(table.metric), tuple(series), log, metric=table.metric
    )


QUANTITIES = (
    ("dispersion", "Dispersion over seeds", "Root mean squared distance of a group's takes from their mean."),
    (
        "dispersion_log_volume",
        "Log-volume of the dispersion over seeds",
        "Half the sum of ln(lambda / D) of a group's takes about their mean, with one rank for all groups and steps.",
    ),
    (
        "distance_in_pairs",
        "Distance in pairs",
        "Mean distance between the two takes of a pair: same seed, other value.",
    ),
    (
        "permanova_r2",
        "Share of distance between the groups",
        "R^2 of PERMANOVA within pairs: 1 where all pairs differ in the same way. Without any difference, about 1 / "
        "pairs is expected (`permanova_r2_expected` in the table `groups`).",
    ),
    (
        "energy_distance",
        "Energy distance",
        "An unbiased estimate: about 0, and as often below as above, for groups that do not differ.",
    ),
    (
        "nearest_centroid",
        "Nearest centroid",
        "Share of the takes of a left-out seed that are nearer to the centroid of their own group; chance is 0.5.",
    ),
    (
        "pairs_in_order",
        "Pairs distinguished",
        "Share of the pairs of a left-out seed that the other seeds' centroids put the right way round; chance is 0.5.",
    ),
)


def _between(analysis: Analysis) -> Iterator[Chart]:
    """Yield one chart per quantity of groups.py, over the states."""
    for quantity, title, about in QUANTITIES:
        rows = [row for row in analysis.groups.rows if row.quantity == quantity and np.isfinite(row.value)]
        names = list(dict.fromkeys((row.factor, row.group) for row in rows))
        series = []
        for number, (factor, group) in enumerate(names):
            states, values = analysis.groups.course(factor, group, quantity)
            series.append(Series(group, states, [_known(v) for v in values], "line", number))
        label = axis_label(title, rows[0].unit if rows else "1")
        yield Chart(quantity, "Groups over the steps", title, about, "step", label, tuple(series))


def _scalars(analysis: Analysis, groups: Groups) -> Iterator[Chart]:
    """Yield one chart per tested metric: one point per seed and group, with lines that join points of one seed."""
    for metric in analysis.table.metrics:
        table = analysis.table.of(metric.name)
        if not metric.tested or table.by_state or metric.figure is not None:
            continue
        seeds: dict[int, dict[int, list[float]]] = {}
        for value in table.values:
            seed = analysis.members[value.member].seed
            seeds.setdefault(seed, {}).setdefault(groups.of[value.member], []).append(value.row.value)
        series = []
        for seed, found in sorted(seeds.items()):
            numbers = sorted(found)
            means = [_known(float(np.mean(found[number]))) for number in numbers]
            series.append(Series(f"seed {seed}", [groups.names[n] for n in numbers], means, "thin", 7, False))
        for number, name in enumerate(groups.names):
            values = [_known(float(np.mean(found[number]))) for found in seeds.values() if number in found]
            series.append(Series(name, [name] * len(values), values, "points", number, False))
        yield Chart(
            f"{metric.name}-values",
            "Values",
            metric.title,
            f"{metric.about} One point per seed and group; lines join the points of one seed.",
            "",
            _label(metric),
            tuple(series),
            height=300,
            metric=metric,
        )
