"""What all edits share: blocks, strength, schedule and branch as fields, their checks, how they are written down."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_serializer, model_validator

from wanscope.edit.blocks import Blocks, parse_blocks
from wanscope.edit.canonical_fields import blocks_text, schedule_text, spoken, strength_value, tuple_of_texts
from wanscope.edit.schedule import Schedule, parse_schedule
from wanscope.edit.strengths import Strengths, check_strengths, parse_strengths
from wanscope.spec.settings import Spec

Branch = Literal["cond", "uncond", "both"]
BlocksText = Annotated[str, BeforeValidator(blocks_text)]
Strength = Annotated[float | str | tuple[float, ...] | dict[str, float], BeforeValidator(strength_value)]
ScheduleText = Annotated[str | None, BeforeValidator(schedule_text)]
Words = Annotated[tuple[str, ...], BeforeValidator(tuple_of_texts)]
Heads = tuple[Annotated[int, Field(ge=0, strict=True)], ...]
Text = Annotated[str, Field(max_length=100_000)]


class EditBase(Spec):
    """What all edits share. branch: on which of guidance's two passes it acts; on both, guidance cancels much of it."""

    kind: str
    schedule: ScheduleText = None
    branch: Branch = "cond"

    @model_serializer(mode="wrap")
    def _with_kind(self, handler: Any) -> dict[str, Any]:
        # An edit's kind is a default and would be left out of ids, which could then not be told apart.
        return {"kind": self.kind, **{key: value for key, value in handler(self).items() if key != "kind"}}

    @property
    def multiplier(self) -> Schedule:
        """When it acts: what multiplies its strength at each step."""
        return parse_schedule(self.schedule)

    def texts(self) -> dict[str, str]:
        """Every text that it needs encoded, and what errors call that text."""
        return {}

    def check(self, blocks: int, steps: int, heads: int) -> None:
        """RecipeError for what a model with so many blocks and heads cannot do in so many steps."""
        self.multiplier.check(steps)


class EditInBlocks(EditBase):
    """An edit that acts in blocks."""

    blocks: BlocksText = "all"

    def chosen(self, count: int) -> Blocks:
        """Where it acts, on a model of `count` blocks."""
        return parse_blocks(self.blocks, count)

    def strengths(self, count: int) -> Strengths:
        """How strongly it acts in each of `count` blocks; 0 where it does not."""
        return parse_strengths(1.0, count).within(self.chosen(count))

    def nowhere(self, count: int) -> str:
        """Why it acts in none of `count` blocks, whatever the schedule; empty where it acts in one. Legal, but said."""
        if not self.chosen(count).indices:
            return "it selects no block"
        return "" if any(self.strengths(count).values) else "its strength is 0 in every block it selects"

    def check(self, blocks: int, steps: int, heads: int) -> None:
        super().check(blocks, steps, heads)
        self.strengths(blocks)


class EditWithStrength(EditInBlocks):
    """An edit with a strength: a number, a shape over the depth, or a number per block."""

    strength: Strength = 1.0

    @property
    def strength_range(self) -> tuple[float, float]:
        return 0.0, 1.0

    @model_validator(mode="after")
    def _strength_in_range(self) -> Self:
        low, high = self.strength_range
        with spoken():
            check_strengths(self.strength, low=low, high=high)
        return self

    def strengths(self, count: int) -> Strengths:
        low, high = self.strength_range
        return parse_strengths(self.strength, count, low=low, high=high).within(self.chosen(count))
