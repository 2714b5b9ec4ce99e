"""`generate --edit`, `difference`, and what `show` reports about edits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import wanscope as ws
from helpers.takes import recipe, write_take
from helpers.tiny import tiny_folder, tiny_model
from wanscope.doors.cli.again import study_data
from wanscope.doors.cli.request import Options, wanted
from wanscope.doors.cli.show import edit_facts
from wanscope.edit.edits import Bend, Inject, Skip
from wanscope.errors import RecipeError
from wanscope.recipe import SamplerSpec, Study, VideoSpec
from wanscope.sample.learn_direction import learn_direction
from wanscope.spec.validation import validated
from wanscope.study.expand import expand
from wanscope.take.applied_edits import applied_edits
from wanscope.workspace import Workspace

SMALL = ("--negative", "", "--width", 32, "--height", 32, "--frames", 5, "--steps", 3)
INJECT = "inject 'a green square' into late at 0.4"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("models") / "tiny", blocks=2, heads=2)


@pytest.fixture
def make(cli, tiny: Path, tmp_path: Path) -> Callable[..., Any]:
    def run(*more: object, template: str = "a red circle") -> Any:
        given = ["--template", template, "--model", tiny, "--seeds", "1", "--name", "small", "-o", tmp_path / "out"]
        return cli("generate", *given, *SMALL, *more)

    return run


def study_of(workspace: Path, **options: Any) -> Study:
    study = wanted(Options(**options), Workspace.find(workspace)).study
    assert study is not None
    return study


# the request


def test_edits_of_options_are_those_of_the_study_file_and_win_over_them(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("prompt: a red circle\nedits: ['skip 3']\n")
    assert study_of(tmp_path, source=str(tmp_path / "x.yaml")).edits == (Skip(3),)
    two = [INJECT, '{"kind": "bend", "words": "circle", "operation": "flip"}']
    changed = study_of(tmp_path, source=str(tmp_path / "x.yaml"), edits=two)
    assert changed.edits == (Inject("a green square", blocks="late", strength=0.4), Bend("circle", "flip"))
    set_ = study_of(tmp_path, source=str(tmp_path / "x.yaml"), sets=["edits.0.blocks=4-5", "baseline=false"])
    assert set_.edits == (Skip("4-5"),) and set_.baseline is False
    swept = study_of(tmp_path, values={"template": "x"}, edits=["skip 3"], sets=["sweep={edits.0.blocks: [1, 2]}"])
    assert swept.sweep == {"edits.0.blocks": (1, 2)}


def test_paths_in_edits_are_relative_to_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hall.safetensors").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    study = study_of(tmp_path, values={"template": "x"}, edits=["inject hall.safetensors", "inject 'hall.safetensors'"])
    first, second = study.edits
    assert isinstance(first, Inject) and isinstance(second, Inject)
    assert first.donor.embedding == str(tmp_path / "hall.safetensors") and second.donor.prompt == "hall.safetensors"


def test_a_take_with_changes_keeps_its_edits_and_gets_no_baseline() -> None:
    edited = recipe(edits=(Inject("a green square", blocks="late", strength=0.4),), latents=False)
    study = validated(Study, {**study_data(edited), "model": "marbles"})
    assert study.edits == edited.edits and study.baseline is False
    assert len(expand(study.model_copy(update={"dtype": "auto", "video": type(study.video)()}))) == 1
    assert "baseline" not in study_data(recipe(latents=False))


REFUSED = [
    (["--edit", "inject 'a green square' into lat"], "did you mean 'late'? Try: into late"),
    (
        ["--edit", "inject 'a green square' at a lot"],
        "strength is 'a lot': it is neither a number nor a shape. Try: at linear_decay",
    ),
    (["--edit", "bend square flip"], "the word 'square' is not in the prompt: the prompt reads 'a red circle'"),
    (["--edit", f"inject '{'a ' * 20}'"], "the donor has 21 tokens and the model reads 16"),
    (["--edit", "skip 2"], "there is no block 2: blocks are numbered from 0 to 1"),
    (["--edit", "skp 1"], "^ "),
    (["--edit", INJECT, "--set", "sweep={edits.1.blocks: [0]}"], "there is no edit 1"),
]


@pytest.mark.parametrize(("more", "said"), REFUSED, ids=[said for _, said in REFUSED])
def test_a_wrong_edit_is_refused_before_any_work(make, tmp_path: Path, more: list[str], said: str) -> None:
    ran = make(*more)
    assert ran.status == 2 and ran.out == "" and ran.err.startswith("wanscope: ")
    assert said in ran.err.replace("\n", " ")
    assert not (tmp_path / "out").exists()


def test_a_dry_run_shows_the_edits_and_names_their_takes(make) -> None:
    sweep = ("--set", "sweep={edits.0.strength: [0.2, 0.5]}")
    ran = make("--edit", INJECT, *sweep, "--dry-run")
    assert ran.status == 0 and "3 takes, 1 variation x 3 edits x 1 seed" in ran.out
    assert "inject 'a green square' into late at 0.5" in ran.out
    shown = json.loads(make("--edit", INJECT, *sweep, "--dry-run", "--json").out)
    assert [take["name"] for take in shown["planned"]] == [
        "a-red-circle_baseline_seed00",
        "a-red-circle_strength-0.2_seed00",
        "a-red-circle_strength-0.5_seed00",
    ]


def test_a_dry_run_notes_a_direction_of_other_weights_and_refuses_one_of_another_size(make, tmp_path: Path) -> None:
    for name, options in (("other", {"seed": 9}), ("deeper", {"blocks": 3})):
        of = tiny_model("2.1", **{"blocks": 2, "heads": 2, **options})
        learned = learn_direction(of, [("red", "blue")], SamplerSpec(), VideoSpec(), on="context")
        learned.save(tmp_path / f"{name}.safetensors")
    ran = make("--edit", f"steer '{tmp_path}/other.safetensors'", "--dry-run")
    said = f"{tmp_path}/other.safetensors: the direction was learned on other weights"
    assert ran.status == 0 and ran.out.startswith(f"note: {said} (")
    shown = json.loads(make("--edit", f"steer '{tmp_path}/other.safetensors'", "--dry-run", "--json").out)
    (note,) = shown["notes"]
    assert note.startswith(said)
    not_here = ["--dry-run", "--model", "wan2.1-t2v-14b"]
    for more in ([], ["--dry-run"], not_here):
        refused = make("--edit", f"steer '{tmp_path}/deeper.safetensors'", *more)
        assert refused.status == 2 and "edits.0: the direction does not fit this model" in refused.err
    assert not (tmp_path / "out").exists()


# after it


def test_show_reports_where_each_edit_acted(tmp_path: Path) -> None:
    edits = (Inject("a green square", blocks="late", strength=0.4), Skip(3, schedule="0"))
    take = write_take(tmp_path, recipe(edits=edits, latents=False))
    assert [name for name, _ in edit_facts(take.manifest)] == ["edit", "edit"]
    counts = {(0, block, "cond", step): 1 for block in (7, 8) for step in range(4)}
    counted = take.manifest.model_copy(update={"applied_edits": applied_edits(edits, counts, counts)})
    assert edit_facts(counted) == [
        ("edit", INJECT),
        ("", "applied 8 of 8: blocks 7-8, steps 0-3, cond"),
        ("edit", "skip 3 during 0"),
        ("", "planned nowhere: its strength is 0, its pass is not run, or another edit overrides it completely"),
    ]


# difference


@pytest.fixture(scope="module")
def loaded(tiny: Path):
    return ws.load(str(tiny))


def test_difference_prints_figures_and_a_sentence_of_advice(cli, tiny: Path, loaded) -> None:
    ran = cli("difference", "a red circle", "a green square", "--model", tiny)
    assert (ran.status, ran.err) == (0, "")
    found = ws.difference(loaded, "a red circle", "a green square")
    assert found.projected is not None
    assert f"{found.projected.matrix.relative_l2:.4f}" in ran.out and ran.out.rstrip().endswith(found.advice)
    assert "circle|▁square" in ran.out
    shown = json.loads(cli("difference", "a red circle", "a green square", "-m", tiny, "--json").out)
    assert shown["advice"] == found.advice and shown["tokens_a"] == 4
    assert shown["raw"]["matrix"]["relative_l2"] == found.raw.matrix.relative_l2


def test_difference_takes_embeddings_too_and_is_zero_for_equal_prompts(loaded) -> None:
    from wanscope.wan.text import encode

    (a_LD,) = encode(loaded, ["a red circle"])
    assert ws.difference(loaded, a_LD, "a red circle").raw.matrix.relative_l2 == 0
    with pytest.raises(RecipeError, match="prompt B has 21 tokens and the model reads 16"):
        ws.difference(loaded, a_LD, "a " * 20)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("", "x"), "prompt A is empty"),
        (("a red circle", "a green zebra"), "marbles does not know 'zebra'"),
        (("x", "y", "--model", "wan2.1-t2v-14bb"), "did you mean 'wan2.1-t2v-14b'"),
    ],
)
def test_difference_refuses_inputs_it_cannot_measure(cli, arguments: tuple[str, ...], said: str) -> None:
    ran = cli("difference", *arguments)
    assert ran.status == 2 and said in ran.err and ran.out == ""
