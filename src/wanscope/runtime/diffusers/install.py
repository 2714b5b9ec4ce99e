"""Prepares a block's `EditedAttention` for one call, and reads its counters afterwards.

Shape suffixes: B batch (branches), H heads, N text positions, S contexts read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from wanscope.capture.moments import Moment
from wanscope.edit.operations import BendMaps
from wanscope.edit.plan import EditPlan
from wanscope.edit.planned_texts import PlannedText
from wanscope.runtime.bend import MapOperation, map_operation
from wanscope.runtime.columns import TextRows, compute_dtype, text_rows
from wanscope.runtime.compose import Composed, Read
from wanscope.runtime.diffusers.attention import EditedAttention, ReadState
from wanscope.runtime.ledger import Fired
from wanscope.runtime.text_attention import bend_steps, bent_places, row_log_weights

if TYPE_CHECKING:
    from wanscope.runtime.diffusers.recorder import AttentionRecorder
    from wanscope.runtime.diffusers.self_recorder import SelfAttentionRecorder


@dataclass(frozen=True)
class CallCounts:
    """The counts of all processors in one call.

    fired: how often each edit acted. min_mass: the smallest mass that a bend left, or None if nothing was bent. spread:
    how far the padding is from one repeated row (`pad_spread`).
    """

    fired: dict[Fired, int]
    min_mass: float | None
    spread: float


class AttentionInstaller:
    """The processors of one attached plan, one for each block that needs one."""

    def __init__(
        self,
        plan: EditPlan,
        blocks: Sequence[Sequence[Any]],
        capture: AttentionRecorder | None,
        device: torch.device,
    ) -> None:
        self.plan, self.capture, self.device = plan, capture, device
        self._blocks = blocks
        self._processors: dict[tuple[int, int], EditedAttention] = {}
        self._self_processors: dict[tuple[int, int], Any] = {}
        self._keys: dict[tuple[int, int, PlannedText], tuple[Tensor, Tensor]] = {}
        self._operations: dict[int, MapOperation] = {}
        self._tensors: dict[Any, Any] = {}
        self._prepared: list[tuple[EditedAttention, dict[int, Fired]]] = []

    def clear(self) -> None:
        """Release all tensors and blocks."""
        for kept in (
            self._processors,
            self._self_processors,
            self._keys,
            self._operations,
            self._tensors,
            self._prepared,
        ):
            kept.clear()
        self._blocks = ()

    def begin(self, moment: Moment) -> None:
        """Start a new call, in which nothing is installed yet."""
        self._prepared.clear()

    def read_counts(self) -> CallCounts:
        """Return the counts of this call, with one transfer from the device for the counters and one for bends."""
        if not self._prepared:
            return CallCounts({}, None, 0.0)
        counters = torch.stack([processor.counter for processor, _ in self._prepared]).tolist()
        fired = {
            key: counts[place]
            for (_, keys), counts in zip(self._prepared, counters, strict=True)
            for place, key in keys.items()
        }
        bent = [processor for processor, _ in self._prepared if any(read.bends for read in processor.reads)]
        if not bent:
            return CallCounts(fired, None, 0.0)
        numbers = torch.stack([torch.stack([p.min_mass.float(), p.spread.float()]) for p in bent]).tolist()
        return CallCounts(fired, min(mass for mass, _ in numbers), max(spread for _, spread in numbers))

    @contextmanager
    def installed(self, expert: int, block: int, moment: Moment, rows: Sequence[Composed]) -> Iterator[None]:
        """Let the block's cross-attention do what `rows` say, one per branch of the batch, for one call."""
        attn = self._blocks[expert][block].attn2
        processor = self._processor(expert, block, attn)
        texts = self._prepare(processor, expert, block, moment, rows, attn)
        before = attn.processor
        attn.processor = processor
        try:
            yield
        finally:
            attn.processor = before
        for text, read in zip(texts, processor.reads, strict=True):
            if text is not None and read.keys_BNHK is not None and read.values_BNHK is not None:
                self._keys[expert, block, text] = (read.keys_BNHK, read.values_BNHK)

    @contextmanager
    def recorded_self(self, expert: int, block: int, recorder: SelfAttentionRecorder, place: Tensor) -> Iterator[None]:
        """Record the block's self-attention for one call. place: the index of the block's maps, a tensor []."""
        from wanscope.runtime.diffusers.self_recorder import RecordedSelfAttention

        attn = self._blocks[expert][block].attn1
        before = attn.processor
        if (expert, block) not in self._self_processors:
            backend, parallel = before._attention_backend, before._parallel_config
            self._self_processors[expert, block] = RecordedSelfAttention(backend, parallel, recorder, place)
        attn.processor = self._self_processors[expert, block]
        try:
            yield
        finally:
            attn.processor = before

    def _processor(self, expert: int, block: int, attn: Any) -> EditedAttention:
        key = (expert, block)
        if key not in self._processors:
            backend = attn.processor._attention_backend
            counts = 2 * max(1, len(self.plan.edits))
            self._processors[key] = EditedAttention(backend, counts, self.plan.grid, self.device)
        return self._processors[key]

    def _prepare(
        self,
        processor: EditedAttention,
        expert: int,
        block: int,
        moment: Moment,
        rows: Sequence[Composed],
        attn: Any,
    ) -> list[PlannedText | None]:
        """Set all attributes that the processor reads; return, per read, the text whose keys may be cached."""
        keys: dict[int, Fired] = {}
        places = {edit.index: i for i, edit in enumerate(self.plan.edits)}
        for i, (branch, row) in enumerate(zip(moment.branches, rows, strict=True)):
            for edit in row.applied:
                part = "attention" if "attention" in edit.parts else "context"
                keys[2 * places[edit.index] + i] = (edit.index, part, block, branch)
        adds = [int(place in keys) for place in range(len(processor.counter))]
        processor.counter.zero_()
        processor.adds = self._tensor(adds, torch.int64)
        processor.min_mass.fill_(1.0)
        processor.spread.zero_()
        self._prepared.append((processor, keys))

        recorder, place = self.capture, None
        if recorder is not None:
            place = recorder.place(block) if recorder.active else None
        processor.recorder, processor.place = (recorder, place) if place is not None else (None, None)
        processor.skips = tuple(row.skip for row in rows)

        count = max(len(row.reads) for row in rows)
        padded = [[*row.reads, *[_without_weight(row.reads[0])] * (count - len(row.reads))] for row in rows]
        weights = [[reads[j].weight for reads in padded] for j in range(count)]
        processor.weights = tuple(weight[0] for weight in weights) if len(rows) == 1 else (0.0, 0.0)
        processor.weights_SB = self._tensor(weights, compute_dtype(attn.to_q.weight.dtype)) if count > 1 else None
        processor.reads, texts = [], []
        for j in range(count):
            state, text = self._read(expert, block, [reads[j] for reads in padded], j, attn)
            processor.reads.append(state)
            texts.append(text)
        return texts

    def _read(
        self, expert: int, block: int, reads: Sequence[Read], j: int, attn: Any
    ) -> tuple[ReadState, PlannedText | None]:
        state, text = ReadState(), None
        if j > 0:
            state.context_BND = (
                torch.cat([read.context_1ND for read in reads]) if len(reads) > 1 else reads[0].context_1ND
            )
            text = reads[0].text if len(reads) == 1 else None
            if text is not None and (expert, block, text) in self._keys:
                state.keys_BNHK, state.values_BNHK = self._keys[expert, block, text]
        if any(read.log_weights for read in reads):
            state.bias_B11N = torch.cat([self._bias(read, attn) for read in reads])
        bent = any(read.bends for read in reads)
        if bent or (j == 0 and self.capture is not None):
            state.text = [self._text_rows(read) for read in reads]
        if bent:
            dtype = compute_dtype(attn.to_q.weight.dtype)
            state.bent = [self._tensor(bent_places(read), torch.int64) for read in reads]
            for row, read in enumerate(reads):
                ready = [self._operation(bend) for bend, _ in read.bends]
                state.bends += bend_steps(read, row, attn.heads, dtype, ready.__getitem__, self._tensor)
        return state, text

    def _bias(self, read: Read, attn: Any) -> Tensor:
        values = row_log_weights(read, self.plan.text_length)
        return self._tensor(values, compute_dtype(attn.to_q.weight.dtype))[None, None, None]

    def _text_rows(self, read: Read) -> TextRows:
        key = ("rows", read.log_weights)
        if key not in self._tensors:
            weights = row_log_weights(read, self.plan.real)
            self._tensors[key] = text_rows(self.plan.real, self.plan.text_length, self.device, weights)
        return self._tensors[key]

    def _tensor(self, values: Sequence[Any], dtype: torch.dtype) -> Tensor:
        """Return a tensor of the values, which is made once and then reused."""
        key = (str(values), dtype)
        if key not in self._tensors:
            self._tensors[key] = torch.tensor(values, dtype=dtype, device=self.device)
        return self._tensors[key]

    def _operation(self, bend: BendMaps) -> MapOperation:
        """Return the map operation of a bend, which is prepared once for all its sites."""
        if bend.key not in self._operations:
            self._operations[bend.key] = map_operation(bend.change, self.plan.grid).to(self.device)
        return self._operations[bend.key]


def _without_weight(read: Read) -> Read:
    """Return the read with a weight of 0, for a branch that reads fewer contexts than another one in its batch."""
    return replace(read, weight=0.0, bends=(), text=None)
