"""The first step of preparation: what `run` accepts, which is a study or its file, recipes, or a take to make again.

A take (its id, folder, take.json or video.mp4) contains its recipe and the checksum of its latents, so a replay can
report whether it produced the same bits.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wanscope.errors import DamagedTake, RecipeError, RequestError, TakeNotFound
from wanscope.recipe import Recipe, Study
from wanscope.spec.strict_json import read_json
from wanscope.spec.validation import validated
from wanscope.study.study_file import config_names, load_study_data
from wanscope.take.disk import guarded
from wanscope.take.manifest import Environment
from wanscope.take.store import Take
from wanscope.workspace import MANIFEST, Workspace

StudySource = Study | Recipe | Take | str | Path | Mapping[str, Any] | Sequence[Recipe]

STUDY_ENDINGS = (".yaml", ".yml")


@dataclass(frozen=True)
class ReplayReference:
    """The earlier result that a replay is compared with.

    latents_sha256: the checksum of its final latents. source: the file or folder that it was read from.
    """

    latents_sha256: str
    environment: Environment
    source: str


@dataclass(frozen=True)
class Request:
    """Either a study or recipes.

    replays: the earlier results of the takes to make again, by id. loose: whether the study gets no folder in
    `studies/`.
    """

    study: Study | None = None
    recipes: tuple[Recipe, ...] = ()
    replays: dict[str, ReplayReference] = field(default_factory=dict)
    loose: bool = False


def read_source(source: StudySource | Request, workspace: Workspace) -> Request:
    """Return the request that `source` describes; a Request is returned as it is.

    Raises RecipeError, TakeNotFound or RequestError where `source` is none of the accepted kinds.
    """
    if isinstance(source, Request):
        return source
    if isinstance(source, Study):
        return Request(study=source)
    if isinstance(source, Recipe):
        return Request(recipes=(source,))
    if isinstance(source, Take):
        return _replay(source)
    if isinstance(source, Mapping):
        return Request(study=validated(Study, dict(source)))
    if isinstance(source, str | Path):
        with guarded(workspace.folder, "read"):  # a name may be too long for any disk
            return _from_name(str(source), workspace)
    recipes = tuple(source)
    if not recipes or not all(isinstance(recipe, Recipe) for recipe in recipes):
        raise RecipeError("there is nothing to make", "run accepts a study, its file, recipes, or a take to make again")
    return Request(recipes=recipes)


def _from_name(name: str, workspace: Workspace) -> Request:
    path = Path(name)
    ending = path.suffix.lower()
    if os.path.isdir(path) and (path / MANIFEST).is_file():
        return _replay(Take.open(path))
    if ending in (".json", ".mp4"):
        if not os.path.isfile(path):
            raise TakeNotFound(f"there is no file {name}", "", "wanscope takes")
        return _from_json(path) if ending == ".json" else _from_video(path)
    if os.path.isfile(path) or ending in STUDY_ENDINGS or path.name in config_names():
        return Request(study=study_from_file(name))
    try:
        return _replay(Take.open(workspace.find_take(name)))
    except TakeNotFound as error:
        raise RecipeError(
            f"there is no study file or take {name!r}",
            f"the packaged studies are {', '.join(config_names())}; {error.why or error.what}",
            "wanscope generate --help",
        ) from None


def study_from_file(name: str) -> Study:
    """Return the study in a file; a study without a name is named after its file."""
    data = load_study_data(name)
    study = validated(Study, data)
    return study if study.name else validated(Study, {**data, "name": Path(name).stem})


def _replay(take: Take) -> Request:
    manifest = take.manifest
    made = ReplayReference(manifest.latents_sha256, manifest.environment, str(take.folder))
    return Request(recipes=(manifest.recipe,), replays={manifest.id: made})


def _from_json(path: Path) -> Request:
    if path.name == MANIFEST:
        return _replay(Take.open(path.parent))
    try:
        data = read_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RequestError(f"{path} cannot be read as JSON", str(error)) from None
    if isinstance(data, dict) and isinstance(data.get("recipe"), dict):  # a take.json under another name
        return _recorded(data, str(path))
    if isinstance(data, dict) and "seeds" in data:
        return Request(study=validated(Study, data))
    return Request(recipes=(validated(Recipe, data),))


def _from_video(path: Path) -> Request:
    from wanscope.take.video import read_recipe

    return _recorded(read_recipe(path), str(path))


def _recorded(data: Mapping[str, Any], source: str) -> Request:
    try:
        recipe = validated(Recipe, data["recipe"], "recipe")
    except RecipeError as error:
        raise DamagedTake(f"the recipe in {source} cannot be read", str(error)) from None
    named = data.get("take", data.get("id"))
    if named is not None and named != recipe.id:
        raise DamagedTake(
            f"the recipe in {source} has been changed",
            f"it would make the take {recipe.id}, and the file says that it is {named}",
            "an undamaged copy of the file, or the take.json of the take",
        )
    if "latents_sha256" not in data or "environment" not in data:
        return Request(recipes=(recipe,))
    try:
        made = ReplayReference(str(data["latents_sha256"]), validated(Environment, data["environment"]), source)
    except RecipeError as error:
        raise DamagedTake(f"the records in {source} cannot be read", str(error)) from None
    return Request(recipes=(recipe,), replays={recipe.id: made})
