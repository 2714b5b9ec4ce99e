"""The plan: a recipe's edits resolved against one model and one run, and refused where they cannot work.

Every edit becomes tables of strength x schedule, [steps, blocks] for each branch, and the texts that it reads. A site
(edit, block, branch, step) is planned where its table is not zero and the branch's pass is run; the runtime acts there
and nowhere else, and both are counted and compared. Factor 1, angle 0 and strength 0 leave the plan.

In which order edits act, and which one leaves nothing of which, is in `rules.py`. A `bend` acts on the words in every
text that is read at that point, and a `mix` after it adds one that is not bent. A donor's own pass (for hidden states)
knows no edit but its text.

Shape suffixes: S steps, L blocks or tokens (said where), D text dim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from wanscope.edit.edits import Edit, check_edits
from wanscope.edit.encoded_texts import DonorTexts
from wanscope.edit.planned import Passes, PlannedEdit, Resolving
from wanscope.edit.planned_texts import PlannedText
from wanscope.edit.rules import acting_order, silenced
from wanscope.edit.sites import BRANCHES, Branch, Site
from wanscope.errors import RecipeError

if TYPE_CHECKING:
    from wanscope.edit.direction import Direction


@dataclass(frozen=True, eq=False)
class EditPlan:
    """All edits of one run on one model. edits: in the order in which they act; `index` is the recipe's.

    blocks: of the model. text_length: positions of its text. grid: tokens of the video (frames, rows, columns). main:
    what the loop itself reads, by branch. real: the largest number of real rows that any edited context has. notes:
    what a person should know, each beginning with the edit's name (`edits.0`).
    """

    edits: tuple[PlannedEdit, ...]
    passes: Passes
    blocks: int
    text_length: int
    grid: tuple[int, int, int]
    main: Mapping[Branch, PlannedText]
    real: int
    notes: tuple[str, ...] = ()

    @property
    def empty(self) -> bool:
        """Whether nothing acts anywhere."""
        return not any(edit.acts for edit in self.edits)

    def notes_on(self, index: int) -> tuple[str, ...]:
        """The notes on one edit, without its name."""
        name = f"edits.{index}"
        own = (note.removeprefix(name) for note in self.notes if note.startswith((f"{name}:", f"{name} ")))
        return tuple(note.removeprefix(":").strip() for note in own)

    def sites(self, branch: str, step: int) -> Iterator[tuple[PlannedEdit, int]]:
        """(edit, block) of every site of a pass."""
        for edit in self.edits:
            table = edit.tables.get(branch)  # type: ignore[call-overload]
            if table is not None:
                for block in np.flatnonzero(table[step]):
                    yield edit, int(block)

    def planned(self) -> dict[Site, int]:
        """How often each site acts, once for every evaluation of its step.

        Where the experts of Wan 2.2 differ in whether they are guided, a site on uncond that only one of them has is
        counted as if it had all evaluations of its step; the runtime knows which expert made each.
        """
        return {
            (edit.index, block, branch, step): self.passes.evaluations[step]
            for step in range(self.passes.first, self.passes.steps)
            for branch in BRANCHES
            if self.passes.has(branch, step)
            for edit, block in self.sites(branch, step)
        }


def make_plan(
    edits: Sequence[Edit],
    texts: DonorTexts,
    passes: Passes,
    *,
    blocks: int,
    heads: int,
    grid: tuple[int, int, int],
    directions: Mapping[str, Direction] | None = None,
) -> EditPlan:
    """Resolve `edits` for a model of so many blocks and heads, a video of `grid` tokens and the calls of one run.

    texts: everything encoded. directions: of `steer` edits, by the file's hash. Raises RecipeError, naming the edit,
    for what cannot work.
    """
    check_edits(edits, blocks, passes.steps, heads)
    main: dict[Branch, PlannedText] = {
        "cond": PlannedText(texts.main, frozenset((texts.prompt,))),
        "uncond": PlannedText(texts.uncond, frozenset((texts.negative,))),
    }
    notes: list[str] = []
    kept: list[PlannedText] = []
    planned: list[PlannedEdit] = []
    for i, edit in enumerate(edits):
        table_SL = edit.table(passes, blocks, f"edits.{i}")
        notes += _where_it_does_not_act(edit, table_SL, passes, blocks, f"edits.{i}")
        against = Resolving(f"edits.{i}", texts, passes, blocks, main, table_SL, directions or {}, notes, kept)
        brought = edit.resolve(against)
        tables = dict.fromkeys(edit.branches, table_SL)
        columns = texts.places.get(i, {})
        planned.append(PlannedEdit(i, edit, tables, brought.donor, brought.keyed, columns, brought.direction))
    planned = _ruled(edits, planned, notes)
    real = max(real_rows(planned, branch, main[branch], texts.text_length) for branch in main)
    plan = EditPlan(tuple(planned), passes, blocks, texts.text_length, grid, main, real, tuple(dict.fromkeys(notes)))
    return replace(plan, notes=(*plan.notes, *_check_words(plan, texts.word_texts)))


def _where_it_does_not_act(edit: Edit, table_SL: np.ndarray, passes: Passes, blocks: int, where: str) -> Iterator[str]:
    """A note on an edit whose table is zero, or that acts only where its pass is not run."""
    if not table_SL.any():
        reason = edit.inactive_reason(blocks) or "its schedule is 0 at every step"
        yield f"{where} acts nowhere: {reason}"
        return
    acting = np.flatnonzero(table_SL.any(1))
    if not any(passes.has(branch, int(step)) for branch in edit.branches for step in acting):
        late = not table_SL[passes.first :].any()
        why = f"the run begins at step {passes.first}" if late else "guidance is 1 there"
        yield f"{where} acts on no pass: {edit.branch} is not run where it would ({why})"


def _ruled(edits: Sequence[Edit], planned: Sequence[PlannedEdit], notes: list[str]) -> list[PlannedEdit]:
    """The edits in acting order, with tables that are zero where another edit leaves nothing of them."""
    ordered = [planned[i] for i in acting_order(edits)]
    kinds = [edits[edit.index] for edit in ordered]
    tables, told = silenced(kinds, [edit.tables for edit in ordered])
    for silence in told:
        # A prompt is for the blocks that read one: where none is read, nothing is lost of it.
        if silence.why == "replaced" or not kinds[silence.silent].sets_prompt:
            names = (f"edits.{ordered[i].index}" for i in (silence.silent, silence.by))
            notes.append(silence.sentence(*names))
    return [replace(edit, tables=table) for edit, table in zip(ordered, tables, strict=True)]


def real_rows(
    planned: Sequence[PlannedEdit],
    branch: Branch,
    main: PlannedText,
    length: int,
    name: Callable[[int], str] = "edits.{}".format,
) -> int:
    """The most real rows that any context of a branch has, of `length` in all.

    name: what messages call the edit of an index. Raises RecipeError where there is no room for appended tokens.
    """
    real = main.real
    for edit in planned:
        table = edit.tables.get(branch)
        if table is None or not table.any() or "context" not in edit.parts:
            continue
        for text in edit.texts_on(branch):
            if not edit.appends:
                real = max(real, text.real)
            elif real + text.real > length:
                raise RecipeError(
                    f"{name(edit.index)}: the donor's {text.real} tokens cannot be appended",
                    f"{real} of the {length} places are taken",
                    "mode: mix, or a shorter donor",
                )
            else:
                real += text.real
    return real


def _check_words(plan: EditPlan, word_texts: Mapping[int, Mapping[str, frozenset[str]]]) -> Iterator[str]:
    """RecipeError where an edit would act on words that no text read at that place has. A note for each word that none
    of the texts read where it acts has, while they have another."""
    for edit in plan.edits:
        if not edit.columns:
            continue
        everywhere: set[str] = set()
        for branch, table_SL in edit.tables.items():
            for step in range(plan.passes.first, plan.passes.steps):
                if not plan.passes.has(branch, step):
                    continue
                for block in np.flatnonzero(table_SL[step]):
                    read = texts_read(plan, branch, step, int(block), before=edit)
                    if not any(edit.columns_in(prompts) for prompts in read):
                        words = edit.edit.named_words()
                        raise RecipeError(
                            f"edits.{edit.index} would do nothing in block {block} at step {step} on {branch}",
                            f"no text that is read there has {' or '.join(repr(word) for word in words)}",
                            "branch: cond, other words, or other blocks or steps",
                        )
                    everywhere.update(*read)
        for word, holding in word_texts.get(edit.index, {}).items():
            if everywhere and not holding & everywhere:
                yield f"edits.{edit.index} does nothing to {word!r}: no text that is read where it acts has it"


def texts_read(
    plan: EditPlan, branch: Branch, step: int, block: int, before: PlannedEdit | None = None
) -> list[frozenset[str]]:
    """The prompts in each text that a block's cross-attention reads, after the edits that come before one."""
    read = [plan.main[branch].prompts]
    for edit in plan.edits:
        if edit is before:
            break
        strength = edit.strength(branch, step, block)
        if strength and "context" in edit.parts:
            read = edit.operation_at("context", branch, step, strength).prompts_read(read)
    return read
