"""Where the attention maps of a run go as they come (attention_plan.py says which they are).

    sink = AttentionSink(plan, take_folder)
    ... the runtime's recorder calls sink.put(moment, {measure: maps}) after each model call that sink.wanted ...
    sink.finish()

Maps go to zarr arrays [step, block, row, T, Y, X], or [step, block, head, row, T, Y, X] where heads are kept, one array
a measure, fp16, one shard a step. Maps of a block lie together in one chunk up to `CHUNK_BYTES`: zarr takes 0.3 ms a
chunk, which with a chunk a map was a fifth of marbles' step.
Compressing and writing is a thread's work, one step behind; nothing but the step at hand is held.

fp16 ends at 6e-8, and a word that a block does not read gets less than that: its whole map would be zeros. So every map
is stored times a power of two that brings its largest value to between 2^14 and 2^15, and the exponents that undo it
are stored beside the maps: value = stored * 2^exponent.

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
CHUNK_BYTES = 1 << 20  # what reading one map reads at most, where a map is smaller
FURTHEST = 100  # of exponents of a map's largest value: what lies further away is taken for that


def exponents_file(measure: Recorded) -> str:
    """The file, beside the array's folder, of the exponents of its maps: int8 [S, L, K] or [S, L, H, K]."""
    return Path(FOLDERS[measure]).with_suffix(".exponents.npy").name


def scaled(maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Maps [..., T, Y, X] as fp16 values and int8 exponents [...], value = stored * 2^exponent; NaN stays NaN."""
    top = np.fmax.reduce(np.abs(maps), axis=(-3, -2, -1), initial=0)
    exponent = np.where(np.isfinite(top), np.frexp(top)[1], 0).clip(-FURTHEST, FURTHEST) - TOP
    with np.errstate(over="ignore"):  # the sink says where maps are not finite
        return np.ldexp(maps, -exponent[..., None, None, None]).astype(np.float16), exponent.astype(np.int8)


def chunk_shape(map_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Of maps [L, K, T, Y, X] or [L, H, K, T, Y, X] in fp16: whole maps, from the last axis before them on as many as
    divide it and stay within CHUNK_BYTES."""
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
    """What a `reduce` function is called with: the maps of one block in one evaluation, before they are rounded.

    maps: float32 [K, T, Y, X], or [H, K, T, Y, X] where heads are kept; copy what is to stay. rows: what K counts.
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
    """What was stored. evaluations: (step, evaluation) of the arrays' first axis; one entry, None, for a mean."""

    plan: AttentionPlan
    evaluations: tuple[tuple[int, int], ...]


class AttentionSink:
    """Takes a run's maps and keeps what the plan says, in zarr arrays below `folder`. One run each."""

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
        """Whether maps should come in float32: somebody sees or sums them before they are rounded."""
        return self.reduce is not None or self.plan.spec.keep == "mean"

    def wanted(self, moment: Moment) -> bool:
        """Whether this call's maps are to be recorded."""
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
        """The maps of one model call, [L, K, T, Y, X] or [L, H, K, T, Y, X]; NaN in blocks that did not run.

        exponents: where maps come as fp16 already, as `scaled` gives them; maps have to be fp32 where the sink is
        `exact`. The arrays may be written to again after this returns.
        """
        self.evaluations.append((moment.step, moment.evaluation))
        self._sigmas.append(moment.sigma)
        self._experts.append(moment.expert)
        if self.reduce is not None:
            self._show(moment, maps)
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
                stored[measure] = _finite(half, moment)
                self._exponents.setdefault(measure, []).append(exponent)
            self._wait()
            self._writing = self._thread.submit(self._write, place, stored)

    def finish(self) -> Kept:
        """Write what is left. WorkError where a planned step was not recorded.

        Where guidance is 1 at some steps, the negative prompt has no pass there and no maps.
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
        """Let the writing thread end, also after a run that failed."""
        self._thread.shutdown(wait=True)

    def _show(self, moment: Moment, maps: Mapping[Recorded, np.ndarray]) -> None:
        assert self.reduce is not None
        for measure, found in maps.items():
            for block, shown in zip(self.plan.blocks, found, strict=True):
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
                        shown,
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


def _finite(stored: np.ndarray, moment: Moment) -> np.ndarray:
    if np.isinf(stored).any():
        raise NumericalError(
            f"attention maps of step {moment.step} are infinite",
            "the model's states are not finite there, or too large for what is recorded of them",
            "--dtype fp32, or fewer capture.attention.measures",
        )
    return stored
