"""Study files: strict YAML, found by path or packaged name; every packaged one is valid and expands."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wanscope.errors import RecipeError
from wanscope.recipe import Study
from wanscope.spec.strict_yaml import read_yaml
from wanscope.spec.validation import validated
from wanscope.study.expand import expand
from wanscope.study.study_file import config_names, find_study_file, load_study_data
from wanscope.wan.variants import VARIANTS

NAMES = ["default", "fast_test", "high_quality", "latent_analysis_example", "marbles", "wan_14b_optimized"]


def test_the_promised_configs_exist() -> None:
    assert config_names() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_packaged_study_is_valid_and_expands(name: str) -> None:
    study = validated(Study, load_study_data(name))
    expansion = expand(study)
    assert study.model in VARIANTS
    assert len(expansion) == expansion.variations * len(study.seeds) >= 1
    assert len(list(expansion.items({"transformer": "x"}))) == len(expansion)


def test_the_default_is_the_small_model_at_its_published_settings() -> None:
    expansion = expand(validated(Study, load_study_data("default")))
    assert expansion.variant.name == "wan2.1-t2v-1.3b"
    assert (expansion.video.width, expansion.video.height, expansion.video.frames) == (832, 480, 81)
    assert (expansion.sampler.steps, expansion.sampler.guidance, expansion.sampler.shift) == (50, 6.0, 8.0)


@pytest.mark.parametrize("name", ["marbles", "marbles.yaml", "configs/marbles.yaml"])
def test_packaged_studies_are_found_by_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_study_file(name).name == "marbles.yaml"


def test_a_file_in_the_folder_comes_before_a_packaged_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "marbles.yaml").write_text("prompt: mine\n")
    assert load_study_data("marbles.yaml") == {"prompt": "mine"}


def test_the_root_folder_shows_the_packaged_configs() -> None:
    root = Path(__file__).parents[2] / "configs"
    assert sorted(path.stem for path in root.glob("*.yaml")) == NAMES


def test_a_missing_file_is_an_error_that_lists_what_exists() -> None:
    with pytest.raises(RecipeError, match=r"no study file 'nowhere/marbles\.yaml'.*default, fast_test"):
        find_study_file("nowhere/marbles.yaml")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("prompt: a\nprompt: b\n", "'prompt' is written twice"),
        ("video: {width: 1, width: 2}\n", "'width' is written twice"),
        ("prompt: [a\n", "cannot be read as YAML at line 2"),
        ("prompt: a\n\tseeds: 2\n", "cannot be read as YAML at line 2"),
        ("- a\n", "a study is a YAML mapping"),
        ("", "a study is a YAML mapping"),
        ("prompt: !!python/object/apply:os.system ['true']\n", "cannot be read as YAML"),
        ("{[1, 2]: a}\n", "cannot be read as YAML"),
    ],
)
def test_ambiguous_or_invalid_yaml_is_refused(text: str, says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        read_yaml(text, "mine.yaml")


@given(st.text(max_size=40))
def test_any_text_is_a_mapping_or_a_recipe_error(text: str) -> None:
    with contextlib.suppress(RecipeError):
        assert isinstance(read_yaml(text), dict)


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="cannot be read"):
        load_study_data(str(tmp_path / "a.yaml"))


def test_paths_are_relative_to_the_files_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "studies"
    folder.mkdir()
    for name in ("a.safetensors", "start.npy", "vae.safetensors"):
        (folder / name).write_bytes(b"")
    (folder / "my-wan").mkdir()
    (folder / "s.yaml").write_text(
        "prompt: a\nmodel: my-wan\n"
        "loras: [a.safetensors, 'a.safetensors:0.5', {path: a.safetensors}, gone.safetensors]\n"
        "init: {latents: start.npy}\ncomponents: {vae: vae.safetensors}\n"
    )
    monkeypatch.chdir(tmp_path)
    data = load_study_data("studies/s.yaml")
    lora = str(folder / "a.safetensors")
    assert data["model"] == str(folder / "my-wan")
    assert data["loras"] == [lora, f"{lora}:0.5", {"path": lora}, "gone.safetensors"]
    assert data["init"] == {"latents": str(folder / "start.npy")}
    assert data["components"] == {"vae": str(folder / "vae.safetensors")}


def test_two_expert_files_and_hub_ids(tmp_path: Path) -> None:
    for name in ("high.safetensors", "low.safetensors"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "two.yaml").write_text("prompt: a\nmodel: high.safetensors + low.safetensors\n")
    (tmp_path / "hub.yaml").write_text("prompt: a\nmodel: Wan-AI/Wan2.1-T2V-14B-Diffusers\n")
    two = load_study_data(str(tmp_path / "two.yaml"))["model"]
    assert two == f"{tmp_path / 'high.safetensors'} + {tmp_path / 'low.safetensors'}"
    assert load_study_data(str(tmp_path / "hub.yaml"))["model"] == "Wan-AI/Wan2.1-T2V-14B-Diffusers"
