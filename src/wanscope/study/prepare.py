"""From a request to the takes that have to be made: a line of steps, before any weights are loaded.

    read_source       the request is read: a study, recipes, or a take to make again             -> Request
    expand_request    every setting that a study leaves open is decided                          -> Expanded
    locate_weights    each model's weights are found, and downloaded where necessary             -> Located
    key_takes         every take gets its id, and the existing ones are found                    -> Keyed
    check_takes       what cannot work is refused                                                -> Prepared

A run takes all of these steps. A dry run (`plan`) takes the first four, as far as they go without a download. None of
them writes anything to the workspace.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING

from wanscope import events
from wanscope.recipe import Recipe
from wanscope.study import recipe_model
from wanscope.study.check_takes import Prepared, check_takes
from wanscope.study.expand import Expansion
from wanscope.study.expand_request import FindModel, expand_request
from wanscope.study.key_takes import Keyed, key_takes
from wanscope.study.locate_weights import LocatedModel, locate_weights
from wanscope.study.read_request import Request, StudySource, read_source
from wanscope.study.recipe_model import ModelKey
from wanscope.study.take_size import TakeSize, bytes_needed, recipe_size
from wanscope.take.disk import free_bytes
from wanscope.wan.variants import VARIANTS
from wanscope.workspace import Workspace

if TYPE_CHECKING:
    from wanscope.wan.model import WanModel


def prepare(
    source: StudySource | Request,
    space: Workspace,
    model: WanModel | None,
    device: str,
    memory: str,
    on_event: events.Listener,
) -> Prepared:
    """Take all steps of the preparation of a run.

    model: a loaded model that the caller passed in; it makes all takes. Raises what the steps raise.
    """
    keyed = _keyed(source, space, partial(recipe_model.find, on_event=on_event), model)
    return check_takes(keyed, model, device, memory)


def _keyed(source: StudySource | Request, space: Workspace, find_model: FindModel, model: WanModel | None) -> Keyed:
    request = read_source(source, space)
    expanded = expand_request(request, space, find_model, model)
    located = locate_weights(expanded, find_model, model)
    return key_takes(located, space)


@dataclass(frozen=True)
class StudyPlan:
    """What a run would do.

    complete: how many takes are complete; None where the weights are not on this machine, because then no id is known.
    needed_bytes: what the missing takes need. expansion: of a study, else None. recipes: of a request without a study.
    keyed: the request as far as it was prepared.
    """

    name: str
    takes: int
    complete: int | None
    needed_bytes: int
    free_bytes: int
    expansion: Expansion | None
    recipes: tuple[Recipe, ...]
    keyed: Keyed = field(repr=False)

    @cached_property
    def missing(self) -> int:
        """How many takes have to be made."""
        return self.takes - (self.complete or 0)

    def model_of(self, recipe: Recipe) -> LocatedModel | None:
        """Return the model that makes a recipe's take, or None where its weights are not on this machine."""
        return self.keyed.located.models.get(ModelKey.of(recipe))


def plan(source: StudySource | Request, workspace: Workspace | str | None = None) -> StudyPlan:
    """Return counts and bytes of a run without making it (a dry run).

    Nothing is written, loaded or downloaded, and for the name of a variant torch is not imported. Raises RecipeError,
    TemplateError, ModelError or TakeNotFound for a request that cannot be met.
    """
    space = Workspace.find(workspace)
    keyed = _keyed(source, space, recipe_model.find_local, None)
    expansion, free = keyed.expansion, free_bytes(space.takes)
    complete = sum(each.complete for each in keyed.each()) if keyed.known else None
    if expansion is None:
        recipes = tuple(recipe for recipe, _ in keyed.recipes)
        needed = bytes_needed(_size(recipe, keyed.located.models.get(ModelKey.of(recipe))) for recipe in recipes)
        return StudyPlan(recipes[0].id, len(recipes), complete, needed, free, None, recipes, keyed)
    size = recipe_size(expansion.first_recipe, expansion.variant)  # all takes of a study have the same size
    missing = len(expansion) - (complete or 0)
    needed = missing * size.kept + (size.scratch if missing else 0)
    return StudyPlan(expansion.name, len(expansion), complete, needed, free, expansion, (), keyed)


def _size(recipe: Recipe, model: LocatedModel | None) -> TakeSize:
    if model is not None:
        return recipe_size(recipe, model.variant)
    # For a model that is neither on this machine nor in the table, assume the VAE of Wan 2.1.
    return recipe_size(recipe, VARIANTS.get(recipe.model.variant) or VARIANTS["wan2.1-t2v-1.3b"])
