"""One model call under live edits: what each block reads, what its cross-attention gives, and the donors' own streams.

The runtime (`comfy/native.py`, `comfy/wrapper.py`) says which rows of the batch are which branch, how raw text is
projected and how a block is run. What the edits of a context mean is `compose.py`'s, for every runtime alike: each row
of the batch gets a plan of one step, this call, and is composed by itself.

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

from wanscope.edit.edits import Inject, Prompts, Skip, Steer
from wanscope.edit.plan import EditPlan, Part, Passes, PlannedEdit, texts_read
from wanscope.edit.planned_texts import Boost, PlannedText
from wanscope.errors import RecipeError
from wanscope.runtime.comfy.attention import AttentionChange
from wanscope.runtime.comfy.direction import Learned, Project, learned_direction
from wanscope.runtime.comfy.live import CONNECTED, Branch, Guide, Live, LiveEdit, Run, Site, Watch, share_at
from wanscope.runtime.comfy.report import call_line
from wanscope.runtime.compose import Composed, Read, combined, compose, steered
from wanscope.runtime.projection import context_of

if TYPE_CHECKING:
    from wanscope.edit.direction import Direction

MAIN = "(prompt)"  # the name under which a row's own text stands in its plan
# x, context, change of the attention, which rows of the batch these are (None: all) -> x
RunBlock = Callable[[Tensor, Tensor, "AttentionChange | None", "list[int] | None"], Tensor]


@dataclass(eq=False)
class _Stream:
    """A donor's own pass on the same latents: its rows' hidden states before block `at`."""

    edit: int
    branch: Branch
    rows: list[int]
    state_BQD: Tensor
    context_BND: Tensor
    last: int  # the last block whose input is needed
    frozen: bool = False


@dataclass(eq=False)
class Call:
    """One model call. branches: of each batch row, None where it is neither. raw: the rows' own text, [L, D] each, of
    the real tokens.

    grid: latent frames, rows and columns of video tokens. sigma_at: noise level at a share of the whole sampling.
    shared: the rows are prompts that share one video, each for a segment of its frames.
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
        self.tables = [self._table(edit) for edit in self.live.edits]
        for skip, table in zip(self.live.edits, self.tables, strict=True):
            if isinstance(skip.edit, Skip):
                self._silence(skip, table)
        self._contexts: dict[PlannedText, Tensor] = {}
        self._texts: dict[tuple[int, Branch, int], PlannedText] = {}
        self._plans: dict[int, EditPlan] = {}
        self._directions: dict[int, Learned] = {}
        self._keyed_texts: dict[int, PlannedText] = {}
        self._kept: dict[PlannedText, tuple[int, Branch, int]] = {}
        self._streams: list[_Stream] | None = None
        self.visited: set[int] = set()

    def _table(self, edit: LiveEdit) -> np.ndarray:
        """Strength x schedule of every block at this call's noise level; zeros where no row has the edit's branch."""
        factor = edit.factor(self.sigma, self.sigma_at)
        if not factor or not any(b in edit.branches() for b in self.branches):
            return np.zeros(self.depth)
        return factor * np.array(edit.strengths(self.depth), dtype=np.float64)

    def _silence(self, skip: LiveEdit, skipped: np.ndarray) -> None:
        """A text that is not read where a block, or its cross-attention, does not run: what acts on it is not due
        there, also in part (`on: both`). As `_without_skipped` in edit/plan.py has it."""
        whole = _parts(skip) == ("block",)
        for i, (edit, table) in enumerate(zip(self.live.edits, self.tables, strict=True)):
            stays = _parts(edit) == ("hidden",) or isinstance(edit.edit, Guide)
            if isinstance(edit.edit, Skip):
                stays = edit is skip or _parts(edit) == _parts(skip) or not whole
            if not stays and set(edit.branches()) <= set(skip.branches()):
                self.tables[i] = np.where(skipped != 0, 0.0, table)

    @property
    def blocks(self) -> set[int]:
        """The blocks that have to be run through `block`."""
        out = {int(i) for table in self.tables for i in np.flatnonzero(table)}
        for edit, table in zip(self.live.edits, self.tables, strict=True):
            if _has_streams(edit) and table.any():
                out |= set(range(int(np.flatnonzero(table)[-1]) + 1))
        return out

    def finish(self, left_out: Collection[int] = ()) -> None:
        """Adds the counts to the run's. Raises EditNotApplied where an edit was due and did not act.

        left_out: blocks that the sampler says it did not run. A call that ran no block at all was answered by a cache.
        """
        self._streams = None
        for kept in (self._contexts, self._texts, self._plans, self._directions, self._keyed_texts, self._kept):
            kept.clear()
        if self.blocks and not self.visited:
            self.run.skipped["a call was answered by a step cache, without running the model"] += 1
            return
        for e, table in enumerate(self.tables):
            for i in np.flatnonzero(table):
                if int(i) in self.visited:
                    continue
                if int(i) in left_out:
                    self.run.skipped[f"block {i} was left out by skip-layer guidance"] += 1
                elif not isinstance(self.live.edits[e].edit, Guide):
                    self.count(self.due, e, int(i), self.rows(self.live.edits[e]))
        if getattr(self.live.log, "traces", False):
            line = call_line(self.live, self.run, self.sigma, self.branches, self.due, self.applied)
            self.live.log("trace", line)
        self.live.check_call(self.run, self.due, self.applied)

    def rows(self, edit: LiveEdit, branch: Branch | None = None) -> list[int]:
        wanted = (branch,) if branch else edit.branches()
        return [r for r, b in enumerate(self.branches) if b in wanted]

    def count(self, where: Counter[Site], e: int, block: int, rows: Sequence[int]) -> None:
        found: set[Branch] = {b for r in rows if (b := self.branches[r]) is not None}
        for branch in found:
            where[e, block, branch, self.step] += 1

    # one block

    def block(self, i: int, x_BQD: Tensor, context_BND: Tensor, run: RunBlock, ran: Callable[[], bool]) -> Tensor:
        """Block i under the edits. context_BND: the text part of what the block reads.

        ran: whether the block itself was run (another node's patch may leave it out, for skip-layer guidance; what was
        due there is then noted, not missed).
        """
        self.visited.add(i)
        if self._streams is None:
            self._streams = [s for e in range(len(self.live.edits)) for s in self._start(e, x_BQD, context_BND)]
        due: Counter[Site] = Counter()
        applied: Counter[Site] = Counter()
        x_BQD = self._hidden(i, x_BQD, due, applied)
        for stream in self._streams:
            if not stream.frozen and i < stream.last:
                stream.state_BQD = run(stream.state_BQD, stream.context_BND, None, stream.rows)
        skipped = self._skipped(i, due, applied)
        if len(skipped) == len(self.branches):
            out_BQD = x_BQD
        else:
            change = self._change(i, context_BND, due)
            context_BND = torch.cat([row.reads[0].context_1ND for row in change.rows]) if change.rows else context_BND
            out_BQD = run(x_BQD, context_BND, change if change.needed else None, None)
            if not ran():
                self.run.skipped[f"block {i} was left out by another node's patch"] += 1
                return out_BQD
            applied.update(change.fired if change.needed else change.sites)
            if skipped:
                out_BQD = out_BQD.clone()
                out_BQD[skipped] = x_BQD[skipped]
        self.due.update(due)
        self.applied.update(applied)
        return out_BQD

    def _change(self, i: int, context_BND: Tensor, due: Counter[Site]) -> AttentionChange:
        """What every row reads in this block."""
        rows = []
        sites: set[tuple[int, Branch]] = set()
        for r, branch in enumerate(self.branches):
            own_1ND = context_BND[r : r + 1]
            if branch is None:
                rows.append(Composed((_own(own_1ND, len(self.raw[r])),)))
                continue
            composed = compose(self.plan(r, own_1ND.shape[1]), branch, 0, i, 0, own_1ND, self._context)
            rows.append(composed)
            sites |= {(edit.index, branch) for edit in composed.applied}
        change = AttentionChange(rows, self.heads, self.grid, i)
        for e, edit in enumerate(self.live.edits):
            if isinstance(edit.edit, Watch) and self.tables[e][i]:
                watched = self.rows(edit)
                change.watch(watched, edit.columns, self.run.maps.setdefault(e, []))
                sites |= {(e, "cond" if self.branches[r] == "cond" else "uncond") for r in watched}
        for e, branch in sites:
            due[e, i, branch, self.step] += 1
            change.sites[e, i, branch, self.step] += 1
        return change

    # plans and texts

    def plan(self, row: int, length: int) -> EditPlan:
        """The edits of one batch row as a plan of one step, which is this call."""
        if row not in self._plans:
            own = PlannedText(self.raw[row], frozenset((MAIN,)))
            edits = tuple(
                self._planned(e, row, own)
                for e, edit in enumerate(self.live.edits)
                if not isinstance(edit.edit, Watch | Guide) and self.tables[e].any()
            )
            passes = Passes((self.sigma,), (1,), (frozenset((0,)),))
            edits = tuple(sorted(edits, key=lambda planned: not isinstance(planned.edit, Prompts)))
            main: dict[Branch, PlannedText] = {"cond": own, "uncond": own}
            self._plans[row] = EditPlan(edits, passes, self.depth, length, self.grid, main, own.real)
            self._check_words(self._plans[row], row)
        return self._plans[row]

    def _check_words(self, plan: EditPlan, row: int) -> None:
        """RecipeError where words are to be bent, or were watched, in a text that does not have them."""
        branch = self.branches[row]
        assert branch is not None
        watched = [
            PlannedEdit(e, Skip("all"), ("attention",), {branch: self.tables[e][None]}, columns={MAIN: (0,)})
            for e, edit in enumerate(self.live.edits)
            if isinstance(edit.edit, Watch) and branch in edit.branches()
        ]
        for edit in [*(edit for edit in plan.edits if edit.columns), *watched]:
            for block in np.flatnonzero(edit.tables[branch][0]) if branch in edit.tables else ():
                read = texts_read(plan, branch, 0, int(block), before=edit)
                if any(edit.columns_in(prompts) for prompts in read):
                    continue
                raise RecipeError(
                    f"edit {edit.index + 1} ({self.live.edits[edit.index].name}) finds no text with its words in block "
                    f"{int(block)}",
                    "another edit puts another prompt there, alone",
                    "other blocks, another part of the sampling, or a strength below 1 for the other prompt",
                )

    def _planned(self, e: int, row: int, own: PlannedText) -> PlannedEdit:
        edit, spec = self.live.edits[e], self.live.edits[e].edit
        assert not isinstance(spec, Watch | Guide)
        tables: dict[Branch, np.ndarray] = dict.fromkeys(edit.branches(), self.tables[e][None])
        donor: dict[Branch, PlannedText] = {}
        if isinstance(spec, Inject):
            donor = {b: self._donor(e, b, row, own) for b in edit.branches() if self.branches[row] == b}
        keyed = (self._keyed(edit),) if isinstance(spec, Prompts) else ()
        columns = {MAIN: tuple(sorted({c for group in edit.columns for c in group}))} if edit.columns else {}
        direction = self._direction(e) if isinstance(spec, Steer) else None
        return PlannedEdit(e, spec, _parts(edit), tables, donor, keyed, columns, direction)  # type: ignore[arg-type]

    def _keyed(self, edit: LiveEdit) -> PlannedText:
        """Of prompts over time, the text at this call's noise level."""
        key = id(edit)
        if key not in self._keyed_texts:
            text_LD = edit.text_at(share_at(self.sigma, self.sigma_at))
            self._keyed_texts[key] = PlannedText(text_LD, frozenset((f"{CONNECTED} at sigma {self.sigma:g}",)))
        return self._keyed_texts[key]

    def _donor(self, e: int, branch: Branch, row: int, own: PlannedText) -> PlannedText:
        edit = self.live.edits[e]
        spec, donor_LD = edit.edit, edit.donor(branch)
        if donor_LD is None:
            raise RecipeError(f"edit {e + 1} ({edit.name}) has no donor", "nothing is connected", "injection_embeds")
        key = (e, branch, row if isinstance(spec, Inject) and spec.boost is not None else -1)
        if key not in self._texts:
            text = PlannedText(donor_LD, frozenset((f"{CONNECTED} {e}",)))
            if isinstance(spec, Inject) and spec.boost is not None:
                keep = True if spec.keep_norm is None else spec.keep_norm
                text = replace(text, boost=Boost(own, spec.boost, keep))
            self._texts[key] = text
            if edit.keep_context and text.boost is None:
                self._kept[text] = (e, branch, len(self.branches))  # of a batch so large, for the same rounding
        return self._texts[key]

    def _context(self, text: PlannedText) -> Tensor:
        """[1, N, D]: a text as the blocks read it, projected once a call, or once a run where it is kept."""
        kept = self._kept.get(text)
        if kept is not None and kept in self.run.contexts:
            return self.run.contexts[kept]
        if text not in self._contexts:
            self._contexts[text] = context_of(text, self.project)
            if kept is not None:
                self.run.contexts[kept] = self._contexts[text]
        return self._contexts[text]

    def _direction(self, e: int) -> Learned | Direction:
        """In the space that the edit acts in: what a file holds, or learned from pairs with this model's projection."""
        stored = self.live.edits[e].direction
        if stored is not None:
            return stored
        if e not in self._directions:
            self._directions[e] = Learned(learned_direction(self.live.edits[e].pairs, self.project))
        return self._directions[e]

    # hidden states and skips

    def _start(self, e: int, x_BQD: Tensor, context_BND: Tensor) -> list[_Stream]:
        edit, table = self.live.edits[e], self.tables[e]
        if not _has_streams(edit) or not table.any():
            return []
        out = []
        for branch in edit.branches():
            for rows in [[r] for r in self.rows(edit, branch)]:
                planned = next(p for p in self.plan(rows[0], context_BND.shape[1]).edits if p.index == e)
                context = self._context(planned.donor[branch])
                at = [0] if self.shared else rows
                if self.shared and out and out[-1].branch == branch:
                    continue
                last = int(np.flatnonzero(table)[-1])
                out.append(_Stream(e, branch, at, x_BQD[at].clone(), context, last))
        return out

    def _hidden(self, i: int, x_BQD: Tensor, due: Counter[Site], applied: Counter[Site]) -> Tensor:
        acted: set[tuple[int, Branch]] = set()
        for e, edit in enumerate(self.live.edits):
            spec, s = edit.edit, float(self.tables[e][i])
            if isinstance(spec, Steer) and spec.on == "hidden" and s:
                rows = [0] if self.shared else self.rows(edit)
                direction_D = self._direction(e).at(0, i)
                x_BQD = x_BQD.clone()
                x_BQD[rows] = steered(x_BQD[rows], direction_D, spec.operation, s)
                acted |= {(e, b) for r in self.rows(edit) if (b := self.branches[r]) is not None}
            for stream in (stream for stream in self._streams or [] if stream.edit == e):
                x_BQD = self._from_stream(stream, i, s, x_BQD, acted)
        for e, branch in acted:
            due[e, i, branch, self.step] += 1
            applied[e, i, branch, self.step] += 1
        return x_BQD

    def _from_stream(self, stream: _Stream, i: int, s: float, x_BQD: Tensor, acted: set[tuple[int, Branch]]) -> Tensor:
        """The state with a donor's own put in."""
        edit = self.live.edits[stream.edit]
        if edit.after_block == i:
            stream.frozen = True
        if s:
            assert isinstance(edit.edit, Inject)
            x_BQD = x_BQD.clone()
            x_BQD[stream.rows] = combined(x_BQD[stream.rows], stream.state_BQD, edit.edit.operation, s)
            acted.add((stream.edit, stream.branch))
        return x_BQD

    def _skipped(self, i: int, due: Counter[Site], applied: Counter[Site]) -> list[int]:
        rows: set[int] = set()
        for e, edit in enumerate(self.live.edits):
            if isinstance(edit.edit, Skip) and edit.edit.part == "block" and self.tables[e][i]:
                rows |= set(self.rows(edit))
                self.count(due, e, i, self.rows(edit))
                self.count(applied, e, i, self.rows(edit))
        return sorted(rows)


def _own(context_1ND: Tensor, real: int) -> Read:
    return Read(context_1ND, 1.0, real, ())


def _has_streams(edit: LiveEdit) -> bool:
    return isinstance(edit.edit, Inject) and "hidden" in _parts(edit)


def _parts(edit: LiveEdit) -> tuple[Part, ...]:
    spec = edit.edit
    if isinstance(spec, Inject):
        return {"context": ("context",), "hidden": ("hidden",), "both": ("hidden", "context")}[spec.on]  # type: ignore[return-value]
    if isinstance(spec, Skip):
        return ("block",) if spec.part == "block" else ("attention",)
    if isinstance(spec, Steer):
        return ("context",) if spec.on == "context" else ("hidden",)
    return ("context",) if isinstance(spec, Prompts) else ("attention",)
