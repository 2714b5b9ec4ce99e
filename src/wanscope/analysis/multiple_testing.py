"""Corrections for many tests at once: Holm's, and the false discovery rate of Benjamini and Hochberg.

Sources: Holm 1979, Scand. J. Statist. 6:65; Benjamini and Hochberg 1995, J. R. Statist. Soc. B 57:289.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


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
