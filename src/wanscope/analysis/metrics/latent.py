"""Metrics of the latents at every stored state, and of the result (latent_statistics.py)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from wanscope.analysis.latent_statistics import LatentStatistics, band_edges
from wanscope.analysis.metric import Row, Subject, metric, one, per_state

NEEDS = ("statistics",)

# Name, title, unit, definition, value. Each is a metric of every state and, as `final_*`, a tested one of the result.
SCALARS: tuple[tuple[str, str, str, str, Callable[[LatentStatistics], float]], ...] = (
    ("variance", "Variance", "1", "Variance of all values of a latent.", lambda s: s.variance),
    (
        "detail",
        "Detail",
        "1",
        "Share of the spatial power, without the mean of each channel and frame, at 0.25 cycles per latent pixel and "
        "above.",
        lambda s: s.detail,
    ),
    (
        "coherence",
        "Frame coherence",
        "1",
        "Mean correlation of adjacent latent frames, after subtracting each channel's mean.",
        lambda s: s.coherence,
    ),
    (
        "entropy",
        "Entropy",
        "nats",
        "Differential entropy of a latent's values, from a histogram (bins of 1/32, Miller-Madow correction).",
        lambda s: s.entropy,
    ),
    (
        "gaussian_gap",
        "Distance from Gaussian",
        "nats",
        "Entropy of a Gaussian with the same variance minus the entropy: 0 for noise.",
        lambda s: s.gaussian_gap,
    ),
    (
        "channel_correlation",
        "Channel correlation",
        "1",
        "Mean absolute correlation between two channels.",
        lambda s: s.correlation,
    ),
)


def _at_states(value: Callable[[LatentStatistics], float]) -> Callable[[Subject], list[Row]]:
    return lambda subject: per_state([value(s) for s in subject.statistics], subject.states)


def _at_result(value: Callable[[LatentStatistics], float]) -> Callable[[Subject], list[Row]]:
    return lambda subject: one(value(subject.statistics[-1]))


for _name, _title, _unit, _about, _value in SCALARS:
    metric(_name, title=_title, unit=_unit, about=_about, needs=NEEDS)(_at_states(_value))
    metric(
        f"final_{_name}",
        title=f"{_title} of the result",
        unit=_unit,
        about=f"{_about[:-1]}, at the last state.",
        needs=NEEDS,
        tested=True,
    )(_at_result(_value))


@metric(
    "frame_change",
    title="Change between frames",
    unit="1",
    needs=NEEDS,
    about="Mean squared difference of adjacent frames over the sum of their mean squares: 1 for noise, 0 for a still.",
)
def frame_change(subject: Subject) -> list[Row]:
    return per_state([s.change for s in subject.statistics], subject.states)


@metric("channel_mean", title="Channel means", unit="1", needs=NEEDS, about="Mean of each channel.")
def channel_mean(subject: Subject) -> list[Row]:
    return _channel_rows(subject, lambda s: s.mean_C)


@metric("channel_variance", title="Channel variances", unit="1", needs=NEEDS, about="Variance of each channel.")
def channel_variance(subject: Subject) -> list[Row]:
    return _channel_rows(subject, lambda s: s.variance_C)


def _channel_rows(subject: Subject, values: Callable[[LatentStatistics], np.ndarray]) -> list[Row]:
    """Return one row per state and channel. values: a function that returns one value per channel, [C]."""
    pairs = zip(subject.statistics, subject.states, strict=True)
    return [Row(float(v), int(k), str(c)) for s, k in pairs for c, v in enumerate(values(s))]


@metric(
    "radial_power",
    title="Spatial power by frequency",
    unit="1",
    needs=NEEDS,
    about="Mean squared Fourier coefficient in 8 radial bands; parts are lower edges in cycles per latent pixel.",
)
def radial_power(subject: Subject) -> list[Row]:
    edges = band_edges()
    pairs = zip(subject.statistics, subject.states, strict=True)
    return [Row(float(v), int(k), f"{edges[r]:.4f}") for s, k in pairs for r, v in enumerate(s.power_R)]


@metric(
    "channel_correlations",
    title="Correlations of channels in the result",
    unit="1",
    needs=NEEDS,
    about="Correlation of two channels over all positions of the last latent; parts are their indices.",
)
def channel_correlations(subject: Subject) -> list[Row]:
    r_CC = subject.statistics[-1].correlation_CC
    return [Row(float(r_CC[i, j]), None, f"{i}-{j}") for i in range(len(r_CC)) for j in range(i)]
