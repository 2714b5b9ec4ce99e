"""The plan: a recipe's edits resolved against one model and one run, and refused where they cannot work.

Every edit becomes tables of strength x schedule, [steps, blocks] for each branch, and the texts that it reads. A site
(edit, block, branch, step) is planned where its table is not zero and the branch's pass is run; the runtime acts there
and nowhere else, and both are counted and compared. Factor 1, angle 0 and strength 0 leave the plan.

How several edits compose:

- `prompts` come first, wherever they stand: they say what the prompt is at each step.
- All others act in the order given, each on what those before it left. A `bend` acts on the words in every text that is
  read at that point, and a `mix` after it adds one that is not bent. A `mix` at strength 1 leaves nothing of what was
  there, nor do `tokens` that replace all of a text: what came before leaves the plan there (and a note says so).
- A skipped block reads no text: what acts on its context or attention leaves the plan there (and a note says so).
  Hidden edits still act on the state that passes through.
- A donor's own pass (for hidden states) knows no edit but its text.

Shape suffixes: S steps, L blocks or tokens (said where), D text dim.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from wanscope.edit.base import EditInBlocks, EditWithStrength
from wanscope.edit.donors import DonorTexts, check_edits
from wanscope.edit.edits import Bend, Edit, Inject, Prompts, Skip, Steer
from wanscope.edit.planned_texts import Boost, Branch, PlannedText, donors_of, idle_note, keyed_texts, replaces
from wanscope.errors import RecipeError

if TYPE_CHECKING:
    from wanscope.edit.direction import Direction

__all__ = ["Boost", "Branch", "EditPlan", "Part", "Passes", "PlannedEdit", "PlannedText", "Site", "make_plan"]

Part = Literal["context", "attention", "hidden", "block"]
# (edit's place in the list, block, branch, step)
Site = tuple[int, int, str, int]


@dataclass(frozen=True)
class Passes:
    """Which model calls a run makes.

    sigmas: the noise level that each step begins at. evaluations: of the model, in each step. first: the step that the
    run begins with. guided: for each expert the steps at which it also runs the uncond pass.
    """

    sigmas: tuple[float, ...]
    evaluations: tuple[int, ...]
    guided: tuple[frozenset[int], ...]
    first: int = 0

    @property
    def steps(self) -> int:
        return len(self.evaluations)

    def has(self, branch: str, step: int, expert: int | None = None) -> bool:
        """Whether the branch's pass is run at a step; without `expert`, whether any expert would run it."""
        if step < self.first or branch == "cond":
            return step >= self.first
        experts = self.guided if expert is None else (self.guided[expert],)
        return any(step in steps for steps in experts)


@dataclass(frozen=True, eq=False)
class PlannedEdit:
    """One edit with nothing left open.

    tables: float64 [S, blocks] for each branch that it acts on. parts: what of a block it touches. donor: the text of
    an injection, by branch. keyed: of `prompts`, the text of each step (None before the first key). columns: of its
    words, by the prompt that they stand in. direction: of `steer`.
    """

    index: int
    edit: Edit
    parts: tuple[Part, ...]
    tables: Mapping[Branch, np.ndarray]
    donor: Mapping[Branch, PlannedText] = field(default_factory=dict)
    keyed: tuple[PlannedText | None, ...] = ()
    columns: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    direction: Direction | None = None

    def strength(self, branch: str, step: int, block: int) -> float:
        """0 where it does not act."""
        table = self.tables.get(branch)  # type: ignore[call-overload]
        return 0.0 if table is None else float(table[step, block])

    @property
    def acts(self) -> bool:
        return any(table.any() for table in self.tables.values())

    def columns_in(self, prompts: frozenset[str]) -> tuple[int, ...]:
        """The places of its words in a text that holds these prompts."""
        return tuple(sorted({column for prompt in prompts for column in self.columns.get(prompt, ())}))


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
            for branch in ("cond", "uncond")
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
    planned = [
        _resolved(i, edit, texts, passes, blocks, main, directions or {}, notes, kept) for i, edit in enumerate(edits)
    ]
    planned.sort(key=lambda edit: not isinstance(edit.edit, Prompts))  # a stable sort: the others keep their order
    planned = _without_replaced(_without_skipped(planned, notes), notes)
    real = max(_real_rows(planned, branch, main[branch], texts.text_length) for branch in main)
    plan = EditPlan(tuple(planned), passes, blocks, texts.text_length, grid, main, real, tuple(dict.fromkeys(notes)))
    return replace(plan, notes=(*plan.notes, *_check_words(plan, texts.word_texts)))


def _resolved(
    index: int,
    edit: Edit,
    texts: DonorTexts,
    passes: Passes,
    blocks: int,
    main: Mapping[Branch, PlannedText],
    directions: Mapping[str, Direction],
    notes: list[str],
    kept: list[PlannedText],
) -> PlannedEdit:
    where = f"edits.{index}"
    branches: tuple[Branch, ...] = ("cond", "uncond") if edit.branch == "both" else (edit.branch,)
    table_SL = _table(edit, passes, blocks, where)
    tables = dict.fromkeys(branches, table_SL)
    if not table_SL.any() and isinstance(edit, EditInBlocks):
        unmoved = "its map would stay as it is" if isinstance(edit, Bend) and edit.changes_nothing else ""
        notes.append(f"{where} acts nowhere: {edit.nowhere(blocks) or unmoved or 'its schedule is 0 at every step'}")
    if table_SL.any() and not any(
        passes.has(branch, int(step)) for branch in branches for step in np.flatnonzero(table_SL.any(1))
    ):
        late = not table_SL[passes.first :].any()
        why = f"the run begins at step {passes.first}" if late else "guidance is 1 there"
        notes.append(f"{where} acts on no pass: {edit.branch} is not run where it would ({why})")
    columns = texts.places.get(index, {})
    if isinstance(edit, Inject):
        donor = donors_of(edit, texts, main, where, notes, kept)
        idle = [idle_note(edit, donor[branch], main[branch], not table_SL[:, 1:].any()) for branch in branches]
        if table_SL.any() and all(idle):
            notes.append(f"{where} changes nothing: {idle[0]}")
        parts: tuple[Part, ...] = {"context": ("context",), "hidden": ("hidden",), "both": ("hidden", "context")}[
            edit.on
        ]
        return PlannedEdit(index, edit, parts, tables, donor, columns=columns)
    if isinstance(edit, Bend):
        return PlannedEdit(index, edit, ("attention",), tables, columns=columns)
    if isinstance(edit, Steer):
        found = directions.get(edit.sha256 or "")
        if found is None:
            raise RecipeError(f"{where}: the direction {edit.direction} was not read", "it has no recorded hash", "")
        found.require(edit.on, tuple(int(block) for block in np.flatnonzero(table_SL.any(0))), where)
        return PlannedEdit(index, edit, ("context" if edit.on == "context" else "hidden",), tables, direction=found)
    if isinstance(edit, Skip):
        return PlannedEdit(index, edit, ("block" if edit.part == "block" else "attention",), tables)
    keyed = keyed_texts(edit, texts, passes.steps)
    return PlannedEdit(index, edit, ("context",), tables, keyed=keyed)


def _table(edit: Edit, passes: Passes, blocks: int, where: str) -> np.ndarray:
    """Strength x schedule, float64 [S, blocks]."""
    if isinstance(edit, Prompts):
        from_step = np.arange(passes.steps) >= min(edit.keys)
        return np.repeat(from_step[:, None].astype(np.float64), blocks, axis=1)
    assert isinstance(edit, EditInBlocks)
    over_steps_S = np.array(edit.multiplier.values(passes.sigmas), dtype=np.float64)
    table_SL = over_steps_S[:, None] * np.array(edit.strengths(blocks).values, dtype=np.float64)[None]
    if isinstance(edit, Skip):
        return (table_SL != 0).astype(np.float64)
    if isinstance(edit, Bend) and edit.changes_nothing:
        return np.zeros_like(table_SL)
    if isinstance(edit, EditWithStrength):
        low, high = edit.strength_range
        if table_SL.min() < low or table_SL.max() > high:
            worst = table_SL.min() if table_SL.min() < low else table_SL.max()
            raise RecipeError(
                f"{where}: strength times schedule reaches {worst:g}",
                f"for this edit it is from {low:g} to {high:g}",
                "a schedule with values from 0 to 1",
            )
    return table_SL


def _without_skipped(planned: list[PlannedEdit], notes: list[str]) -> list[PlannedEdit]:
    """What reads a text in a block that does not run leaves the plan there."""
    for skip in (edit for edit in planned if isinstance(edit.edit, Skip)):
        whole = skip.parts == ("block",)
        for i, other in enumerate(planned):
            same = isinstance(other.edit, Skip) and (other is skip or other.parts == skip.parts or not whole)
            if same or other.parts == ("hidden",):
                continue
            tables = dict(other.tables)
            for branch, skipped_SL in skip.tables.items():
                if branch in tables and (tables[branch] * skipped_SL).any():
                    tables[branch] = np.where(skipped_SL != 0, 0.0, tables[branch])
                    if not isinstance(other.edit, Prompts):  # a prompt is for the blocks that read one
                        what = "the blocks" if whole else "the cross-attention"
                        notes.append(
                            f"edits.{other.index} does not act where edits.{skip.index} skips {what} it acts in"
                        )
            planned[i] = replace(other, tables=tables)
    return planned


def _without_replaced(planned: list[PlannedEdit], notes: list[str]) -> list[PlannedEdit]:
    """What a later injection, or later prompts, leave nothing of leaves the plan there. An injection `on: both` still
    has its state."""
    for i, later in enumerate(planned):
        if not isinstance(later.edit, Inject | Prompts):
            continue
        at = np.vectorize(functools.partial(replaces, later.edit), otypes=[bool])
        for j, other in enumerate(planned[:i]):
            if isinstance(other.edit, Skip) or "hidden" in other.parts:
                continue
            tables = dict(other.tables)
            for branch, table_SL in later.tables.items():
                gone_SL = at(table_SL)
                if branch in tables and tables[branch][gone_SL].any():
                    tables[branch] = np.where(gone_SL, 0.0, tables[branch])
                    notes.append(f"edits.{other.index} does not act where edits.{later.index} leaves nothing of it")
            planned[j] = replace(other, tables=tables)
    return planned


def _real_rows(planned: Sequence[PlannedEdit], branch: Branch, main: PlannedText, length: int) -> int:
    """The most real rows that any context of a branch has. RecipeError where appended tokens find no room."""
    real = main.real
    for edit in planned:
        table = edit.tables.get(branch)
        if table is None or not table.any() or "context" not in edit.parts:
            continue
        real = max([real, *(text.real for text in edit.keyed if text is not None)])
        if branch not in edit.donor:
            continue
        donor = edit.donor[branch]
        assert isinstance(edit.edit, Inject)
        if edit.edit.mode != "append":
            real = max(real, donor.real)
            continue
        if real + donor.real > length:
            raise RecipeError(
                f"edits.{edit.index}: the donor's {donor.real} tokens cannot be appended",
                f"{real} of the {length} places are taken",
                "mode: mix, or a shorter donor",
            )
        real += donor.real
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
                        words = getattr(edit.edit, "words", ())
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
        if not strength or "context" not in edit.parts:
            continue
        text = edit.keyed[step] if edit.keyed else None
        if text is not None:
            read = [text.prompts]
        elif isinstance(edit.edit, Inject):
            read = _injected(edit.edit, edit.donor[branch].prompts, strength, read)
    return read


def _injected(
    edit: Inject, prompts: frozenset[str], strength: float, read: list[frozenset[str]]
) -> list[frozenset[str]]:
    if replaces(edit, strength):
        return [prompts]
    if edit.mode == "mix":
        return [*read, prompts]
    return read if edit.words else [before | prompts for before in read]
