"""Preparation is a sequence of steps that a run, a dry run and `generate` share; each step runs once."""

from __future__ import annotations

import json
import shutil
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.studies import STUDY, model
from helpers.tiny import tiny_folder
from wanscope import api
from wanscope.errors import ModelError, WanscopeError
from wanscope.recipe import Recipe, Study
from wanscope.spec.validation import validated
from wanscope.study import prepare
from wanscope.study.read_request import Request, read_source
from wanscope.study.run import run
from wanscope.workspace import Workspace

STEPS = ("read_source", "expand_request", "locate_weights", "key_takes", "check_takes")
ONE = {**STUDY, "prompt": "a red circle", "seeds": 1}


@pytest.fixture
def entered(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """Record the steps that run, in order, with their results."""
    seen: list[tuple[str, Any]] = []

    def watched(name: str) -> Any:
        real = getattr(prepare, name)

        def step(*args: Any, **options: Any) -> Any:
            out = real(*args, **options)
            seen.append((name, out))
            return out

        return step

    for name in STEPS:
        monkeypatch.setattr(prepare, name, watched(name))
    return seen


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a model that is not a known variant."""
    return tiny_folder(tmp_path_factory.mktemp("model") / "my-wan", "2.1", blocks=2, heads=2)


def names(seen: list[tuple[str, Any]]) -> tuple[str, ...]:
    return tuple(name for name, _ in seen)


def test_a_run_enters_every_step_once(tmp_path: Path, entered: list[tuple[str, Any]]) -> None:
    run(ONE, workspace=tmp_path, model=model())
    assert names(entered) == STEPS
    for _, record in entered:
        field = next(iter(record.__dataclass_fields__))
        with pytest.raises(FrozenInstanceError):
            setattr(record, field, None)


def test_generate_enters_every_step_once_and_makes_no_study(tmp_path: Path, entered: list[tuple[str, Any]]) -> None:
    settings = {key: ONE[key] for key in ("negative", "video", "sampler")}
    take = api.generate(model(), "a red circle", workspace=tmp_path, **settings)
    assert names(entered) == STEPS
    assert not (tmp_path / "studies").exists()
    assert take.id == run(ONE, workspace=tmp_path, model=model()).takes[0].id


def test_a_dry_run_enters_the_first_four(tmp_path: Path, folder: Path, entered: list[tuple[str, Any]]) -> None:
    plan = prepare.plan({**ONE, "model": str(folder)}, tmp_path)
    assert names(entered) == STEPS[:4]
    assert (plan.takes, plan.complete, plan.missing) == (1, 0, 1)
    (planned,) = plan.keyed.each()
    made = run({**ONE, "model": str(folder)}, workspace=tmp_path).takes[0]
    assert planned.id == made.id and planned.item is not None and planned.item.name == "a-red-circle_seed00"
    (there,) = prepare.plan({**ONE, "model": str(folder)}, tmp_path).keyed.each()
    assert there.complete and there.existing is not None and there.existing.folder == made.folder


def test_a_request_that_was_read_is_passed_on(tmp_path: Path) -> None:
    request = Request(study=validated(Study, ONE))
    assert read_source(request, Workspace(tmp_path)) is request


def outcome(work: Any) -> tuple[type, str]:
    try:
        work()
    except WanscopeError as error:
        return type(error), str(error)
    return type(None), ""


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt": "a [red|blue circle"},
        {"design": {"factor": "who"}},
        {"sampler": {"steps": 3, "start_step": 2}},
        {"init": {"take": "abcdef"}, "sampler": {"steps": 3, "start_step": 2}},
        {"init": {"latents": "SMALL"}, "sampler": {"steps": 3, "start_step": 2}},
        {"loras": ["nowhere.safetensors:0.5"]},
        {"edits": [{"kind": "inject", "donor": {"embedding": "gone.safetensors"}}]},
        {"video": {"width": 30, "height": 32, "frames": 5, "fps": 8}},
    ],
)
def test_a_dry_run_refuses_what_a_run_refuses(tmp_path: Path, folder: Path, changes: dict[str, Any]) -> None:
    np.save(tmp_path / "small.npy", np.zeros((16, 1, 4, 4), np.float32))
    text = json.dumps({**ONE, "model": str(folder), **changes}).replace("SMALL", str(tmp_path / "small.npy"))
    study, space = json.loads(text), tmp_path / "space"
    refused = outcome(lambda: prepare.plan(study, space))
    assert refused[0] is not type(None)
    assert refused == outcome(lambda: run(study, workspace=space))
    assert not space.exists()


def test_a_dry_run_of_a_take_with_changed_weights_is_refused(tmp_path: Path, folder: Path) -> None:
    shutil.copytree(folder, tmp_path / "mine")
    take = run({**ONE, "model": str(tmp_path / "mine")}, workspace=tmp_path / "space").takes[0]
    assert prepare.plan(take.id, tmp_path / "space").complete == 1
    shutil.rmtree(tmp_path / "mine")
    tiny_folder(tmp_path / "mine", "2.1", blocks=2, heads=2, seed=5)
    with pytest.raises(ModelError, match="is not the model that this recipe was made with"):
        prepare.plan(take.id, tmp_path / "space")


def test_a_recipe_whose_weights_are_not_here_is_planned_as_it_is_recorded(tmp_path: Path, monkeypatch) -> None:
    recipe = run(ONE, workspace=tmp_path, model=model()).takes[0].recipe
    away = recipe.model_copy(update={"model": recipe.model.model_copy(update={"name": "nobody/away"})})
    assert isinstance(away, Recipe)

    def not_here(*args: Any, local_files_only: bool = False, **options: Any) -> str:
        assert local_files_only, "a dry run asks no network"
        raise FileNotFoundError("not in the cache")

    monkeypatch.setattr("huggingface_hub.snapshot_download", not_here)
    plan = prepare.plan(away, tmp_path)
    assert (plan.takes, plan.complete, plan.model_of(away)) == (1, 1, None)
    assert plan.needed_bytes > 1000


def test_a_study_with_existing_takes_is_planned_in_part(tmp_path: Path, folder: Path) -> None:
    study = {**STUDY, "model": str(folder)}
    run({**study, "seeds": 1}, workspace=tmp_path)
    plan = prepare.plan(study, tmp_path)
    assert (plan.takes, plan.complete, plan.missing) == (4, 2, 2)
    assert [each.complete for each in plan.keyed.each()] == [True, False, True, False]
    captured = {**study, "capture": {"latents": True}}
    again = prepare.plan(captured, tmp_path)
    # They exist, but not with the latents that are requested now.
    assert again.complete == 0
    assert [each.existing is not None for each in again.keyed.each()] == [True, False, True, False]


def test_equal_recipes_are_one_take_of_several_rows(tmp_path: Path) -> None:
    space = Workspace(tmp_path)
    prepared = prepare.prepare(
        {**ONE, "prompt": "a [red|red|blue] circle"}, space, model(), "cpu", "auto", lambda event: None
    )
    assert [len(take.rows) for take in prepared.takes] == [2, 1]
    assert [take.index for take in prepared.takes] == [0, 1]
    (group,) = prepared.groups.values()
    assert group == prepared.takes
