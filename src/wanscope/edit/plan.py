"""The plan: a recipe's edits resolved for one model and one run. Edits that cannot work are refused here.

Every edit becomes tables of strength x schedule, [S, L] for each branch, and the texts that it reads. A site (edit,
block, branch, step) is planned if its table is not zero there and the branch's pass is run. The runtime acts exactly at
the planned sites; planned and applied counts are compared. Strength 0 and bends that change nothing (factor 1, angle 0)
are not planned.

The order in which edits act, and which edits override which, is in `rules.py`. A `bend` acts on the words in every text
that is read at that point; a `mix` after it adds a text that is not bent. A donor's own pass (for hidden states) has
the donor's text and no other edit.

Shape suffixes: S steps, L blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from wanscope.edit.edits import Edit, check_edits
from wanscope.edit.encoded_texts import DonorTexts
from wanscope.edit.planned import Passes, PlannedEdit, ResolveInputs
from wanscope.edit.planned_texts import PlannedText
from wanscope.edit.rules import acting_order, silenced
from wanscope.edit.sites import BRANCHES, Branch, Site
from wanscope.errors import RecipeError

if TYPE_CHECKING:
    from wanscope.edit.direction import Direction


@dataclass(frozen=True, eq=False)
class EditPlan:
    """All edits of one run on one model. edits: in acting order; their `index` is the position in the recipe.

    blocks: number of blocks of the model. text_length: number of text positions. grid: tokens of the video (frames,
    rows, columns). main: the texts that the unedited run reads, by branch. real: the largest number of real rows in any
    edited context. notes: remarks for the user, each beginning with the edit's name (`edits.0`).
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
        """Whether no edit acts anywhere."""
        return not any(edit.acts for edit in self.edits)

    def notes_on(self, index: int) -> tuple[str, ...]:
        """Return the notes on the edit at a position in the recipe, without its name."""
        name = f"edits.{index}"
        own = (note.removeprefix(name) for note in self.notes if note.startswith((f"{name}:", f"{name} ")))
        return tuple(note.removeprefix(":").strip() for note in own)

    def sites(self, branch: str, step: int) -> Iterator[tuple[PlannedEdit, int]]:
        """Yield (edit, block) of every site of a pass."""
        for edit in self.edits:
            table = edit.tables.get(branch)  # type: ignore[call-overload]
            if table is not None:
                for block in np.flatnonzero(table[step]):
                    yield edit, int(block)

    def planned(self) -> dict[Site, int]:
        """Return how often each site acts: once per model evaluation of its step.

        If only one of Wan 2.2's experts is guided at a step, a site on uncond is counted for all evaluations of the
        step, because the plan does not know which expert makes each; the runtime does.
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
    """Resolve `edits` for one run.

    texts: the encoded texts. passes: the model calls of the run. blocks, heads: of the model. grid: tokens of the video
    (frames, rows, columns). directions: those of `steer` edits, by file hash. Raises RecipeError, naming the edit, for
    an edit that cannot work.
    """
    check_edits(edits, blocks, passes.steps, heads)
    main: dict[Branch, PlannedText] = {
        "cond": PlannedText(texts.main, frozenset((texts.prompt,))),
        "uncond": PlannedText(texts.uncond, frozenset((texts.negative,))),
    }
    notes: list[str] = []
    plan_texts: list[PlannedText] = []
    planned: list[PlannedEdit] = []
    for i, edit in enumerate(edits):
        table_SL = edit.table(passes, blocks, f"edits.{i}")
        notes += _inactive_notes(edit, table_SL, passes, blocks, f"edits.{i}")
        inputs = ResolveInputs(f"edits.{i}", texts, passes, blocks, main, table_SL, directions or {}, notes, plan_texts)
        resolved = edit.resolve(inputs)
        tables = dict.fromkeys(edit.branches, table_SL)
        columns = texts.places.get(i, {})
        planned.append(PlannedEdit(i, edit, tables, resolved.donor, resolved.keyed, columns, resolved.direction))
    planned = _apply_rules(edits, planned, notes)
    real = max(real_rows(planned, branch, main[branch], texts.text_length) for branch in main)
    plan = EditPlan(tuple(planned), passes, blocks, texts.text_length, grid, main, real, tuple(dict.fromkeys(notes)))
    return replace(plan, notes=(*plan.notes, *_check_words(plan, texts.word_texts)))


def _inactive_notes(edit: Edit, table_SL: np.ndarray, passes: Passes, blocks: int, where: str) -> Iterator[str]:
    """Yield a note on an edit whose table is zero, or that would act only where its pass is not run."""
    if not table_SL.any():
        reason = edit.inactive_reason(blocks) or "its schedule is 0 at every step"
        yield f"{where} acts nowhere: {reason}"
        return
    acting = np.flatnonzero(table_SL.any(1))
    if not any(passes.has(branch, int(step)) for branch in edit.branches for step in acting):
        late = not table_SL[passes.first :].any()
        why = f"the run begins at step {passes.first}" if late else "guidance is 1 there"
        yield f"{where} acts nowhere: the {edit.branch} pass is not run at its steps ({why})"


def _apply_rules(edits: Sequence[Edit], planned: Sequence[PlannedEdit], notes: list[str]) -> list[PlannedEdit]:
    """Return the edits in acting order, with tables that are zero where another edit silences them."""
    ordered = [planned[i] for i in acting_order(edits)]
    kinds = [edits[edit.index] for edit in ordered]
    tables, silences = silenced(kinds, [edit.tables for edit in ordered])
    for silence in silences:
        # No note if `prompts` is silent in skipped blocks: it applies to the blocks that read a prompt.
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
    """Return the largest number of real rows of any context of a branch.

    length: rows of a context, with padding. name: returns the name of the edit at an index, for messages. Raises
    RecipeError if there is no room for appended tokens.
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
                    f"{real} of the {length} text positions are in use; mode: mix needs none",
                    "mode: mix",
                )
            else:
                real += text.real
    return real


def _check_words(plan: EditPlan, word_texts: Mapping[int, Mapping[str, frozenset[str]]]) -> Iterator[str]:
    """Yield a note for each word of an edit that is in none of the texts read where the edit acts.

    Raises RecipeError if, at any site of an edit, no text that is read there has any of its words.
    """
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
                            "branch: cond" if branch == "uncond" else "use other words, blocks or steps",
                        )
                    everywhere.update(*read)
        for word, holding in word_texts.get(edit.index, {}).items():
            if everywhere and not holding & everywhere:
                yield f"edits.{edit.index} does nothing to {word!r}: no text that is read where it acts has it"


def texts_read(
    plan: EditPlan, branch: Branch, step: int, block: int, before: PlannedEdit | None = None
) -> list[frozenset[str]]:
    """Return the prompts in each text that a block's cross-attention reads at a step.

    before: count only the edits that act before this one.
    """
    read = [plan.main[branch].prompts]
    for edit in plan.edits:
        if edit is before:
            break
        strength = edit.strength(branch, step, block)
        if strength and "context" in edit.parts:
            read = edit.operation_at("context", branch, step, strength).prompts_read(read)
    return read
