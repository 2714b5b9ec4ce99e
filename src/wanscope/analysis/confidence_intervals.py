"""Intervals of a mean difference: paired t below 12 pairs, bias-corrected and accelerated bootstrap (BCa) from 12 on.

With few pairs the actual coverage of the bootstrap is far below its nominal level. It is therefore used from BCA_PAIRS
on, and each BCa interval comes with its simulated coverage for normal differences and the same number of pairs.

Sources: BCa, Efron 1987, doi 10.1080/01621459.1987.10478410; for the mean, acceleration from the jackknife is the
skewness of the sample over 6 sqrt(n).

Shape suffixes: n pairs, M metrics, R resamples.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

BCA_PAIRS = 12
RESAMPLES = 4_999
CONFIDENCE = 0.95
SKEWED = 1.0  # skewness above which a note calls a t interval of few pairs unreliable


@dataclass(frozen=True)
class Interval:
    """The interval of a mean difference, in its unit. method: "t", "BCa" or "none".

    coverage: simulated, of a BCa interval. note: a warning about skew, or why there is no interval.
    """

    low: float
    high: float
    method: str
    coverage: float | None = None
    note: str = ""


def mean_interval(differences_n: np.ndarray, confidence: float = CONFIDENCE, seed: int = 0) -> Interval:
    """Return the interval of the mean of differences [n], by t or BCa depending on n. NaN values are left out."""
    d_n = np.asarray(differences_n, dtype=np.float64)
    d_n = d_n[np.isfinite(d_n)]
    n = len(d_n)
    if n < 2:
        return Interval(float("nan"), float("nan"), "none", note="one pair does not give an interval")
    if np.ptp(d_n) <= 1e-12 * np.abs(d_n).max():
        return Interval(float("nan"), float("nan"), "none", note="all differences are equal")
    if n < BCA_PAIRS:
        low, high = t_interval(d_n, confidence)
        skew = skewness(d_n)
        note = f"skew {skew:+.1f}: the coverage of the t interval may be too low" if abs(skew) > SKEWED else ""
        return Interval(low, high, "t", note=note)
    low_M, high_M = bca_interval(d_n[:, None], confidence, RESAMPLES, seed)
    return Interval(float(low_M[0]), float(high_M[0]), "BCa", bca_coverage(n, confidence))


def skewness(d_n: np.ndarray) -> float:
    """Return the adjusted Fisher-Pearson skewness of values [n], as most statistics software does; 0 if n < 3."""
    n = len(d_n)
    if n < 3:
        return 0.0
    centered = d_n - d_n.mean()
    return float((centered**3).mean() / (centered**2).mean() ** 1.5 * np.sqrt(n * (n - 1)) / (n - 2))


def t_interval(d_n: np.ndarray, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return the bounds of Student's t interval of the mean of values [n]."""
    from scipy.stats import t

    n = len(d_n)
    half = float(t.isf((1 - confidence) / 2, n - 1) * d_n.std(ddof=1) / np.sqrt(n))
    return float(d_n.mean()) - half, float(d_n.mean()) + half


def t_intervals(d_nM: np.ndarray, confidence: float = CONFIDENCE) -> tuple[np.ndarray, np.ndarray]:
    """Return the bounds of Student's t intervals of the means of values [n, M], two arrays [M].

    NaN values are left out; the bounds are NaN where fewer than two values are left or all are equal.
    """
    from scipy.stats import t

    have_nM = np.isfinite(d_nM)
    n_M = have_nM.sum(axis=0)
    count_M = np.maximum(n_M, 2)
    mean_M = np.where(have_nM, d_nM, 0.0).sum(axis=0) / count_M
    variance_M = np.where(have_nM, (d_nM - mean_M) ** 2, 0.0).sum(axis=0) / (count_M - 1)
    half_M = t.isf((1 - confidence) / 2, count_M - 1) * np.sqrt(variance_M / count_M)
    usable_M = (n_M > 1) & (half_M > 1e-12 * np.abs(mean_M))
    return np.where(usable_M, mean_M - half_M, np.nan), np.where(usable_M, mean_M + half_M, np.nan)


def bca_interval(
    d_nM: np.ndarray, confidence: float = CONFIDENCE, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Return the bounds of the BCa intervals of the means of values [n, M], two arrays [M].

    All columns share the same resamples. NaN for a column of equal values.
    """
    from scipy.special import ndtr, ndtri

    n = len(d_nM)
    rng = np.random.default_rng([seed, n, resamples])
    weights_Rn = rng.multinomial(n, np.full(n, 1 / n), resamples) / n
    means_RM = np.sort(weights_Rn @ d_nM, axis=0)
    mean_M = d_nM.mean(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        below_M = (means_RM < mean_M).mean(axis=0) + (means_RM == mean_M).mean(axis=0) / 2
        bias_M = ndtri(below_M)
        centered_nM = d_nM - mean_M
        accelerate_M = (centered_nM**3).sum(axis=0) / (6 * (centered_nM**2).sum(axis=0) ** 1.5)
        ends = []
        for tail in ((1 - confidence) / 2, 1 - (1 - confidence) / 2):
            z_M = bias_M + ndtri(tail)
            share_M = ndtr(bias_M + z_M / (1 - accelerate_M * z_M))
            ends.append(_quantiles(means_RM, share_M))
    return ends[0], ends[1]


def _quantiles(sorted_RM: np.ndarray, share_M: np.ndarray) -> np.ndarray:
    """Return the share_M[m] quantile of each sorted column m, [M], with linear interpolation."""
    last = len(sorted_RM) - 1
    place_M = np.clip(np.nan_to_num(share_M), 0, 1) * last
    under_M = np.floor(place_M).astype(int)
    columns = np.arange(sorted_RM.shape[1])
    low_M, high_M = sorted_RM[under_M, columns], sorted_RM[np.minimum(under_M + 1, last), columns]
    return np.where(np.isfinite(share_M), low_M + (place_M - under_M) * (high_M - low_M), np.nan)


@lru_cache(maxsize=64)
def bca_coverage(pairs: int, confidence: float = CONFIDENCE, trials: int = 2_000, resamples: int = 999) -> float:
    """Simulate how often the BCa interval of this many normal differences contains the true mean, from 0 to 1."""
    rng = np.random.default_rng([pairs, trials])
    low_M, high_M = bca_interval(rng.standard_normal((pairs, trials)), confidence, resamples)
    return float(((low_M <= 0) & (high_M >= 0)).mean())
