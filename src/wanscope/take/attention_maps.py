"""A take's attention maps, opened lazily: only what is indexed is read from disk.

    maps = take.attention               # [S, L, K, T, Y, X], or [S, L, H, K, T, Y, X] where heads were kept
    maps.words                          # ("circle", "red"): rows that sum a word's tokens
    maps[-1, 0, 0]                      # one map over the video, float32 [T, Y, X]
    maps.word("circle")                 # all of a word's maps, [S, L, T, Y, X]
    maps.mean("circle", blocks=[4, 5])  # averaged over steps and blocks, float32 [T, Y, X]

Shape suffixes: S kept evaluations, L kept blocks, H kept heads, K rows, T latent frames, Y and X rows and columns of
tokens.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wanscope.capture.arrays import open_array
from wanscope.capture.attention_plan import MapRow
from wanscope.capture.attention_sink import FOLDERS, exponents_file
from wanscope.errors import DamagedTake, NotCaptured, nearest

if TYPE_CHECKING:
    import zarr

    from wanscope.spec.capture import Recorded

__all__ = ["FOLDERS", "Attention"]

PART_BYTES = 32 << 20  # how much is read at a time, where a chunk is smaller


class Attention:
    """The maps of one measure. `rows` describes the axis K: words first, then tokens, then the padding.

    dims: the name of each axis. steps, evaluations, sigmas, experts: along the first axis (steps is empty for a mean
    over steps). blocks: along the second. heads: along the third, or None where heads were averaged. Values are NaN in
    blocks that an edit skipped.
    """

    def __init__(self, array: zarr.Array, exponents: np.ndarray | None = None) -> None:
        self.array, self._exponents = array, exponents
        about: dict[str, Any] = dict(array.attrs)
        self.measure: Recorded = about["measure"]
        self.averaged: bool = about["keep"] == "mean"
        self.branch: str = about["branch"]
        self.rows = tuple(MapRow(r["name"], r["kind"], tuple(r["columns"])) for r in about["rows"])
        self.blocks = tuple(about["blocks"])
        self.heads = None if about["heads"] is None else tuple(about["heads"])
        self.real_tokens: int = about["real_tokens"]
        self.evaluations = tuple((step, evaluation) for step, evaluation in about["evaluations"])
        self.sigmas = np.array(about["sigmas"])
        self.experts = tuple(about["experts"])

    @classmethod
    def open(cls, folder: Path, measure: Recorded) -> Attention:
        """Open the maps of a measure in a take's folder.

        Raises DamagedTake where the exponents of their values are missing or have the wrong shape.
        """
        array = open_array(folder / FOLDERS[measure])
        if "exponents" not in array.attrs:  # written by an earlier version, which did not scale the values
            return cls(array)
        path = folder / exponents_file(measure)
        try:
            exponents = np.load(path, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise DamagedTake(f"{path} is damaged", str(error)) from None
        if exponents.shape != array.shape[:-3]:
            raise DamagedTake(f"{path} is damaged", f"its shape is {exponents.shape}, for maps of {array.shape}")
        return cls(array, exponents)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name} {size}" for name, size in zip(self.dims, self.shape, strict=True))
        return f"Attention({self.measure} of {', '.join(self.names)}: {sizes})"

    @property
    def dims(self) -> tuple[str, ...]:
        head = () if self.heads is None else ("head",)
        return ("step", "block", *head, "row", "T", "Y", "X")

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def steps(self) -> tuple[int, ...]:
        """The step of each entry of the first axis; () where maps were averaged over the steps."""
        return () if self.averaged else tuple(step for step, _ in self.evaluations)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all rows."""
        return tuple(row.name for row in self.rows)

    @property
    def words(self) -> tuple[str, ...]:
        """The rows of words, or of single tokens where no word was captured; for self-attention the positions."""
        kinds = ("word", "token", "position")
        found = (tuple(row.name for row in self.rows if row.kind == kind) for kind in kinds)
        return next((names for names in found if names), ())

    @property
    def grid(self) -> tuple[int, int, int]:
        """The number of latent frames, and of rows and columns of tokens: (T, Y, X)."""
        frames, rows, columns = self.shape[-3:]
        return frames, rows, columns

    def __getitem__(self, key: Any) -> np.ndarray:
        """Return float32 values for any index that numpy accepts."""
        whole, inner = _bounding_slices(key, self.shape)
        values = np.asarray(self.array[whole]).astype(np.float32)
        if self._exponents is not None:
            values = np.ldexp(values, self._exponents[whole[: self._exponents.ndim]][..., None, None, None])
        return values[inner]

    def row(self, name: str) -> int:
        """Return the index of a row by its name. Raises NotCaptured, with the nearest name, where there is none."""
        if name not in self.names:
            hint = nearest(name, self.names)  # without a close match, it would list the names a second time
            words = shlex.quote(f"capture.attention.tokens=[{name}]")  # running again keeps the earlier maps
            raise NotCaptured(
                f"no attention maps of {name!r} were kept",
                f"there are maps of {', '.join(self.names)}" + (f"; {hint}" if hint.startswith("did you mean") else ""),
                f"{'--store-self-attention 0.5,0.5' if self.measure == 'self' else f'--set {words}'}, and run again",
            )
        return self.names.index(name)

    def word(self, name: str) -> np.ndarray:
        """Return all maps of one row, float32 [S, L, T, Y, X] or [S, L, H, T, Y, X]. Raises NotCaptured."""
        return self[..., self.row(name), :, :, :]

    def parts(self, place: int, only: slice = slice(None)) -> Iterator[tuple[slice, slice, np.ndarray]]:
        """Yield the maps of entry `place` of the first axis in parts of about PART_BYTES, reading each chunk once.

        Each part is (slice of blocks, slice of rows, values float32 [l, k, T, Y, X] or [l, H, k, T, Y, X]).
        only: which rows.
        """
        blocks, (start, stop, _) = self.shape[1], only.indices(self.shape[-4])
        one = 4 * prod(self.shape[2:-4]) * prod(self.grid)  # bytes of one block's map of one row, all heads
        blocks_per_chunk = self.array.chunks[1]  # reading any map reads this many blocks
        k = _chunk_multiple(self.array.chunks[-4], PART_BYTES // (one * blocks_per_chunk), stop - start)
        m = _chunk_multiple(blocks_per_chunk, PART_BYTES // (one * k), blocks)
        for first in range(0, blocks, m):
            for row in range(start, stop, k):
                at, of = slice(first, min(first + m, blocks)), slice(row, min(row + k, stop))
                yield at, of, self[(place, at, ..., of, slice(None), slice(None), slice(None))]

    def mean(self, name: str, blocks: Iterable[int] | None = None, steps: Iterable[int] | None = None) -> np.ndarray:
        """Return a row's map averaged over heads, blocks and steps, float32 [T, Y, X].

        blocks, steps: which ones; None for all that were kept. Skipped blocks (NaN) are left out. Raises NotCaptured
        where none of them was kept.
        """
        row = self.row(name)
        return self._means(slice(row, row + 1), blocks, steps)[0]

    def means(self, blocks: Iterable[int] | None = None, steps: Iterable[int] | None = None) -> np.ndarray:
        """Return `mean` for every row, float32 [K, T, Y, X], reading each chunk once."""
        return self._means(slice(0, self.shape[-4]), blocks, steps)

    def _means(self, rows: slice, blocks: Iterable[int] | None, steps: Iterable[int] | None) -> np.ndarray:
        wanted = set(self.blocks if blocks is None else blocks)
        chosen = np.array([block in wanted for block in self.blocks])
        at_steps = None if steps is None or self.averaged else set(steps)
        total = np.zeros((rows.stop - rows.start, *self.grid), dtype=np.float64)
        count = np.zeros(total.shape, dtype=np.int32)
        for place in range(self.shape[0]):
            if at_steps is not None and self.evaluations[place][0] not in at_steps:
                continue
            for at, of, values in self.parts(place, rows):
                if chosen[at].any():
                    rows_first = np.moveaxis(values[chosen[at]], -4, 0)
                    flat = rows_first.reshape(len(rows_first), -1, *self.grid)
                    there = np.isfinite(flat)
                    into = slice(of.start - rows.start, of.stop - rows.start)
                    total[into] += np.where(there, flat, 0).sum(1, dtype=np.float64)
                    count[into] += there.sum(1, dtype=np.int32)
        if not count.all():
            raise NotCaptured(
                f"there is no map of {self.names[rows.start]!r} to average",
                f"blocks {list(self.blocks)} were kept, at steps {sorted({s for s, _ in self.evaluations})}",
            )
        return (total / count).astype(np.float32)


def _chunk_multiple(chunk: int, limit: int, total: int) -> int:
    """Return the largest multiple of `chunk` up to `limit`, but at least one chunk and at most `total`."""
    return min(total, max(chunk, limit // chunk * chunk))


def _bounding_slices(key: Any, shape: tuple[int, ...]) -> tuple[tuple[slice, ...], tuple[Any, ...]]:
    """Split an index into the slices that contain everything it selects, to read from disk, and an index into those."""
    parts = list(key) if isinstance(key, tuple) else [key]
    if any(part is Ellipsis for part in parts):
        at = next(i for i, part in enumerate(parts) if part is Ellipsis)
        parts[at : at + 1] = [slice(None)] * (len(shape) - len(parts) + 1)
    parts += [slice(None)] * (len(shape) - len(parts))
    if len(parts) > len(shape):
        raise IndexError(f"{len(parts)} indices for maps of {len(shape)} axes")
    whole, inner = [], []
    for part, size in zip(parts, shape, strict=True):
        selected = np.arange(size)[part]  # raises numpy's own error for an index out of range
        low = int(selected.min()) if selected.size else 0
        whole.append(slice(low, int(selected.max()) + 1 if selected.size else 0))
        inner.append(slice(None) if isinstance(part, slice) and part.step in (None, 1) else selected - low)
    return tuple(whole), tuple(inner)
