"""One pass over the latents of many takes: inner products at every step, statistics of each latent, joint axes.

    result = one_pass(arrays)          # latents of N takes, each [K, C, T, h, w], as zarr or numpy arrays
    result.gram_KNN[k]                 # <x_k of take i, x_k of take j>, float64
    result.statistics[i][k]            # LatentStatistics of take i at state k
    result.joint                       # coordinates on principal axes of all takes and steps together

Distances, dispersion and separability of groups are computed from `gram_KNN` (groups.py). Latents are read a few frames
at a time, so that memory is bounded by `budget_bytes` at any resolution. If not all takes fit in memory together, they
are read in blocks, each pair of blocks once.

The path of one take (latent_path.py) is the Gram matrix computed during sampling. For a take without it, the matrix is
computed here from the stored latents, with the rounding floor of their type.

Shape suffixes: N takes, K states, C channels, T latent frames, h and w latent height and width, D = C T h w values,
t latent frames and n values of a slice, A axes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import numpy as np

from wanscope.analysis.landmarks import KEPT, JointAxes, JointPlaces, choose, most_landmarks
from wanscope.analysis.latent_path import LatentPath
from wanscope.analysis.latent_statistics import Accumulator, LatentStatistics
from wanscope.capture.path_gram import increments
from wanscope.errors import DamagedTake, NotCaptured
from wanscope.take.building import new_folder
from wanscope.take.store import Take
from wanscope.workspace import Workspace

BUDGET_BYTES = 256 << 20

Progress = Callable[[int, int], None]  # states done, total number of states


def path_of(take: Take, budget_bytes: int = BUDGET_BYTES) -> LatentPath:
    """Return the take's path from the Gram matrix computed during sampling, or else from its stored latents.

    Raises NotCaptured if it has neither.
    """
    manifest = take.manifest
    dimension = int(np.prod(manifest.latent_shape))
    if manifest.gram is not None:
        return LatentPath(take.gram, dimension, take.sigmas)
    if manifest.latents is None:
        raise NotCaptured(
            f"take {take.id} has no record of its path",
            "it was generated without storing latents",
            f"wanscope generate {take.id}{Workspace(take.folder.absolute().parent.parent).option} --store-latents",
        )
    states = np.array(manifest.latents.states)
    gram = gram_of(take.latents, budget_bytes)
    return LatentPath(gram, dimension, take.sigmas[states], manifest.latents.dtype, states)


def gram_of(latents_KCThw: Any, budget_bytes: int = BUDGET_BYTES) -> np.ndarray:
    """Return the Gram matrix of the start and the increments of one path [K, C, T, h, w], float64 [K, K].

    The latents are read in slices of latent frames, or of the channels of one frame if it is large.
    """
    states, channels, frames, height, width = latents_KCThw.shape
    # A slice is held as stored (up to 4 bytes per value), as float64 and as differences (8 each).
    plane_bytes = states * height * width * 20
    group = _group(frames, budget_bytes, channels * plane_bytes)
    planes = channels if group > 1 else _group(channels, budget_bytes, plane_bytes)  # if one frame is too large
    gram = np.zeros((states, states))
    for start in range(0, frames, group):
        part = slice(start, min(start + group, frames))
        for first in range(0, channels, planes):
            some = slice(first, first + planes)
            v_Kn = increments(np.stack([_read(latents_KCThw, k, part, some).reshape(-1) for k in range(states)]))
            gram += v_Kn @ v_Kn.T
    return (gram + gram.T) / 2


def _group(frames: int, budget_bytes: int, frame_bytes: int) -> int:
    return int(np.clip(budget_bytes // max(frame_bytes, 1), 1, frames))


def _read(latents: Any, state: int, frames: slice, channels: slice = slice(None)) -> np.ndarray:
    """Read frames of one state, [C, t, h, w]. Raises DamagedTake for a chunk that fails its checksum."""
    try:
        return np.asarray(latents[state, channels, frames])
    except (ValueError, OSError, RuntimeError) as error:
        place = getattr(getattr(latents, "store", None), "root", "an array in memory")
        raise DamagedTake(f"{place} is damaged", f"state {state} cannot be read: {error}") from error


@dataclass(frozen=True)
class OnePass:
    """The results of one pass. bytes_read: size of the latents read, before compression on disk."""

    gram_KNN: np.ndarray
    dimension: int
    statistics: list[list[LatentStatistics]] = field(default_factory=list)
    joint: JointPlaces | None = None
    bytes_read: int = 0


def one_pass(
    arrays: Sequence[Any],
    *,
    statistics: bool = True,
    axes: int = 3,
    budget_bytes: int = BUDGET_BYTES,
    scratch: Path | None = None,
    progress: Progress = lambda done, total: None,
) -> OnePass:
    """Read the latents of all takes once, state by state. All have the same shape [K, C, T, h, w].

    axes: number of joint principal axes; 0 for none. scratch: folder for their temporary file, by default the system's.
    Raises ValueError for different shapes and DamagedTake for a chunk that cannot be read.
    """
    shapes = {tuple(array.shape) for array in arrays}
    if len(shapes) != 1:
        raise ValueError(f"latents of {len(shapes)} shapes cannot be compared value by value: pass arrays of one shape")
    with new_folder(Path(scratch or gettempdir()), "latent pass") as folder:
        found = _Pass(arrays, statistics, axes, budget_bytes, folder / "axes")
        return found.run(progress)


class _Pass:
    def __init__(self, arrays: Sequence[Any], statistics: bool, axes: int, budget: int, scratch: Path) -> None:
        self.arrays, self.wants, self.axes = arrays, statistics, axes
        self.states, self.channels, self.frames, height, width = arrays[0].shape
        self.frame_values = self.channels * height * width
        self.size = (height, width)
        self.takes = len(arrays)
        # A value is held as float64 for all takes of a block, and as stored and as fp32 for one take. Two blocks are
        # in memory at once, unless one block has all takes.
        self.block = int(np.clip(budget // (self.frame_values * 16), 1, self.takes))
        if self.block < self.takes:
            self.block = max(1, self.block // 2)
        # The joint axes are held as fp32 and float64, and a block a second time, minus their mean.
        projected = (KEPT + 1) * 12 + self.block * 8 if axes else 0
        self.group = _group(self.frames, budget, (self.block * 8 + 24 + projected) * self.frame_values)
        self.bytes_read = 0
        self.joint: JointAxes | None = None
        if axes:
            picks = choose(self.takes, self.states, most_landmarks(self.frame_values, budget))
            self.joint = JointAxes.build(self._slices, arrays[0].shape, picks, scratch, budget, self.takes)

    def run(self, progress: Progress) -> OnePass:
        gram_KNN = np.zeros((self.states, self.takes, self.takes))
        table: list[list[LatentStatistics]] = [[] for _ in self.arrays]
        for k in range(self.states):
            accumulators = [Accumulator(self.channels) for _ in self.arrays] if self.wants else []
            for part in self._parts():
                self._state(gram_KNN[k], k, part, accumulators)
            for row, accumulator in zip(table, accumulators, strict=False):
                row.append(accumulator.result())
            progress(k + 1, self.states)
        gram_KNN = (gram_KNN + gram_KNN.transpose(0, 2, 1)) / 2
        joint = None if self.joint is None else self.joint.places(self.axes)
        dimension = self.frame_values * self.frames
        return OnePass(gram_KNN, dimension, table if self.wants else [], joint, self.bytes_read)

    def _parts(self) -> Iterator[slice]:
        for start in range(0, self.frames, self.group):
            yield slice(start, min(start + self.group, self.frames))

    def _state(self, gram_NN: np.ndarray, k: int, part: slice, accumulators: list[Accumulator]) -> None:
        """Add a slice of state k of all takes to their inner products [N, N], the joint axes and the accumulators."""
        starts = range(0, self.takes, self.block)
        for start in starts:
            rows = slice(start, min(start + self.block, self.takes))
            x_Nn = self._block(k, part, rows, accumulators)
            gram_NN[rows, rows] += x_Nn @ x_Nn.T
            if self.joint is not None:
                self.joint.add(k, rows, part, x_Nn)
            for other in starts:
                if other > start:
                    columns = slice(other, min(other + self.block, self.takes))
                    y_Nn = self._block(k, part, columns, [])
                    gram_NN[rows, columns] += x_Nn @ y_Nn.T
                    gram_NN[columns, rows] = gram_NN[rows, columns].T

    def _block(self, k: int, part: slice, takes: slice, accumulators: list[Accumulator]) -> np.ndarray:
        """Read a slice of one state of some takes, float64 [N, n], frame by frame."""
        width = (part.stop - part.start) * self.frame_values
        x_Nn = np.empty((takes.stop - takes.start, width))
        for row, take in enumerate(range(takes.start, takes.stop)):
            frames_tChw = self._slices(take, k, part)
            x_Nn[row] = frames_tChw.reshape(-1)
            if accumulators:
                for frame_Chw in frames_tChw:
                    accumulators[take].add(frame_Chw)
        return x_Nn

    def _slices(self, take: int, state: int, part: slice) -> np.ndarray:
        """Read frames of one state, fp32 [t, C, h, w]."""
        stored_Cthw = _read(self.arrays[take], state, part)
        self.bytes_read += stored_Cthw.nbytes
        return np.ascontiguousarray(stored_Cthw.swapaxes(0, 1), dtype=np.float32)
