"""Recipes and studies: what is refused and with which message, what is resolved, and what an id covers."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wanscope.errors import RecipeError
from wanscope.recipe import (
    CaptureSpec,
    InitSpec,
    Keyframes,
    LatentsCapture,
    LoraSpec,
    MarkSpec,
    ModelIdentity,
    Recipe,
    SamplerSpec,
    Study,
    VideoSpec,
)
from wanscope.spec.validation import validated

DEFAULTS = {"solver": "unipc", "steps": 20, "shift": 5.0, "guidance": 5.0, "width": 64, "height": 48, "frames": 9}
DEFAULTS |= {"fps": 8}


def study(**changes: Any) -> Study:
    return validated(Study, {"prompt": "a [red|blue] circle", **changes})


def recipe(**changes: Any) -> Recipe:
    values: dict[str, Any] = {
        "model": ModelIdentity(name="marbles", variant="marbles", weights={"transformer": "ab", "vae": "cd"}),
        "dtype": "fp32",
        "prompt": "a red circle",
        "negative": "",
        "seed": 7,
        "video": VideoSpec(width=64, height=48, frames=9, fps=8),
        "sampler": SamplerSpec(solver="unipc", steps=20, shift=5.0, guidance=5.0),
    }
    return Recipe(**{**values, **changes})


# what is refused, and how

SAID = [
    ({"promt": "x"}, r"'promt' is not a known key: did you mean 'prompt'\?"),
    ({"sampler": {"step": 3}}, r"'sampler\.step' is not a known key: did you mean 'steps'\?"),
    ({"video": {"widht": 64}}, r"'video\.widht' is not a known key: did you mean 'width'\?"),
    ({"capture": {"latents": {"evry": 1}}}, r"'capture\.latents\.evry' is not a known key: did you mean 'every'\?"),
    ({"design": {"factr": "1"}}, r"'design\.factr' is not a known key: did you mean 'factor'\?"),
    ({"loras": [{"paht": "x"}]}, r"'loras\.0\.paht' is not a known key: did you mean 'path'\?"),
    ({"design": {}}, r"'design\.factor' is missing: every design needs it"),
    ({"prompt": "  "}, "prompt is '  ': a study needs a prompt"),
    ({"prompt": "a \ud800"}, "a lone surrogate"),
    ({"negative": "a \ud800"}, "a lone surrogate"),
    ({"seeds": "x"}, r"seeds is 'x': it should be a number \(4 means seeds 0 to 3\) or a list"),
    ({"seeds": 1.5}, "seeds is 1.5: it should be a number"),
    ({"seeds": True}, "seeds is True: it should be a number"),
    ({"seeds": 0}, "seeds is 0: it should be from 1 to 100000"),
    ({"seeds": []}, "at least one seed"),
    ({"seeds": [3, 5, 3]}, "seed 3 is listed twice"),
    ({"seeds": [-1]}, r"seeds\.0 is -1: it should be at least 0"),
    ({"seeds": [1.5]}, r"seeds\.0 is 1\.5: it should be a whole number"),
    ({"video": {"frames": 18}}, r"video\.frames: 18 is not 4n \+ 1, .*; use 17 or 21"),
    ({"video": {"frames": 0}}, "at least 1"),
    ({"video": {"frames": 17, "duration": 2}}, "give one of them"),
    ({"video": {"width": "wide"}}, r"video\.width is 'wide': it should be a whole number\."),
    ({"video": [64, 48]}, "video: it should be a mapping with the keys width, height, frames, duration, fps"),
    ({"sampler": {"solver": "unipcc"}}, r"sampler\.solver: 'unipcc' is not a solver; did you mean 'unipc'"),
    ({"sampler": {"steps": 0}}, r"sampler\.steps is 0: it should be at least 1"),
    ({"sampler": {"guidance": "high"}}, r"sampler\.guidance is 'high': it should be a number\."),
    ({"sampler": {"guidance": -1}}, r"sampler\.guidance is -1: it should be at least 0"),
    ({"sampler": {"guidance": {"a": 3}}}, r"sampler\.guidance: 'a' is not a step number; write keyframes as"),
    ({"sampler": {"guidance": {0: "x"}}}, r"sampler\.guidance is 'x': it should be a number"),
    ({"sampler": {"guidance": {0: 500}}}, "guidance 500 at step 0 should be from 0 to 100"),
    ({"sampler": {"guidance": {1.5: 5, "over": "sigma"}}}, r"no noise level 1\.5; sigma falls from 1 to 0"),
    ({"sampler": {"guidance": {"high": 5, "over": "sigma"}}}, "'high' is not a noise level; write keyframes as"),
    ({"sampler": {"guidance": {0.9: 5, "0.90": 6, "over": "sigma"}}}, "two keyframes name the same noise level"),
    ({"sampler": {"guidance": {0.9: 500, "over": "sigma"}}}, r"guidance 500 at sigma 0\.9 should be from 0 to 100"),
    ({"sampler": {"guidance": {0: 5, "over": "time"}}}, "should be 'steps' or 'sigma'"),
    ({"sampler": {"guidance": {0: 5, "interpolate": "linera"}}}, "should be 'linear', 'step' or 'cosine'"),
    ({"sampler": {"guidance": {0: 5, "0": 6}}}, "two keyframes name the same step"),
    ({"sampler": {"denoise": 0.5, "start_step": 3}}, "start_step and denoise are the same control"),
    ({"sampler": {"sigmas": [0.5, 0.9]}}, "sigmas must fall strictly"),
    ({"sampler": {"sigmas": [0.9, 0.5], "solver": "heun"}}, "'heun' takes no explicit sigmas"),
    ({"sampler": {"sigmas": [0.9, 0.5], "steps": 3}}, "2 sigmas make 2 steps, but steps is 3"),
    ({"capture": {"latents": "yes"}}, "it should be true, false or a mapping such as"),
    ({"capture": {"latents": {"dtype": "fp8"}}}, "it should be 'fp16' or 'fp32'"),
    ({"init": {}}, "exactly one of take, latents and video"),
    ({"init": {"take": "a", "video": "b"}}, "exactly one of take, latents and video"),
    ({"edits": [{"kind": "inject"}]}, r"'edits\.0\.donor' is missing: every inject needs it"),
    ({"edits": [{"kind": "injct"}]}, r"edits\.0\.kind is 'injct': did you mean 'inject'\?"),
    ({"edits": [{}]}, r"edits\.0 has no kind"),
    ({"edits": 3}, r"edits\.0 has no kind"),
    ({"edits": [{"kind": "skip", "blocks": "lat"}]}, r"edits\.0\.blocks: 'lat' is not a preset.*did you mean 'late'\?"),
    (
        {"edits": [{"kind": "skip", "blocks": 3, "prt": "x"}]},
        r"'edits\.0\.prt' is not a known key: did you mean 'part'",
    ),
    ({"edits": [{"kind": "skip", "blocks": 3, 4: "x"}]}, r"'edits\.0\.4' is not a known key"),
    ({"edits": [{"kind": "inject", "donor": "x", "strength": "a lot"}]}, r"edits\.0\.strength is 'a lot': .*a shape"),
    ({"edits": [{"kind": "inject", "donor": {"promt": "x"}}]}, r"'edits\.0\.donor\.promt' .*did you mean 'prompt'"),
    ({"edits": ["skp 3"]}, "an edit begins with .*did you mean 'skip'"),
    ({"sweep": {"edits.0.blocks": ["early"]}}, r"sweep: edits\.0\.blocks: there is no edit 0; the edits are none"),
    ({"edits": ["skip 3"], "sweep": {"steps": [3]}}, r"sweep: 'steps' is not a field of an edit"),
    ({"edits": ["skip 3"], "sweep": {"edits.0.blocks": 3}}, r"edits\.0\.blocks should be a list of values"),
    ({"edits": ["skip 3"], "sweep": {"edits.0.blocks": [1, "lat"]}}, r"with edits\.0\.blocks = lat: .*'late'"),
    ({"edits": ["skip 3"], "sweep": {"edits.0.blocks": [3, "3"]}}, "are the same edit"),
    ({"loras": "style.safetensors"}, "loras is 'style.safetensors': it should be a list"),
    ({"version": 2}, "version is 2: it should be 1"),
]


@pytest.mark.parametrize(("data", "says"), SAID, ids=[str(next(iter(data.items())))[:50] for data, _ in SAID])
def test_a_wrong_study_is_refused_with_its_key_and_reason(data: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        study(**data)


def test_every_problem_is_counted_and_the_misspelled_key_comes_first() -> None:
    with pytest.raises(RecipeError, match=r"'promt' is not a known key.*\(1 more problem after this one\)"):
        validated(Study, {"promt": "x"})
    with pytest.raises(RecipeError, match=r"\(2 more problems after this one\)"):
        study(video={"frames": 18}, sampler={"steps": 0}, dtype="fp8")


@pytest.mark.parametrize("name", ["a/b", "a\\b", "..", ".hidden", "CON", "nul.txt", "a:b", "x ", "", "a\nb", "x" * 200])
def test_names_that_are_not_valid_folders_everywhere_are_refused(name: str) -> None:
    with pytest.raises(RecipeError, match="valid folder name"):
        study(name=name)


@pytest.mark.parametrize("name", ["kiss", "two women", "ärger-7", "方", "v1.2"])
def test_plain_names_are_accepted(name: str) -> None:
    assert study(name=name).name == name


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from([*Study.model_fields, "promt", "x"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(["guidance", "steps", "frames", "latents", "take", "keys", "0"]), inner, max_size=3
                )
            ),
            max_leaves=6,
        ),
        max_size=4,
    )
)
def test_any_data_is_a_study_or_a_recipe_error(data: dict[str, Any]) -> None:
    with contextlib.suppress(RecipeError):
        assert isinstance(validated(Study, data), Study)


# short forms


def test_seeds_are_a_count_or_a_list() -> None:
    assert study(seeds=4).seeds == (0, 1, 2, 3)
    assert study(seeds=[7, 3]).seeds == (7, 3)
    assert study(seeds=range(2)).seeds == (0, 1)


def test_captures_and_loras_have_short_forms() -> None:
    assert study(capture={"latents": True}).capture.latents == LatentsCapture(dtype="fp16", every=1)
    assert study(capture={"latents": False}).capture == CaptureSpec()
    assert study(loras=["a.safetensors:0.8"]).loras == (LoraSpec(path="a.safetensors", weight=0.8),)
    assert study(loras=["C:/a.safetensors"]).loras == (LoraSpec(path="C:/a.safetensors"),)


# keyframes


@given(st.integers(0, 40), st.sampled_from(["linear", "step", "cosine"]))
def test_keyframes_hold_before_the_first_and_after_the_last(step: int, interpolate: str) -> None:
    frames = validated(Keyframes, {10: 6.0, 20: 2.0, "interpolate": interpolate})
    share = min(max((step - 10) / 10, 0), 1)
    eased = {"linear": share, "cosine": (1 - math.cos(math.pi * share)) / 2, "step": float(share >= 1)}[interpolate]
    assert frames.at(step) == pytest.approx(6 - 4 * eased)


@given(st.floats(0, 1), st.sampled_from(["linear", "step", "cosine"]))
def test_keyframes_over_sigma_follow_the_noise_level(sigma: float, interpolate: str) -> None:
    frames = validated(Keyframes, {0.5: 2.0, 0.75: 6.0, "interpolate": interpolate, "over": "sigma"})
    assert frames.keys == ((0.75, 6.0), (0.5, 2.0))  # in the order of the run, in which sigma decreases
    share = min(max((0.75 - sigma) / 0.25, 0), 1)
    eased = {"linear": share, "cosine": (1 - math.cos(math.pi * share)) / 2, "step": float(share >= 1)}[interpolate]
    assert frames.at(3, sigma) == pytest.approx(6 - 4 * eased)
    dumped = json.loads(frames.model_dump_json())
    assert dumped == {"0.75": 6.0, "0.5": 2.0, "interpolate": interpolate, "over": "sigma"}
    assert validated(Keyframes, dumped) == frames
    with pytest.raises(ValueError, match="need the step's sigma"):
        frames.at(3)


def test_keyframes_are_ordered_and_round_trip() -> None:
    frames = validated(Keyframes, {"20": 1, 5: 3.5})
    assert frames.keys == ((5, 3.5), (20, 1.0))
    dumped = json.loads(frames.model_dump_json())
    assert dumped == {"5": 3.5, "20": 1.0, "interpolate": "linear"}
    assert validated(Keyframes, dumped) == frames


# resolving


def test_open_settings_take_the_variants_values() -> None:
    found = SamplerSpec(steps=7).resolved(DEFAULTS)
    assert (found.solver, found.steps, found.shift, found.guidance, found.guidance_2) == ("unipc", 7, 5.0, 5.0, None)


def test_denoise_becomes_start_step() -> None:
    assert SamplerSpec(denoise=0.25).resolved(DEFAULTS).start_step == 15
    assert SamplerSpec(denoise=1.0).resolved(DEFAULTS).start_step == 0
    assert SamplerSpec(denoise=0.25).resolved(DEFAULTS).denoise is None
    with pytest.raises(RecipeError, match="only steps 0 to 19 exist"):
        SamplerSpec(start_step=20).resolved(DEFAULTS)
    with pytest.raises(RecipeError, match="only steps 0 to 19 exist"):
        SamplerSpec(denoise=0.001).resolved(DEFAULTS)


def test_sigmas_end_at_zero_and_count_as_steps() -> None:
    found = SamplerSpec(sigmas=(1.0, 0.5)).resolved(DEFAULTS)
    assert (found.sigmas, found.steps) == ((1.0, 0.5, 0.0), 2)
    assert SamplerSpec(sigmas=(1.0, 0.5, 0.0)).resolved(DEFAULTS) == found
    with pytest.raises(RecipeError, match="takes no explicit sigmas"):
        SamplerSpec(sigmas=(1.0, 0.5)).resolved({**DEFAULTS, "solver": "heun"})


def test_the_second_expert_has_its_own_guidance() -> None:
    two = {**DEFAULTS, "guidance": 4.0, "guidance_2": 3.0}
    assert SamplerSpec().resolved(two, experts=2).guidance_2 == 3.0
    assert SamplerSpec(guidance=6.0).resolved(two, experts=2).guidance_2 == 6.0  # not half of the variant's pair
    assert SamplerSpec(guidance=6.0, guidance_2=1.0).resolved(two, experts=2).guidance_2 == 1.0
    with pytest.raises(RecipeError, match="one expert"):
        SamplerSpec(guidance_2=1.0).resolved(DEFAULTS)


@given(st.floats(0.01, 100), st.integers(1, 60))
def test_a_duration_becomes_the_nearest_number_of_frames(duration: float, fps: int) -> None:
    frames = VideoSpec(duration=duration, fps=fps).resolved(DEFAULTS).frames
    assert frames is not None and frames % 4 == 1
    best = min(range(1, int(duration * fps) + 9, 4), key=lambda n: abs(n - duration * fps))
    assert abs(frames - duration * fps) == pytest.approx(abs(best - duration * fps))


# identity


def test_the_id_is_the_sha256_of_the_canonical_json() -> None:
    # Written out by hand. It pins ids across versions: a change here orphans every take that was ever made.
    text = (
        '{"dtype":"fp32","model":{"transformer":"ab","vae":"cd"},"negative":"","prompt":"a red circle",'
        '"sampler":{"guidance":5.0,"shift":5.0,"solver":"unipc","steps":20},"seed":7,"version":1,'
        '"video":{"fps":8,"frames":9,"height":48,"width":64}}'
    )
    assert recipe().canonical() == text
    assert recipe().hash == hashlib.sha256(text.encode()).hexdigest()
    assert recipe().id == recipe().hash[:16]


SAME = {
    "captures": {"capture": CaptureSpec(latents=LatentsCapture())},
    "labels": {"labels": {"who": "two men"}},
    "the model's name": {"model": ModelIdentity(name="x", variant="y", weights={"vae": "cd", "transformer": "ab"})},
    "a word that is only tracked": {"marks": (MarkSpec(text="red", start=2, end=5),)},
    "weights that are off": {
        "marks": (MarkSpec(text="red", start=2, end=5, weight=2, weighted=True),),
        "weights": "none",
    },
    "an integer for a float": {"sampler": SamplerSpec(solver="unipc", steps=20, shift=5, guidance=5)},
}

OTHER = {
    "seed": {"seed": 8},
    "prompt": {"prompt": "a red circle "},
    "negative": {"negative": "blurry"},
    "dtype": {"dtype": "bf16"},
    "weights of a component": {"model": ModelIdentity(name="marbles", variant="marbles", weights={"transformer": "x"})},
    "size": {"video": VideoSpec(width=48, height=64, frames=9, fps=8)},
    "guidance off per expert or once": {
        "sampler": SamplerSpec(solver="unipc", steps=20, shift=5, guidance=5, cfg_per_expert=False)
    },
    "a weighted word": {
        "marks": (MarkSpec(text="red", start=2, end=5, weight=2, weighted=True),),
        "weights": "multiply",
    },
    "how a word is weighted": {
        "marks": (MarkSpec(text="red", start=2, end=5, weight=2, weighted=True),),
        "weights": "interpolate",
    },
    "a lora": {"loras": (LoraSpec(path="a", sha256="11"),)},
    "a lora's weight": {"loras": (LoraSpec(path="a", weight=0.5, sha256="11"),)},
    "what it starts from": {"init": InitSpec(take="abc", sha256="22")},
    "keyframes": {
        "sampler": SamplerSpec(solver="unipc", steps=20, shift=5, guidance=Keyframes(keys=((0, 5.0), (9, 5.0))))
    },
}


@pytest.mark.parametrize("changes", SAME.values(), ids=SAME.keys())
def test_settings_that_change_no_pixel_do_not_change_the_id(changes: dict[str, Any]) -> None:
    assert recipe(**changes).id == recipe().id


def test_settings_that_change_pixels_change_the_id() -> None:
    ids = {name: recipe(**changes).id for name, changes in OTHER.items()}
    assert len({*ids.values(), recipe().id}) == len(OTHER) + 1


def test_the_path_of_a_file_is_not_part_of_the_id() -> None:
    a = recipe(loras=(LoraSpec(path="/here/a.safetensors", sha256="11"),), init=InitSpec(take="abc", sha256="22"))
    b = recipe(loras=(LoraSpec(path="/there/b.safetensors", sha256="11"),), init=InitSpec(latents="x.npy", sha256="22"))
    assert a.id == b.id


@settings(max_examples=50, deadline=None)
@given(
    prompt=st.text(st.characters(codec="utf-8"), min_size=1, max_size=30),
    seed=st.integers(0, 2**63 - 1),
    guidance=st.floats(0, 100)
    | st.just(Keyframes(keys=((0, 6.5), (10, 3.5)), interpolate="cosine"))
    | st.just(Keyframes(keys=((1.0, 8.0), (0.9, 2.0)), interpolate="step", over="sigma")),
    sigmas=st.none() | st.lists(st.floats(0.001, 1), min_size=1, max_size=6, unique=True),
)
def test_a_recipe_survives_json_with_its_id(prompt: str, seed: int, guidance: Any, sigmas: list[float] | None) -> None:
    chosen = SamplerSpec(guidance=guidance, sigmas=tuple(sorted(sigmas, reverse=True)) if sigmas else None)
    before = recipe(prompt=prompt, seed=seed, sampler=chosen.resolved(DEFAULTS))
    for text in (before.model_dump_json(), json.dumps(before.model_dump(mode="json", exclude_defaults=True))):
        after = validated(Recipe, json.loads(text))
        assert after == before and after.id == before.id


def test_a_recipe_cannot_be_changed_in_place() -> None:
    with pytest.raises(ValueError, match="frozen"):
        recipe().seed = 3  # type: ignore[misc]
