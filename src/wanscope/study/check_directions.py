"""Checks the stored directions that `steer` edits name, before any weights are loaded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from wanscope.edit.edits import Steer
from wanscope.recipe import Recipe
from wanscope.wan.variants import Variant

if TYPE_CHECKING:
    from wanscope.edit.direction import Direction


def check_directions(recipes: Iterable[Recipe], variant: Variant) -> None:
    """Check every direction that the edits of `recipes` name.

    Raises RecipeError, which names the edit, for a file that is not a direction, and for a direction of another size,
    of another site, or without the edit's blocks.
    """
    read: dict[str, Direction] = {}
    for recipe in recipes:
        for i, edit in enumerate(recipe.edits):
            if not isinstance(edit, Steer):
                continue
            from wanscope.edit.direction import read_direction  # imported here: without `steer`, torch is not needed

            if edit.direction not in read:
                read[edit.direction] = read_direction(edit.direction)
            direction, where = read[edit.direction], f"edits.{i}"
            direction.require_model(variant.experts, variant.blocks, variant.dim, where)
            # With a schedule, the active blocks depend on the step; the edit plan checks those.
            strengths = edit.strengths(variant.blocks).values if edit.schedule is None else ()
            direction.require(edit.on, tuple(block for block, strength in enumerate(strengths) if strength), where)


def weights_mismatch_note(edit: Steer, recipe: Recipe, weights: Mapping[str, str]) -> str:
    """Return a note where the direction was learned on weights other than the recipe's model and LoRAs, else ""."""
    from wanscope.edit.direction import read_direction, weights_behind

    return read_direction(edit.direction).weights_mismatch_note(weights_behind(weights, recipe.loras))
