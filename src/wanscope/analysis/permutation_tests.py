"""Sign-flip tests of paired differences.

A difference is between two variations in one unit (a seed or a scene). Under the null hypothesis its sign is arbitrary,
so flipping signs gives the null distribution of the mean. The test is exact if all 2^n patterns are enumerated, and a
Monte Carlo test otherwise. NaN marks a missing pair.

Sources: sign flips, Fisher 1935, The Design of Experiments, section 21; Monte-Carlo p with the observed pattern
counted, Phipson and Smyth 2010, doi 10.2202/1544-6115.1585.

Shape suffixes: n pairs, M metrics, B sign patterns.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

EXACT_PAIRS = 14  # up to here all 2^n patterns are enumerated
DRAWS = 9_999
TIES = 1e-9  # relative; sums of the same numbers in another order count as equal


@lru_cache(maxsize=16)
def sign_patterns(pairs: int, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """Return sign patterns, int8 [B, n], the observed one (all +1) first.

    Up to EXACT_PAIRS pairs these are half of all patterns: the others are their negatives, which give a two-sided test
    the same statistic. Above, they are the observed pattern and `draws` random ones.
    """
    if pairs <= EXACT_PAIRS:
        bits_B = np.arange(2 ** max(pairs - 1, 0))
        flipped_Bn = (bits_B[:, None] >> np.arange(pairs)) & 1
        return (1 - 2 * flipped_Bn).astype(np.int8)
    rng = np.random.default_rng([seed, pairs])
    drawn_Bn = rng.integers(0, 2, (draws, pairs), dtype=np.int8) * 2 - 1
    return np.concatenate([np.ones((1, pairs), np.int8), drawn_Bn])


def smallest_p(pairs: int, draws: int = DRAWS) -> float:
    """Return the smallest p that a two-sided sign-flip test of this many pairs can give."""
    if pairs < 1:
        return 1.0
    return 2.0 / 2**pairs if pairs <= EXACT_PAIRS else 1.0 / (draws + 1)


def paired_permutation(differences_nM: np.ndarray, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """Return the two-sided p of each mean difference being 0, [M], by sign flips; NaN for a metric without pairs.

    differences_nM: one row per pair; NaN marks a missing pair.
    """
    columns = np.asarray(differences_nM, dtype=np.float64).T
    if np.isfinite(columns).all():
        return _sign_flip_p(columns.T, draws, seed)
    p_M = np.full(len(columns), np.nan)
    for i, column in enumerate(columns):
        kept = column[np.isfinite(column)]
        if len(kept):
            p_M[i] = _sign_flip_p(kept[:, None], draws, seed)[0]
    return p_M


def _sign_flip_p(differences_nM: np.ndarray, draws: int, seed: int) -> np.ndarray:
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
