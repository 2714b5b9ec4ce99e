"""What a model's folder and files determine in addition to weights: identity, defaults, limits, damaged values."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers import layouts
from helpers.tiny import tiny_folder, tiny_pipeline, tiny_transformer, transformer_config
from wanscope.errors import ModelError, RecipeError
from wanscope.recipe import Study
from wanscope.sample.solvers import solver_class
from wanscope.study.expand import expand
from wanscope.wan import variants
from wanscope.wan.identity import weight_files
from wanscope.wan.load import identify, load
from wanscope.wan.locate import locate
from wanscope.wan.variant import check_video

STRAYS = ("model.fp16.safetensors", "old.safetensors", "diffusion_pytorch_model.fp16.safetensors", "notes.txt")


@pytest.mark.parametrize("component", ["transformer", "vae", "text_encoder"])
def test_a_stray_file_does_not_change_the_identity(component: str, tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "m")
    before = identify(folder)[1]
    for name in STRAYS:
        save_file({"x": torch.ones(3)}, folder / component / name)
    assert identify(folder)[1] == before == load(folder, device="cpu").identity


@pytest.mark.parametrize("component", ["transformer", "text_encoder"])
def test_shards_are_what_the_index_names(component: str, tmp_path: Path) -> None:
    pipe = tiny_pipeline()
    pipe.save_pretrained(tmp_path / "m", safe_serialization=True)
    whole = identify(tmp_path / "m")[1][component]
    shutil.rmtree(tmp_path / "m" / component)
    getattr(pipe, component).save_pretrained(tmp_path / "m" / component, max_shard_size="20KB")
    files = weight_files(tmp_path / "m" / component)
    assert len(files) > 2 and files == sorted((tmp_path / "m" / component).glob("*-of-*.safetensors"))
    sharded = identify(tmp_path / "m")[1][component]
    assert sharded != whole
    # a file that loading does not read, as an aborted download of the unsharded weights leaves behind
    save_file({"x": torch.ones(3)}, tmp_path / "m" / component / "old.safetensors")
    assert identify(tmp_path / "m")[1][component] == sharded
    loaded = load(tmp_path / "m", device="cpu")
    state = getattr(loaded, component).state_dict()
    assert all(torch.equal(value, state[name]) for name, value in getattr(pipe, component).state_dict().items())


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": {"a": "../x.safetensors"}}', '{"weight_map": {"a": 3}}'])
def test_a_bad_index_is_refused(text: str, tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "m")
    (folder / "transformer" / "diffusion_pytorch_model.safetensors.index.json").write_text(text)
    with pytest.raises(ModelError, match=r"index\.json"):
        identify(folder)


@pytest.mark.parametrize(
    ("value", "component"),
    [
        (float("nan"), "transformer"),
        (float("inf"), "transformer_2"),
        (-float("inf"), "vae"),
        (float("nan"), "text_encoder"),
    ],
)
def test_weights_that_are_not_numbers_are_refused_by_name(value: float, component: str, tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "m", "2.2")
    (file,) = weight_files(folder / component)
    tensors = load_file(file)
    name = next(name for name in sorted(tensors) if tensors[name].ndim == 2 or component == "vae")
    tensors[name].view(-1)[-1] = value
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="contains weights that are not numbers") as error:
        load(folder, device="cpu")
    assert name.removeprefix("encoder.") in str(error.value) and component in str(error.value)


@pytest.mark.parametrize("where", ["weight", "scale"])
def test_a_scaled_fp8_file_with_nan_is_refused(where: str, tmp_path: Path) -> None:
    config = {**transformer_config("2.1", blocks=1, heads=2, head_dim=128), "rope_max_seq_len": 1024}
    plain = load_file(layouts.save_transformer(tmp_path / "x.safetensors", tiny_transformer(config), layouts.COMFY))
    scaled = {}
    for name, tensor in plain.items():
        if tensor.ndim == 2 and ".ffn." in name:
            scale = tensor.abs().max() / 448
            scaled[name] = (tensor / scale).to(torch.float8_e4m3fn)
            scaled[name.removesuffix("weight") + "scale_weight"] = scale.reshape(1)
        else:
            scaled[name] = tensor
    chosen = next(name for name in scaled if name.endswith("scale_weight" if where == "scale" else "ffn.0.weight"))
    broken = scaled[chosen].float()
    broken.view(-1)[0] = float("nan")
    scaled[chosen] = broken.to(scaled[chosen].dtype)
    scaled[layouts.COMFY + "scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    save_file(scaled, tmp_path / "x.safetensors")
    tiny_pipeline(blocks=1, heads=2, head_dim=128).save_pretrained(tmp_path / "parts")
    parts = dict.fromkeys(("encoder", "vae", "tokenizer"), tmp_path / "parts")
    with pytest.raises(ModelError, match=r"not numbers.*blocks\.0\.ffn") as error:
        load(tmp_path / "x.safetensors", device="cpu", **parts)
    assert "x.safetensors" in str(error.value)


# ---- defaults of a folder


def with_scheduler(folder: Path, **changes: object) -> Path:
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


@pytest.mark.parametrize("shift", [1.0, 7.5])
def test_a_folders_own_shift_is_its_default(shift: float, tmp_path: Path) -> None:
    folder = with_scheduler(tiny_folder(tmp_path / "m"), flow_shift=shift)
    assert locate(folder).variant.defaults.shift == shift


@pytest.mark.parametrize(("name", "solver"), variants.SOLVERS.items())
def test_a_folders_own_solver_is_its_default(name: str, solver: str, tmp_path: Path) -> None:
    folder = with_scheduler(tiny_folder(tmp_path / "m"), _class_name=name)
    assert locate(folder).variant.defaults.solver == solver
    assert solver_class(solver).scheduler_class == name


def test_published_folders_keep_the_defaults_of_their_variant() -> None:
    for variant in variants.VARIANTS.values():
        assert variants.with_scheduler(variant, variant.scheduler_config()) == variant
        other = variants.with_scheduler(variant, {**variant.scheduler_config(), "flow_shift": 11.0})
        assert other.defaults.shift == 11.0


def test_the_configs_rope_length_limits_the_size(tmp_path: Path) -> None:
    """The tiny models have positions for 64 patches: 1,024 pixels."""
    variant = locate(tiny_folder(tmp_path / "m")).variant
    assert variant.rope_positions == 64 == variant.transformer_config()["rope_max_seq_len"]
    check_video(variant, 1024, 64, 5)
    with pytest.raises(RecipeError, match="positions for 64 patches"):
        check_video(variant, 1040, 64, 5)


def test_a_default_negative_prompt_that_is_too_long_is_left_out_with_a_note(tmp_path: Path) -> None:
    variant = locate(tiny_folder(tmp_path / "m")).variant
    assert variant.text_length == 16 and variant.defaults.negative_prompt == ""
    (note,) = expand(Study(prompt="a red circle"), variant).notes
    assert "the default negative prompt is left out" in note.text and "reads 16" in note.text
    assert expand(Study(prompt="a red circle", negative=""), variant).notes == []
