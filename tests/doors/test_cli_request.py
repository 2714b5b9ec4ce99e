"""From options to a study: which settings override which, and what is refused with which message."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from helpers.takes import recipe, write_take
from wanscope.doors.cli.again import study_data, template_of
from wanscope.doors.cli.request import Options, apply, parse_seeds, parse_set, wanted
from wanscope.errors import RecipeError, RequestError, TakeNotFound, TemplateError, WanscopeError
from wanscope.prompt.template import parse
from wanscope.recipe import InitSpec, LatentsCapture, LoraSpec, MarkSpec, ModelIdentity, Recipe, SamplerSpec, Study
from wanscope.spec.validation import validated
from wanscope.study.study_file import config_names
from wanscope.workspace import Workspace


@pytest.fixture
def space(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "out")


def study_of(options: Options, space: Workspace) -> Study:
    study = wanted(options, space).study
    assert study is not None
    return study


def study_file(folder: Path, text: str, name: str = "mine.yaml") -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


def test_a_template_alone_is_a_study(space: Workspace) -> None:
    study = study_of(Options(values={"template": "a [red|blue] circle"}), space)
    assert study == Study(prompt="a [red|blue] circle")


@pytest.mark.parametrize("name", config_names())
@pytest.mark.parametrize("way", ["source", "config"])
def test_packaged_studies_are_found_by_name(space: Workspace, name: str, way: str) -> None:
    study = study_of(Options(**{way: name}), space)
    assert study.name == name


def test_options_override_the_file(space: Workspace, tmp_path: Path) -> None:
    text = """
model: marbles
prompt: a red circle
seeds: [5, 6]
video: {width: 128, height: 128, duration: 2, fps: 8}
sampler: {steps: 20, start_step: 5, guidance: 3}
init: {take: abc}
capture: {latents: {dtype: fp32, every: 2}}
"""
    options = Options(
        source=study_file(tmp_path, text),
        seeds="3",
        sets=["sampler.solver=heun", "sampler.guidance={0: 6.5, 10: 3.5}"],
        store_latents=True,
        values={"frames": 9, "denoise": 0.25, "steps": 8, "name": "other", "negative": "", "model": "wan2.1-t2v-1.3b"},
    )
    expected = validated(
        Study,
        {
            "name": "other",
            "model": "wan2.1-t2v-1.3b",
            "prompt": "a red circle",
            "negative": "",
            "seeds": [0, 1, 2],
            "video": {"width": 128, "height": 128, "frames": 9, "fps": 8},
            "sampler": {"steps": 8, "denoise": 0.25, "solver": "heun", "guidance": {0: 6.5, 10: 3.5}},
            "init": {"take": "abc"},
            "capture": {"latents": LatentsCapture(dtype="fp32", every=2)},
        },
    )
    assert study_of(options, space) == expected


def test_no_store_latents_switches_the_file_s_off(space: Workspace, tmp_path: Path) -> None:
    path = study_file(tmp_path, "prompt: a\ncapture: {latents: {every: 2}}")
    assert study_of(Options(source=path, store_latents=False), space).capture.latents is None
    assert study_of(Options(source=path), space).capture.latents == LatentsCapture(every=2)


def test_videos_per_variation_is_a_number_of_seeds(space: Workspace) -> None:
    assert study_of(Options(videos_per_variation=3, values={"template": "a"}), space).seeds == (0, 1, 2)


def test_the_name_is_the_file_s_unless_the_prompt_is_another(space: Workspace, tmp_path: Path) -> None:
    path = study_file(tmp_path, "prompt: a red circle")
    assert study_of(Options(source=path, seeds="9"), space).name == "mine"
    assert study_of(Options(source=path, values={"template": "a blue circle"}), space).name is None
    named = study_file(tmp_path, "prompt: a\nname: chosen", "other.yaml")
    assert study_of(Options(source=named, values={"template": "b"}), space).name == "chosen"


def test_a_design_that_does_not_fit_a_new_prompt_is_dropped_with_a_note(space: Workspace) -> None:
    request = wanted(Options(config="default", values={"template": "a simple test video"}), space)
    assert request.study is not None and request.study.design is None
    assert "who" in request.notes[0].text
    fitting = wanted(Options(config="default", values={"template": "a kiss of [@who: two|three]"}), space)
    assert fitting.study is not None and fitting.study.design is not None and not fitting.notes


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("4", 4),
        ("1,2,3", [1, 2, 3]),
        (" 7, ", [7]),
        ("0,10", [0, 10]),
    ],
)
def test_seeds(text: str, value: Any) -> None:
    assert parse_seeds(text) == value


@pytest.mark.parametrize("text", ["", ",", "x", "1;2", "1.5"])
def test_values_that_are_not_seeds(text: str) -> None:
    with pytest.raises(RequestError, match="--seeds"):
        parse_seeds(text)


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("sampler.steps=20", "sampler.steps", 20),
        ("sampler.sigmas=[1, 0.5]", "sampler.sigmas", [1, 0.5]),
        ("negative=", "negative", None),
        ("negative=null", "negative", None),
        ("prompt=a [red|blue] ball #1 = best", "prompt", "a [red|blue] ball #1 = best"),
        ('prompt="a: b"', "prompt", "a: b"),
        ("capture.latents=true", "capture.latents", True),
    ],
)
def test_set(text: str, key: str, value: Any) -> None:
    assert parse_set(text) == (key, value)


@pytest.mark.parametrize("text", ["sampler.steps", "=3", "prompt=[a"])
def test_set_that_cannot_be_read(text: str) -> None:
    with pytest.raises(WanscopeError) as caught:
        parse_set(text)
    assert caught.value.exit_status == 2 and "--set" in str(caught.value)


def test_apply_reaches_into_lists_and_changes_nothing_in_place() -> None:
    data = {"loras": [{"path": "a"}, {"path": "b"}], "sampler": None}
    out = apply(data, {"loras.1.weight": 0.5, "sampler.steps": 3})
    assert out == {"loras": [{"path": "a"}, {"path": "b", "weight": 0.5}], "sampler": {"steps": 3}}
    assert data == {"loras": [{"path": "a"}, {"path": "b"}], "sampler": None}


@pytest.mark.parametrize("changes", [{"loras.2.weight": 1}, {"loras.x": 1}, {"model.name": "x"}])
def test_apply_refuses_places_that_are_not_there(changes: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="--set"):
        apply({"loras": [{"path": "a"}], "model": "marbles"}, changes)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (Options(), "nothing to generate"),
        (Options(source="default", config="marbles"), "two studies"),
        (Options(seeds="2", videos_per_variation=2, values={"template": "a"}), "set the same thing"),
        (Options(sets=["sampler.steps=3"], values={"template": "a", "steps": 3}), "set the same thing"),
        (Options(source="a [red|blue] circle"), "--template"),
        (Options(source="no-such-file.yaml"), "no-such-file.yaml"),
        (Options(source="0123abcd"), "0123abcd"),
        (Options(source="no.json"), "no.json"),
        (Options(values={"template": "a", "frames": 18}), "17 or 21"),
        (Options(values={"template": "a", "frames": 17, "duration": 2.0}), "frames and duration both set the length"),
        (Options(values={"template": "a", "start_step": 2, "denoise": 0.5}), "the same control"),
        (Options(sets=["sampler.stepz=3"], values={"template": "a"}), "steps"),
        (Options(sets=["smapler.steps=3"], values={"template": "a"}), "sampler"),
        (Options(seeds="1,1", values={"template": "a"}), "twice"),
        (Options(from_take="0123", values={"template": "a"}), "0123"),
    ],
)
def test_what_is_refused(space: Workspace, options: Options, said: str) -> None:
    with pytest.raises(WanscopeError) as caught:
        wanted(options, space)
    assert caught.value.exit_status == 2
    assert said in str(caught.value)
    assert not space.folder.exists()


def test_a_wrong_key_names_the_nearest_right_one(space: Workspace, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="did you mean 'model'"):
        wanted(Options(source=study_file(tmp_path, "modle: marbles\nprompt: a")), space)
    with pytest.raises(RecipeError, match="'promt' is not a known key: did you mean 'prompt'"):
        wanted(Options(source=study_file(tmp_path, "promt: a red circle")), space)


def test_models_and_loras_become_whole_paths(space: Workspace, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wan").mkdir()
    for name in ("style.safetensors", "a.safetensors", "b.safetensors"):
        (tmp_path / name).write_bytes(b"")
    options = Options(loras=["style.safetensors:0.8"], values={"template": "a", "model": "wan"})
    study = study_of(options, space)
    assert study.model == str(tmp_path / "wan")
    assert study.loras == (LoraSpec(path=str(tmp_path / "style.safetensors"), weight=0.8),)
    two = study_of(Options(values={"template": "a", "model": "a.safetensors + b.safetensors"}), space)
    assert two.model == f"{tmp_path / 'a.safetensors'} + {tmp_path / 'b.safetensors'}"
    assert study_of(Options(values={"template": "a", "model": "marbles"}), space).model == "marbles"


def test_a_take_alone_is_made_again(space: Workspace) -> None:
    take = write_take(space.takes, recipe())
    for name in (take.id, take.id[:6], str(take.folder), str(take.folder / "take.json"), str(take.video)):
        again = wanted(Options(source=name), space).request
        assert again.recipes == (take.recipe,) and list(again.replays) == [take.id] and again.study is None


def test_a_take_with_changes_is_a_study_of_its_own(space: Workspace) -> None:
    take = write_take(space.takes, recipe(prompt="a [red] circle|", seed=7))
    request = wanted(Options(source=take.id, values={"steps": 9}), space)
    study = request.study
    assert study is not None and request.notes
    assert study.seeds == (7,)
    assert [v.text for v in parse(study.prompt).expand()] == ["a [red] circle|"]
    assert study.sampler == SamplerSpec(solver="unipc", steps=9, shift=5.0, guidance=5.0)
    assert (study.model, study.dtype, study.negative) == ("tiny", "fp32", "")


def test_from_take_starts_from_its_latents(space: Workspace, tmp_path: Path) -> None:
    take = write_take(space.takes, recipe(seed=7))
    study = study_of(Options(from_take=take.id[:5], values={"start_step": 2}), space)
    assert study.init == InitSpec(take=take.id)
    assert (study.sampler.start_step, study.seeds, study.prompt) == (2, (7,), "a red circle")
    other = study_of(Options(from_take=take.id, values={"template": "b", "denoise": 0.5}), space)
    assert (other.init, other.prompt, other.sampler) == (InitSpec(take=take.id), "b", SamplerSpec(denoise=0.5))
    elsewhere = write_take(tmp_path / "elsewhere", recipe(seed=8))
    far = study_of(Options(from_take=str(elsewhere.folder), values={"start_step": 1}), space)
    assert far.init == InitSpec(take=str(elsewhere.folder))


def test_another_model_drops_what_belongs_to_the_first(space: Workspace, tmp_path: Path) -> None:
    lora = tmp_path / "style.safetensors"
    take = write_take(space.takes, recipe(loras=(LoraSpec(path=str(lora), sha256="0" * 64),)))
    same = wanted(Options(from_take=take.id, values={"start_step": 2}), space)
    assert same.study is not None and same.study.loras == (LoraSpec(path=str(lora)),) and not same.notes
    other = wanted(Options(from_take=take.id, values={"start_step": 2, "model": "marbles"}), space)
    assert other.study is not None and not other.study.loras and other.study.dtype == "auto"
    assert "loras" in other.notes[0].text


def test_a_take_that_is_not_there(space: Workspace) -> None:
    with pytest.raises(TakeNotFound):
        wanted(Options(from_take="abc", values={"template": "a"}), space)


TEMPLATES = st.recursive(
    st.text("ab :|[]()\\@é", min_size=1, max_size=6).map(
        lambda text: "".join(f"\\{c}" if c in "\\[]()|@:" else c for c in text)
    ),
    lambda inner: st.one_of(
        inner.map(lambda text: f"({text})"),
        st.tuples(inner, st.sampled_from(["1.5", "0.0001", "-2", "3"])).map(lambda pair: f"({pair[0]}:{pair[1]})"),
        st.tuples(inner, inner).map("".join),
    ),
    max_leaves=6,
)


@given(TEMPLATES)
def test_a_recipe_s_template_means_its_prompt_and_marks(template: str) -> None:
    try:
        variation = parse(template).variation(0)
    except TemplateError:
        assume(False)
        return
    assume(variation.text.strip())
    marks = tuple(
        MarkSpec(text=m.text, start=m.start, end=m.end, weight=m.weight, weighted=m.weighted) for m in variation.marks
    )
    made = recipe(prompt=variation.text, marks=marks)
    again = list(parse(template_of(made)).expand())
    assert [(v.text, v.marks) for v in again] == [(variation.text, variation.marks)]


def test_a_recipe_s_study_makes_that_recipe_again() -> None:
    made = recipe(
        prompt="a red circle",
        marks=(MarkSpec(text="red", start=2, end=5, weight=1.5, weighted=True),),
        weights="multiply",
        labels={"1": "red"},
        model=ModelIdentity(name="marbles", variant="marbles", weights={"transformer": "0"}),
    )
    study = validated(Study, study_data(made))
    assert study.prompt == "a (red:1.5) circle"
    fields = set(Study.model_fields) & set(Recipe.model_fields) - {"model", "prompt"}
    assert {f: getattr(study, f) for f in fields} == {f: getattr(made, f) for f in fields}
