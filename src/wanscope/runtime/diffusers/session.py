"""Attaches edits to a diffusers Wan model for the duration of a `with` statement.

    with attach(model, plan) as session:
        denoise(model, ..., around_call=session.around_call)
    session.verify()

Each transformer block is wrapped in an `EditedBlock`, outside the part that `compile_repeated_blocks` compiles and the
hooks of group offload. It edits the state and the text that the block gets, runs the donors' own passes, skips the
block, and, if attention itself is edited or recorded, replaces the block's own processor by an `EditedAttention` for
that one call. After the `with`, even after an exception, the model has exactly the same module objects as before.

A donor's own pass (for hidden states) runs block by block together with the main one, so only one of its states is in
memory.

Shape suffixes: B batch (branches), Q video positions, N text positions, D model dim, L real tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from wanscope.capture.moments import Moment
from wanscope.edit.operations import BlendState, ShiftState
from wanscope.edit.plan import EditPlan
from wanscope.edit.planned import PlannedEdit
from wanscope.edit.planned_texts import PlannedText
from wanscope.edit.sites import Site
from wanscope.errors import EditNotApplied, NumericalError
from wanscope.runtime.bend import require_mass
from wanscope.runtime.columns import pad_tolerance
from wanscope.runtime.compose import combined, compose, shifted
from wanscope.runtime.diffusers import guard
from wanscope.runtime.diffusers.install import AttentionInstaller
from wanscope.runtime.ledger import Fired, Ledger
from wanscope.runtime.projection import Projection

if TYPE_CHECKING:
    from wanscope.runtime.diffusers.recorder import AttentionRecorder
    from wanscope.runtime.diffusers.self_recorder import SelfAttentionRecorder
    from wanscope.wan.model import WanModel

# Called with the model call, the block, and its input state [B, Q, D].
OnState = Callable[[Moment, int, Tensor], None]


@contextmanager
def attach(
    model: WanModel,
    plan: EditPlan,
    capture: AttentionRecorder | None = None,
    on_state: OnState | None = None,
    self_capture: SelfAttentionRecorder | None = None,
) -> Iterator[DiffusersSession]:
    """Attach the edits of `plan` to the model for the duration of a `with` statement, and yield the session.

    capture, self_capture: record cross-attention and self-attention. on_state: called with the state [B, Q, D] that
    each block gets, before it is edited; it must not change the state. Raises ModelError for a model that edits cannot
    be attached to (with step caches or other attention processors, or compiled as a whole).
    """
    for transformer in model.experts():
        guard.check(transformer)
        guard.raise_recompile_limit(transformer)
    session = DiffusersSession(model, plan, capture, on_state, self_capture)
    blocks = [list(transformer.blocks) for transformer in model.experts()]
    try:
        for expert, transformer in enumerate(model.experts()):
            for i, block in enumerate(blocks[expert]):
                transformer.blocks[i] = EditedBlock(block, session, expert, i)
        session.record_fingerprints()
        yield session
    finally:
        for expert, transformer in enumerate(model.experts()):
            for i, block in enumerate(blocks[expert]):
                transformer.blocks[i] = block
        session.release()


class EditedBlock(nn.Module):
    """A block that runs through its session. inner: the model's own block, the same object as before and after."""

    def __init__(self, inner: nn.Module, session: DiffusersSession, expert: int, index: int) -> None:
        super().__init__()
        self.inner = inner
        self.train(inner.training)
        self._session, self._expert, self._index = session, expert, index

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor, temb: Tensor, rotary_emb: Any) -> Tensor:
        """Return the state [B, Q, D] after the block, with its edits."""
        inputs = BlockInputs(encoder_hidden_states, temb, rotary_emb)
        return self._session.run(self._expert, self._index, hidden_states, inputs)


class BlockInputs:
    """The inputs of all blocks in one call, besides the state.

    context_BND: the text, after image tokens if there are any. temb: the timestep embedding. rotary: RoPE's tables.
    """

    def __init__(self, context_BND: Tensor, temb: Tensor, rotary: Any) -> None:
        self.context_BND, self.temb, self.rotary = context_BND, temb, rotary

    def row(self, row: int) -> BlockInputs:
        """Return the inputs of one branch of a batch."""
        one = slice(row, row + 1)
        return BlockInputs(self.context_BND[one], self.temb[one], self.rotary)

    def with_text(self, text_BND: Tensor) -> BlockInputs:
        """Return the inputs with another text, after the same image tokens."""
        before = self.context_BND.shape[1] - text_BND.shape[1]
        if before:
            text_BND = torch.cat([self.context_BND[:, :before], text_BND], dim=1)
        return BlockInputs(text_BND, self.temb, self.rotary)


class _Call:
    """The model call that is running: its moment, how often edits have acted so far, and the donors' states."""

    def __init__(self, moment: Moment) -> None:
        self.moment = moment
        self.fired: dict[Fired, int] = {}
        self.streams: dict[tuple[int, PlannedText, int | None], _Stream] = {}

    def fire(self, edit: PlannedEdit, part: Any, block: int, branch: str) -> None:
        key = (edit.index, part, block, branch)
        self.fired[key] = self.fired.get(key, 0) + 1


class _Stream:
    """A donor's own pass. state_1QD: its state at the input of block `at`. end: the block before which it stops."""

    def __init__(self, state_1QD: Tensor, end: int) -> None:
        self.state_1QD, self.at, self.end = state_1QD, 0, end


class DiffusersSession:
    """An attached plan; see `wanscope.runtime.ledger.Session`."""

    def __init__(
        self,
        model: WanModel,
        plan: EditPlan,
        capture: AttentionRecorder | None,
        on_state: OnState | None,
        self_capture: SelfAttentionRecorder | None = None,
    ) -> None:
        self.plan, self.capture, self.on_state, self.self_capture = plan, capture, on_state, self_capture
        self.ledger = Ledger(plan)
        self._experts = model.experts()
        self._blocks = [list(transformer.blocks) for transformer in self._experts]
        self._projection = Projection(self._experts, plan.text_length)
        self._installer = AttentionInstaller(plan, self._blocks, capture, model.device)
        self._call: _Call | None = None
        self._fingerprints: list[Any] = []
        self._checked: tuple[int, int] | None = None

    def record_fingerprints(self) -> None:
        """Record the model's current configuration; `around_call` raises EditNotApplied if it changes."""
        self._fingerprints = [guard.fingerprint(transformer) for transformer in self._experts]

    def release(self) -> None:
        """Release everything on the device."""
        self._projection.clear()
        self._installer.clear()
        self._blocks, self._experts, self._call = [], (), None

    def planned(self) -> dict[Site, int]:
        """Return how often each site was planned to act in the calls so far."""
        return self.ledger.planned()

    def counts(self) -> dict[Site, int]:
        """Return how often each site acted in the calls so far."""
        return self.ledger.applied()

    def verify(self) -> None:
        """Raise EditNotApplied unless the whole run was made and every planned site acted."""
        self.ledger.verify()

    @contextmanager
    def around_call(self, moment: Moment) -> Iterator[None]:
        """Make one model call inside this context.

        Raises EditNotApplied if the edits did not act as planned, and NumericalError if a bend leaves nothing to attend
        to or the text's padding is not one repeated row.
        """
        self._check_unchanged(moment)
        self._call = _Call(moment)
        self._installer.begin(moment)
        absent = self._skipped(moment, "block")
        unread = absent | self._skipped(moment, "attention", "context")
        try:
            with ExitStack() as recorded:
                if self.capture is not None:
                    recorded.enter_context(self.capture.around_call(moment, unread))
                if self.self_capture is not None:
                    recorded.enter_context(self.self_capture.around_call(moment, absent))
                yield
            call = self._call
        finally:
            self._call = None
        found = self._installer.read_counts()
        for key, count in found.fired.items():
            call.fired[key] = call.fired.get(key, 0) + count
        self.ledger.close_call(moment, call.fired)
        if found.min_mass is not None:
            require_mass(found.min_mass, f"at step {moment.step}")
        if found.spread > pad_tolerance(self._experts[moment.expert].dtype):
            raise NumericalError(
                f"the text's padding is not one repeated row at step {moment.step}",
                f"its rows differ by {found.spread:.1e} of the context's largest value, so one column cannot "
                "represent all of them",
            )

    def _skipped(self, moment: Moment, *parts: str) -> frozenset[int]:
        """Return the blocks whose parts are skipped in all branches (if one runs a part, the whole batch does)."""
        found = [
            {
                block
                for edit, block in self.plan.sites(branch, moment.step)
                if edit.edit.skips and set(edit.parts) & set(parts)
            }
            for branch in moment.branches
        ]
        return frozenset(set.intersection(*found))

    def _check_unchanged(self, moment: Moment) -> None:
        """Check the model once per step and expert, since an observer may have changed it between steps."""
        if self._checked == (moment.step, moment.expert):
            return
        self._checked = (moment.step, moment.expert)
        if guard.fingerprint(self._experts[moment.expert]) != self._fingerprints[moment.expert]:
            raise EditNotApplied(
                "the model was changed while edits were attached",
                "LoRA, offload, casting and compile may change before or after the run, but not during it, because "
                "keys and states are cached",
            )

    # one block

    def run(self, expert: int, block: int, x_BQD: Tensor, inputs: BlockInputs) -> Tensor:
        """Run block `block` of an expert with its edits; return the state [B, Q, D] after it.

        Raises EditNotApplied outside of `around_call`, or if the batch is not one video for each branch.
        """
        call = self._call
        if call is None:
            raise EditNotApplied(
                "the model was called outside of around_call",
                "edits depend on the step and branch, which are only known inside it",
                "denoise(..., around_call=session.around_call)",
            )
        moment = call.moment
        if x_BQD.shape[0] != len(moment.branches):
            raise EditNotApplied(
                f"the call has a batch of {x_BQD.shape[0]} and the branches {', '.join(moment.branches)}",
                "edits act on one video at a time, so there must be one batch row per branch",
            )
        if self.on_state is not None:
            self.on_state(moment, block, x_BQD)
        if block == 0:
            self._open_streams(call, expert, x_BQD, inputs)
        x_BQD = self._edit_hidden(call, expert, block, x_BQD)
        self._advance(call, expert, block, inputs)
        skips = [self._acting(call, branch, block, "block") for branch in moment.branches]
        for branch, edits in zip(moment.branches, skips, strict=True):
            for edit in edits:
                call.fire(edit, "block", block, branch)
        if all(skips):
            return x_BQD
        out_BQD = self._run_text_edited(call, expert, block, x_BQD, inputs)
        if any(skips):
            kept = [x_BQD[i : i + 1] if skips[i] else out_BQD[i : i + 1] for i in range(len(skips))]
            return torch.cat(kept)
        return out_BQD

    def _acting(self, call: _Call, branch: str, block: int, part: str) -> list[PlannedEdit]:
        step = call.moment.step
        return [edit for edit in self.plan.edits if part in edit.parts and edit.strength(branch, step, block)]

    def _run_text_edited(self, call: _Call, expert: int, block: int, x_BQD: Tensor, inputs: BlockInputs) -> Tensor:
        moment = call.moment
        length = self.plan.text_length
        text_BND = inputs.context_BND[:, inputs.context_BND.shape[1] - length :]
        own = [text_BND[i : i + 1] for i in range(len(moment.branches))]
        project = self._projection.of(expert)
        rows = [
            compose(self.plan, branch, moment.step, block, expert, text_1ND, project)
            for branch, text_1ND in zip(moment.branches, own, strict=True)
        ]
        changed = any(row.reads[0].context_1ND is not text_1ND for row, text_1ND in zip(rows, own, strict=True))
        if changed:
            first = [row.reads[0].context_1ND for row in rows]
            inputs = inputs.with_text(torch.cat(first) if len(first) > 1 else first[0])
        records = self.capture is not None and self.capture.active and self.capture.place(block) is not None
        if records or not all(row.plain for row in rows):
            with self._installer.installed(expert, block, moment, rows):
                return self._run_inner(expert, block, x_BQD, inputs)
        for branch, row in zip(moment.branches, rows, strict=True):
            for edit in row.applied:
                call.fire(edit, "context", block, branch)
        return self._run_inner(expert, block, x_BQD, inputs)

    def _run_inner(self, expert: int, block: int, x_BQD: Tensor, inputs: BlockInputs) -> Tensor:
        """Run the model's own block, and record its self-attention if requested."""
        inner, recorder = self._blocks[expert][block], self.self_capture
        place = recorder.place(block) if recorder is not None and recorder.active else None
        if recorder is None or place is None:
            return inner(x_BQD, inputs.context_BND, inputs.temb, inputs.rotary)
        with self._installer.recorded_self(expert, block, recorder, place):
            return inner(x_BQD, inputs.context_BND, inputs.temb, inputs.rotary)

    # hidden states

    def _edit_hidden(self, call: _Call, expert: int, block: int, x_BQD: Tensor) -> Tensor:
        rows: list[Tensor] | None = None
        for i, branch in enumerate(call.moment.branches):
            for edit in self._acting(call, branch, block, "hidden"):
                rows = rows or list(x_BQD.split(1))
                s = edit.strength(branch, call.moment.step, block)
                operation = edit.operation_at("hidden", branch, call.moment.step, s)
                if isinstance(operation, ShiftState):
                    direction_D = operation.direction.at(expert, block)
                    rows[i] = shifted(rows[i], direction_D, operation.operation, s)
                else:
                    assert isinstance(operation, BlendState)
                    stream = call.streams[i, operation.text, operation.after_block]
                    assert stream.at == (block if operation.after_block is None else operation.after_block)
                    rows[i] = combined(rows[i], stream.state_1QD, operation.operation, s)
                call.fire(edit, "hidden", block, branch)
        if rows is None:
            return x_BQD
        return torch.cat(rows) if len(rows) > 1 else rows[0]

    def _open_streams(self, call: _Call, expert: int, x_BQD: Tensor, inputs: BlockInputs) -> None:
        """Start the donors' own passes from the first block's input; those with `after_block` run up to it at once."""
        ends: dict[tuple[int, PlannedText, int | None], int] = {}
        for i, branch in enumerate(call.moment.branches):
            for edit, block in self.plan.sites(branch, call.moment.step):
                if "hidden" not in edit.parts:
                    continue
                step = call.moment.step
                operation = edit.operation_at("hidden", branch, step, edit.strength(branch, step, block))
                if isinstance(operation, BlendState):
                    after = operation.after_block
                    key = (i, operation.text, after)
                    ends[key] = max(ends.get(key, 0), block) if after is None else after
        for (row, text, after), end in ends.items():
            stream = _Stream(x_BQD[row : row + 1], end)
            call.streams[row, text, after] = stream
            while after is not None and stream.at < after:
                self._step(stream, expert, row, text, inputs)

    def _advance(self, call: _Call, expert: int, block: int, inputs: BlockInputs) -> None:
        for (row, text, _), stream in call.streams.items():
            if stream.at == block < stream.end:
                self._step(stream, expert, row, text, inputs)

    def _step(self, stream: _Stream, expert: int, row: int, text: PlannedText, inputs: BlockInputs) -> None:
        """Advance a donor's own pass by one block, with the model's own block."""
        own = inputs.row(row) if inputs.context_BND.shape[0] > 1 else inputs
        own = own.with_text(self._projection.of(expert)(text))
        inner = self._blocks[expert][stream.at]
        stream.state_1QD = inner(stream.state_1QD, own.context_BND, own.temb, own.rotary)
        stream.at += 1
