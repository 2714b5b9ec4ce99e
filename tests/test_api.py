"""The public names: light to import, and one take at a time on a loaded model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import wanscope as ws
from helpers.studies import Events, model
from wanscope.errors import NumericalError, RecipeError, TakeNotFound
from wanscope.events import StepDone
from wanscope.study import make_take

SMALL = {"width": 32, "height": 32, "frames": 5, "fps": 8, "steps": 2, "negative": ""}


def test_importing_loads_no_torch_and_no_heavy_library() -> None:
    code = (
        "import sys, wanscope; dir(wanscope); wanscope.Study, wanscope.Capture, wanscope.open_take, wanscope.Take;"
        "print([m for m in ('torch', 'diffusers', 'transformers', 'zarr', 'av', 'numba') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_importing_alone_loads_no_module_of_ours() -> None:
    code = "import sys, wanscope; print([m for m in sys.modules if m.startswith('wanscope.') or m == 'pydantic'])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ws.__all__)
def test_every_public_name_exists(name: str) -> None:
    assert getattr(ws, name) is not None


def test_missing_names_are_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'genrate'"):
        _ = ws.genrate  # type: ignore[attr-defined]


def test_generate_makes_one_take_and_finds_it_again(tmp_path: Path) -> None:
    events = Events()
    capture = ws.Capture.model_validate({"latents": True})
    take = ws.generate(model(), "a red (circle)", seed=3, capture=capture, workspace=tmp_path, on_event=events, **SMALL)
    assert take.frames.shape == (5, 32, 32, 3) and take.latents.shape[0] == 3 and take.gram.shape == (3, 3)
    assert (take.recipe.seed, take.recipe.video.width, take.recipe.sampler.steps) == (3, 32, 2)
    assert take.recipe.prompt == "a red circle" and take.recipe.marks[0].text == "circle"
    assert len(events.of(StepDone)) == 2
    again = ws.generate(model(), "a red (circle)", seed=3, workspace=tmp_path, on_event=events, **SMALL)
    assert again.id == take.id and len(events.of(StepDone)) == 2
    assert ws.open_take(take.id, tmp_path).recipe == take.recipe
    with pytest.raises(TakeNotFound):
        ws.open_take("zzz", tmp_path)


def test_a_second_pass_from_python(tmp_path: Path) -> None:
    first = ws.generate(model(), "a red circle", workspace=tmp_path, **SMALL)
    second = ws.generate(model(), "a dog", workspace=tmp_path, init={"take": first.id}, start_step=1, **SMALL)
    assert second.recipe.init is not None and second.recipe.init.sha256 == first.manifest.latents_sha256
    assert second.id != first.id and not np.array_equal(first.final, second.final)


def test_settings_may_be_flat_or_nested(tmp_path: Path) -> None:
    flat = ws.generate(model(), "a dog", workspace=tmp_path, **SMALL)
    video = {"width": 32, "height": 32, "frames": 5, "fps": 8}
    whole = ws.generate(model(), "a dog", workspace=tmp_path, video=video, sampler={"steps": 2}, negative="")
    mixed = ws.generate(model(), "a dog", workspace=tmp_path, video=video, steps=2, negative="")
    assert flat.id == whole.id == mixed.id


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"no setting 'step'.*did you mean 'steps'"):
        ws.generate(model(), "a dog", step=3)
    with pytest.raises(RecipeError, match="this prompt makes 4 videos"):
        ws.generate(model(), "a [red|blue] [dog|cat]")


def test_a_failing_take_raises_its_own_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise NumericalError("NaN after step 1")

    monkeypatch.setattr(make_take, "denoise", fail)
    with pytest.raises(NumericalError, match="NaN after step 1"):
        ws.generate(model(), "a dog", workspace=tmp_path, **SMALL)
