"""The last step of preparation: everything that can be refused before weights are loaded is refused.

Checked are texts with the model's own tokenizer, attention captures, directions, memory, the LoRAs of a model that was
passed in, records that one take cannot hold, and free disk space. Nothing larger than a tokenizer is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from wanscope.recipe import Recipe
from wanscope.study import recipe_model
from wanscope.study.attention_capture import check_attention
from wanscope.study.check_directions import check_directions
from wanscope.study.check_texts import check_prompts
from wanscope.study.expand import Expansion, Item
from wanscope.study.key_takes import Keyed
from wanscope.study.partial_start import Start
from wanscope.study.read_request import ReplayReference
from wanscope.study.recipe_model import ModelKey
from wanscope.study.study_folder import IndexRow
from wanscope.study.take_size import bytes_needed, recipe_size
from wanscope.take.disk import require_space
from wanscope.take.store import Take, with_records_of
from wanscope.wan.variant import Variant
from wanscope.workspace import Workspace

if TYPE_CHECKING:
    from wanscope.wan.model import WanModel


@dataclass(frozen=True)
class PlannedTake:
    """One distinct recipe.

    index: its position among all takes. rows: the rows of the study's table that belong to it. existing: the take that
    is already stored, complete or not. complete: whether that one has every requested record.
    """

    id: str
    recipe: Recipe
    index: int
    start: Start | None
    rows: tuple[IndexRow, ...]
    existing: Take | None
    complete: bool


@dataclass(frozen=True)
class Prepared:
    """A checked request.

    groups: the takes to be made (missing ones and replays), grouped by the model that makes them. expansion: that of a
    study with a folder, else None. replays: the earlier results that replays are compared with, by take id.
    """

    name: str
    space: Workspace
    takes: tuple[PlannedTake, ...]
    groups: Mapping[ModelKey, tuple[PlannedTake, ...]]
    expansion: Expansion | None
    replays: Mapping[str, ReplayReference]


def check_takes(keyed: Keyed, model: WanModel | None, device: str, memory: str) -> Prepared:
    """Refuse what cannot work.

    model: a loaded model that the caller passed in; without one, `device` and `memory` say how the models will be
    loaded. Raises RecipeError, ModelError, MemoryPlanError or StorageError.
    """
    takes = _distinct(keyed)
    request, models = keyed.located.expanded.request, keyed.located.models
    work = [take for take in takes if not take.complete or take.id in request.replays]
    groups: dict[ModelKey, list[PlannedTake]] = {}
    for take in work:
        groups.setdefault(ModelKey.of(take.recipe), []).append(take)
    for key, group in groups.items():
        recipes, variant = [take.recipe for take in group], models[key].variant
        if model is not None:
            for recipe in recipes:
                recipe_model.require_loras(recipe, model)
            tokenizer, length = model.tokenizer, model.text_length
        else:
            tokenizer, length = recipe_model.tokenizer_of(key)
        check_inputs(recipes, variant, tokenizer, length)
        check_directions(recipes, variant)
        if model is None:  # last, because it imports torch: a text that is refused is refused without that delay
            recipe_model.check_memory(variant, recipes, device, memory)
    for take in work:
        if take.existing is not None:
            with_records_of(take.existing.recipe, take.recipe)  # refuses what one take cannot hold
    if work:
        needed = bytes_needed(recipe_size(take.recipe, models[ModelKey.of(take.recipe)].variant) for take in work)
        require_space(keyed.space.takes, needed, len(work))
    expansion = None if request.loose else keyed.expansion
    return Prepared(
        name=expansion.name if expansion is not None else takes[0].id if len(takes) == 1 else f"{len(takes)} recipes",
        space=keyed.space,
        takes=takes,
        groups={key: tuple(group) for key, group in groups.items()},
        expansion=expansion,
        replays=request.replays,
    )


def check_inputs(recipes: Sequence[Recipe], variant: Variant, tokenizer: Any, text_length: int) -> None:
    """Raise RecipeError for texts that the model cannot read and attention captures that it cannot provide."""
    check_prompts(tokenizer, recipes, text_length, variant.closed_vocabulary)
    check_attention(recipes, variant, tokenizer, text_length)


def _distinct(keyed: Keyed) -> tuple[PlannedTake, ...]:
    """Return the distinct takes in order: equal recipes are one take."""
    takes: dict[str, PlannedTake] = {}
    for each in keyed.each():
        assert each.id is not None, "a run has found the weights"
        rows = (_row(each.id, each.item),) if each.item is not None and not keyed.located.expanded.request.loose else ()
        if each.id in takes:
            takes[each.id] = replace(takes[each.id], rows=(*takes[each.id].rows, *rows))
        else:
            takes[each.id] = PlannedTake(
                each.id, each.recipe, len(takes), each.start, rows, each.existing, each.complete
            )
    return tuple(takes.values())


def _row(take: str, item: Item) -> IndexRow:
    return IndexRow(
        item.name,
        take,
        item.variation.index,
        item.seed,
        "missing",
        item.recipe.prompt,
        item.variation.bindings,
        edit=item.edit_set.label,
        swept=item.edit_set.values,
    )
