"""Step-down max-T: a correction for multiple testing that uses how the tests depend on each other.

Each pattern (signs of units, or permutations within units) is applied to the data of all tests at once, because a unit
enters all of them. The adjusted p of a test is the share of patterns in which the largest statistic, among this test
and the less extreme ones, reaches the observed one. Correction by Holm multiplies the smallest possible p, 2 / 2^n for
the signs of n units, by the number of tests. The adjusted p of max-T can be 2 / 2^n itself, however many tests there
are: 6 units can reach 5%.

The probability of any false rejection is controlled if the patterns keep the joint distribution of the tests whose null
hypothesis is true. For one contrast this is the assumption of the uncorrected test: a and b are exchangeable within a
unit. For several contrasts of one factor, signs are flipped for all of them together, which assumes that the vector of
a unit's differences is symmetric about 0. Simulated with values from normal, exponential and log-normal distributions,
the level holds (tests/analysis/test_max_t.py).

Source: Westfall and Young 1993, Resampling-Based Multiple Testing, algorithm 4.1 (step-down max-T); Ge, Dudoit and
Speed 2003, doi 10.1007/BF02595811, box 2.

Shape suffixes: n units, M tests, B patterns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from wanscope.analysis.permutation_tests import DRAWS, TIE_TOLERANCE, sign_patterns

CHUNK_BYTES = 32 << 20  # of statistics that are held at once


def step_down(
    observed_M: np.ndarray, threshold_M: np.ndarray, statistics: Callable[[np.ndarray], np.ndarray], patterns: int
) -> np.ndarray:
    """Return the adjusted p of each test, [M]. NaN marks a test without a statistic, which is not counted.

    observed_M: the statistics of the data, comparable between tests; larger is more extreme. threshold_M: what counts
    as reaching them, a little lower, because a tied pattern may come out lower by rounding. statistics: from the
    indices of m tests to their statistics under all patterns, [B, m], the observed pattern first.
    """
    p_M = np.full(len(observed_M), np.nan)
    known = np.flatnonzero(~np.isnan(observed_M))
    order = known[np.argsort(observed_M[known], kind="stable")]  # from the least to the most extreme
    largest_B = np.full(patterns, -np.inf)
    width = max(1, CHUNK_BYTES // (8 * patterns))
    for start in range(0, len(order), width):
        part = order[start : start + width]
        for column_B, m in zip(statistics(part).T, part, strict=True):
            np.maximum(largest_B, column_B, out=largest_B)
            p_M[m] = np.mean(largest_B >= threshold_M[m])
    # A test is rejected only if all more extreme ones are.
    p_M[order] = np.maximum.accumulate(p_M[order][::-1])[::-1]
    return p_M


def paired_max_t(differences_nM: np.ndarray, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """Return the adjusted two-sided p of each mean difference being 0, [M], by sign flips. The statistic is |t|.

    differences_nM: one row per unit, the same unit in all tests; NaN where a test does not have the unit. A test of
    fewer than two units has no p.
    """
    d_nM = np.asarray(differences_nM, dtype=np.float64)
    have_nM = np.isfinite(d_nM)
    count_M = have_nM.sum(axis=0)
    d_nM = np.where(have_nM, d_nM, 0.0)
    peak_M = np.abs(d_nM).max(axis=0, initial=0.0)
    d_nM = d_nM / np.where(peak_M > 0, peak_M, 1.0)  # squares of very small or large differences stay finite
    norm_M = np.sqrt(count_M * (d_nM**2).sum(axis=0))
    norm_M = np.where(norm_M > 0, norm_M, np.inf)  # all differences are 0: no evidence
    signs_Bn = sign_patterns(len(d_nM), draws, seed).astype(np.float64)
    tested_M = count_M > 1
    same_count = len(set(count_M[tested_M].tolist())) < 2

    def statistic(ratio: np.ndarray, count: np.ndarray) -> np.ndarray:
        """Return an increasing function of |t| from |sum d| / sqrt(n sum d^2)."""
        return ratio if same_count else _minus_log_p(ratio, count)

    def columns(part: np.ndarray) -> np.ndarray:
        ratio_Bm = np.minimum(np.abs(signs_Bn @ d_nM[:, part]) / norm_M[part], 1.0)
        return statistic(ratio_Bm, count_M[part])

    observed_M = np.abs(d_nM.sum(axis=0)) / norm_M
    threshold_M = statistic(observed_M * (1.0 - TIE_TOLERANCE), count_M)
    observed_M = np.where(tested_M, statistic(observed_M, count_M), np.nan)
    return step_down(observed_M, threshold_M, columns, len(signs_Bn))


def _minus_log_p(ratio: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Return -log p of the t test, by which tests of different numbers of units are compared."""
    from scipy.stats import t

    freedom = np.maximum(count - 1.0, 1.0)
    with np.errstate(divide="ignore"):
        t_value = ratio * np.sqrt(freedom) / np.sqrt(np.maximum(1.0 - ratio**2, 0.0))
    return -t.logsf(t_value, freedom)


def form_max_t(forms: Sequence[np.ndarray], draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """Return the adjusted one-sided p of quadratic forms s' F s being large, [M], by flipping the signs s of units.

    forms: M matrices F [n, n], the same units in the same order; 0 in the rows and columns of units that a test does
    not have. The statistic is (s' F s - trace F) / sqrt(2 sum of F_ij^2, i != j): the form less its mean over all
    patterns, divided by its standard deviation over them. A form without entries off the diagonal has no p.
    """
    forms_Mnn = np.stack([0.5 * (form + form.T) for form in forms])
    trace_M = np.trace(forms_Mnn, axis1=1, axis2=2)
    diagonal_Mn = np.diagonal(forms_Mnn, axis1=1, axis2=2)
    sd_M = np.sqrt(2 * ((forms_Mnn**2).sum((1, 2)) - (diagonal_Mn**2).sum(1)).clip(min=0))
    scale_M = np.abs(forms_Mnn).sum((1, 2))
    signs_Bn = sign_patterns(forms_Mnn.shape[1], draws, seed).astype(np.float64)

    def columns(part: np.ndarray) -> np.ndarray:
        out_Bm = np.stack([((signs_Bn @ forms_Mnn[m]) * signs_Bn).sum(axis=1) for m in part], axis=1)
        return (out_Bm - trace_M[part]) / sd_M[part]

    usable_M = sd_M > TIE_TOLERANCE * scale_M
    sd_M = np.where(usable_M, sd_M, np.nan)
    observed_M = (forms_Mnn.sum((1, 2)) - trace_M) / sd_M
    return step_down(observed_M, observed_M - TIE_TOLERANCE * scale_M / sd_M, columns, len(signs_Bn))


def statistics_max_t(statistics_BM: np.ndarray) -> np.ndarray:
    """Return the adjusted p of tests whose statistics under all patterns are given, [B, M], the observed one first.

    Each is divided by its standard deviation over the patterns, after subtracting its mean.
    """
    mean_M, sd_M = statistics_BM.mean(axis=0), statistics_BM.std(axis=0)
    scale_M = np.abs(statistics_BM).max(axis=0)
    varied_M = sd_M > TIE_TOLERANCE * scale_M
    z_BM = np.where(varied_M, (statistics_BM - mean_M) / np.where(varied_M, sd_M, 1.0), 0.0)
    slack_M = TIE_TOLERANCE * np.where(varied_M, scale_M / np.where(varied_M, sd_M, 1.0), 1.0)
    return step_down(z_BM[0], z_BM[0] - slack_M, lambda part: z_BM[:, part], len(z_BM))
