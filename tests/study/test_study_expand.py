"""A study expands into recipes in order; every limit is checked first, without torch."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wanscope.errors import ModelError, RecipeError
from wanscope.recipe import Study
from wanscope.spec.metric_names import OF_GROUPS, TESTED
from wanscope.spec.validation import validated
from wanscope.study.expand import MAX_TAKES, expand, slug
from wanscope.wan.variants import resolve

WEIGHTS = {"transformer": "ab"}


def study(prompt: str = "a [@color: red|blue] [circle|square]", **changes: Any) -> Study:
    return validated(Study, {"prompt": prompt, "model": "marbles", **changes})


def test_every_variation_is_made_with_every_seed() -> None:
    expansion = expand(study(seeds=[3, 0]))
    items = list(expansion.items(WEIGHTS))
    assert len(items) == len(expansion) == 8
    assert [item.index for item in items] == list(range(8))
    texts = [f"a {color} {shape}" for color, shape in itertools.product(["red", "blue"], ["circle", "square"])]
    assert [(item.recipe.prompt, item.seed) for item in items] == [(text, seed) for text in texts for seed in (3, 0)]
    assert items[0].recipe.labels == {"color": "red", "1": "circle"}
    assert len({item.recipe.id for item in items}) == 8


def test_a_recipe_is_fully_resolved() -> None:
    recipe = next(expand(study()).items(WEIGHTS)).recipe
    own = resolve("marbles").defaults
    assert recipe.negative == own.negative_prompt
    assert (recipe.sampler.steps, recipe.sampler.solver, recipe.sampler.shift) == (own.steps, own.solver, own.shift)
    assert (recipe.video.width, recipe.video.frames, recipe.video.fps) == (own.width, own.frames, own.fps)
    assert recipe.dtype == "fp32" and recipe.weights == "none"


def test_the_variants_negative_prompt_is_the_default_and_can_be_replaced() -> None:
    big = study("a cat", model="wan2.1-t2v-1.3b")
    assert expand(big).negative.startswith("色调艳丽")
    assert expand(big.model_copy(update={"negative": ""})).negative == ""


def test_weights_are_multiplied_only_where_a_number_was_written() -> None:
    modes = [item.recipe.weights for item in expand(study("a [(red:1.5)|(blue)]", seeds=1)).items(WEIGHTS)]
    assert modes == ["multiply", "none"]
    chosen = expand(study("a (red:1.5)", weights="interpolate", seeds=1))
    assert next(chosen.items(WEIGHTS)).recipe.weights == "interpolate"


def test_more_seeds_or_alternatives_leave_the_ids_and_names_that_were_there() -> None:
    few = {item.name: item.recipe.id for item in expand(study(seeds=2)).items(WEIGHTS)}
    many = {item.name: item.recipe.id for item in expand(study(seeds=120)).items(WEIGHTS)}
    assert few.items() <= many.items() and "red-circle_seed119" in many


def hypotheses(*claims: dict[str, Any]) -> dict[str, Any]:
    return {"design": {"factor": "color", "hypotheses": claims}, "capture": {"latents": True}}


def claim(factor: str, value: str) -> dict[str, Any]:
    return {"factor": factor, "hypotheses": [{"text": "x", "contrast": [value, "late"]}]}


REFUSED = [
    ({"video": {"width": 100}}, RecipeError, "width"),
    ({"video": {"frames": 18}}, RecipeError, "17 or 21"),
    ({"sampler": {"guidance": {0: 6, 20: 3}}}, RecipeError, "keyframe at step 20.*last step is 19"),
    ({"sampler": {"start_step": 5}}, RecipeError, "needs an init"),
    ({"init": {"take": "abc"}}, RecipeError, "init would do nothing"),
    ({"design": {"factor": "colour"}}, RecipeError, "its slots are color, 1"),
    ({"design": {"factor": "color", "blocks": ["scene"]}}, RecipeError, "blocks names 'scene'"),
    ({"design": {"factor": "color", "blocks": ["color"]}}, RecipeError, "factor that is compared"),
    (
        {"design": {"factor": "color", "hypotheses": [{"text": "x", "contrast": ["red", "bleu"]}]}},
        RecipeError,
        "contrast names 'bleu'.*'red', 'blue'; did you mean 'blue'",
    ),
    (
        hypotheses({"text": "x", "metric": "path_lenght"}),
        RecipeError,
        r"design\.hypotheses\.0\.metric is 'path_lenght': there is no such metric; did you mean 'path_length'",
    ),
    (
        hypotheses({"text": "x"}, {"text": "y", "metric": "variance"}),
        RecipeError,
        r"hypotheses\.1\.metric is 'variance': it has many values per take.*did you mean 'final_variance'",
    ),
    (hypotheses({"text": "x", "metric": "beauty"}), RecipeError, "no such metric; known: .*energy.*path_length"),
    (
        {**hypotheses({"text": "x", "metric": "energy"}), "capture": {}},
        RecipeError,
        "(?s)metric is 'energy', and the study keeps no latents.*capture: {latents: true}",
    ),
    (hypotheses({"text": "x", "contrast": ["red", "red"]}), RecipeError, "compares 'red' with itself"),
    (
        {"prompt": "a [@who: man|[tall|old] woman]", "design": claim("who", "old womman")},
        RecipeError,
        "contrast names 'old womman'.*'man', 'tall woman', 'old woman'; did you mean 'old woman'",
    ),
    (
        {"edits": ["skip 3"], "sweep": {"edits.0.blocks": ["early", "late"]}, "design": claim("edit", "lat")},
        RecipeError,
        "contrast names 'lat'.*'baseline', 'early', 'late'; did you mean 'late'",
    ),
    (
        {"edits": ["skip 3"], "sweep": {"edits.0.blocks": ["early", "late"]}, "design": claim("edits.0.blocks", "mid")},
        RecipeError,
        r"contrast names 'mid': the values of edits.0.blocks are 'early', 'late'\.$",
    ),
    ({"model": "wan2.1-t2v-14bb"}, ModelError, "did you mean 'wan2.1-t2v-14b'"),
    ({"model": "wan2.1-i2v-14b-480p"}, ModelError, "cannot make a video from text"),
    ({"loras": ["nowhere.safetensors"]}, ModelError, "no LoRA file nowhere"),
]


@pytest.mark.parametrize(("changes", "kind", "says"), REFUSED, ids=[str(c)[:60] for c, _, _ in REFUSED])
def test_impossible_requests_are_refused(changes: dict[str, Any], kind: type[Exception], says: str) -> None:
    with pytest.raises(kind, match=f"(?s){says}"):
        expand(study(**changes))


def test_hypotheses_that_tests_can_answer_are_accepted() -> None:
    for metric in TESTED + OF_GROUPS:
        expand(study(**hypotheses({"text": "x", "metric": metric, "contrast": ["red", "blue"]})))
    swept = {"edits": ["skip 3"], "sweep": {"edits.0.blocks": ["early", "late"]}}
    expand(study(**swept, design=claim("edit", "baseline")))
    expand(study(**swept, design=claim("edits.0.blocks", "early")))
    expand(study("a [@who: man|[tall|late]]", design=claim("who", "tall")))


def test_metrics_of_another_package_are_accepted_or_refused_with_a_reason() -> None:
    code = """
from wanscope.errors import RecipeError
from wanscope.recipe import Study
from wanscope.study.expand import expand
for name in ("path_length", "example_last_step", "example_last_stepp"):
    claim = {"factor": "1", "hypotheses": [{"text": "x", "metric": name}]}
    try:
        print(len(expand(Study(prompt="a [b|c]", design=claim, capture={"latents": True}))))
    except RecipeError as error:
        print(error)
import sys
print("torch" in sys.modules)
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "helpers" / "example_metric")}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    lines = run.stdout.splitlines()
    assert lines[:2] == ["4", "4"] and "did you mean 'example_last_step'?" in lines[2] and lines[-1] == "False"


def test_an_absurd_number_of_takes_is_refused_with_the_number() -> None:
    with pytest.raises(RecipeError, match=r"this study has 4,194,304 takes.*524288 variations times 8 seeds"):
        expand(study("[a|b]" * 19, seeds=8))
    with pytest.raises(RecipeError, match=r"about 10\^120"):
        expand(study("[a|b]" * 400))
    assert len(expand(study("a b", seeds=MAX_TAKES))) == MAX_TAKES


# names


@given(st.text(max_size=200), st.integers(8, 80))
def test_slugs_are_safe_file_names(text: str, length: int) -> None:
    made = slug(text, length)
    assert len(made.encode()) <= length
    assert all(c.isalnum() or c == "-" or c.isidentifier() or c.isprintable() for c in made)
    assert not set(made) & set('/\\:*?"<>|. \n\t\0') and made == made.strip("-") == made.lower()


def test_names_are_unique_even_where_slugs_are_not() -> None:
    names = expand(study("[a b|a-b|A, b!|a-b-2|...|!!!]")).names
    assert names[:2] == ("a-b", "a-b-2") and len(set(names)) == 6
    long = expand(study("[" + "|".join(f"{'word ' * 30}{i}" for i in range(5)) + "]")).names
    assert len(set(long)) == 5 and max(map(len, long)) < 70


def test_names_contain_the_bindings_or_else_the_prompt() -> None:
    assert expand(study("a kiss between [@who: two men|two women], @who")).names == ("two-men", "two-women")
    assert expand(study("A red Circle moves")).names == ("a-red-circle-moves",)
    assert expand(study("方形 и круг")).names == ("方形-и-круг",)


def test_unnamed_studies_are_named_after_prompt_and_settings() -> None:
    assert expand(study(name="mine")).name == "mine"
    name = expand(study(seeds=1)).name
    assert name.startswith("a-color-red-blue-circle-square-")
    assert expand(study(seeds=5, capture={"latents": True})).name == name
    assert expand(study(sampler={"steps": 9})).name != name


def test_expanding_needs_no_torch() -> None:
    code = (
        "import sys; from wanscope.recipe import Study; from wanscope.study.expand import expand;"
        "print(len(expand(Study(prompt='a [b|c]'))), 'torch' in sys.modules, 'diffusers' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["4", "False", "False"]


@pytest.mark.parametrize("marked", ["(circle:1.0)", "(circle:1)", "(circle:1.)"])
def test_a_weight_of_one_is_the_same_take_as_no_weight(marked: str) -> None:
    first, second = (expand(Study(prompt=f"a {text}", negative="")).first_recipe for text in ("(circle)", marked))
    assert first == second and first.hash == second.hash
