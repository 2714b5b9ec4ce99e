"""Storing a run's attention maps while it is sampled; attention_plan.py decides which ones.

    sink = AttentionSink(plan, take_folder)
    ... the runtime's recorder calls sink.put(moment, {measure: maps}) after each model call that sink.wanted ...
    sink.finish()

Maps go to zarr arrays [step, block, row, T, Y, X], or [step, block, head, row, T, Y, X] where heads are kept: one array
per measure, fp16, one shard per step. A chunk holds as many maps as fit in `CHUNK_BYTES`: zarr takes 0.3 ms per chunk,
which with one map per chunk was a fifth of marbles' step.
A thread compresses and writes, one step behind; only the current step is held in memory.

The smallest fp16 number is 6e-8, and a word that a block does not attend to gets less than that: its whole map would
be zeros. So every map is multiplied by a power of two that brings its largest value between 2^14 and 2^15, and the
exponents that undo this are stored in another file: value = stored * 2^exponent.

Shape suffixes: S kept evaluations, L kept blocks, H kept heads, K rows, T latent frames, Y and X rows and columns of
tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wanscope.capture.arrays import create_array
from wanscope.capture.attention_plan import AttentionPlan, MapRow
from wanscope.capture.moments import Moment
from wanscope.errors import NumericalError, WorkError
from wanscope.spec.branch import Branch
from wanscope.spec.capture import Recorded

if TYPE_CHECKING:
    import zarr

FOLDERS: dict[Recorded, str] = {
    "probability": "attention.zarr",
    "contribution": "attention-contribution.zarr",
    "gramcol": "attention-gramcol.zarr",
    "self": "self-attention.zarr",
}
TOP = 15  # stored values are below 2^TOP
CHUNK_BYTES = 1 << 20  # the most that reading one map reads, unless the map itself is larger
FURTHEST = 100  # exponents of a map's largest value are clipped to this range


def exponents_file(measure: Recorded) -> str:
    """Return the name of the file with the exponents of a measure's maps: int8 [S, L, K] or [S, L, H, K].

    It is in the same folder as the array.
    """
    return Path(FOLDERS[measure]).with_suffix(".exponents.npy").name


def scaled(maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return maps [..., T, Y, X] as fp16 values [..., T, Y, X] and int8 exponents [...].

    value = stored * 2^exponent; NaN stays NaN.
    """
    top = np.fmax.reduce(np.abs(maps), axis=(-3, -2, -1), initial=0)
    exponent = np.where(np.isfinite(top), np.frexp(top)[1], 0).clip(-FURTHEST, FURTHEST) - TOP
    with np.errstate(over="ignore"):  # the sink reports maps that are not finite
        return np.ldexp(maps, -exponent[..., None, None, None]).astype(np.float16), exponent.astype(np.int8)


def chunk_shape(map_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the chunk shape for fp16 maps [L, K, T, Y, X] or [L, H, K, T, Y, X].

    A chunk holds whole maps. From the last axis before T on, it takes as many as divide the axis and stay within
    CHUNK_BYTES.
    """
    chunk, size = list(map_shape[-3:]), 2 * prod(map_shape[-3:])
    for length in reversed(map_shape[:-3]):
        count = max(n for n in range(1, length + 1) if length % n == 0 and (n == 1 or n * size <= CHUNK_BYTES))
        size *= count
        chunk.insert(0, count)
        if count < length:
            break
    return (*(1 for _ in range(len(map_shape) - len(chunk))), *chunk)


@dataclass(frozen=True)
class Seen:
    """The argument of a `reduce` function: the maps of one block in one evaluation, before they are rounded.

    maps: float32 [K, T, Y, X], or [H, K, T, Y, X] where heads are kept; copy what you want to keep, because the memory
    is reused. rows: what the axis K is.
    """

    step: int
    evaluation: int
    sigma: float
    expert: int
    branch: Branch
    block: int
    measure: Recorded
    rows: tuple[MapRow, ...]
    maps: np.ndarray


@dataclass(frozen=True)
class Kept:
    """What was stored. evaluations: (step, evaluation) of every evaluation that was recorded.

    With `keep: maps` they are the arrays' first axis; with `keep: mean` that axis has one entry, the mean over them.
    """

    plan: AttentionPlan
    evaluations: tuple[tuple[int, int], ...]


class AttentionSink:
    """Receives a run's maps and stores what the plan says in zarr arrays below `folder`. For one run only."""

    def __init__(self, plan: AttentionPlan, folder: Path, reduce: Callable[[Seen], Any] | None = None) -> None:
        self.plan, self.folder, self.reduce = plan, folder, reduce
        self.evaluations: list[tuple[int, int]] = []
        self._sigmas: list[float] = []
        self._experts: list[int] = []
        self._arrays: dict[Recorded, zarr.Array] = {}
        self._exponents: dict[Recorded, list[np.ndarray]] = {}
        self._sums: dict[Recorded, np.ndarray] = {}
        self._thread = ThreadPoolExecutor(1, "wanscope-attention")
        self._writing: Future[None] | None = None

    @property
    def exact(self) -> bool:
        """Whether maps have to be float32: they are passed to `reduce` or summed before they are rounded."""
        return self.reduce is not None or self.plan.spec.keep == "mean"

    def wanted(self, moment: Moment) -> bool:
        """Return whether this call's maps are to be recorded."""
        return (
            self.plan.branch in moment.branches
            and moment.step in self.plan.steps
            and (moment.evaluation == 0 or self.plan.spec.evaluations == "all")
        )

    def put(
        self,
        moment: Moment,
        maps: Mapping[Recorded, np.ndarray],
        exponents: Mapping[Recorded, np.ndarray] | None = None,
    ) -> None:
        """Take the maps of one model call, [L, K, T, Y, X] or [L, H, K, T, Y, X]; NaN in blocks that did not run.

        exponents: [L, K] or [L, H, K], where maps are already fp16 as returned by `scaled`. Maps have to be float32
        where the sink is `exact`. The caller may reuse the arrays after this returns. Raises NumericalError where maps
        are infinite.
        """
        self.evaluations.append((moment.step, moment.evaluation))
        self._sigmas.append(moment.sigma)
        self._experts.append(moment.expert)
        if self.reduce is not None:
            self._call_reduce(moment, maps)
        if self.plan.spec.keep == "mean":
            for measure, found in maps.items():
                if measure in self._sums:
                    self._sums[measure] += found
                else:
                    self._sums[measure] = np.array(found, dtype=np.float32)
        elif self.plan.spec.keep == "maps":
            place = len(self.evaluations) - 1
            stored: dict[Recorded, np.ndarray] = {}
            for measure, found in maps.items():
                half, exponent = scaled(found) if exponents is None else (found.copy(), exponents[measure].copy())
                stored[measure] = _require_finite(half, moment)
                self._exponents.setdefault(measure, []).append(exponent)
            self._wait()
            self._writing = self._thread.submit(self._write, place, stored)

    def finish(self) -> Kept:
        """Write the remaining maps and return what was stored. Raises WorkError where a planned step has no maps.

        At steps where guidance is 1 the negative prompt has no pass, so missing maps are not an error there.
        """
        self._wait()
        missing = sorted(set(self.plan.steps) - {step for step, _ in self.evaluations})
        if missing and (self.plan.branch == "cond" or not self.evaluations):
            raise WorkError(
                f"attention was not recorded at step {missing[0]}",
                f"{len(missing)} of the {len(self.plan.steps)} planned steps had no {self.plan.branch} pass",
            )
        for measure, total in self._sums.items():
            mean, exponent = scaled(total / len(self.evaluations))
            self._array(measure, 1)[0] = mean
            self._exponents[measure] = [exponent]
        for measure, found in self._exponents.items():
            np.save(self.folder / exponents_file(measure), np.stack(found), allow_pickle=False)
        for array in self._arrays.values():
            array.attrs.update(
                {
                    "evaluations": [list(pair) for pair in self.evaluations],
                    "sigmas": self._sigmas,
                    "experts": self._experts,
                }
            )
        self.close()
        return Kept(self.plan, tuple(self.evaluations))

    def close(self) -> None:
        """End the writing thread; also to be called after a run that failed."""
        self._thread.shutdown(wait=True)

    def _call_reduce(self, moment: Moment, maps: Mapping[Recorded, np.ndarray]) -> None:
        assert self.reduce is not None
        for measure, found in maps.items():
            for block, block_maps in zip(self.plan.blocks, found, strict=True):
                self.reduce(
                    Seen(
                        moment.step,
                        moment.evaluation,
                        moment.sigma,
                        moment.expert,
                        self.plan.branch,
                        block,
                        measure,
                        self.plan.rows,
                        block_maps,
                    )
                )

    def _wait(self) -> None:
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def _write(self, place: int, maps: Mapping[Recorded, np.ndarray]) -> None:
        for measure, found in maps.items():
            array = self._array(measure, len(self.plan.steps))
            if place >= array.shape[0]:
                array.resize((place + 1, *array.shape[1:]))
            array[place] = found

    def _array(self, measure: Recorded, length: int) -> zarr.Array:
        if measure not in self._arrays:
            plan = self.plan
            shape, chunk = (length, *plan.map_shape), chunk_shape(plan.map_shape)
            self._arrays[measure] = create_array(
                self.folder / FOLDERS[measure], shape, chunk, "fp16", _attributes(plan, measure)
            )
        return self._arrays[measure]


def _attributes(plan: AttentionPlan, measure: Recorded) -> dict[str, Any]:
    return {
        "measure": measure,
        "keep": plan.spec.keep,
        "branch": plan.branch,
        "rows": [{"name": row.name, "kind": row.kind, "columns": list(row.columns)} for row in plan.rows],
        "blocks": list(plan.blocks),
        "heads": None if plan.heads is None else list(plan.heads),
        "real_tokens": plan.real,
        "exponents": exponents_file(measure),
    }


def _require_finite(stored: np.ndarray, moment: Moment) -> np.ndarray:
    """Return the maps. Raises NumericalError if one is infinite."""
    if np.isinf(stored).any():
        raise NumericalError(
            f"attention maps of step {moment.step} are infinite",
            "the model's states are not finite there, or too large for one of the recorded measures",
            "--dtype fp32",
        )
    return stored
