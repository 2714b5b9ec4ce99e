"""The fourth step of preparation: the id of every take that is asked for, and the takes that are there already.

An id covers the weights and the content of every file that a recipe names, so this comes after those are found.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from wanscope.edit.edits import with_hashes
from wanscope.recipe import Recipe
from wanscope.study.expand import Expansion, Item, size_of
from wanscope.study.expand_request import stored_in
from wanscope.study.locate_weights import Located
from wanscope.study.partial_start import Start, find_start
from wanscope.study.recipe_model import ModelKey
from wanscope.take.store import Take, existing_take
from wanscope.wan.identity import file_hash
from wanscope.wan.variants import latent_shape
from wanscope.workspace import Workspace


@dataclass(frozen=True)
class KeyedTake:
    """One take that is asked for. id: None in a dry run without the weights. start: where a partial denoising begins.
    item: its place in a study. existing: the take that is there, whole or not; complete: with all that is asked for."""

    id: str | None
    recipe: Recipe
    start: Start | None
    item: Item | None
    existing: Take | None
    complete: bool


@dataclass(frozen=True)
class Keyed:
    """A request whose takes have ids. recipes: those of a request without a study, with what each starts from."""

    located: Located
    space: Workspace
    recipes: tuple[tuple[Recipe, Start | None], ...] = ()

    @property
    def expansion(self) -> Expansion | None:
        return self.located.expanded.expansion

    @property
    def known(self) -> bool:
        """Whether ids are known: not those of a study whose weights are not here, in a dry run."""
        return self.expansion is None or ModelKey.of_study(self.expansion) in self.located.models

    def each(self) -> Iterator[KeyedTake]:
        """Every take in order. They are made as they are read: a study may have 100,000."""
        for recipe, start in self.recipes:
            yield self._keyed(recipe, start, recipe.id)
        if self.expansion is None:
            return
        start, model = self.located.expanded.start, self.located.models.get(ModelKey.of_study(self.expansion))
        for item in self.expansion.items(model.weights if model is not None else {}):
            yield self._keyed(item.recipe, start, item.recipe.id if model is not None else None, item)

    def _keyed(self, recipe: Recipe, start: Start | None, take: str | None, item: Item | None = None) -> KeyedTake:
        found = existing_take(self.space.take_folder(take)) if take is not None else None
        complete = found is not None and found.complete(recipe.capture, recipe.marks)
        return KeyedTake(take, recipe, start, item, found, complete)


def key_takes(located: Located, space: Workspace) -> Keyed:
    """Give every take its id. RecipeError or TakeNotFound for a file that a recipe names and that is not there, or is
    not the one recorded."""
    recipes = []
    for recipe in located.expanded.request.recipes:
        model = located.models.get(ModelKey.of(recipe))
        start = None
        if model is not None:  # else a dry run, which takes the recipe's word
            edits = with_hashes(recipe.edits, model.variant.text_dim, file_hash, stored_in(space))
            recipe = recipe.model_copy(update={"edits": edits})
            if recipe.init is not None:
                shape = latent_shape(model.variant, *size_of(recipe.video))
                start = find_start(recipe.init, recipe.video, shape, space)
                recipe = recipe.model_copy(update={"init": start.spec})
        recipes.append((recipe, start))
    return Keyed(located, space, tuple(recipes))
