"""Tests of paired differences, corrected for how many were made, with the smallest effect that could be seen.

A difference is of two variations at one unit (a seed, or a scene). Under the null hypothesis its sign is arbitrary, so
that flipping signs gives the distribution of the mean: an exact test where all 2^n patterns can be counted, else a
Monte-Carlo one. Every function takes many metrics at once. NaN is a pair that is not there.

Sources: sign flips, Fisher 1935, The Design of Experiments, section 21; Monte-Carlo p with the observed pattern
counted, Phipson and Smyth 2010, doi 10.2202/1544-6115.1585. Holm 1979, Scand. J. Statist. 6:65. Benjamini and Hochberg
1995, J. R. Statist. Soc. B 57:289. Paired effect size with interval by the noncentral t: Cumming and Finch 2001,
doi 10.1177/0013164401614002; small-sample factor, Hedges 1981, doi 10.3102/10769986006002107.

Shape suffixes: n pairs, M metrics, B sign patterns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

EXACT_PAIRS = 14  # up to here all 2^n patterns are counted
DRAWS = 9_999
ALPHA = 0.05
POWER = 0.8
LARGE_T = 30.0
TIES = 1e-9  # relative: sums of the same numbers in another order count as equal


@lru_cache(maxsize=16)
def sign_patterns(pairs: int, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """Patterns of signs, int8 [B, n], the observed one (all +1) first.

    With at most EXACT_PAIRS pairs half of all patterns: the other half are their negatives, which a two-sided test
    cannot tell from them. Else `draws` random ones besides the observed.
    """
    if pairs <= EXACT_PAIRS:
        bits_B = np.arange(2 ** max(pairs - 1, 0))
        flipped_Bn = (bits_B[:, None] >> np.arange(pairs)) & 1
        return (1 - 2 * flipped_Bn).astype(np.int8)
    rng = np.random.default_rng([seed, pairs])
    drawn_Bn = rng.integers(0, 2, (draws, pairs), dtype=np.int8) * 2 - 1
    return np.concatenate([np.ones((1, pairs), np.int8), drawn_Bn])


def smallest_p(pairs: int, draws: int = DRAWS) -> float:
    """The smallest p that a two-sided sign-flip test of so many pairs can give."""
    if pairs < 1:
        return 1.0
    return 2.0 / 2**pairs if pairs <= EXACT_PAIRS else 1.0 / (draws + 1)


def paired_permutation(differences_nM: np.ndarray, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """Two-sided p of the mean difference being 0 by sign flips, [M]. NaN where no pair is left."""
    columns = np.asarray(differences_nM, dtype=np.float64).T
    if np.isfinite(columns).all():
        return _flipped(columns.T, draws, seed)
    p_M = np.full(len(columns), np.nan)
    for i, column in enumerate(columns):
        kept = column[np.isfinite(column)]
        if len(kept):
            p_M[i] = _flipped(kept[:, None], draws, seed)[0]
    return p_M


def _flipped(differences_nM: np.ndarray, draws: int, seed: int) -> np.ndarray:
    pairs, metrics = differences_nM.shape
    if not pairs:
        return np.full(metrics, np.nan)
    signs_Bn = sign_patterns(pairs, draws, seed).astype(np.float64)
    count_M = np.zeros(metrics)
    scale_M = np.abs(differences_nM).sum(axis=0)
    observed_M = np.abs(differences_nM.sum(axis=0)) - TIES * scale_M
    width = max(1, (32 << 20) // (8 * len(signs_Bn)))
    for start in range(0, metrics, width):
        part = slice(start, start + width)
        sums_BM = np.abs(signs_Bn @ differences_nM[:, part])
        count_M[part] = (sums_BM >= observed_M[part]).sum(axis=0)
    return count_M / len(signs_Bn)


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's adjusted p: rejecting those at most alpha keeps the chance of any false rejection below alpha."""
    return _stepwise(p, lambda ordered, m: np.maximum.accumulate(ordered * (m - np.arange(m))))


def benjamini_hochberg(p: np.ndarray) -> np.ndarray:
    """Benjamini and Hochberg's q: rejecting those at most alpha keeps the expected share of false ones below alpha."""

    def adjusted(ordered: np.ndarray, m: int) -> np.ndarray:
        return np.minimum.accumulate((ordered * m / np.arange(1, m + 1))[::-1])[::-1]

    return _stepwise(p, adjusted)


def _stepwise(p: np.ndarray, adjust: Callable[[np.ndarray, int], np.ndarray]) -> np.ndarray:
    p = np.asarray(p, dtype=np.float64)
    out = np.full(p.shape, np.nan)
    there = np.flatnonzero(np.isfinite(p))
    order = there[np.argsort(p[there], kind="stable")]
    out[order] = np.minimum(adjust(p[order], len(order)), 1.0)
    return out


@dataclass(frozen=True)
class Effect:
    """Paired effect sizes: the mean difference over the standard deviation of the differences, with its interval.

    All float64 [M]; `size` is corrected for few pairs (Hedges' g of paired differences). NaN where the differences are
    all equal, or fewer than two.
    """

    size: np.ndarray
    low: np.ndarray
    high: np.ndarray


def paired_effect(differences_nM: np.ndarray, confidence: float = 0.95) -> Effect:
    """Effect sizes of the columns; the interval inverts the noncentral t distribution."""
    d_nM = np.asarray(differences_nM, dtype=np.float64)
    n_M = np.isfinite(d_nM).sum(axis=0)
    usable_M = n_M >= 2
    size, low, high = (np.full(d_nM.shape[1], np.nan) for _ in range(3))
    if not usable_M.any():
        return Effect(size, low, high)
    d_nM, n_M = d_nM[:, usable_M], n_M[usable_M]
    mean_M, sd_M = np.nanmean(d_nM, axis=0), np.nanstd(d_nM, axis=0, ddof=1)
    varied_M = sd_M > TIES * np.nanmax(np.abs(d_nM), axis=0)
    z_M = np.where(varied_M, mean_M / np.where(varied_M, sd_M, 1.0), np.nan)
    t_M, df_M = z_M * np.sqrt(n_M), n_M - 1.0
    tail = (1 - confidence) / 2
    where = np.flatnonzero(usable_M)
    factor_M = _hedges(df_M)
    size[where] = z_M * factor_M
    low[where] = _noncentrality(t_M, df_M, 1 - tail) / np.sqrt(n_M) * factor_M
    high[where] = _noncentrality(t_M, df_M, tail) / np.sqrt(n_M) * factor_M
    return Effect(size, low, high)


def _hedges(df: np.ndarray) -> np.ndarray:
    from scipy.special import gammaln

    return np.exp(gammaln(df / 2) - gammaln((df - 1) / 2)) / np.sqrt(df / 2) * (df > 1) + (df <= 1) * 1.0


def _noncentrality(t_M: np.ndarray, df_M: np.ndarray, probability: float) -> np.ndarray:
    """delta with P(T(df, delta) <= t) = probability, by bisection; the probability falls as delta rises.

    For a very large t the spread of the denominator is all that counts, and the distribution function is out of reach
    of its series: there delta = t sqrt(chi2 / df).
    """
    from scipy.stats import chi2

    share = np.where(t_M > 0, 1 - probability, probability)
    far_M = t_M * np.sqrt(chi2.ppf(share, df_M) / df_M)
    near_M = np.where(np.abs(t_M) > LARGE_T, 0.0, t_M)
    return np.where(
        np.abs(t_M) > LARGE_T, far_M, _bisected(near_M, np.where(np.abs(t_M) > LARGE_T, 0.0, far_M), df_M, probability)
    )


def _bisected(t_M: np.ndarray, about_M: np.ndarray, df_M: np.ndarray, probability: float) -> np.ndarray:
    from scipy.stats import nct

    low_M, high_M = about_M - 8.0, about_M + 8.0  # the numerator's own spread is 1
    for _ in range(48):
        middle_M = (low_M + high_M) / 2
        above_M = nct.cdf(t_M, df_M, middle_M) > probability
        low_M, high_M = np.where(above_M, middle_M, low_M), np.where(above_M, high_M, middle_M)
    return np.where(np.isfinite(t_M), (low_M + high_M) / 2, np.nan)


@lru_cache(maxsize=64)
def smallest_effect(pairs: int, tests: int = 1, alpha: float = ALPHA, power: float = POWER) -> float:
    """The paired effect size that so many pairs find with `power`, at alpha / tests (the first step of Holm).

    By the t test, which sign flips approach. inf where no p can get that small.
    """
    level = alpha / max(tests, 1)
    if pairs < 2 or smallest_p(pairs) > level:
        return float("inf")
    from scipy.optimize import brentq
    from scipy.stats import nct, t

    df = pairs - 1
    critical = t.isf(level / 2, df)

    def missing(size: float) -> float:
        return float(nct.sf(critical, df, size * np.sqrt(pairs))) - power

    high = 1.0
    while missing(high) < 0:
        high *= 2
    return float(brentq(missing, 0.0, high, xtol=1e-6))  # type: ignore[arg-type]


def power_sentence(pairs: int, tests: int, alpha: float = ALPHA, of: str = "") -> str:
    """What so many pairs could have seen, in a sentence. of: which tests it speaks of, where there are others."""
    least, level = smallest_p(pairs), alpha / max(tests, 1)
    counted = f"{pairs} pair{'s'[: pairs != 1]}"
    percent = f"{alpha * 100:g}%"
    if pairs < 2:
        return f"With {counted} nothing can be tested: there is no spread between repetitions to compare with."
    if least > alpha:
        needed = pairs_needed(alpha)
        return (
            f"With {counted} no test{of} can reach {percent}: the smallest p is {least:.3g}. "
            f"It takes {needed} pairs, and more for several tests."
        )
    if least > level:
        needed = pairs_needed(level)
        advice = f"It takes {needed} pairs, or fewer tests." if needed else "No number of pairs helps, but fewer tests."
        return (
            f"With {counted} and {tests} tests none{of} can reach {percent} after correction: the smallest p is "
            f"{least:.3g}, and {level:.2g} is needed. {advice}"
        )
    size = smallest_effect(pairs, tests, alpha)
    corrected = f" after correction for {tests} tests" if tests > 1 else ""
    return (
        f"With {counted}, a difference is found four times in five{corrected} only if it is at least "
        f"{size:.2g} standard deviations of the pairs' differences; smaller ones would mostly be missed."
    )


def pairs_needed(level: float) -> int | None:
    """The fewest pairs whose smallest p is at most `level`; None where drawn patterns never get there."""
    return next((pairs for pairs in range(1, EXACT_PAIRS + 2) if smallest_p(pairs) <= level), None)
