"""The log-volume of a path, and over how many axes it spreads.

Both are functions of the eigenvalues of the path's centered Gram matrix, `LatentPath.spectrum`, float64 [S], largest
first.

Source of the participation ratio: Recanatesi et al. 2022, doi 10.1016/j.patter.2022.100555.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from wanscope.analysis.latent_path import LatentPath


def common_rank(paths: Sequence[LatentPath]) -> int:
    """Return the number of eigenvalues used for all paths: as many as exceed the rounding error in every one."""
    return min((path.rank for path in paths), default=0)


def log_volume(spectrum: np.ndarray, rank: int, dimension: int) -> float:
    """Return 1/2 sum ln(lambda_i / D) over the `rank` largest eigenvalues; spectrum: float64 [S].

    Up to a constant it is the log of the volume of the ellipsoid of inertia. NaN if the rank is 0 or one of these
    eigenvalues is 0.
    """
    kept = spectrum[:rank]
    if rank < 1 or len(kept) < rank or kept[-1] <= 0:
        return float("nan")
    return float(0.5 * np.log(kept).sum() - rank / 2 * np.log(dimension))


def explained(spectrum: np.ndarray) -> np.ndarray:
    """Return the share of the path's variance along each principal axis, [S]; NaN for a path that does not move."""
    total = spectrum.sum()
    return spectrum / total if total > 0 else np.full(len(spectrum), np.nan)


def participation_ratio(spectrum: np.ndarray) -> float:
    """Return (sum lambda)^2 / sum lambda^2: 1 on a line, n if n axes share the variance equally. spectrum: [S]."""
    squares = float((spectrum**2).sum())
    return float(spectrum.sum()) ** 2 / squares if squares > 0 else float("nan")
