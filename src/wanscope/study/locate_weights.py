"""The third step of preparation: where each model's weights are, and their hashes, which are part of a take's id."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wanscope.recipe import Recipe
from wanscope.study import recipe_model
from wanscope.study.expand_request import Expanded, FindModel
from wanscope.study.recipe_model import ModelKey
from wanscope.wan.variant import Variant

if TYPE_CHECKING:
    from wanscope.wan.model import WanModel


@dataclass(frozen=True)
class LocatedModel:
    """A model whose weights are on this machine. weights: what a recipe records of them, {part: SHA-256}."""

    variant: Variant
    weights: Mapping[str, str]


@dataclass(frozen=True)
class Located:
    """A request whose models have been found. In a dry run `models` lacks those that would have to be downloaded."""

    expanded: Expanded
    models: Mapping[ModelKey, LocatedModel]


def locate_weights(expanded: Expanded, find_model: FindModel, model: WanModel | None) -> Located:
    """Find every model, each once.

    model: a loaded model that the caller passed in; it is then used for all takes. Raises ModelError for a model that
    cannot be found, or is not the one that a recipe was made with.
    """
    models: dict[ModelKey, LocatedModel] = {}
    requested: list[tuple[ModelKey, Recipe | None]] = [(ModelKey.of(r), r) for r in expanded.request.recipes]
    if expanded.expansion is not None:
        requested.append((ModelKey.of_study(expanded.expansion), None))
    for key, recipe in requested:
        if key not in models:
            found = model or expanded.source or find_model(key)
            if found is None:
                continue
            models[key] = LocatedModel(found.variant, recipe_model.weights_of(found))
        if recipe is not None:
            recipe_model.require_weights(recipe, models[key].weights)
    return Located(expanded, models)
