"""Joint principal axes of all takes and steps, from at most 64 of their latents.

Inner products between all latents of all steps would take one pass per pair of steps. Instead, the principal axes of
some latents (the landmarks, spread evenly over takes and steps) are computed once and kept in a scratch file, and every
latent is projected on them as it is read. If all latents are landmarks, the result is the exact principal component
analysis. `JointPlaces.explained` is the share of the squared distances of all latents that the axes account for.

Source: as in the Nystrom method, Williams and Seeger 2001 (NIPS 13), with axes instead of a kernel.

Shape suffixes: L landmarks, B axes kept, A axes returned, N takes, K states, n values of a slice; t latent frames of a
slice, C channels, h and w latent height and width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wanscope.analysis.latent_path import centered

LANDMARKS = 64
LEAST = 8  # minimum number of landmarks, even for very large frames
KEPT = 16  # axes of the landmarks; the axes of all latents are found in their span
VALUE_BYTES = 20  # per value of a landmark or an axis while the axes are computed: fp32 once and float64 twice

ReadSlice = Callable[[int, int, slice], np.ndarray]  # take, state, frames -> fp32 [t, C, h, w]


@dataclass(frozen=True)
class JointPlaces:
    """Coordinates of every latent. places_NKA: float64, / sqrt(D). exact: whether all latents were landmarks.

    share_A: each axis' share of all squared distances from the landmarks' mean.
    """

    places_NKA: np.ndarray
    share_A: np.ndarray
    landmarks: int
    exact: bool

    @property
    def explained(self) -> float:
        """The share of the squared distances that all axes together account for."""
        return float(self.share_A.sum())


def most_landmarks(frame_values: int, budget_bytes: int) -> int:
    """Return how many landmarks fit in memory with one frame each; fewer for larger frames."""
    return int(np.clip(budget_bytes // (frame_values * VALUE_BYTES) - KEPT - 1, LEAST, LANDMARKS))


def choose(takes: int, states: int, limit: int = LANDMARKS) -> list[tuple[int, int]]:
    """Return (take, state) of at most `limit` latents: all of them, or evenly spaced states of evenly spaced takes.

    The first and the last state are always included.
    """
    if takes * states <= limit:
        return [(take, state) for take in range(takes) for state in range(states)]
    # About as many takes as states, unless there are too few of either.
    kept_takes = min(takes, max(int(np.sqrt(limit)), limit // states))
    kept_states = min(states, limit // kept_takes)
    chosen_takes = np.unique(np.linspace(0, takes - 1, kept_takes).round().astype(int))
    chosen_states = np.unique(np.linspace(0, states - 1, kept_states).round().astype(int))
    return [(int(take), int(state)) for take in chosen_takes for state in chosen_states]


class JointAxes:
    """Project latents on the landmarks' axes, slice by slice."""

    def __init__(
        self, takes: int, states: int, frames: int, values: int, landmarks: int, kept: int, file: Path
    ) -> None:
        self.shape, self.frames, self.frame_values = (takes, states), frames, values
        self.landmarks, self.kept, self.file = landmarks, kept, file
        self._projected = np.zeros((takes, states, kept))
        self._norms = np.zeros((takes, states))

    @classmethod
    def build(
        cls,
        read: ReadSlice,
        shape: Sequence[int],
        picks: Sequence[tuple[int, int]],
        file: Path,
        budget_bytes: int,
        takes: int,
    ) -> JointAxes:
        """Read the landmarks twice: for their Gram matrix, then for their axes and mean, written to `file` as fp32.

        shape: [K, C, T, h, w] of one take's latents. picks: (take, state) of the landmarks. takes: how many there are.
        """
        _, channels, frames, height, width = shape
        values = channels * height * width
        # A landmark is held as fp32 and, while landmarks are stacked, as float64 twice; then come the rows of the axes.
        group = int(np.clip(budget_bytes // ((len(picks) + KEPT + 1) * VALUE_BYTES * values), 1, frames))
        parts = [slice(start, min(start + group, frames)) for start in range(0, frames, group)]

        def slice_Ln(part: slice) -> np.ndarray:
            return np.stack([read(take, state, part).reshape(-1).astype(np.float64) for take, state in picks])

        gram_LL = np.zeros((len(picks), len(picks)))
        for part in parts:
            x_Ln = slice_Ln(part)
            gram_LL += x_Ln @ x_Ln.T
        eigenvalues, vectors = np.linalg.eigh(centered(gram_LL))
        order = np.argsort(eigenvalues)[::-1]
        real = [i for i in order if eigenvalues[i] > 1e-12 * max(eigenvalues[order[0]], 1e-300)][:KEPT]
        # u = sum_l vector_l (x_l - mean) / sqrt(eigenvalue)
        combine_BL = (vectors[:, real] / np.sqrt(eigenvalues[real])).T
        combine_BL -= combine_BL.mean(axis=1, keepdims=True)
        self = cls(takes, int(shape[0]), frames, values, len(picks), len(real), file)
        with file.open("wb") as out:
            for part in parts:
                x_Ln = slice_Ln(part)
                rows = np.concatenate([combine_BL @ x_Ln, x_Ln.mean(axis=0, keepdims=True)])
                frame_rows = rows.reshape(len(rows), part.stop - part.start, values).swapaxes(0, 1)
                out.write(np.ascontiguousarray(frame_rows, dtype="<f4").data)  # frame, axis, value
        return self

    def _axes(self, part: slice) -> np.ndarray:
        """Read the values of the axes and of the mean in some frames, float64 [B + 1, n]."""
        rows = self.kept + 1
        count = part.stop - part.start
        with self.file.open("rb") as file:
            file.seek(part.start * rows * self.frame_values * 4)
            raw = np.fromfile(file, dtype="<f4", count=count * rows * self.frame_values)
        by_axis = raw.reshape(count, rows, self.frame_values).swapaxes(0, 1)
        return by_axis.reshape(rows, -1).astype(np.float64)

    def add(self, state: int, takes: slice, part: slice, x_Nn: np.ndarray) -> None:
        """Add a slice of some takes' latents at a state, [N, n] for the frames `part`."""
        axes_Bn = self._axes(part)
        away_Nn = x_Nn - axes_Bn[-1]
        self._projected[takes, state] += away_Nn @ axes_Bn[:-1].T
        self._norms[takes, state] += np.einsum("an,an->a", away_Nn, away_Nn)

    def places(self, axes: int = 3) -> JointPlaces:
        """Return the coordinates of all latents on the `axes` axes with the largest variance in the landmarks' span."""
        takes, states = self.shape
        flat = self._projected.reshape(-1, self.kept)
        middle = flat.mean(axis=0)
        _, _, directions = np.linalg.svd(flat - middle, full_matrices=False)
        directions = directions[:axes]
        places = (flat - middle) @ directions.T
        if len(places):
            largest = np.take_along_axis(places, np.abs(places).argmax(axis=0)[None], axis=0)
            signs = np.where(largest < 0, -1.0, 1.0)
            places, directions = places * signs, directions * signs.T
        total = self._norms.sum()
        # Relative to the landmarks' mean, as the total is.
        share = ((flat @ directions.T) ** 2).sum(axis=0) / total if total > 0 else np.full(len(directions), np.nan)
        dimension = self.frames * self.frame_values
        shown = places.reshape(takes, states, -1) / np.sqrt(dimension)
        return JointPlaces(shown, share, self.landmarks, self.landmarks == takes * states)
