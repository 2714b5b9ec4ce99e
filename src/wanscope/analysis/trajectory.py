"""What a denoising path does, as algebra on the Gram of its start and increments.

    v_0 = x_0,  v_k = x_k - x_(k-1),  G[i, j] = <v_i, v_j>          (K states, S = K - 1 steps, D values a state)

Everything here depends on inner products alone, so no rotation of the latent space changes it. Lengths are divided by
sqrt(D): they are root mean squares per latent value, and paths of different resolutions can be set side by side.

Sources: discrete curvature as the circle through three points, Menger 1930, Math. Ann. 103:466; participation
ratio, Recanatesi et al. 2022, doi 10.1016/j.patter.2022.100555; change points by optimal partitioning, Jackson et al.
2005, doi 10.1109/LSP.2001.838216.

Shape suffixes: K states, S steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

FLOOR_FACTOR = 100.0  # an eigenvalue counts when it is this many times the rounding floor
EPSILON = {"fp16": 2.0**-10, "fp32": 2.0**-23}  # distance from 1 to the next number
RESTING = 1e-12  # a step this much shorter than the path's longest has no direction


def rounding_floor(squared_norms: np.ndarray, dtype: str) -> float:
    """The largest squared length that rounding the states to `dtype` can be expected to add to one.

    A value in [2^e, 2^(e+1)) is rounded by a uniform error of variance (2^e eps)^2 / 12, at most value^2 eps^2 / 12.
    """
    return float(np.max(squared_norms) * EPSILON[dtype] ** 2 / 12)


@dataclass(frozen=True)
class Path:
    """A path by its Gram, float64 [K, K]. dimension: D. sigmas: noise level of each state, [K].

    dtype: what the states were rounded to before the Gram was taken. indices: which steps of the loop they are, [K].
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
        """Gram of the increments alone, [S, S]."""
        return self.gram[1:, 1:]

    @cached_property
    def squared_norms(self) -> np.ndarray:
        """Squared length of every state, [K]."""
        return np.diag(self.gram.cumsum(axis=0).cumsum(axis=1)).clip(min=0)

    @cached_property
    def floor(self) -> float:
        """Squared length below which a direction of the path is rounding."""
        return rounding_floor(self.squared_norms, self.dtype)

    @cached_property
    def from_start(self) -> np.ndarray:
        """Inner products of x_k - x_0, [K, K]."""
        inner = self.increments.cumsum(axis=0).cumsum(axis=1)
        return np.pad((inner + inner.T) / 2, ((1, 0), (1, 0)))

    @cached_property
    def centered(self) -> np.ndarray:
        """Inner products of the states less their mean, [K, K]."""
        return centered(self.from_start)

    @cached_property
    def spectrum(self) -> np.ndarray:
        """Eigenvalues of the centered Gram, falling, [S]: squared extents of the path along its principal axes."""
        return np.linalg.eigvalsh(self.centered)[::-1][: max(len(self.sigmas) - 1, 0)].clip(min=0)

    @property
    def rank(self) -> int:
        """How many eigenvalues stand clear of rounding."""
        return int((self.spectrum >= FLOOR_FACTOR * self.floor).sum())


def centered(gram: np.ndarray) -> np.ndarray:
    """The Gram of the same vectors less their mean."""
    rows = gram - gram.mean(axis=0, keepdims=True)
    both = rows - rows.mean(axis=1, keepdims=True)
    return (both + both.T) / 2


def velocity(path: Path) -> np.ndarray:
    """|x_k - x_(k-1)| / sqrt(D), [S]."""
    return np.sqrt(np.diag(path.increments).clip(min=0) / path.dimension)


def sigma_speed(path: Path) -> np.ndarray:
    """Velocity per unit of noise level, [S]: what a step covers whatever its size. Where sigma stands still, NaN."""
    change = np.abs(np.diff(path.sigmas))
    return np.divide(velocity(path), change, out=np.full(len(change), np.nan), where=change > 0)


def acceleration(path: Path) -> np.ndarray:
    """|v_(k+1) - v_k| / sqrt(D), [S - 1]."""
    g = path.increments
    diagonal = np.diag(g)
    return np.sqrt((diagonal[1:] + diagonal[:-1] - 2 * np.diag(g, 1)).clip(min=0) / path.dimension)


def path_length(path: Path) -> float:
    """The sum of the steps' lengths, / sqrt(D)."""
    return float(velocity(path).sum())


def displacement(path: Path) -> float:
    """|x_S - x_0| / sqrt(D)."""
    return float(drift(path)[-1])


def drift(path: Path) -> np.ndarray:
    """|x_k - x_0| / sqrt(D), [K]."""
    return np.sqrt(np.diag(path.from_start).clip(min=0) / path.dimension)


def remaining(path: Path) -> np.ndarray:
    """|x_S - x_k| / sqrt(D), [K]: how far the result still is."""
    inner = path.from_start
    squared = inner[-1, -1] - 2 * inner[-1] + np.diag(inner)
    return np.sqrt(squared.clip(min=0) / path.dimension)


def alignment(path: Path) -> np.ndarray:
    """Cosine between each step and the straight way from x_0 to x_S, [S]; NaN for a step or a way of no length."""
    toward = path.increments.sum(axis=1)
    sizes = np.sqrt(np.diag(path.increments).clip(min=0) * max(path.increments.sum(), 0.0))
    return np.divide(toward, sizes, out=np.full(len(sizes), np.nan), where=sizes > 0).clip(-1, 1)


def linearity(path: Path) -> float:
    """Displacement over path length: 1 on a straight line, 0 for a path that comes back. NaN for one that rests."""
    length = path_length(path)
    return displacement(path) / length if length > 0 else float("nan")


def turning_angles(path: Path) -> np.ndarray:
    """Degrees between neighboring increments, [S - 1]; NaN beside a step that goes nowhere."""
    g, norms = path.increments, np.sqrt(np.diag(path.increments).clip(min=0))
    a, b, inner = norms[:-1], norms[1:], np.diag(g, 1)
    moving = np.minimum(a, b) > RESTING * max(norms.max(initial=0.0), 1e-300)
    cosine = np.divide(inner, a * b, out=np.full(len(a), np.nan), where=moving)
    return np.degrees(np.arccos(cosine.clip(-1, 1)))


def curvature(path: Path) -> np.ndarray:
    """1 / radius of the circle through x_(k-1), x_k, x_(k+1), times sqrt(D), [S - 1]. NaN where the path turns back on
    itself, or rests."""
    g = path.increments
    diagonal = np.diag(g)
    chord = np.sqrt((diagonal[1:] + diagonal[:-1] + 2 * np.diag(g, 1)).clip(min=0) / path.dimension)
    sine = np.sin(np.radians(turning_angles(path)))
    longest = max(velocity(path).max(initial=0.0), 1e-300)
    return np.divide(2 * sine, chord, out=np.full(len(chord), np.nan), where=chord > RESTING * longest)


def common_rank(paths: Sequence[Path]) -> int:
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


def coordinates(gram: np.ndarray, axes: int, dimension: int) -> np.ndarray:
    """Places of the vectors along the principal axes of their centered Gram, / sqrt(D), [K, axes].

    Each axis points so that its largest coordinate is positive, which makes the sign of a picture stable.
    """
    values, vectors = np.linalg.eigh(centered(gram))
    order = np.argsort(values)[::-1][:axes]
    places = vectors[:, order] * np.sqrt(values[order].clip(min=0) / dimension)
    largest = np.take_along_axis(places, np.abs(places).argmax(axis=0)[None], axis=0)
    return places * np.where(largest < 0, -1.0, 1.0)


def frequency_spectrum(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies in cycles a step, (0, 1/2], and the power of the increments about their mean at each.

    The discrete Fourier transform of a sequence of vectors: its power is e* G e, so the Gram is enough. The powers of
    all frequencies sum to the increments' squared distance from their mean.
    """
    g = centered(path.increments)
    steps = len(g)
    index = np.arange(1, steps // 2 + 1)
    waves = np.exp(-2j * np.pi * np.outer(index, np.arange(steps)) / steps)
    power = np.einsum("fk,kl,fl->f", waves.conj(), g, waves).real.clip(min=0) / steps
    mirrored = np.where(2 * index == steps, 1.0, 2.0)
    return index / steps, power * mirrored


def mean_frequency(path: Path) -> float:
    """Power-weighted mean frequency of the increments, cycles a step. NaN where all but rounding is constant."""
    frequencies, power = frequency_spectrum(path)
    total = power.sum()
    return float(frequencies @ power / total) if total > FLOOR_FACTOR * path.floor else float("nan")


def phase_changes(speeds: np.ndarray, least: int = 3, floor: float = 0.05) -> tuple[int, ...]:
    """Where the course of the velocity breaks: the first step of every phase but the first.

    The log of the speeds is cut into stretches of at least `least` steps, each a straight line, at the least sum of
    squares plus a penalty of 3 s^2 ln S a cut (as in BIC: a line and a place). s is the noise, estimated from the
    second differences and at least `floor`: bends of less than about 5% are no phase.
    """
    moving = speeds > 0
    y = np.log(np.where(moving, speeds, speeds[moving].min() if moving.any() else 1.0))
    steps = len(y)
    if steps < 2 * least:
        return ()
    second = np.diff(y, 2)
    # The variance of a second difference of independent noise is 6 s^2; 0.6745 is the median of |normal|.
    noise = max(float(np.median(np.abs(second - np.median(second)))) / 0.6745 / np.sqrt(6), floor)
    penalty = 3 * noise**2 * np.log(steps)
    best = np.full(steps + 1, np.inf)
    best[0] = -penalty
    last = np.zeros(steps + 1, dtype=int)
    for stop in range(least, steps + 1):
        for start in range(0, stop - least + 1):
            if np.isfinite(best[start]):
                cost = best[start] + _line_error(y[start:stop]) + penalty
                if cost < best[stop] - 1e-12:
                    best[stop], last[stop] = cost, start
    cuts = []
    stop = steps
    while stop > 0:
        stop = int(last[stop])
        if stop:
            cuts.append(stop)
    return tuple(reversed(cuts))


def _line_error(y: np.ndarray) -> float:
    """Sum of squares about the best line."""
    x = np.arange(len(y)) - (len(y) - 1) / 2
    spread = float(x @ x)
    slope = float(x @ y) / spread if spread else 0.0
    rest = y - y.mean() - slope * x
    return float(rest @ rest)
