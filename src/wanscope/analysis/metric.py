"""The definition of a metric, and the registry of all metrics. A metric is one file:

    from wanscope.analysis.metric import Subject, metric, one

    @metric("late_drift", title="Drift of the last step", unit="rms", needs=("path",), about="How far ...")
    def late_drift(subject: Subject):
        return one((subject.path.increments[-1, -1] / subject.path.dimension) ** 0.5)

`increments` contains inner products, so a length in rms divides them by the number of values, `dimension`. A package
that names the file in its entry point `wanscope.metrics` adds it to every analysis, table and report. The function gets
one take and returns tidy rows: a value, the state it belongs to (None for the whole path), and the part (a channel, a
band) if there are several. `tested` metrics of the whole path are compared between groups; each of them adds to the
number of tests that the p values are corrected for.
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

# path: the Gram matrix of the path. statistics: LatentStatistics of the stored states. take: files of the take itself.
Need = Literal["path", "statistics", "take"]


@dataclass(frozen=True)
class Row:
    """One value. state: index in the loop, 0 is the noise; None for the whole path. part: name of the part, if any."""

    value: float
    state: int | None = None
    part: str = ""


@dataclass(frozen=True)
class Subject:
    """The input of a metric: one take. rank: number of eigenvalues used for log-volumes, the same for all takes.

    states: the indices in the loop of the states in `statistics`.
    """

    take: Take
    path: LatentPath
    rank: int
    statistics: Sequence[LatentStatistics] = ()
    states: Sequence[int] = ()


@dataclass(frozen=True)
class Metric:
    """A metric (see the module's docstring). about: one sentence with the formula.

    figure: a function from `table.MetricTable` to a Plotly figure; None draws lines over the states, or points.
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
        """Return the rows of one take. Raises RequestError if the metric's function returns anything else."""
        found = list(self.rows(subject))
        if not all(isinstance(row, Row) for row in found):
            raise RequestError(
                f"the metric {self.name} returned {type(found[0]).__name__} instead of rows",
                "a metric returns wanscope.analysis.metric.Row objects",
                "return one(value), or per_state(values, states)",
            )
        return found


def one(value: float, part: str = "") -> list[Row]:
    """Return the row of one value for the whole path."""
    return [Row(float(value), None, part)]


def per_state(values: Iterable[float], states: Iterable[int], part: str = "") -> list[Row]:
    """Return one row per state. values and states have the same length."""
    return [Row(float(value), int(state), part) for value, state in zip(values, states, strict=True)]


@dataclass
class Registry:
    """Metrics by name, in the order in which they were registered."""

    metrics: dict[str, Metric] = field(default_factory=dict)

    def add(self, metric: Metric) -> None:
        """Add a metric. Raises RequestError if another module has registered the name."""
        known = self.metrics.get(metric.name)
        if known is not None and known.rows.__module__ != metric.rows.__module__:
            raise RequestError(
                f"two metrics are called {metric.name!r}",
                f"one is in {known.rows.__module__}, the other in {metric.rows.__module__}",
                "rename yours, for example with your package's name as a prefix",
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
    """Return a decorator that registers a function as a metric and returns it unchanged."""

    def registered(function: Callable[[Subject], Iterable[Row]]) -> Callable[[Subject], Iterable[Row]]:
        REGISTRY.add(Metric(name, title, unit, about, needs, function, tested, figure))
        register(name, tested)
        return function

    return registered


def all_metrics(registry: Registry = REGISTRY) -> list[Metric]:
    """Return the built-in metrics and those of all installed packages with the entry point `wanscope.metrics`."""
    for module in BUILT_IN:
        import_module(module)
    for found in offered():
        if isinstance(found, Metric):
            registry.add(found)
    return list(registry.metrics.values())


def finite(values: np.ndarray) -> np.ndarray:
    """Return the finite values of an array, one-dimensional."""
    return values[np.isfinite(values)]


def mean_of(values: np.ndarray) -> float:
    """Return the mean of the finite values of an array; NaN if there are none."""
    kept = finite(values)
    return float(kept.mean()) if len(kept) else float("nan")
