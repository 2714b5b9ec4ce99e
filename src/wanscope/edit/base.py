"""Base classes of edits: the common fields (blocks, strength, schedule, branch) and the interface of a kind of edit.

A kind of edit is one file in `edit/kinds/`: a frozen class with its fields and their checks, the parts of a block that
it touches, its table of strengths, the operations that it is made of, its effect on other edits, and its one-line form.
The classes below implement what most kinds share.

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
from wanscope.edit.planned import Passes, PlannedEdit, Resolved, ResolveInputs
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
    """Base class of all edits.

    branch: the guidance pass that is edited. Guidance takes the difference of the two passes, so an edit of both mostly
    cancels.
    """

    kind: str
    schedule: ScheduleText = None
    branch: Literal["cond", "uncond", "both"] = "cond"

    # ---- properties of the kind

    example: ClassVar[str] = ""  # an edit of this kind in one line, for errors and the docs
    # For `rules.py`:
    sets_prompt: ClassVar[bool] = False  # sets the prompt, and so acts first
    observes: ClassVar[bool] = False  # changes nothing, and so acts last
    skips: ClassVar[bool] = False  # the parts that it touches do not run
    takes_donor: ClassVar[bool] = False  # needs a text other than the prompt

    @model_serializer(mode="wrap")
    def _with_kind(self, handler: Any) -> dict[str, Any]:
        # `kind` is a default and would be left out of ids, so edits of different kinds could have the same id.
        return {"kind": self.kind, **{key: value for key, value in handler(self).items() if key != "kind"}}

    @property
    def title(self) -> str:
        """The name of the edit in reports."""
        return self.kind

    # ---- where and how strongly

    @property
    def branches(self) -> tuple[Branch, ...]:
        """The guidance passes that the edit acts on."""
        return BRANCHES if self.branch == "both" else (self.branch,)

    @property
    @abstractmethod
    def parts(self) -> tuple[Part, ...]:
        """The parts of a block that the edit touches."""

    @property
    def multiplier(self) -> Schedule:
        """The schedule: what multiplies the strength at each step."""
        return parse_schedule(self.schedule)

    def strengths(self, count: int) -> Strengths:
        """Return the strength in each of `count` blocks, before the schedule; 0 where the edit does not act."""
        return parse_strengths(1.0, count)

    def acting_strengths(self, count: int) -> tuple[float, ...]:
        """Return `strengths` as [count] numbers, all 0 if the edit's other fields mean that it changes nothing."""
        return self.strengths(count).values

    def table(self, passes: Passes, blocks: int, where: str) -> np.ndarray:
        """Return strength x schedule, float64 [S, L], for the steps of `passes` and `blocks` blocks.

        Raises RecipeError, naming the edit as `where`, if a value is out of range.
        """
        import numpy as np

        multiplier_S = np.array(self.multiplier.values(passes.sigmas), dtype=np.float64)
        return multiplier_S[:, None] * np.array(self.acting_strengths(blocks), dtype=np.float64)[None]

    def inactive_reason(self, count: int) -> str:
        """Return why the edit acts in none of `count` blocks, whatever its schedule; empty if it acts in any."""
        return ""

    def check(self, blocks: int, steps: int, heads: int) -> None:
        """Raise RecipeError if a model with `blocks` blocks and `heads` heads cannot do this edit in `steps` steps."""
        self.multiplier.check(steps)

    # ---- what it does, and its effect on other edits

    @abstractmethod
    def operation_at(self, planned: PlannedEdit, part: Part, branch: Branch, step: int, strength: float) -> Operation:
        """Return the operation on `part` at a site where the edit has this strength, which is not 0."""

    def replaces(self, table: Any) -> Any:
        """Return where the edit replaces everything that would be read, given its strengths.

        table: strengths of any shape, or a number. The result is bool, of the same shape.
        """
        return table < float("-inf")  # nowhere

    @property
    def appends(self) -> bool:
        """Whether the donor's tokens are written over padding, so that contexts have more real rows."""
        return False

    # ---- what it reads

    def texts(self) -> dict[str, str]:
        """Return every text that has to be encoded for the edit, with the name that errors use for it."""
        return {}

    def prompts_brought(self) -> list[str]:
        """Return the prompts whose tokens are read in addition to, or instead of, the prompt's own."""
        return []

    def named_words(self) -> tuple[str, ...]:
        """Return the words whose token positions the edit acts on."""
        return ()

    def stored_donors(self) -> list[Donor]:
        """Return the stored embeddings that the edit names."""
        return []

    def stored_direction(self) -> str | None:
        """Return the path of the concept direction that the edit names, or None."""
        return None

    def with_hashes(self, files: NamedFiles) -> Self:
        """Return the edit with the hash of every file that it names. A recipe's id covers the hash, not the path."""
        return self

    def check_encoded(self, texts: DonorTexts, where: str) -> None:
        """Check what depends on the encoded texts. Raises RecipeError, naming the edit as `where`."""

    def resolve(self, inputs: ResolveInputs) -> Resolved:
        """Return the texts and directions that the plan needs for this edit. Raises RecipeError if it cannot work."""
        return Resolved()

    # ---- the one-line form (see line.py and shorthand.py)

    blocks_word: ClassVar[str] = "in"  # the word written before the blocks
    reserved: ClassVar[tuple[str, ...]] = ()  # words that begin a part of the line in this kind only
    readers: ClassVar[Mapping[str, Reader]] = {}  # parsers of fields that are not plain values

    @classmethod
    def read_beginning(cls, line: Line) -> None:
        """Read what follows the kind's name into `line.data`."""

    @classmethod
    def read_own(cls, line: Line, word: Token, value: Token | None) -> None:
        """Read what follows one of the kind's own reserved words. value: the value, if the line has `word=value`."""

    def write_beginning(self, data: dict[str, Any]) -> list[str]:
        """Return what follows the kind's name, and remove the fields that it contains from `data`."""
        return []

    def in_one_line(self) -> str:
        """Return the edit in one line, with every field that is not at its default, except hashes of files."""
        data = self.model_dump(mode="json", exclude_defaults=True)
        for key in ("kind", "sha256"):
            data.pop(key, None)
        words = [self.kind, *self.write_beginning(data)]
        for name, word in {"blocks": self.blocks_word, "strength": "at", "schedule": "during", "on": "on"}.items():
            if name in data:
                words += [word, self.write_field(name, data.pop(name))]
        return " ".join([*words, *(f"{name}={self.write_field(name, value)}" for name, value in data.items())])

    def write_field(self, name: str, value: Any) -> str:
        """Return a field's value as it is written in the line."""
        return field_text(value)


class EditInBlocks(EditBase):
    """An edit that acts in chosen blocks."""

    blocks: BlocksText = "all"

    def chosen(self, count: int) -> Blocks:
        """Return the blocks that the edit selects on a model of `count` blocks."""
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
        """The lowest and the highest strength that is allowed."""
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
