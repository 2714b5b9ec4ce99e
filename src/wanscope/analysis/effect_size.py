"""Effect sizes of paired differences, with their intervals.

Sources: paired effect size with interval by the noncentral t, Cumming and Finch 2001, doi 10.1177/0013164401614002;
small-sample factor, Hedges 1981, doi 10.3102/10769986006002107.

Shape suffixes: n pairs, M metrics.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wanscope.analysis.permutation_tests import TIE_TOLERANCE

LARGE_T = 30.0  # from here on a closed form replaces the noncentral t distribution


@dataclass(frozen=True)
class Effect:
    """Paired effect sizes: the mean difference over the standard deviation of the differences, with its interval.

    All float64 [M]. `size` has the small-sample correction of Hedges' g. NaN if the differences are all equal or there
    are fewer than two.
    """

    size: np.ndarray
    low: np.ndarray
    high: np.ndarray


def paired_effect(differences_nM: np.ndarray, confidence: float = 0.95) -> Effect:
    """Return the effect size of each column [n], with an interval from inverting the noncentral t distribution.

    NaN values are missing pairs.
    """
    d_nM = np.asarray(differences_nM, dtype=np.float64)
    n_M = np.isfinite(d_nM).sum(axis=0)
    usable_M = n_M >= 2
    size, low, high = (np.full(d_nM.shape[1], np.nan) for _ in range(3))
    if not usable_M.any():
        return Effect(size, low, high)
    d_nM, n_M = d_nM[:, usable_M], n_M[usable_M]
    mean_M, sd_M = np.nanmean(d_nM, axis=0), np.nanstd(d_nM, axis=0, ddof=1)
    varied_M = sd_M > TIE_TOLERANCE * np.nanmax(np.abs(d_nM), axis=0)
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
    """Return Hedges' small-sample factor for degrees of freedom [M]; 1 for a single degree."""
    from scipy.special import gammaln

    return np.exp(gammaln(df / 2) - gammaln((df - 1) / 2)) / np.sqrt(df / 2) * (df > 1) + (df <= 1) * 1.0


def _noncentrality(t_M: np.ndarray, df_M: np.ndarray, probability: float) -> np.ndarray:
    """Return delta [M] with P(T(df, delta) <= t) = probability, by bisection; the probability falls as delta rises.

    For very large t the series of the distribution function does not converge, and only the spread of the denominator
    matters: there delta = t sqrt(chi2 / df).
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
