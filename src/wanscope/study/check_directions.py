"""The stored directions that `steer` edits name, looked at before any weight is loaded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from wanscope.edit.edits import Steer
from wanscope.recipe import Recipe
from wanscope.wan.variants import Variant

if TYPE_CHECKING:
    from wanscope.edit.direction import Direction


def check_directions(recipes: Iterable[Recipe], variant: Variant) -> None:
    """RecipeError, naming the edit, for a file that is no direction, or one of another size, place or blocks."""
    read: dict[str, Direction] = {}
    for recipe in recipes:
        for i, edit in enumerate(recipe.edits):
            if not isinstance(edit, Steer):
                continue
            from wanscope.edit.direction import read_direction  # most requests steer nothing, and need no torch

            if edit.direction not in read:
                read[edit.direction] = read_direction(edit.direction)
            direction, where = read[edit.direction], f"edits.{i}"
            direction.require_model(variant.experts, variant.blocks, variant.dim, where)
            acts = edit.strengths(variant.blocks).values if edit.schedule is None else ()  # else the plan knows where
            direction.require(edit.on, tuple(block for block, strength in enumerate(acts) if strength), where)


def weights_mismatch_note(edit: Steer, recipe: Recipe, weights: Mapping[str, str]) -> str:
    """What is told of a direction that was learned on other weights than a recipe's model and LoRAs; else nothing."""
    from wanscope.edit.direction import read_direction, weights_behind

    return read_direction(edit.direction).weights_mismatch_note(weights_behind(weights, recipe.loras))
