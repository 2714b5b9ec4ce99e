"""Corrections for multiple testing: Holm's, and the false discovery rate of Benjamini and Hochberg.

In both, p is an array of any length, and NaN marks a test without a p value, which is not counted and stays NaN.

Sources: Holm 1979, Scand. J. Statist. 6:65; Benjamini and Hochberg 1995, J. R. Statist. Soc. B 57:289.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def holm(p: np.ndarray) -> np.ndarray:
    """Return Holm's adjusted p: rejecting at alpha keeps the probability of any false rejection at most alpha."""
    return _stepwise(p, lambda ordered, m: np.maximum.accumulate(ordered * (m - np.arange(m))))


def benjamini_hochberg(p: np.ndarray) -> np.ndarray:
    """Return Benjamini and Hochberg's q: rejecting at alpha keeps the expected share of false ones at most alpha."""

    def adjusted(ordered: np.ndarray, m: int) -> np.ndarray:
        return np.minimum.accumulate((ordered * m / np.arange(1, m + 1))[::-1])[::-1]

    return _stepwise(p, adjusted)


def _stepwise(p: np.ndarray, adjust: Callable[[np.ndarray, int], np.ndarray]) -> np.ndarray:
    p = np.asarray(p, dtype=np.float64)
    out = np.full(p.shape, np.nan)
    known = np.flatnonzero(np.isfinite(p))
    order = known[np.argsort(p[known], kind="stable")]
    out[order] = np.minimum(adjust(p[order], len(order)), 1.0)
    return out
