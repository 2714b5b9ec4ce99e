"""The base of recorders of attention maps: buffers in host memory, one per measure, that are filled block by block
inside the model and passed to a capture's sink after each model call.

Shape suffixes: H heads, R rows of maps, Q video positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from wanscope.capture.attention_sink import FURTHEST, TOP, AttentionSink
from wanscope.capture.moments import Moment
from wanscope.errors import WorkError
from wanscope.spec.capture import Recorded


class MapRecorder:
    """Records maps for one sink on one device. Attention processors call `keep`; everything else runs around the call.

    active: whether this call is recorded. sample: the batch row that is recorded. Processors read both.
    """

    def __init__(self, sink: AttentionSink, device: torch.device) -> None:
        plan = self.plan = sink.plan
        self.sink = sink
        self.active, self.sample = False, 0
        self.measures: tuple[Recorded, ...] = plan.spec.measures
        self.averaged = plan.heads is None
        self.heads = torch.tensor(plan.heads or (), dtype=torch.int64, device=device)
        stored = torch.float32 if sink.exact else torch.float16
        shape = (len(plan.blocks), len(plan.heads or (0,)), len(plan.rows), *plan.grid)
        self.buffers: dict[Recorded, Tensor] = {
            measure: torch.full(shape, float("nan"), dtype=stored, pin_memory=device.type == "cuda")
            for measure in self.measures
        }
        self.exponents: dict[Recorded, Tensor] = {
            measure: torch.zeros(shape[:3], dtype=torch.int8, pin_memory=device.type == "cuda")
            for measure in self.measures
        }
        self.seen = torch.zeros(len(plan.blocks), dtype=torch.int64)
        self._device = device
        self._places = {block: torch.tensor(place) for place, block in enumerate(plan.blocks)}

    def place(self, block: int) -> Tensor | None:
        """Return the index of a block's maps in the buffers, a tensor [], or None if the block is not recorded."""
        return self._places.get(block)

    @contextmanager
    def around_call(self, moment: Moment, skipped: frozenset[int] = frozenset()) -> Iterator[None]:
        """Record one model call. skipped: blocks that an edit skips in this call, whose maps are NaN.

        Raises WorkError if another block was not recorded exactly once.
        """
        if not self.sink.wanted(moment):
            yield
            return
        self.sample = moment.branches.index(self.plan.branch)
        self.seen.zero_()
        if skipped:
            for buffer in self.buffers.values():
                buffer.fill_(float("nan"))
        self.active = True
        try:
            yield
        finally:
            self.active = False
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self._check(moment, skipped)
        exponents: dict[Recorded, Any] | None = None
        if not self.sink.exact:
            exponents = {m: found.numpy().reshape(self.plan.map_shape[:-3]) for m, found in self.exponents.items()}
        self.sink.put(moment, {m: self._shaped(buffer) for m, buffer in self.buffers.items()}, exponents)

    def keep(self, measure: Recorded, place: Tensor, maps_HRQ: Tensor) -> None:
        """Store the maps [H, R, Q] of one block; called inside the model. place: from `place`."""
        torch.ops.wanscope.put_maps(self.buffers[measure], self.exponents[measure], self.seen, place, maps_HRQ)

    def _check(self, moment: Moment, skipped: frozenset[int]) -> None:
        counts = self.seen.tolist()
        what = "self-attention" if self.measures == ("self",) else "attention"
        for block, count in zip(self.plan.blocks, counts, strict=True):
            wanted = 0 if block in skipped else len(self.measures)
            if count != wanted:
                raise WorkError(
                    f"{what} of block {block} was recorded {count} times at step {moment.step} instead of {wanted}",
                    "something has replaced the block's attention processor, or the block did not run; step caches and "
                    "hooks of other libraries do this",
                )

    def _shaped(self, buffer: Tensor) -> Any:
        return buffer.numpy().reshape(self.plan.map_shape)


@torch.library.custom_op("wanscope::put_maps", mutates_args=("buffer", "exponents", "seen"))
def _put_maps(buffer: Tensor, exponents: Tensor, seen: Tensor, place: Tensor, maps_HRQ: Tensor) -> None:
    """Copy one block's maps to its place in a buffer in host memory, and count it. On a GPU, the copy is asynchronous.

    In an fp16 buffer they are scaled, with their exponents (`capture.attention.scaled`); in an fp32 one they are not.
    """
    at = int(place)
    target = buffer[at]
    if buffer.dtype == torch.float16:
        top_HR = maps_HRQ.abs().amax(-1)
        found_HR = torch.where(top_HR.isfinite(), torch.frexp(top_HR).exponent, 0).clamp(-FURTHEST, FURTHEST) - TOP
        maps_HRQ = torch.ldexp(maps_HRQ, -found_HR[..., None])
        exponents[at].copy_(found_HR.to(torch.int8), non_blocking=True)
    target.copy_(maps_HRQ.to(buffer.dtype).view(target.shape), non_blocking=True)
    seen[at] += 1


@_put_maps.register_fake
def _put_maps_like(buffer: Tensor, exponents: Tensor, seen: Tensor, place: Tensor, maps_HRQ: Tensor) -> None:
    return None
