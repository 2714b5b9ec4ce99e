"""The fourth step of preparation: the id of every requested take, and which of them are already stored.

An id covers the weights and the content of every file that a recipe names, so this step comes after they are found.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from wanscope.edit.edits import with_hashes
from wanscope.recipe import Recipe
from wanscope.study.expand import Expansion, Item, size_of
from wanscope.study.expand_request import embedding_finder
from wanscope.study.locate_weights import Located
from wanscope.study.partial_start import Start, find_start
from wanscope.study.recipe_model import ModelKey
from wanscope.take.store import Take, existing_take
from wanscope.wan.identity import file_hash
from wanscope.wan.variants import latent_shape
from wanscope.workspace import Workspace


@dataclass(frozen=True)
class KeyedTake:
    """One requested take.

    id: None in a dry run without the weights. start: where a partial denoising begins. item: its place in a study.
    existing: the take that is already stored, complete or not. complete: whether it has every requested record.
    """

    id: str | None
    recipe: Recipe
    start: Start | None
    item: Item | None
    existing: Take | None
    complete: bool


@dataclass(frozen=True)
class Keyed:
    """A request whose takes have ids. recipes: those of a request without a study, each with what it starts from."""

    located: Located
    space: Workspace
    recipes: tuple[tuple[Recipe, Start | None], ...] = ()

    @property
    def expansion(self) -> Expansion | None:
        """The expanded study, or None for recipes without a study."""
        return self.located.expanded.expansion

    @property
    def known(self) -> bool:
        """Whether ids are known; in a dry run they are not for a study whose weights are not on this machine."""
        return self.expansion is None or ModelKey.of_study(self.expansion) in self.located.models

    def each(self) -> Iterator[KeyedTake]:
        """Yield every take in order, one at a time, because a study may have 100,000."""
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
    """Give every take its id.

    Raises RecipeError or TakeNotFound for a file that a recipe names and that does not exist or has changed.
    """
    recipes = []
    for recipe in located.expanded.request.recipes:
        model = located.models.get(ModelKey.of(recipe))
        start = None
        if model is not None:  # otherwise a dry run, which trusts the hashes in the recipe
            edits = with_hashes(recipe.edits, model.variant.text_dim, file_hash, embedding_finder(space))
            recipe = recipe.model_copy(update={"edits": edits})
            if recipe.init is not None:
                shape = latent_shape(model.variant, *size_of(recipe.video))
                start = find_start(recipe.init, recipe.video, shape, space)
                recipe = recipe.model_copy(update={"init": start.spec})
        recipes.append((recipe, start))
    return Keyed(located, space, tuple(recipes))
