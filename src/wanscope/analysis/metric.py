"""What a metric is, and where all of them are found. A metric is one file:

    from wanscope.analysis.metric import Subject, metric, one

    @metric("late_drift", title="Drift of the last step", unit="rms", needs=("path",), about="How far ...")
    def late_drift(subject: Subject):
        return one((subject.path.increments[-1, -1] / subject.path.dimension) ** 0.5)

`increments` holds inner products, so a length in rms divides them by the number of values, `dimension`. Named in a
package's entry point `wanscope.metrics` it is in every analysis, test, table and report. The function gets
one take and returns tidy rows: a value, the state it belongs to (None for the whole path), and the part (a channel, a
band) where there are several. `tested` metrics of the whole path are compared between groups; every one of them
enlarges the family that the p values are corrected for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal

import numpy as np

from wanscope.analysis.latent_path import LatentPath
from wanscope.analysis.latent_statistics import LatentStatistics
from wanscope.errors import RequestError
from wanscope.spec.metric_names import offered, register
from wanscope.take.store import Take

BUILT_IN = ("wanscope.analysis.metrics.path", "wanscope.analysis.metrics.latent")

# path: the Gram of the path. statistics: LatentStatistics of the stored states. take: files of the take itself.
Need = Literal["path", "statistics", "take"]


@dataclass(frozen=True)
class Row:
    """One value. state: of the loop, 0 is the noise; None for the whole path. part: which of several."""

    value: float
    state: int | None = None
    part: str = ""


@dataclass(frozen=True)
class Subject:
    """One take as metrics see it. rank: the one rank that all takes of the analysis count eigenvalues to.

    states: which states of the loop `statistics` are of.
    """

    take: Take
    path: LatentPath
    rank: int
    statistics: Sequence[LatentStatistics] = ()
    states: Sequence[int] = ()


@dataclass(frozen=True)
class Metric:
    """See the module's text. about: one sentence with the formula. parts: whether rows name parts.

    figure: a function from `figures.MetricTable` to a Plotly figure; None draws lines over the states, or points.
    """

    name: str
    title: str
    unit: str
    about: str
    needs: tuple[Need, ...]
    rows: Callable[[Subject], Iterable[Row]]
    tested: bool = False
    figure: Callable[[Any], Any] | None = None

    def of(self, subject: Subject) -> list[Row]:
        """The rows of one take. RequestError where the function returns something else."""
        found = list(self.rows(subject))
        if not all(isinstance(row, Row) for row in found):
            raise RequestError(
                f"the metric {self.name} returned {type(found[0]).__name__} instead of rows",
                "a metric returns wanscope.analysis.metric.Row objects",
                "return one(value), or per_state(values, states)",
            )
        return found


def one(value: float, part: str = "") -> list[Row]:
    """A value of the whole path."""
    return [Row(float(value), None, part)]


def per_state(values: Iterable[float], states: Iterable[int], part: str = "") -> list[Row]:
    """A value for each state."""
    return [Row(float(value), int(state), part) for value, state in zip(values, states, strict=True)]


@dataclass
class Registry:
    """Metrics by name, in the order in which they were registered."""

    metrics: dict[str, Metric] = field(default_factory=dict)

    def add(self, metric: Metric) -> None:
        known = self.metrics.get(metric.name)
        if known is not None and known.rows.__module__ != metric.rows.__module__:
            raise RequestError(
                f"two metrics are called {metric.name!r}",
                f"one is in {known.rows.__module__}, the other in {metric.rows.__module__}",
                "rename yours: names with your package's in front stay free",
            )
        self.metrics[metric.name] = metric


REGISTRY = Registry()


def metric(
    name: str,
    *,
    title: str,
    unit: str,
    about: str,
    needs: tuple[Need, ...] = ("path",),
    tested: bool = False,
    figure: Callable[[Any], Any] | None = None,
) -> Callable[[Callable[[Subject], Iterable[Row]]], Callable[[Subject], Iterable[Row]]]:
    """Register the function below as a metric; it stays the function it is."""

    def registered(function: Callable[[Subject], Iterable[Row]]) -> Callable[[Subject], Iterable[Row]]:
        REGISTRY.add(Metric(name, title, unit, about, needs, function, tested, figure))
        register(name, tested)
        return function

    return registered


def all_metrics(registry: Registry = REGISTRY) -> list[Metric]:
    """The built-in ones and those of every installed package that names an entry point."""
    for module in BUILT_IN:
        import_module(module)
    for found in offered():
        if isinstance(found, Metric):
            registry.add(found)
    return list(registry.metrics.values())


def finite(values: np.ndarray) -> np.ndarray:
    """Those that are numbers: what a mean over a path's places is taken of."""
    return values[np.isfinite(values)]


def mean_of(values: np.ndarray) -> float:
    """Mean of what is finite, NaN for nothing."""
    kept = finite(values)
    return float(kept.mean()) if len(kept) else float("nan")
