"""The smallest effect that a given number of pairs can detect after correction, and a sentence that reports it.

Shape suffixes: R simulated studies, n pairs, M tests, B sign patterns.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from wanscope.analysis.permutation_tests import EXACT_PAIRS, sign_patterns, smallest_p

ALPHA = 0.05
POWER = 0.8
FEW_PAIRS = 7  # up to here the p values of max-T are so coarse that power is simulated
SIMULATED = 1_000
TESTS = 100  # in a simulation at most


@lru_cache(maxsize=64)
def smallest_effect(
    pairs: int, tests: int = 1, alpha: float = ALPHA, power: float = POWER, correction: str = "max-t"
) -> float:
    """Return the paired effect size that this many pairs detect with probability `power`, after correction for `tests`.

    By the noncentral t distribution at alpha / tests (the first step of Holm), which holds for max-T too if the tests
    are independent; dependent tests have more power. For max-T with at most FEW_PAIRS pairs, by simulation of normal
    differences. inf if no p can be that small.
    """
    level = alpha / max(tests, 1)
    if pairs < 2 or smallest_p(pairs) > (alpha if correction == "max-t" else level):
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
    size = float(brentq(missing, 0.0, high, xtol=1e-6))  # type: ignore[arg-type]
    return _simulated_effect(pairs, tests, alpha, power, size) if correction == "max-t" and pairs <= FEW_PAIRS else size


def _simulated_effect(pairs: int, tests: int, alpha: float, power: float, start: float) -> float:
    """Return the effect that max-T detects with probability `power` if one of `tests` independent tests has it."""
    rng = np.random.default_rng([pairs, tests])
    noise_RnM = rng.standard_normal((SIMULATED, pairs, min(tests, TESTS)))
    signs_Bn = sign_patterns(pairs).astype(np.float64)

    def ratios(d_RnM: np.ndarray) -> np.ndarray:
        norm_RM = np.sqrt(pairs * (d_RnM**2).sum(axis=1))
        return np.abs(np.einsum("bn,rnm->rbm", signs_Bn, d_RnM, optimize=True)) / norm_RM[:, None]

    others_RB = ratios(noise_RnM[..., 1:]).max(axis=2, initial=0.0)

    def detected(size: float) -> float:
        own_RB = ratios(noise_RnM[..., :1] + size)[..., 0]
        p_R = (np.maximum(own_RB, others_RB) >= own_RB[:, :1] * (1 - 1e-9)).mean(axis=1)
        return float((p_R <= alpha).mean())

    low, high = 0.0, max(start, 1.0)
    while detected(high) < power:
        high *= 2
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (low, middle) if detected(middle) >= power else (middle, high)
    return high


def power_sentence(pairs: int, tests: int, alpha: float = ALPHA, of: str = "", correction: str = "max-t") -> str:
    """Return a sentence on the differences that this many pairs can detect.

    tests: how many are corrected together; of: which tests it is about, if there are others. The smallest p after
    correction does not depend on the number of tests for max-T. For Holm, and in the worst case for Benjamini and
    Hochberg, it is multiplied by it.
    """
    least = smallest_p(pairs)
    level = alpha if correction == "max-t" else alpha / max(tests, 1)
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
    size = smallest_effect(pairs, tests, alpha, correction=correction)
    corrected = f" after correction for {tests} tests" if tests > 1 else ""
    return (
        f"With {counted}, a difference is found four times in five{corrected} only if it is at least "
        f"{size:.2g} standard deviations of the pairs' differences; smaller ones would mostly be missed."
    )


def pairs_needed(level: float) -> int | None:
    """Return the fewest pairs whose smallest p is at most `level`; None if no number of pairs has one."""
    return next((pairs for pairs in range(1, EXACT_PAIRS + 2) if smallest_p(pairs) <= level), None)
