"""The path of a take through latent space, represented by the Gram matrix of its start and increments.

    v_0 = x_0,  v_k = x_k - x_(k-1),  G[i, j] = <v_i, v_j>          (K states, S = K - 1 steps, D values per state)

All metrics of a path (trajectory.py, path_volume.py) depend on inner products only, so they are invariant to rotations
of the latent space. States are rounded when stored, so small eigenvalues of a path are rounding error: `floor` is how
much rounding can add, and `rank` is the number of eigenvalues well above it.

Shape suffixes: K states, S steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

FLOOR_FACTOR = 100.0  # an eigenvalue counts when it is this many times the rounding floor
EPSILON = {"fp16": 2.0**-10, "fp32": 2.0**-23}  # distance from 1 to the next number


def rounding_floor(squared_norms: np.ndarray, dtype: str) -> float:
    """Return the largest expected squared length of the rounding error of a state in `dtype`.

    squared_norms: squared lengths of the states. A value in [2^e, 2^(e+1)) is rounded
    with a uniform error of variance (2^e eps)^2 / 12, at most value^2 eps^2 / 12.
    """
    return float(np.max(squared_norms) * EPSILON[dtype] ** 2 / 12)


@dataclass(frozen=True)
class LatentPath:
    """A path, given by its Gram matrix, float64 [K, K]. dimension: D. sigmas: noise level of each state, [K].

    dtype: the type of the states from which the Gram matrix was computed. indices: of the states in the loop, [K].

    Raises ValueError if the shapes do not match.
    """

    gram: np.ndarray
    dimension: int
    sigmas: np.ndarray
    dtype: str = "fp32"
    indices: np.ndarray | None = None

    def __post_init__(self) -> None:
        states = len(self.sigmas)
        if self.gram.shape != (states, states):
            raise ValueError(f"a Gram of shape {self.gram.shape} does not fit {states} noise levels")

    @property
    def states(self) -> np.ndarray:
        """Index of every state in the loop, int [K]."""
        return np.arange(len(self.sigmas)) if self.indices is None else self.indices

    @cached_property
    def increments(self) -> np.ndarray:
        """Gram matrix of the increments, [S, S]."""
        return self.gram[1:, 1:]

    @cached_property
    def squared_norms(self) -> np.ndarray:
        """Squared length of every state, [K]."""
        return np.diag(self.gram.cumsum(axis=0).cumsum(axis=1)).clip(min=0)

    @cached_property
    def floor(self) -> float:
        """Squared length below which a direction of the path is rounding error."""
        return rounding_floor(self.squared_norms, self.dtype)

    @cached_property
    def from_start(self) -> np.ndarray:
        """Inner products of x_k - x_0, [K, K]."""
        inner = self.increments.cumsum(axis=0).cumsum(axis=1)
        return np.pad((inner + inner.T) / 2, ((1, 0), (1, 0)))

    @cached_property
    def centered(self) -> np.ndarray:
        """Inner products of the states minus their mean, [K, K]."""
        return centered(self.from_start)

    @cached_property
    def spectrum(self) -> np.ndarray:
        """Eigenvalues of the centered Gram matrix, descending, [S]: squared extents along the path's principal axes."""
        return np.linalg.eigvalsh(self.centered)[::-1][: max(len(self.sigmas) - 1, 0)].clip(min=0)

    @property
    def rank(self) -> int:
        """The number of eigenvalues that are at least FLOOR_FACTOR times the rounding floor."""
        return int((self.spectrum >= FLOOR_FACTOR * self.floor).sum())


def centered(gram: np.ndarray) -> np.ndarray:
    """Return the Gram matrix [K, K] of the same vectors minus their mean."""
    rows = gram - gram.mean(axis=0, keepdims=True)
    both = rows - rows.mean(axis=1, keepdims=True)
    return (both + both.T) / 2
