"""What so many pairs can find: the smallest effect that a corrected test would see, and that in a sentence."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from wanscope.analysis.permutation_tests import EXACT_PAIRS, smallest_p

ALPHA = 0.05
POWER = 0.8


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
