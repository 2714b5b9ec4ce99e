"""Sign-flip tests of paired differences.

A difference is between two variations in one unit (a seed or a scene). Under the null hypothesis the two are
exchangeable within the unit, so the sign of the difference is arbitrary, and flipping signs gives the null distribution
of the mean. The test is exact if all 2^n sign patterns are enumerated, and a Monte Carlo test otherwise. NaN marks a
missing pair.

Sources: sign flips, Fisher 1935, The Design of Experiments, section 21; Monte Carlo p values that count the observed
pattern, Phipson and Smyth 2010, doi 10.2202/1544-6115.1585.

Shape suffixes: n pairs, M metrics, B sign patterns.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

EXACT_PAIRS = 14  # up to this many pairs, all 2^n patterns are enumerated
DRAWS = 9_999  # random patterns of a Monte Carlo test
TIE_TOLERANCE = 1e-9  # relative; sums of the same numbers in another order count as ties
CHUNK_BYTES = 32 << 20  # largest array of sums, float64


@lru_cache(maxsize=16)
def sign_patterns(pairs: int, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """Return sign patterns, int8 [B, n], the observed one (all +1) first.

    For up to EXACT_PAIRS pairs these are half of all patterns: the others are their negatives, for which the statistic
    of a two-sided test is the same. For more pairs they are the observed pattern and `draws` random ones.
    """
    if pairs <= EXACT_PAIRS:
        bits_B = np.arange(2 ** max(pairs - 1, 0))
        flips_Bn = (bits_B[:, None] >> np.arange(pairs)) & 1
        return (1 - 2 * flips_Bn).astype(np.int8)
    rng = np.random.default_rng([seed, pairs])
    drawn_Bn = rng.integers(0, 2, (draws, pairs), dtype=np.int8) * 2 - 1
    return np.concatenate([np.ones((1, pairs), np.int8), drawn_Bn])


def smallest_p(pairs: int, draws: int = DRAWS) -> float:
    """Return the smallest p that a two-sided sign-flip test of this many pairs can attain; 1 without pairs."""
    if pairs < 1:
        return 1.0
    return 2.0 / 2**pairs if pairs <= EXACT_PAIRS else 1.0 / (draws + 1)


def paired_permutation(differences_nM: np.ndarray, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """Return the two-sided p of the null hypothesis that the mean difference is 0, [M], by sign flips.

    differences_nM: one row per pair; NaN marks a missing pair. A metric without pairs has p = NaN.
    """
    columns_Mn = np.asarray(differences_nM, dtype=np.float64).T
    if np.isfinite(columns_Mn).all():
        return _p_of_complete(columns_Mn.T, draws, seed)
    p_M = np.full(len(columns_Mn), np.nan)
    for i, column_n in enumerate(columns_Mn):
        finite = column_n[np.isfinite(column_n)]
        if len(finite):
            p_M[i] = _p_of_complete(finite[:, None], draws, seed)[0]
    return p_M


def _p_of_complete(differences_nM: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """Return p, [M], for differences without missing pairs."""
    pairs, metrics = differences_nM.shape
    if not pairs:
        return np.full(metrics, np.nan)
    signs_Bn = sign_patterns(pairs, draws, seed).astype(np.float64)
    count_M = np.zeros(metrics)
    scale_M = np.abs(differences_nM).sum(axis=0)
    observed_M = np.abs(differences_nM.sum(axis=0)) - TIE_TOLERANCE * scale_M
    chunk = max(1, CHUNK_BYTES // (8 * len(signs_Bn)))  # metrics at a time
    for start in range(0, metrics, chunk):
        part = slice(start, start + chunk)
        sums_BM = np.abs(signs_Bn @ differences_nM[:, part])
        count_M[part] = (sums_BM >= observed_M[part]).sum(axis=0)
    return count_M / len(signs_Bn)
