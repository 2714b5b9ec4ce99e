"""The records of a plan: the model calls of a run, and an edit that is resolved for it.

Shape suffixes: S steps, L blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from wanscope.edit.operations import Operation
from wanscope.edit.planned_texts import PlannedText
from wanscope.edit.sites import Branch, Part

if TYPE_CHECKING:
    import numpy as np

    from wanscope.edit.encoded_texts import DonorTexts
    from wanscope.edit.operations import Direction


@dataclass(frozen=True)
class Passes:
    """The model calls of a run.

    sigmas: the noise level at the start of each step. evaluations: the number of model evaluations in each step. first:
    the step at which the run begins. guided: for each expert, the steps at which it also runs the uncond pass.
    """

    sigmas: tuple[float, ...]
    evaluations: tuple[int, ...]
    guided: tuple[frozenset[int], ...]
    first: int = 0

    @property
    def steps(self) -> int:
        """The number of steps of the schedule, including those before `first`."""
        return len(self.evaluations)

    def has(self, branch: str, step: int, expert: int | None = None) -> bool:
        """Return whether the branch's pass is run at a step, by `expert` or, if it is None, by any expert."""
        if step < self.first or branch == "cond":
            return step >= self.first
        experts = self.guided if expert is None else (self.guided[expert],)
        return any(step in steps for steps in experts)


class EditKind(Protocol):
    """The part of the interface of `EditBase` that plans and runtimes use."""

    @property
    def parts(self) -> tuple[Part, ...]: ...

    @property
    def appends(self) -> bool: ...

    skips: ClassVar[bool]

    def in_one_line(self) -> str: ...

    def named_words(self) -> tuple[str, ...]: ...

    def operation_at(
        self, planned: PlannedEdit, part: Part, branch: Branch, step: int, strength: float
    ) -> Operation: ...


@dataclass(frozen=True, eq=False)
class PlannedEdit:
    """One edit, resolved for a run.

    index: its position in the recipe's list. tables: strength x schedule, float64 [S, L], for each branch that it acts
    on. donor: the donor's text by branch. keyed: the text of each step (None before the first key). columns: token
    columns of its words, by the prompt that contains them. direction: a concept direction.
    """

    index: int
    edit: EditKind
    tables: Mapping[Branch, np.ndarray]
    donor: Mapping[Branch, PlannedText] = field(default_factory=dict)
    keyed: tuple[PlannedText | None, ...] = ()
    columns: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    direction: Direction | None = None

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts of a block that the edit touches."""
        return self.edit.parts

    @property
    def appends(self) -> bool:
        """Whether the donor's tokens are written over padding, so that contexts have more real rows."""
        return self.edit.appends

    def strength(self, branch: str, step: int, block: int) -> float:
        """Return the strength at a site; 0 where the edit does not act."""
        table = self.tables.get(branch)  # type: ignore[call-overload]
        return 0.0 if table is None else float(table[step, block])

    def operation_at(self, part: Part, branch: str, step: int, strength: float) -> Operation:
        """Return the operation on `part` at a site where the edit has this strength, which is not 0."""
        return self.edit.operation_at(self, part, branch, step, strength)  # type: ignore[arg-type]

    @property
    def acts(self) -> bool:
        """Whether the edit acts anywhere."""
        return any(table.any() for table in self.tables.values())

    def columns_in(self, prompts: frozenset[str]) -> tuple[int, ...]:
        """Return the token columns of the edit's words in a text that contains these prompts, ascending."""
        return tuple(sorted({column for prompt in prompts for column in self.columns.get(prompt, ())}))

    def texts_on(self, branch: str) -> list[PlannedText]:
        """Return every text that the edit adds to a branch."""
        donor = self.donor.get(branch)  # type: ignore[call-overload]
        return [*([donor] if donor is not None else []), *(text for text in self.keyed if text is not None)]


@dataclass
class ResolveInputs:
    """The inputs of `EditBase.resolve`, and the list that it adds its notes to.

    where: the edit's name in messages. blocks: number of blocks of the model. main: the texts that the unedited run
    reads, by branch. table_SL: strength x schedule. directions: stored ones, by file hash. plan_texts: the plan's texts
    so far. Equal texts are one object, so that contexts, keys and donor passes are computed once.
    """

    where: str
    texts: DonorTexts
    passes: Passes
    blocks: int
    main: Mapping[Branch, PlannedText]
    table_SL: np.ndarray
    directions: Mapping[str, Any]
    notes: list[str]
    plan_texts: list[PlannedText]

    def note(self, text: str) -> None:
        """Add a note on the edit for the user."""
        self.notes.append(f"{self.where}: {text}")

    def deduplicated(self, text: PlannedText) -> PlannedText:
        """Return the text, or an equal one that the plan already has."""
        found = next((known for known in self.plan_texts if known.same_as(text)), None)
        if found is None:
            self.plan_texts.append(text)
        return found or text


@dataclass(frozen=True)
class Resolved:
    """The result of `EditBase.resolve`; the fields are those of PlannedEdit."""

    donor: Mapping[Branch, PlannedText] = field(default_factory=dict)
    keyed: tuple[PlannedText | None, ...] = ()
    direction: Any = None
