"""One model call with live edits: the context that each block reads, the changes to its attention, the donors' passes.

The runtime (`comfy/native.py`, `comfy/wrapper.py`) provides the branch of each batch row, the projection of raw text
and a function that runs a block. How edits change a context is defined in `compose.py` for all runtimes: each batch row
gets a plan with a single step, which is this call, and is composed separately.

Shape suffixes: B batch rows, Q video tokens, N text rows of the context, D model dim, L raw tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from wanscope.edit.edits import Inject
from wanscope.edit.operations import BlendState, ShiftState
from wanscope.edit.plan import EditPlan, real_rows, texts_read
from wanscope.edit.planned import Passes, PlannedEdit
from wanscope.edit.planned_texts import PlannedText
from wanscope.edit.rules import READS_TEXT, acting_order, silenced
from wanscope.edit.sites import Branch, Site
from wanscope.errors import RecipeError
from wanscope.runtime.comfy.attention import ActedPart, AttentionChange
from wanscope.runtime.comfy.direction import CallDirection, Project, learned_direction
from wanscope.runtime.comfy.live import CONNECTED, Live, LiveEdit, Run, fraction_at_sigma
from wanscope.runtime.comfy.live_kinds import Guide, Watch
from wanscope.runtime.comfy.report import call_line
from wanscope.runtime.compose import Composed, Read, combined, compose, shifted
from wanscope.runtime.projection import context_of

if TYPE_CHECKING:
    from wanscope.edit.direction import Direction

MAIN = "(prompt)"  # the name of a row's own text in its plan
# x [B, Q, D], context [B, N, D], change of the attention, the batch rows these are (None: all) -> x [B, Q, D]
RunBlock = Callable[[Tensor, Tensor, "AttentionChange | None", "list[int] | None"], Tensor]


@dataclass(eq=False)
class _Stream:
    """A donor's own pass on the same latents: the hidden states of its rows before the current block."""

    edit: int
    branch: Branch
    rows: list[int]
    state_BQD: Tensor
    context_BND: Tensor
    last: int  # the last block whose input is needed
    frozen: bool = False  # the state is no longer updated


@dataclass(eq=False)
class Call:
    """One model call.

    branches: the branch of each batch row, None if it is neither cond nor uncond. raw: the real tokens [L, D] of each
    row's own text. depth, heads: the model's number of blocks and attention heads. grid: frames, rows and columns of
    video tokens. project: see `direction.py`. sigma_at: the noise level at a fraction of the whole sampling.
    shared: whether the rows are prompts that share one video, each for a segment of its frames.
    """

    live: Live
    run: Run
    sigma: float
    branches: tuple[Branch | None, ...]
    raw: list[Tensor]
    depth: int
    heads: int
    grid: tuple[int, int, int]
    project: Project
    sigma_at: Callable[[float], float]
    due: Counter[Site] = field(default_factory=Counter)
    applied: Counter[Site] = field(default_factory=Counter)
    shared: bool = False

    def __post_init__(self) -> None:
        self.step = self.run.step(self.sigma)
        present: set[Branch] = {b for b in self.branches if b is not None}
        for branch in present:
            self.run.passes[branch] += 1
        self.tables = self._apply_rules([self._table(edit) for edit in self.live.edits])
        self._contexts: dict[PlannedText, Tensor] = {}
        self._texts: dict[tuple[int, Branch, int], PlannedText] = {}
        self._plans: dict[int, EditPlan] = {}
        self._directions: dict[int, CallDirection] = {}
        self._keyed_texts: dict[int, PlannedText] = {}
        self._kept: dict[PlannedText, tuple[int, Branch, int]] = {}
        self._streams: list[_Stream] | None = None
        self.visited: set[int] = set()

    def _table(self, edit: LiveEdit) -> dict[Branch, np.ndarray]:
        """Return strength x schedule per block [1, blocks] at this call's noise level, for each branch in the batch."""
        factor = edit.factor(self.sigma, self.sigma_at)
        table_1L = factor * np.array([edit.strengths(self.depth)], dtype=np.float64)
        return {branch: table_1L for branch in edit.branches() if branch in self.branches}

    def _apply_rules(self, tables: list[dict[Branch, np.ndarray]]) -> list[dict[Branch, np.ndarray]]:
        """Return the tables with zeros where another edit overrides an edit (edit/rules.py); the run notes this."""
        kinds = [edit.edit for edit in self.live.edits]
        self.order = acting_order(kinds)
        ruled, silences = silenced([kinds[e] for e in self.order], [tables[e] for e in self.order])
        names = [edit.name for edit in self.live.edits]
        for silence in silences:
            self.run.silence(replace(silence, silent=self.order[silence.silent], by=self.order[silence.by]), names)
        out = list(tables)
        for e, table in zip(self.order, ruled, strict=True):
            out[e] = table
        return out

    def strength(self, e: int, branch: Branch | None, block: int) -> float:
        """Return the strength of edit e at a block in a branch; 0 if it does not act there."""
        table = self.tables[e].get(branch) if branch is not None else None
        return 0.0 if table is None else float(table[0, block])

    def acting_blocks(self, e: int, branch: Branch | None = None) -> list[int]:
        """Return the blocks in which edit e acts, in a branch or in any, in order."""
        tables = [table for b, table in self.tables[e].items() if branch in (None, b)]
        return [int(i) for i in np.flatnonzero(np.any([table[0] != 0 for table in tables], axis=0))] if tables else []

    @property
    def blocks(self) -> set[int]:
        """The blocks that have to run through `block`."""
        out: set[int] = set()
        for e, edit in enumerate(self.live.edits):
            acting = self.acting_blocks(e)
            out |= set(acting)
            if acting and _has_streams(edit):
                out |= set(range(acting[-1] + 1))
        return out

    def finish(self, left_out: Collection[int] = ()) -> None:
        """Add the counts to the run. Raises EditNotApplied if an edit was due and did not act.

        left_out: the blocks that the sampler skipped by its own account. If no block ran at all, a cache answered the
        call.
        """
        self._streams = None
        for kept in (self._contexts, self._texts, self._plans, self._directions, self._keyed_texts, self._kept):
            kept.clear()
        if self.blocks and not self.visited:
            self.run.skipped["a call was answered by a step cache, without running the model"] += 1
            return
        for e, edit in enumerate(self.live.edits):
            for i in self.acting_blocks(e):
                if i in self.visited:
                    continue
                if i in left_out:
                    self.run.skipped[f"block {i} was skipped by skip-layer guidance"] += 1
                elif edit.edit.parts:
                    self.count(self.due, e, i, self.acting_rows(e, i))
        if getattr(self.live.log, "traces", False):
            line = call_line(self.live, self.run, self.sigma, self.branches, self.due, self.applied)
            self.live.log("trace", line)
        self.live.check_call(self.run, self.due, self.applied)

    def rows(self, edit: LiveEdit, branch: Branch | None = None) -> list[int]:
        """Return the batch rows of a branch, or of all branches of an edit."""
        wanted = (branch,) if branch else edit.branches()
        return [r for r, b in enumerate(self.branches) if b in wanted]

    def acting_rows(self, e: int, block: int) -> list[int]:
        """Return the batch rows in which edit e acts at a block."""
        return [r for r, branch in enumerate(self.branches) if self.strength(e, branch, block)]

    def count(self, where: Counter[Site], e: int, block: int, rows: Sequence[int]) -> None:
        """Count edit e at a block once for each branch of these rows, in `due` or `applied`."""
        found: set[Branch] = {b for r in rows if (b := self.branches[r]) is not None}
        for branch in found:
            where[e, block, branch, self.step] += 1

    # running one block

    def block(self, i: int, x_BQD: Tensor, context_BND: Tensor, run: RunBlock, ran: Callable[[], bool]) -> Tensor:
        """Run block i with the edits and return its output [B, Q, D].

        context_BND: the text part of the block's context. run: runs the block itself. ran: whether it really did;
        another node's patch may skip it, for skip-layer guidance. What was due there is then noted, not an error.
        """
        self.visited.add(i)
        self._length = context_BND.shape[1]
        if self._streams is None:
            self._streams = [s for e in range(len(self.live.edits)) for s in self._start_streams(e, x_BQD, context_BND)]
        acted: Counter[ActedPart] = Counter()
        x_BQD = self._hidden(i, x_BQD, acted)
        for stream in self._streams:
            if not stream.frozen and i < stream.last:
                stream.state_BQD = run(stream.state_BQD, stream.context_BND, None, stream.rows)
        skipped = self._skipped(i, acted)
        if len(skipped) == len(self.branches):
            out_BQD = x_BQD
        else:
            change = self._change(i, context_BND)
            context_BND = torch.cat([row.reads[0].context_1ND for row in change.rows]) if change.rows else context_BND
            out_BQD = run(x_BQD, context_BND, change if change.needed else None, None)
            if not ran():
                self.run.skipped[f"block {i} was skipped by another node's patch"] += 1
                return out_BQD
            acted.update(change.ran if change.needed else change.acting)
            if skipped:
                out_BQD = out_BQD.clone()
                out_BQD[skipped] = x_BQD[skipped]
        self._record_block(i, acted)
        return out_BQD

    def _record_block(self, i: int, acted: Counter[ActedPart]) -> None:
        """Count the block's sites: due where the tables are nonzero, applied where every part of the edit acted."""
        for e, edit in enumerate(self.live.edits):
            for branch in self.tables[e] if edit.edit.parts else ():
                if self.strength(e, branch, i):
                    site = (e, i, branch, self.step)
                    self.due[site] += 1
                    self.applied[site] += min(acted[e, part, branch] for part in edit.edit.parts)

    def _change(self, i: int, context_BND: Tensor) -> AttentionChange:
        """Return the contexts that every row reads in this block, and the maps to record there."""
        rows = []
        acting: set[ActedPart] = set()
        for r, branch in enumerate(self.branches):
            own_1ND = context_BND[r : r + 1]
            if branch is None:
                rows.append(Composed((_own_read(own_1ND, len(self.raw[r])),)))
                continue
            composed = compose(self.plan(r, own_1ND.shape[1]), branch, 0, i, 0, own_1ND, self._context)
            rows.append(composed)
            acting |= {(edit.index, part, branch) for edit in composed.applied for part in READS_TEXT & set(edit.parts)}
        change = AttentionChange(rows, self.heads, self.grid, i)
        for e, edit in enumerate(self.live.edits):
            watched = self.acting_rows(e, i) if isinstance(edit.edit, Watch) else []
            if watched:
                change.watch(watched, edit.columns, self.run.maps.setdefault(e, []))
                acting |= {(e, "attention", branch) for r in watched if (branch := self.branches[r]) is not None}
        change.acting.update(acting)
        return change

    # plans and texts

    def plan(self, row: int, length: int) -> EditPlan:
        """Return the edits of one batch row as a plan with a single step, which is this call. length: context rows."""
        if row not in self._plans:
            own = PlannedText(self.raw[row], frozenset((MAIN,)))
            composed = (e for e in self.order if not isinstance(self.live.edits[e].edit, Watch | Guide))
            edits = tuple(self._planned(e, row, own) for e in composed if self.acting_blocks(e))
            passes = Passes((self.sigma,), (1,), (frozenset((0,)),))
            main: dict[Branch, PlannedText] = {"cond": own, "uncond": own}
            branch = self.branches[row]
            assert branch is not None
            real_rows(edits, branch, own, length, lambda e: f"edit {e + 1} ({self.live.edits[e].name})")
            self._plans[row] = EditPlan(edits, passes, self.depth, length, self.grid, main, own.real)
            self._check_words(self._plans[row], row)
        return self._plans[row]

    def _check_words(self, plan: EditPlan, row: int) -> None:
        """Raise RecipeError if words are to be bent or watched at a block that reads no text with them."""
        branch = self.branches[row]
        assert branch is not None
        bent = [(edit.index, edit) for edit in plan.edits if edit.columns]
        watched = [(e, None) for e, edit in enumerate(self.live.edits) if isinstance(edit.edit, Watch)]
        for e, edit in [*bent, *watched]:
            for block in self.acting_blocks(e, branch):
                read = texts_read(plan, branch, 0, block, before=edit)
                # watched words are words of the prompt itself
                if any(edit.columns_in(prompts) if edit else MAIN in prompts for prompts in read):
                    continue
                raise RecipeError(
                    f"edit {e + 1} ({self.live.edits[e].name}) finds no text with its words in block {block}",
                    "another edit replaces the prompt there",
                    "give one of them other blocks or another part of the sampling, or the other a strength below 1",
                )

    def _planned(self, e: int, row: int, own: PlannedText) -> PlannedEdit:
        """Return edit e as a plan for one batch row has it."""
        edit = self.live.edits[e]
        assert not isinstance(edit.edit, Watch | Guide)
        tables = self.tables[e]
        donor: dict[Branch, PlannedText] = {}
        if edit.edit.takes_donor:
            donor = {branch: self._donor(e, branch, row, own) for branch in tables if self.branches[row] == branch}
        keyed = (self._keyed(edit),) if edit.keyed else ()
        columns = {MAIN: tuple(sorted({c for group in edit.columns for c in group}))} if edit.columns else {}
        direction = self._direction(e) if edit.pairs or edit.direction is not None else None
        return PlannedEdit(e, edit.edit, tables, donor, keyed, columns, direction)

    def _keyed(self, edit: LiveEdit) -> PlannedText:
        """Return the text of prompts over time at this call's noise level."""
        key = id(edit)
        if key not in self._keyed_texts:
            text_LD = edit.text_at(fraction_at_sigma(self.sigma, self.sigma_at))
            self._keyed_texts[key] = PlannedText(text_LD, frozenset((f"{CONNECTED} at sigma {self.sigma:g}",)))
        return self._keyed_texts[key]

    def _donor(self, e: int, branch: Branch, row: int, own: PlannedText) -> PlannedText:
        """Return the donor's text; one that is boosted depends on the row's own text."""
        edit = self.live.edits[e]
        spec, donor_LD = edit.edit, edit.donor(branch)
        if donor_LD is None:
            raise RecipeError(
                f"edit {e + 1} ({edit.name}) has no donor", "its input is not connected", "connect injection_embeds"
            )
        boost = spec.boosted(own) if isinstance(spec, Inject) else None
        key = (e, branch, row if boost is not None else -1)
        if key not in self._texts:
            text = PlannedText(donor_LD, frozenset((f"{CONNECTED} {e}",)), boost)
            self._texts[key] = text
            if edit.keep_context and text.boost is None:
                self._kept[text] = (e, branch, len(self.branches))  # the batch size affects the rounding
        return self._texts[key]

    def _context(self, text: PlannedText) -> Tensor:
        """Return the context [1, N, D] of a text, projected once per call, or once per run if it is kept."""
        kept = self._kept.get(text)
        if kept is not None and kept in self.run.contexts:
            return self.run.contexts[kept]
        if text not in self._contexts:
            self._contexts[text] = context_of(text, self.project)
            if kept is not None:
                self.run.contexts[kept] = self._contexts[text]
        return self._contexts[text]

    def _direction(self, e: int) -> CallDirection | Direction:
        """Return the direction of edit e: the stored one, or one learned from pairs with this model's projection."""
        stored = self.live.edits[e].direction
        if stored is not None:
            return stored
        if e not in self._directions:
            self._directions[e] = CallDirection(learned_direction(self.live.edits[e].pairs, self.project))
        return self._directions[e]

    # hidden states and skips

    def _start_streams(self, e: int, x_BQD: Tensor, context_BND: Tensor) -> list[_Stream]:
        """Return the donor passes of edit e, which start from the current hidden states."""
        edit = self.live.edits[e]
        if not _has_streams(edit):
            return []
        out = []
        for branch in edit.branches():
            acting = self.acting_blocks(e, branch)
            for row in self.rows(edit, branch) if acting else []:
                if self.shared and out and out[-1].branch == branch:
                    continue
                planned = next(p for p in self.plan(row, context_BND.shape[1]).edits if p.index == e)
                context = self._context(planned.donor[branch])
                rows = [0] if self.shared else [row]
                out.append(_Stream(e, branch, rows, x_BQD[rows].clone(), context, acting[-1]))
        return out

    def _hidden(self, i: int, x_BQD: Tensor, acted: Counter[ActedPart]) -> Tensor:
        """Return the hidden states [B, Q, D] before block i with the edits on them applied."""
        for e, edit in enumerate(self.live.edits):
            if "hidden" not in edit.edit.parts:
                continue
            for stream in (stream for stream in self._streams or [] if stream.edit == e and i == edit.after_block):
                stream.frozen = True
            for branch in edit.branches():
                rows = self.rows(edit, branch) if self.strength(e, branch, i) else []
                if rows and not acted:
                    x_BQD = x_BQD.clone()  # the block, or another node, may still use the original
                for row in rows[:1] if self.shared else rows:
                    self._edit_state(e, branch, row, i, x_BQD)
                if rows:
                    acted[e, "hidden", branch] += 1
        return x_BQD

    def _edit_state(self, e: int, branch: Branch, row: int, i: int, x_BQD: Tensor) -> None:
        """Edit the hidden state of one row in place."""
        at = [0] if self.shared else [row]
        planned = next(p for p in self.plan(row, self._length).edits if p.index == e)
        operation = planned.operation_at("hidden", branch, 0, self.strength(e, branch, i))
        if isinstance(operation, ShiftState):
            direction_D = operation.direction.at(0, i)
            x_BQD[at] = shifted(x_BQD[at], direction_D, operation.operation, operation.strength)
        else:
            assert isinstance(operation, BlendState)
            streams = (s for s in self._streams or [] if s.edit == e and s.branch == branch and s.rows == at)
            state_1QD = next(streams).state_BQD
            x_BQD[at] = combined(x_BQD[at], state_1QD, operation.operation, operation.strength)

    def _skipped(self, i: int, acted: Counter[ActedPart]) -> list[int]:
        """Return the rows for which the block is skipped."""
        rows: set[int] = set()
        for e, edit in enumerate(self.live.edits):
            skipped = self.acting_rows(e, i) if "block" in edit.edit.parts else []
            rows |= set(skipped)
            acted.update({(e, "block", b) for r in skipped if (b := self.branches[r]) is not None})
        return sorted(rows)


def _own_read(context_1ND: Tensor, real: int) -> Read:
    return Read(context_1ND, 1.0, real, ())


def _has_streams(edit: LiveEdit) -> bool:
    return edit.edit.takes_donor and "hidden" in edit.edit.parts
