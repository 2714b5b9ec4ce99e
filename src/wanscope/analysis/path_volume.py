"""How much room a path takes: its log-volume, and how many axes it spreads over.

Both are of the eigenvalues of the path's centered Gram, `LatentPath.spectrum`, float64 [S], largest first.

Source of the participation ratio: Recanatesi et al. 2022, doi 10.1016/j.patter.2022.100555.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from wanscope.analysis.latent_path import LatentPath


def common_rank(paths: Sequence[LatentPath]) -> int:
    """The one rank for all paths of an analysis: the largest that stands clear of rounding in every one of them."""
    return min((path.rank for path in paths), default=0)


def log_volume(spectrum: np.ndarray, rank: int, dimension: int) -> float:
    """1/2 sum ln lambda_i - (r/2) ln D over the r largest eigenvalues: but for a constant, the log of the volume of the
    ellipsoid of inertia. NaN where the rank is 0 or one of them is 0."""
    kept = spectrum[:rank]
    if rank < 1 or len(kept) < rank or kept[-1] <= 0:
        return float("nan")
    return float(0.5 * np.log(kept).sum() - rank / 2 * np.log(dimension))


def explained(spectrum: np.ndarray) -> np.ndarray:
    """Share of the path's variance along each principal axis; NaN for a path that rests."""
    total = spectrum.sum()
    return spectrum / total if total > 0 else np.full(len(spectrum), np.nan)


def participation_ratio(spectrum: np.ndarray) -> float:
    """(sum lambda)^2 / sum lambda^2: 1 on a line, n where n axes share the variance equally."""
    squares = float((spectrum**2).sum())
    return float(spectrum.sum()) ** 2 / squares if squares > 0 else float("nan")
