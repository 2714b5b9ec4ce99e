"""Records of a plan: the model calls of a run, and one edit with nothing left open.

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


class EditKind(Protocol):
    """What a plan and the runtimes ask of an edit; see `EditBase`, which answers it."""

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
    """One edit with nothing left open.

    index: its place in the recipe's list. tables: float64 [S, L] for each branch that it acts on. donor: the text that
    it brings, by branch. keyed: the text of each step (None before the first). columns: token columns of its words, by
    the prompt that holds them. direction: a concept direction.
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
        """What of a block it touches."""
        return self.edit.parts

    @property
    def appends(self) -> bool:
        """Whether its text takes the place of padding, so that the contexts get longer."""
        return self.edit.appends

    def strength(self, branch: str, step: int, block: int) -> float:
        """Its strength at a site; 0 where it does not act."""
        table = self.tables.get(branch)  # type: ignore[call-overload]
        return 0.0 if table is None else float(table[step, block])

    def operation_at(self, part: Part, branch: str, step: int, strength: float) -> Operation:
        """What is done to one of its parts at a site where its strength is this, and not 0."""
        return self.edit.operation_at(self, part, branch, step, strength)  # type: ignore[arg-type]

    @property
    def acts(self) -> bool:
        """Whether it acts anywhere."""
        return any(table.any() for table in self.tables.values())

    def columns_in(self, prompts: frozenset[str]) -> tuple[int, ...]:
        """The columns of its words in a text that holds these prompts."""
        return tuple(sorted({column for prompt in prompts for column in self.columns.get(prompt, ())}))

    def texts_on(self, branch: str) -> list[PlannedText]:
        """Every text that it brings into a branch."""
        donor = self.donor.get(branch)  # type: ignore[call-overload]
        return [*([donor] if donor is not None else []), *(text for text in self.keyed if text is not None)]


@dataclass
class Resolving:
    """What an edit is resolved against (`EditBase.resolve`), and where it puts its notes.

    where: the edit's name in messages. main: what the loop itself reads, by branch. table: strength x schedule
    [S, L]. directions: stored ones, by the file's hash. kept: the plan's texts so far; one of the same content is the
    same text, so that its context, keys and own pass are made once.
    """

    where: str
    texts: DonorTexts
    passes: Passes
    blocks: int
    main: Mapping[Branch, PlannedText]
    table_SL: np.ndarray
    directions: Mapping[str, Any]
    notes: list[str]
    kept: list[PlannedText]

    def note(self, text: str) -> None:
        """What a person should know of the edit."""
        self.notes.append(f"{self.where}: {text}")

    def once(self, text: PlannedText) -> PlannedText:
        """The text, or the one of the same content that the plan has already."""
        found = next((known for known in self.kept if known.same_as(text)), None)
        if found is None:
            self.kept.append(text)
        return found or text


@dataclass(frozen=True)
class Resolved:
    """What an edit brings to its plan; see PlannedEdit."""

    donor: Mapping[Branch, PlannedText] = field(default_factory=dict)
    keyed: tuple[PlannedText | None, ...] = ()
    direction: Any = None
