"""From what a person asked for to what has to be made: all that can be said before a weight is loaded.

Reading, expanding, finding the weights, looking at the takes that are there, tokens, free space. Nothing is written.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

from wanscope import events
from wanscope.edit.donors import Find, Remembered, with_hashes
from wanscope.errors import DamagedTake, ModelError, RecipeError
from wanscope.recipe import LoraSpec, Recipe, Study
from wanscope.study import recipe_model
from wanscope.study.attention_capture import attention_bytes, check_attention
from wanscope.study.check_directions import check_directions
from wanscope.study.encode_texts import check_prompts
from wanscope.study.expand import DTYPE_NAMES, Expansion, expand, size_of
from wanscope.study.partial_start import Start, find_start
from wanscope.study.read_request import Made, Request, Source, read_source
from wanscope.study.recipe_model import ModelKey
from wanscope.study.study_folder import Row
from wanscope.study.take_size import TakeSize, take_size
from wanscope.take.disk import free_bytes, require_space
from wanscope.take.store import Take, with_records_of
from wanscope.wan.identity import file_hash
from wanscope.wan.variants import VARIANTS, Variant, latent_shape
from wanscope.workspace import Workspace

if TYPE_CHECKING:
    from wanscope.wan.model import WanModel


@dataclass
class Task:
    """One distinct recipe, the study's rows that name it, and the take once it is complete."""

    recipe: Recipe
    index: int
    start: Start | None = None
    rows: list[Row] = field(default_factory=list)
    done: Take | None = None
    error: Exception | None = None


@dataclass
class Prepared:
    """A request with its tasks. `work`: those that have to be made, missing or to be made again."""

    name: str
    space: Workspace
    tasks: list[Task]
    work: list[Task]
    variants: dict[ModelKey, Variant]
    expansion: Expansion | None = None
    replays: dict[str, Made] = field(default_factory=dict)

    def by_model(self) -> dict[ModelKey, list[Task]]:
        """The work in groups that one loaded model makes."""
        groups: dict[ModelKey, list[Task]] = {}
        for task in self.work:
            groups.setdefault(ModelKey.of(task.recipe), []).append(task)
        return groups

    def size(self, recipe: Recipe) -> TakeSize:
        """Bytes of the recipe's take."""
        shape = latent_shape(self.variants[ModelKey.of(recipe)], *size_of(recipe.video))
        states = (recipe.sampler.steps or 0) - recipe.sampler.start_step + 1
        attention = attention_bytes(recipe, self.variants[ModelKey.of(recipe)])
        return take_size(recipe.video, shape, states, recipe.capture, attention)

    def needed_bytes(self) -> int:
        """What the work will take on the disk, with the scratch of one take."""
        sizes = [self.size(task.recipe) for task in self.work]
        return sum(size.kept for size in sizes) + max((size.scratch for size in sizes), default=0)


@dataclass(frozen=True)
class Plan:
    """What a run would do. complete: None where the weights are not here yet, so that no id is known."""

    name: str
    takes: int
    complete: int | None
    needed_bytes: int
    free_bytes: int
    expansion: Expansion | None
    recipes: tuple[Recipe, ...]

    @cached_property
    def missing(self) -> int:
        return self.takes - (self.complete or 0)


def prepare(
    source: Source, space: Workspace, model: WanModel | None = None, on_event: events.Listener = events.ignore
) -> Prepared:
    """Read and expand `source` and find its weights (downloading them where they are not here)."""
    request = read_source(source, space)
    found = _Found(model, on_event, stored_in(space))
    expansion = None
    if request.study is not None:
        expansion = found.expanded(request.study)
        name, tasks = expansion.name, _study_tasks(expansion, found, space)
    else:
        tasks = _recipe_tasks(request, found, space)
        name = tasks[0].recipe.id if len(tasks) == 1 else f"{len(tasks)} recipes"
    for task in tasks:
        task.done = complete_take(space, task.recipe)
    work = [task for task in tasks if task.done is None or task.recipe.id in request.replays]
    return Prepared(name, space, tasks, work, found.variants, expansion, request.replays)


def check(prepared: Prepared, model: WanModel | None, device: str, memory: str) -> None:
    """Tokens, memory, directions, LoRAs of a model that was handed in, and free space. Loads tokenizers at most."""
    for key, tasks in prepared.by_model().items():
        recipes = [task.recipe for task in tasks]
        if model is not None:
            for recipe in recipes:
                recipe_model.require_loras(recipe, model)
            tokenizer, length = model.tokenizer, model.text_length
        else:
            tokenizer, length = recipe_model.tokenizer_of(key)
        check_prompts(tokenizer, recipes, length, prepared.variants[key].name == "marbles")
        check_attention(recipes, prepared.variants[key], tokenizer, length)
        check_directions(recipes, prepared.variants[key])
        if model is None:  # last, as it imports torch: a text that is refused is refused at once
            recipe_model.check_memory(prepared.variants[key], recipes, device, memory)
    for task in prepared.work:
        standing = standing_take(prepared.space, task.recipe.id)
        if standing is not None:
            with_records_of(standing.recipe, task.recipe)  # refuses what one take cannot hold
    if prepared.work:
        require_space(prepared.space.takes, prepared.needed_bytes(), len(prepared.work))


def plan(source: Source, workspace: Workspace | str | None = None) -> Plan:
    """The dry run: counts and bytes. Nothing is written, loaded or downloaded, and a named model needs no torch."""
    space = Workspace.find(workspace)
    request = read_source(source, space)
    if request.study is None:
        recipes = request.recipes
        done = sum(complete_take(space, recipe) is not None for recipe in recipes)
        sizes = [_recipe_size(recipe) for recipe in recipes]
        needed = sum(size.kept for size in sizes) + max(size.scratch for size in sizes)
        return Plan(recipes[0].id, len(recipes), done, needed, free_bytes(space.takes), None, recipes)
    expansion = _Found(None, events.ignore, stored_in(space)).expanded(request.study, download=False)
    source_here = recipe_model.find_local(_key(expansion))
    first = expansion.recipe(expansion.template.variation(0), request.study.seeds[0], {})
    attention = attention_bytes(first, expansion.variant)
    size = take_size(expansion.video, expansion.latent_shape, expansion.states, request.study.capture, attention)
    complete = None
    if source_here is not None:
        weights = recipe_model.weights_of(source_here)
        start = _study_start(expansion, space)
        if start is not None:
            expansion = replace(expansion, init=start.spec)
        complete = sum(complete_take(space, item.recipe) is not None for item in expansion.items(weights))
    missing = len(expansion) - (complete or 0)
    needed = missing * size.kept + (size.scratch if missing else 0)
    return Plan(expansion.name, len(expansion), complete, needed, free_bytes(space.takes), expansion, ())


def _recipe_size(recipe: Recipe) -> TakeSize:
    variant = VARIANTS.get(recipe.model.variant)
    # Of a model that is not in the table only the usual VAE's shape can be assumed here.
    variant = variant or VARIANTS["wan2.1-t2v-1.3b"]
    shape = latent_shape(variant, *size_of(recipe.video))
    attention = attention_bytes(recipe, variant)
    return take_size(recipe.video, shape, (recipe.sampler.steps or 0) + 1, recipe.capture, attention)


def stored_in(space: Workspace) -> Find:
    """How edits find the embeddings of the workspace's catalogue that they name."""

    def find(name: str) -> Remembered:
        from wanscope.study.embedding_reuse import finder  # most requests name none, and need no database

        return finder(space)(name)

    return find


def complete_take(space: Workspace, recipe: Recipe) -> Take | None:
    """The take of a recipe, if it is there with the records that the recipe asks for."""
    found = standing_take(space, recipe.id)
    return found if found is not None and found.complete(recipe.capture, recipe.marks) else None


def standing_take(space: Workspace, take: str) -> Take | None:
    """The take that is there, whole or not; None where there is none or its take.json cannot be trusted."""
    try:
        return Take.open(space.take_folder(take))
    except DamagedTake:
        return None


def expanded_with(study: Study, model: WanModel, find: Find | None = None) -> Expansion:
    """The study's expansion on a model that is loaded already, with the LoRAs it has. RecipeError where its dtype is
    another."""
    dtype = DTYPE_NAMES[str(model.dtype).removeprefix("torch.")]
    if study.dtype not in ("auto", dtype):
        raise RecipeError(
            f"the study asks for {study.dtype} and the model that was handed in is {dtype}",
            "weights are not cast behind your back",
            f"load(..., dtype={study.dtype!r})",
        )
    if "model" not in study.model_fields_set:
        study = study.model_copy(update={"model": model.spec or model.variant.name})
    expansion = expand(study, model.variant, dtype, find)
    if "loras" not in study.model_fields_set:
        mine = (LoraSpec.model_validate({k: getattr(x, k) for k in LoraSpec.model_fields}) for x in model.loras)
        expansion = replace(expansion, loras=tuple(mine))
    return expansion


class _Found:
    """The models of a request, each looked for once; or the one that was handed in."""

    def __init__(self, given: WanModel | None, on_event: events.Listener, find: Find) -> None:
        self.given, self.on_event, self.find = given, on_event, find
        self.variants: dict[ModelKey, Variant] = {}
        self._weights: dict[ModelKey, dict[str, str]] = {}

    def expanded(self, study: Study, download: bool = True) -> Expansion:
        """The study's expansion; a model that is no variant's name is looked at to know what it is."""
        if self.given is not None:
            return expanded_with(study, self.given, self.find)
        if study.model.strip().lower() in VARIANTS:
            return expand(study, find=self.find)
        key = ModelKey(study.model, study.dtype, study.components)
        found = recipe_model.find(key, self.on_event) if download else recipe_model.find_local(key)
        if found is None:
            raise ModelError(
                f"what {study.model} is cannot be said without downloading it",
                "its configs are not on this machine",
                "the same without --dry-run",
            )
        from wanscope.wan.load import SHORT, pick_dtype

        return expand(study, found.variant, SHORT[pick_dtype("auto", found)], self.find)

    def weights(self, key: ModelKey) -> dict[str, str]:
        if key not in self._weights:
            found = self.given or recipe_model.find(key, self.on_event)
            self._weights[key], self.variants[key] = recipe_model.weights_of(found), found.variant
        return self._weights[key]


def _key(expansion: Expansion) -> ModelKey:
    study = expansion.study
    return ModelKey(study.model, expansion.dtype, study.components, expansion.loras)


def _study_start(expansion: Expansion, space: Workspace) -> Start | None:
    if expansion.init is None:
        return None
    return find_start(expansion.init, expansion.video, expansion.latent_shape, space)


def _study_tasks(expansion: Expansion, found: _Found, space: Workspace) -> list[Task]:
    start = _study_start(expansion, space)
    if start is not None:
        expansion = replace(expansion, init=start.spec)
    tasks: dict[str, Task] = {}
    for item in expansion.items(found.weights(_key(expansion))):
        take = item.recipe.id
        task = tasks.setdefault(take, Task(item.recipe, len(tasks), start))
        task.rows.append(
            Row(
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
        )
    return list(tasks.values())


def _recipe_tasks(request: Request, found: _Found, space: Workspace) -> list[Task]:
    tasks: dict[str, Task] = {}
    for recipe in request.recipes:
        key = ModelKey.of(recipe)
        recipe_model.require_weights(recipe, found.weights(key))
        # files that its edits name have to be there, and be those that were recorded
        edits = with_hashes(recipe.edits, found.variants[key].text_dim, file_hash, found.find)
        recipe = recipe.model_copy(update={"edits": edits})
        start = None
        if recipe.init is not None:
            shape = latent_shape(found.variants[key], *size_of(recipe.video))
            start = find_start(recipe.init, recipe.video, shape, space)
            recipe = recipe.model_copy(update={"init": start.spec})
        tasks.setdefault(recipe.id, Task(recipe, len(tasks), start))
    return list(tasks.values())
