"""The statistics of `wanscope validate trajectories`: every metric as one test of a contrast, and the calibration of
the tests where there is no difference.

A metric with one value per take is tested as in `analyze`. A metric with many values (a series over the states, a value
per channel) is also one test: its statistic is the maximum over its places of |sum d| / sqrt(sum d^2), and flipping
the signs of the pairs, at all places together, gives its distribution. Westfall and Young 1993, Resampling-Based
Multiple Testing, section 2.3. The effect size is that at the place of the maximum, and its interval is simultaneous
over all places (Bonferroni), which accounts for choosing the place.

Shape suffixes: N takes, n pairs, M places (columns) of a metric, B sign patterns, R trials or rows, W wordings,
D values of the final latents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from wanscope.analysis.confidence_intervals import mean_interval
from wanscope.analysis.contrast_tests import RESOLUTION
from wanscope.analysis.effect_size import paired_effect
from wanscope.analysis.group_statistics import energy_distance, pair_form, sign_flip_p, squared_distances
from wanscope.analysis.metric import Metric, Subject
from wanscope.analysis.multiple_testing import holm
from wanscope.analysis.path_volume import common_rank
from wanscope.analysis.permutation_tests import DRAWS, TIE_TOLERANCE, sign_patterns
from wanscope.analysis.power import ALPHA
from wanscope.marbles.validate.model import wilson
from wanscope.marbles.validate.paths import Walk

NULL_DRAWS = 999  # sign patterns of a test in the calibration, which makes thousands of them
RELABELINGS = 1_000
LATENTS = (
    ("permanova", "Latents of the result (PERMANOVA)"),
    ("energy", "Latents of the result (energy distance)"),
)


@dataclass(frozen=True)
class Columns:
    """A metric's values, float64 [N, M]; places: the name of each column, ("",) for a metric with one value."""

    name: str
    title: str
    unit: str
    places: tuple[str, ...]
    values_NM: np.ndarray

    def differences(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Return a - b for pairs, [n, M]; a, b: indices of takes, [n]. Differences below rounding count as zero."""
        d_nM = self.values_NM[a] - self.values_NM[b]
        with np.errstate(invalid="ignore"):
            return np.where(np.abs(d_nM) > self.floor_M, d_nM, d_nM * 0)

    @property
    def floor_M(self) -> np.ndarray:
        """The largest difference that may be rounding, for each column, [M]."""
        return RESOLUTION * np.max(np.where(np.isfinite(self.values_NM), np.abs(self.values_NM), 0.0), axis=0)


@dataclass(frozen=True)
class Measured:
    """All metrics of all takes. gram_NN: inner products of the final latents, which have `dimension` values each.

    rank: how many eigenvalues log-volumes use. left_out: metrics that need the files of a take.
    """

    columns: tuple[Columns, ...]
    gram_NN: np.ndarray
    dimension: int
    rank: int
    left_out: tuple[str, ...]


def measured(walks: Sequence[Walk], metrics: Sequence[Metric]) -> Measured:
    """Compute every metric of every walk, with the same rank for all of them."""
    paths = [walk.path for walk in walks]
    rank = common_rank(paths)
    absent: Any = None  # a walk has no files; metrics that need them are left out
    subjects = [
        Subject(absent, path, rank, walk.statistics, range(len(walk.sigmas)))
        for path, walk in zip(paths, walks, strict=True)
    ]
    columns = []
    for metric in metrics:
        if "take" in metric.needs:
            continue
        rows = [{(row.state, row.part): row.value for row in metric.of(subject)} for subject in subjects]
        keys = list(dict.fromkeys(key for row in rows for key in row))
        values_NM = np.array([[row.get(key, np.nan) for key in keys] for row in rows], dtype=np.float64)
        columns.append(Columns(metric.name, metric.title, metric.unit, tuple(map(_place, keys)), values_NM))
    final_ND = np.stack([walk.final_CThw.reshape(-1) for walk in walks]).astype(np.float64)
    left_out = tuple(metric.name for metric in metrics if "take" in metric.needs)
    return Measured(tuple(columns), final_ND @ final_ND.T, final_ND.shape[1], rank, left_out)


def _place(key: tuple[int | None, str]) -> str:
    state, part = key
    return ", ".join([*([f"state {state}"] if state is not None else []), *([part] if part else [])])


def shares(d_nM: np.ndarray, signs_Bn: np.ndarray) -> np.ndarray:
    """Return |sum s d| / sqrt(sum d^2) for every sign pattern, [B, M]; 0 where no pair differs.

    A missing pair counts as 0.
    """
    d_nM = np.where(np.isfinite(d_nM), d_nM, 0.0)
    size_M = np.sqrt((d_nM**2).sum(axis=0))
    scaled_nM = np.divide(d_nM, size_M, out=np.zeros_like(d_nM), where=size_M > 0)
    return np.abs(signs_Bn @ scaled_nM)


def p_of_largest(shares_BM: np.ndarray) -> float:
    """Return the share of sign patterns whose maximum is at least that of the first pattern, the observed one."""
    largest_B = shares_BM.max(axis=1)
    return float((largest_B >= largest_B[0] - TIE_TOLERANCE * np.abs(largest_B[0])).mean())


def tested(found: Measured, a: np.ndarray, b: np.ndarray) -> list[dict[str, Any]]:
    """One row for each metric, and two for the latents of the results, of the pairs (a[i], b[i]). Uncorrected."""
    signs_Bn = sign_patterns(len(a)).astype(np.float64)
    rows: list[dict[str, Any]] = []
    chosen = []
    for columns in found.columns:
        d_nM = columns.differences(a, b)
        shares_BM = shares(d_nM, signs_Bn)
        at = int(shares_BM[0].argmax())
        chosen.append(d_nM[:, at])
        row: dict[str, Any] = {
            "metric": columns.name,
            "title": columns.title,
            "unit": columns.unit,
            "places": len(columns.places),
            "place": columns.places[at],
            "difference": _number(_mean(chosen[-1])),
            "p": p_of_largest(shares_BM),
        }
        if len(columns.places) == 1:
            interval = mean_interval(chosen[-1])
            row |= {"low": _number(interval.low), "high": _number(interval.high), "interval": interval.method}
        rows.append(row)
    _add_effects(rows, np.stack(chosen, axis=1))
    for (name, title), p, value in zip(LATENTS, *_latents(found, a, b, DRAWS), strict=True):
        rows.append({"metric": name, "title": title, "unit": "R2" if name == "permanova" else "rms", "places": 1})
        rows[-1] |= {"place": "", "difference": _number(value), "effect": None, "effect_low": None}
        rows[-1] |= {"effect_high": None, "p": p}
    return rows


def _add_effects(rows: list[dict[str, Any]], d_nR: np.ndarray) -> None:
    """Add to each row the effect size of its column of differences, with an interval simultaneous over its places."""
    places_R = np.array([row["places"] for row in rows])
    for places in np.unique(places_R):
        same = np.flatnonzero(places_R == places)
        effect = paired_effect(d_nR[:, same], confidence=1 - ALPHA / places)
        for i, size, low, high in zip(same.tolist(), effect.size, effect.low, effect.high, strict=True):
            rows[i] |= {"effect": _number(size), "effect_low": _number(low), "effect_high": _number(high)}


def _latents(
    found: Measured, a: np.ndarray, b: np.ndarray, draws: int, seed: int = 0
) -> tuple[list[float], list[float]]:
    """Return p of both tests on the final latents, and the statistics: R2 of the pairs' distances, energy distance."""
    inner_nn = pair_form(found.gram_NN, a, b)
    distance_NN = np.sqrt(squared_distances(found.gram_NN) / found.dimension)
    p = [
        sign_flip_p(inner_nn, draws, seed),
        sign_flip_p(-pair_form(distance_NN, a, b), draws, seed),
    ]
    within = np.trace(inner_nn)
    r2 = inner_nn.sum() / len(a) / within if within > 0 else float("nan")
    return p, [float(r2), energy_distance(distance_NN, a, b, range(len(a)))]


def corrected(contrasts: Sequence[list[dict[str, Any]]]) -> int:
    """Add Holm's p to the rows of all contrasts, as one family; return the size of the family."""
    rows = [row for contrast in contrasts for row in contrast]
    adjusted = holm(np.array([row["p"] for row in rows]))
    for row, p in zip(rows, adjusted, strict=True):
        row["p_holm"] = _number(p)
        row["told_apart"] = bool(p <= ALPHA)
    return int(np.isfinite(adjusted).sum())


def p_values(found: Measured, a: np.ndarray, b: np.ndarray, draws: int = NULL_DRAWS, seed: int = 0) -> np.ndarray:
    """p of every row that `tested` gives, in its order, and nothing else."""
    signs_Bn = sign_patterns(len(a), draws, seed).astype(np.float64)
    widths = [len(columns.places) for columns in found.columns]
    d_nM = np.concatenate([columns.differences(a, b) for columns in found.columns], axis=1)
    shares_BM = shares(d_nM, signs_Bn)
    edges = np.cumsum([0, *widths])
    own = [p_of_largest(shares_BM[:, i:j]) for i, j in pairwise(edges)]
    return np.array([*own, *_latents(found, a, b, draws, seed)[0]])


def null_of_labels(found: Measured, takes: Sequence[int], trials: int = RELABELINGS, seed: int = 0) -> dict[str, Any]:
    """Return how often tests reject when takes of one prompt are paired and labeled at random, over `trials`."""
    rng = np.random.default_rng([seed, 1])
    p = []
    for trial in range(trials):
        order = rng.permutation(np.asarray(takes))
        half = len(order) // 2
        # Each trial has its own sign patterns: shared ones would make the trials' errors correlated.
        p.append(p_values(found, order[:half], order[half : 2 * half], seed=trial))
    return rates(np.array(p), names(found))


def null_of_wordings(
    found: Measured, takes: Sequence[Sequence[int]], trials: int = RELABELINGS, seed: int = 0
) -> dict[str, Any]:
    """Return how often tests reject when each scene has two random wordings, the first compared with the second.

    Meaning and seed are then the same, and labels arbitrary. takes: for each wording the takes of all scenes, in the
    same order.
    """
    rng = np.random.default_rng([seed, 2])
    take_WN = np.asarray(takes)
    scenes = np.arange(take_WN.shape[1])
    p = []
    for trial in range(trials):
        drawn = np.array([rng.choice(len(take_WN), 2, replace=False) for _ in scenes])
        p.append(p_values(found, take_WN[drawn[:, 0], scenes], take_WN[drawn[:, 1], scenes], seed=trial))
    return rates(np.array(p), names(found))


def names(found: Measured) -> list[str]:
    """Return the metric names of the rows that `tested` returns."""
    return [columns.name for columns in found.columns] + [name for name, _ in LATENTS]


def rates(p_RM: np.ndarray, metrics: Sequence[str]) -> dict[str, Any]:
    """Return how often each metric rejects at the 5% level, and how often any does after Holm's correction.

    p_RM: p of every trial and metric. The shares have 95% Wilson intervals over the trials.
    """
    trials = len(p_RM)
    rejected_M = (p_RM <= ALPHA).mean(axis=0)
    any_share = float(np.mean([bool((holm(p_M) <= ALPHA).any()) for p_M in p_RM]))

    def row(share: float) -> dict[str, Any]:
        low, high = wilson(share, trials)
        return {"share": round(share, 4), "low": round(low, 4), "high": round(high, 4)}

    return {
        "trials": trials,
        "by_metric": {name: row(float(share)) for name, share in zip(metrics, rejected_M, strict=True)},
        "mean": round(float(rejected_M.mean()), 4),
        "any_after_holm": row(any_share),
    }


def _mean(values_n: np.ndarray) -> float:
    kept = values_n[np.isfinite(values_n)]
    return float(kept.mean()) if len(kept) else float("nan")


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
