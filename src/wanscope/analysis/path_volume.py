"""The volume of a path, and the number of axes over which it spreads.

Both are functions of the path's spectrum: the eigenvalues lambda_i of its centered Gram matrix, largest first
(`LatentPath.spectrum`, float64 [S]). Up to a constant, the log-volume is half the log of the generalized variance along
the largest axes (Wilks 1932, doi 10.1093/biomet/24.3-4.471).

Source of the participation ratio: Recanatesi et al. 2022, doi 10.1016/j.patter.2022.100555.

Shape suffixes: S steps. D: values per state.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from wanscope.analysis.latent_path import LatentPath


def common_rank(paths: Sequence[LatentPath]) -> int:
    """Return the number of eigenvalues used for all paths: the smallest rank of any path, 0 if there are no paths."""
    return min((path.rank for path in paths), default=0)


def log_volume(spectrum: np.ndarray, rank: int, dimension: int) -> float:
    """Return 1/2 sum ln(lambda_i / D) over the `rank` largest eigenvalues, in nats.

    spectrum: float64 [S]. dimension: D. Up to a constant that depends on the rank, this is the log of the volume of the
    ellipsoid of inertia. NaN if the rank is 0 or exceeds the number of positive eigenvalues.
    """
    largest = spectrum[:rank]
    if rank < 1 or len(largest) < rank or largest[-1] <= 0:
        return float("nan")
    return float(0.5 * np.log(largest).sum() - rank / 2 * np.log(dimension))


def explained_variance(spectrum: np.ndarray) -> np.ndarray:
    """Return the share of the path's variance along each principal axis, [S], from its spectrum [S].

    NaN for a path that does not move.
    """
    total = spectrum.sum()
    return spectrum / total if total > 0 else np.full(len(spectrum), np.nan)


def participation_ratio(spectrum: np.ndarray) -> float:
    """Return (sum lambda)^2 / sum lambda^2: 1 for a line, n if n axes share the variance equally.

    spectrum: float64 [S]. NaN for a path that does not move.
    """
    squares = float((spectrum**2).sum())
    return float(spectrum.sum()) ** 2 / squares if squares > 0 else float("nan")
