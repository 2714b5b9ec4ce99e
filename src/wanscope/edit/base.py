"""What all edits share: blocks, strength, schedule and branch as fields, and what a kind of edit has to answer.

A kind of edit is one file in `edit/kinds/`: a frozen class with its fields and their checks, the parts of a block that
it touches, its table of strengths, the operations that it is made of, what it does to other edits, and how it is
written in one line. The classes below have the answers that most kinds share.

Shape suffixes: S steps, L blocks.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import model_serializer, model_validator

from wanscope.edit.blocks import Blocks, parse_blocks
from wanscope.edit.canonical_fields import as_value_error
from wanscope.edit.field_types import BlocksText, ScheduleText, Strength
from wanscope.edit.line import Line, Reader, field_text
from wanscope.edit.line_tokens import Token
from wanscope.edit.operations import Operation
from wanscope.edit.planned import Passes, PlannedEdit, Resolved, Resolving
from wanscope.edit.schedule import Schedule, parse_schedule
from wanscope.edit.sites import BRANCHES, Branch, Part
from wanscope.edit.strengths import Strengths, check_strengths, parse_strengths
from wanscope.errors import RecipeError
from wanscope.spec.settings import Spec

if TYPE_CHECKING:
    import numpy as np

    from wanscope.edit.donor import Donor
    from wanscope.edit.encoded_texts import DonorTexts
    from wanscope.edit.named_files import NamedFiles


class EditBase(Spec):
    """What all edits share.

    branch: on which of guidance's two passes it acts; guidance cancels much of what is done to both.
    """

    kind: str
    schedule: ScheduleText = None
    branch: Literal["cond", "uncond", "both"] = "cond"

    # ---- what a kind is

    example: ClassVar[str] = ""  # the kind in one line, for errors
    sets_prompt: ClassVar[bool] = False
    observes: ClassVar[bool] = False
    skips: ClassVar[bool] = False
    takes_donor: ClassVar[bool] = False  # whether it needs a text of its own besides the prompt

    @model_serializer(mode="wrap")
    def _with_kind(self, handler: Any) -> dict[str, Any]:
        # The kind is a default and would be left out of ids, so that edits of two kinds could have one id.
        return {"kind": self.kind, **{key: value for key, value in handler(self).items() if key != "kind"}}

    @property
    def title(self) -> str:
        """What reports call it."""
        return self.kind

    # ---- where and how strongly

    @property
    def branches(self) -> tuple[Branch, ...]:
        """The passes that it acts on."""
        return BRANCHES if self.branch == "both" else (self.branch,)

    @property
    @abstractmethod
    def parts(self) -> tuple[Part, ...]:
        """What of a block it touches."""

    @property
    def multiplier(self) -> Schedule:
        """When it acts: what multiplies its strength at each step."""
        return parse_schedule(self.schedule)

    def strengths(self, count: int) -> Strengths:
        """Its strength in each of `count` blocks, before the schedule; 0 where it does not act."""
        return parse_strengths(1.0, count)

    def acting_strengths(self, count: int) -> tuple[float, ...]:
        """As `strengths`; 0 everywhere for an edit whose other fields say that it would change nothing."""
        return self.strengths(count).values

    def table(self, passes: Passes, blocks: int, where: str) -> np.ndarray:
        """Strength x schedule, float64 [S, L]. RecipeError, naming the edit as `where`, where it is out of range."""
        import numpy as np

        over_steps_S = np.array(self.multiplier.values(passes.sigmas), dtype=np.float64)
        return over_steps_S[:, None] * np.array(self.acting_strengths(blocks), dtype=np.float64)[None]

    def inactive_reason(self, count: int) -> str:
        """Why it acts in none of `count` blocks, whatever its schedule; empty where it acts in one."""
        return ""

    def check(self, blocks: int, steps: int, heads: int) -> None:
        """RecipeError for what a model with so many blocks and heads cannot do in so many steps."""
        self.multiplier.check(steps)

    # ---- what it does, and to which other edits

    @abstractmethod
    def operation_at(self, planned: PlannedEdit, part: Part, branch: Branch, step: int, strength: float) -> Operation:
        """What is done to `part` at a site where the edit has this strength, which is not 0."""

    def replaces(self, table: Any) -> Any:
        """Where, by its strengths, it leaves nothing of what would be read: bool, of the table's shape."""
        return table < float("-inf")

    @property
    def appends(self) -> bool:
        """Whether its text takes the place of padding, so that the contexts get longer."""
        return False

    # ---- what it reads

    def texts(self) -> dict[str, str]:
        """Every text that has to be encoded for it, and what errors call that text."""
        return {}

    def prompts_brought(self) -> list[str]:
        """The prompts whose tokens are read in addition to, or in place of, the prompt's own."""
        return []

    def named_words(self) -> tuple[str, ...]:
        """The words whose places in a text it acts on."""
        return ()

    def stored_donors(self) -> list[Donor]:
        """The stored embeddings that it names."""
        return []

    def stored_direction(self) -> str | None:
        """The file of the concept direction that it names."""
        return None

    def with_hashes(self, files: NamedFiles) -> Self:
        """With the hash of every file that it names, which is what a recipe's id covers instead of the path."""
        return self

    def check_encoded(self, texts: DonorTexts, where: str) -> None:
        """RecipeError, naming the edit as `where`, for what only the encoded texts show to be impossible."""

    def resolve(self, against: Resolving) -> Resolved:
        """What it brings to a plan. RecipeError where that cannot be had."""
        return Resolved()

    # ---- in one line (see line.py and shorthand.py)

    blocks_word: ClassVar[str] = "in"  # what the line has before the blocks
    reserved: ClassVar[tuple[str, ...]] = ()  # words of the kind's own that begin a part of the line
    readers: ClassVar[Mapping[str, Reader]] = {}  # how a field's text is read

    @classmethod
    def read_beginning(cls, line: Line) -> None:
        """Reads what follows the kind's name into `line.data`."""

    @classmethod
    def read_own(cls, line: Line, word: Token, value: Token | None) -> None:
        """Reads what follows one of the kind's own reserved words; `value`: where the line has `word=value`."""

    def write_beginning(self, data: dict[str, Any]) -> list[str]:
        """What follows the kind's name; takes the fields that it has written out of `data`."""
        return []

    def in_one_line(self) -> str:
        """The edit in one line, with everything that is not at its default except hashes of files."""
        data = self.model_dump(mode="json", exclude_defaults=True)
        for key in ("kind", "sha256"):
            data.pop(key, None)
        words = [self.kind, *self.write_beginning(data)]
        for name, word in {"blocks": self.blocks_word, "strength": "at", "schedule": "during", "on": "on"}.items():
            if name in data:
                words += [word, self.write_field(name, data.pop(name))]
        return " ".join([*words, *(f"{name}={self.write_field(name, value)}" for name, value in data.items())])

    def write_field(self, name: str, value: Any) -> str:
        """A field's value as the line has it."""
        return field_text(value)


class EditInBlocks(EditBase):
    """An edit that acts in chosen blocks."""

    blocks: BlocksText = "all"

    def chosen(self, count: int) -> Blocks:
        """Where it acts, on a model of `count` blocks."""
        return parse_blocks(self.blocks, count)

    def strengths(self, count: int) -> Strengths:
        return super().strengths(count).within(self.chosen(count))

    def inactive_reason(self, count: int) -> str:
        if not self.chosen(count).indices:
            return "it selects no block"
        return "" if any(self.strengths(count).values) else "its strength is 0 in every block it selects"

    def check(self, blocks: int, steps: int, heads: int) -> None:
        super().check(blocks, steps, heads)
        self.strengths(blocks)


class EditWithStrength(EditInBlocks):
    """An edit with a strength: a number, a shape over the depth, or a number for each block."""

    strength: Strength = 1.0

    @property
    def strength_range(self) -> tuple[float, float]:
        """The lowest and the highest strength."""
        return 0.0, 1.0

    @model_validator(mode="after")
    def _strength_in_range(self) -> Self:
        low, high = self.strength_range
        with as_value_error():
            check_strengths(self.strength, low=low, high=high)
        return self

    def strengths(self, count: int) -> Strengths:
        low, high = self.strength_range
        return parse_strengths(self.strength, count, low=low, high=high).within(self.chosen(count))

    def table(self, passes: Passes, blocks: int, where: str) -> np.ndarray:
        table_SL = super().table(passes, blocks, where)
        low, high = self.strength_range
        if table_SL.min() < low or table_SL.max() > high:
            worst = table_SL.min() if table_SL.min() < low else table_SL.max()
            raise RecipeError(
                f"{where}: strength times schedule reaches {worst:g}",
                f"for this edit it is from {low:g} to {high:g}",
                "a schedule with values from 0 to 1",
            )
        return table_SL
