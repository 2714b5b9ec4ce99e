"""The minimum detectable effect of a number of pairs after correction, and a sentence that reports it.

Shape suffixes: R simulated studies, n pairs, M tests, B sign patterns.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from wanscope.analysis.permutation_tests import EXACT_PAIRS, TIE_TOLERANCE, sign_patterns, smallest_p

ALPHA = 0.05
POWER = 0.8
FEW_PAIRS = 7  # up to this many pairs, the p values of max-T are so coarse that power is simulated
SIMULATIONS = 1_000
MAX_SIMULATED_TESTS = 100


@lru_cache(maxsize=64)
def minimum_detectable_effect(
    pairs: int, tests: int = 1, alpha: float = ALPHA, power: float = POWER, correction: str = "max-t"
) -> float:
    """Return the paired effect size that this many pairs detect with probability `power`, after correction for `tests`.

    The effect size is the mean of the differences over their standard deviation. It is computed from the noncentral t
    distribution (the paired t test) at level alpha / tests, the first step of Holm's procedure; for max-T this holds if
    the tests are independent, and dependent tests have more power. For max-T with at most FEW_PAIRS pairs it is
    simulated with normal differences. inf if the smallest attainable p exceeds the level.
    """
    level = alpha / max(tests, 1)
    if pairs < 2 or smallest_p(pairs) > (alpha if correction == "max-t" else level):
        return float("inf")
    from scipy.optimize import brentq
    from scipy.stats import nct, t

    df = pairs - 1
    critical = t.isf(level / 2, df)

    def excess_power(size: float) -> float:
        return float(nct.sf(critical, df, size * np.sqrt(pairs))) - power

    high = 1.0
    while excess_power(high) < 0:
        high *= 2
    size = float(brentq(excess_power, 0.0, high, xtol=1e-6))  # type: ignore[arg-type]
    return _simulate_effect(pairs, tests, alpha, power, size) if correction == "max-t" and pairs <= FEW_PAIRS else size


def _simulate_effect(pairs: int, tests: int, alpha: float, power: float, start: float) -> float:
    """Return the effect that max-T detects with probability `power` if one of `tests` independent tests has it.

    start: an effect to begin the search with.
    """
    rng = np.random.default_rng([pairs, tests])
    noise_RnM = rng.standard_normal((SIMULATIONS, pairs, min(tests, MAX_SIMULATED_TESTS)))
    signs_Bn = sign_patterns(pairs).astype(np.float64)

    def statistics(d_RnM: np.ndarray) -> np.ndarray:
        """Return |sum s d| / sqrt(n sum d^2) for every sign pattern s, [R, B, M]; it increases with |t|."""
        norm_RM = np.sqrt(pairs * (d_RnM**2).sum(axis=1))
        return np.abs(np.einsum("bn,rnm->rbm", signs_Bn, d_RnM, optimize=True)) / norm_RM[:, None]

    others_RB = statistics(noise_RnM[..., 1:]).max(axis=2, initial=0.0)

    def power_at(size: float) -> float:
        own_RB = statistics(noise_RnM[..., :1] + size)[..., 0]
        p_R = (np.maximum(own_RB, others_RB) >= own_RB[:, :1] * (1 - TIE_TOLERANCE)).mean(axis=1)
        return float((p_R <= alpha).mean())

    low, high = 0.0, max(start, 1.0)
    while power_at(high) < power:
        high *= 2
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (low, middle) if power_at(middle) >= power else (middle, high)
    return high


def power_sentence(pairs: int, tests: int, alpha: float = ALPHA, of: str = "", correction: str = "max-t") -> str:
    """Return a sentence on the differences that this many pairs can detect.

    tests: the number of tests that are corrected together. of: a phrase such as " of two values" that says which tests
    are meant, if there are others. For max-T the smallest attainable p after correction does not depend on the number
    of tests; for Holm, and in the worst case for Benjamini and Hochberg, it is multiplied by that number.
    """
    min_p = smallest_p(pairs)
    level = alpha if correction == "max-t" else alpha / max(tests, 1)
    counted = f"{pairs} pair{'s'[: pairs != 1]}"
    percent = f"{alpha * 100:g}%"
    if pairs < 2:
        return f"With {counted} nothing can be tested: the variation between pairs is unknown."
    if min_p > alpha:
        needed = pairs_needed(alpha)
        return (
            f"With {counted} no test{of} can reach {percent}: the smallest p is {min_p:.3g}. "
            f"It takes {needed} pairs, and more for several tests."
        )
    if min_p > level:
        needed = pairs_needed(level)
        few = "No number of pairs is enough: use fewer tests."
        advice = f"It takes {needed} pairs, or fewer tests." if needed else few
        return (
            f"With {counted} and {tests} tests none{of} can reach {percent} after correction: the smallest p is "
            f"{min_p:.3g}, and {level:.2g} is needed. {advice}"
        )
    size = minimum_detectable_effect(pairs, tests, alpha, correction=correction)
    corrected = f" after correction for {tests} tests" if tests > 1 else ""
    return (
        f"With {counted}, a difference is found four times in five{corrected} only if it is at least "
        f"{size:.2g} standard deviations of the pairs' differences; smaller ones would mostly be missed."
    )


def pairs_needed(level: float) -> int | None:
    """Return the smallest number of pairs that can attain p <= level; None if no number of pairs can."""
    return next((pairs for pairs in range(1, EXACT_PAIRS + 2) if smallest_p(pairs) <= level), None)
