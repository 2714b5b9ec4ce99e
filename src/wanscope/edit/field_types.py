"""Types of the fields of edits. Each converts its value to a canonical form (see canonical_fields.py)."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field

from wanscope.edit.canonical_fields import blocks_text, schedule_text, strength_value, tuple_of_texts

BlocksText = Annotated[str, BeforeValidator(blocks_text)]
Strength = Annotated[float | str | tuple[float, ...] | dict[str, float], BeforeValidator(strength_value)]
ScheduleText = Annotated[str | None, BeforeValidator(schedule_text)]
Words = Annotated[tuple[str, ...], BeforeValidator(tuple_of_texts)]
Heads = tuple[Annotated[int, Field(ge=0, strict=True)], ...]
Text = Annotated[str, Field(max_length=100_000)]
