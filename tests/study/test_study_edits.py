"""Edits of a study: expanded together with one baseline, checked before any work, their texts encoded once."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from helpers.studies import STUDY, Events, model
from helpers.takes import recipe as plain_recipe
from helpers.takes import write_take
from wanscope.catalog.catalog import Catalog
from wanscope.catalog.content import Tokens
from wanscope.edit.difference import relative_l2
from wanscope.edit.edits import Bend, Inject, Prompts, Skip, Steer
from wanscope.errors import RecipeError
from wanscope.events import PromptsEncoded
from wanscope.recipe import Recipe, Study
from wanscope.spec.validation import validated
from wanscope.study.check_texts import check_prompts
from wanscope.study.encode_texts import encode_prompts
from wanscope.study.expand import Expansion, expand, file_label
from wanscope.study.run import run
from wanscope.study.study_file import load_study_data
from wanscope.study.study_folder import IndexRow, StudyFolder
from wanscope.take.compare import labels_of, table
from wanscope.take.store import Take
from wanscope.wan.identity import file_hash
from wanscope.wan.text import encode
from wanscope.workspace import Workspace

WEIGHTS = {"transformer": "ab"}
INJECT = "inject 'a green square' into late at 0.4"


def study(**changes: Any) -> Study:
    return validated(Study, {"prompt": "a [@color: red|blue] circle", "model": "marbles", "seeds": 2, **changes})


def expanded(**changes: Any) -> Expansion:
    return expand(study(**changes))


def tiny_expansion(**changes: Any) -> Expansion:
    return expand(validated(Study, {**STUDY, **changes}), model().variant, "fp32")


# ids and names


def test_studies_and_recipes_without_edits_have_the_same_ids_as_before_edits_existed() -> None:
    # ids of the version before; every setting is given, because a model's defaults may change
    fixed = {
        "prompt": "a [@color: red|blue] [circle|square]",
        "model": "marbles",
        "seeds": 2,
        "negative": "blurry",
        "video": {"width": 48, "height": 48, "frames": 9},
        "sampler": {"solver": "euler", "steps": 8, "shift": 3.0, "guidance": 2.0},
    }
    expansion = expand(validated(Study, fixed))
    assert expansion.name == "a-color-red-blue-circle-square-e24f9dc4"
    items = list(expansion.items(WEIGHTS))
    assert [item.recipe.id for item in items][:2] == ["5c7ae5af4d2ff4a6", "00f33c394bb7a03f"]
    assert [item.name for item in items][:2] == ["red-circle_seed00", "red-circle_seed01"]


def test_the_baseline_is_the_take_that_the_study_without_edits_makes() -> None:
    plain = {item.recipe.id for item in expanded().items(WEIGHTS)}
    edited = list(expanded(edits=[INJECT]).items(WEIGHTS))
    assert len(edited) == 8 and {item.recipe.id for item in edited if item.edit_set.label == "baseline"} == plain
    assert len({item.recipe.id for item in edited}) == 8
    assert [item.name for item in edited][:4] == [
        "red_baseline_seed00",
        "red_baseline_seed01",
        "red_edited_seed00",
        "red_edited_seed01",
    ]
    only = list(expanded(edits=[INJECT], baseline=False).items(WEIGHTS))
    assert {item.recipe.id for item in only} == {item.recipe.id for item in edited} - plain


def test_a_sweep_makes_every_combination_and_one_baseline() -> None:
    sweep = {"edits.0.blocks": ["early", "mid", "late"], "edits.0.strength": [0.2, 0.5, 1.0]}
    expansion = expanded(edits=[INJECT], sweep=sweep)
    assert len(expansion) == 2 * 10 * 2 and expansion.counted == "2 variations x 10 edits x 2 seeds"
    items = list(expansion.items(WEIGHTS))
    assert len(items) == len({item.recipe.id for item in items}) == len({item.name for item in items}) == 40
    assert items[2].name == "red_early-strength-0.2_seed00"
    swept = [(e.blocks, e.strength) for item in items[2:20:2] for e in item.recipe.edits if isinstance(e, Inject)]
    assert swept == [(blocks, strength) for blocks in ("early", "mid", "late") for strength in (0.2, 0.5, 1.0)]
    assert items[2].recipe.labels == {
        "color": "red",
        "edit": "early, strength 0.2",
        "edits.0.blocks": "early",
        "edits.0.strength": "0.2",
    }
    assert items[0].recipe.labels == {"color": "red", "edit": "baseline"}


def test_equal_edits_written_differently_are_one_take() -> None:
    one = expanded(edits=[{"kind": "inject", "donor": "a green square", "blocks": "late", "strength": "0.4"}])
    assert [i.recipe.id for i in one.items(WEIGHTS)] == [i.recipe.id for i in expanded(edits=INJECT).items(WEIGHTS)]


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("late, strength 0.4", "late-strength-0.4"),
        ("x -0.25", "x-minus-0.25"),
        ("a green square. It moves 1.", "a-green-square-it-moves-1"),
        ("../x", "x"),
        ("...", ""),
    ],
)
def test_labels_become_file_names(label: str, name: str) -> None:
    assert file_label(label) == name


REFUSED = [
    ({"edits": ["skip 10"]}, "edits.0: there is no block 10: blocks are numbered from 0 to 9"),
    ({"edits": [INJECT, "skip 3 during step(30)"]}, "edits.1: the schedule names step 30: the run has 20 steps"),
    ({"edits": ["skip 3"], "sweep": {"edits.0.blocks": [3, 12]}}, "edits.0: there is no block 12"),
    ({"edits": ["bend circle flip heads=9"]}, "edits.0: there is no head 9"),
    ({"edits": ["prompts 20 'a circle'"]}, "edits.0: a prompt is given for step 20"),
    ({"edits": ["steer nowhere.safetensors"]}, "edits.0.direction is 'nowhere.safetensors': there is no such file"),
    ({"edits": ["inject nowhere.safetensors"]}, "edits.0.donor.embedding is 'nowhere.safetensors'"),
    ({"prompt": "a [@edit: red|blue] circle", "edits": [INJECT]}, "the prompt has a slot 'edit'"),
    ({"edits": [INJECT], "design": {"factor": "edits.0.blocks"}}, "its slots are color, edit"),
    ({"edits": ["skip 3"], "sweep": {"edits.0.schedule": [f"step({i})" for i in range(20)]}, "seeds": 5000}, "21 sets"),
]


@pytest.mark.parametrize(("changes", "says"), REFUSED, ids=[says[:40] for _, says in REFUSED])
def test_edits_that_the_model_cannot_apply_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        expanded(**changes)


def test_edits_can_be_the_compared_factor() -> None:
    sweep = {"edits.0.blocks": ["early", "late"]}
    for factor in ("edit", "edits.0.blocks"):
        assert expanded(edits=[INJECT], sweep=sweep, design={"factor": factor, "blocks": ["seed", "color"]})


# files


def stored(path: Path, tokens: int = 3, dim: int = 32) -> torch.Tensor:
    embedding = torch.randn(tokens, dim, generator=torch.Generator().manual_seed(tokens))
    save_file({"embedding": torch.cat([embedding, torch.zeros(2, dim)])}, path)
    return embedding


def test_an_id_depends_on_a_files_content_and_not_its_path(tmp_path: Path) -> None:
    ids = set()
    for name, tokens in (("one", 3), ("two", 3), ("three", 4)):
        stored(tmp_path / f"{name}.safetensors", tokens)
        edit = {"kind": "inject", "donor": {"embedding": str(tmp_path / f"{name}.safetensors")}}
        expansion = tiny_expansion(edits=[edit], baseline=False)
        made = next(expansion.items(WEIGHTS)).recipe
        assert made.edits[0].donor.sha256 == file_hash(tmp_path / f"{name}.safetensors")  # type: ignore[union-attr]
        assert validated(Recipe, made.model_dump(mode="json", exclude_defaults=True)).id == made.id
        ids.add(made.id)
    assert len(ids) == 2


def test_an_embedding_of_another_encoder_is_refused(tmp_path: Path) -> None:
    stored(tmp_path / "x.safetensors", dim=8)
    with pytest.raises(RecipeError, match=r"its shape is \[5, 8\], and this model's embeddings are \[tokens, 32\]"):
        tiny_expansion(edits=[f"inject file('{tmp_path / 'x.safetensors'}')"])


def test_a_recipe_whose_file_has_changed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    stored(path, 3)
    made = next(tiny_expansion(edits=[Inject({"embedding": str(path)})], baseline=False).items({})).recipe
    stored(path, 4)
    with pytest.raises(RecipeError, match="is not the file that the recipe was made with"):
        run(made, workspace=tmp_path / "space", model=model())
    assert not (tmp_path / "space").exists()


def test_paths_are_relative_to_the_study_file(tmp_path: Path) -> None:
    stored(tmp_path / "hall.safetensors")
    text = """
prompt: a circle
edits:
- inject hall.safetensors
- {kind: inject, donor: {expression: a + b, names: {a: hall.safetensors, b: {embedding: hall.safetensors}}}, on: both}
- {kind: steer, direction: hall.safetensors}
sweep: {edits.2.direction: [hall.safetensors]}
"""
    (tmp_path / "x.yaml").write_text(text)
    read = validated(Study, load_study_data(str(tmp_path / "x.yaml")))
    here = str(tmp_path / "hall.safetensors")
    first, second, third = read.edits
    assert isinstance(first, Inject) and isinstance(second, Inject) and isinstance(third, Steer)
    assert first.donor.embedding == here and third.direction == here and second.on == "both"
    assert second.donor.names["b"].embedding == here
    assert second.donor.names["a"].prompt == "hall.safetensors"  # a text is a prompt, even if a file has that name
    assert read.sweep == {"edits.2.direction": (here,)}


# texts


def recipes(*edits: Any, **changes: Any) -> list[Recipe]:
    return [item.recipe for item in tiny_expansion(edits=list(edits), **changes).items(WEIGHTS)]


TEXT = [
    (
        "inject 'a man and a woman and a dog and a cat at a beach in a night'",
        "the donor has 26 tokens and the model reads 16: everything from",
    ),
    ("inject 'x' branch=both donor_negative='" + "a " * 20 + "'", "the donor's negative prompt has 21 tokens"),
    ("prompts 0 '" + "a " * 20 + "'", "the prompt at step 0 has 21 tokens"),
    ("bend square flip", "edits.0: the word 'square' is not in the prompt: the prompt reads 'a red circle'"),
    ("bend cirle flip", "Try: circle"),
    ("inject 'a dog' mode=tokens words=cat", "'cat' is not in the prompt, nor in a donor"),
]


@pytest.mark.parametrize(("edit", "says"), TEXT, ids=[says for _, says in TEXT])
def test_texts_are_checked_before_anything_is_written(edit: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=says):
        run({**STUDY, "edits": [edit]}, workspace=tmp_path / "space", model=model())
    assert not (tmp_path / "space").exists()


def test_marbles_names_the_words_of_donors_that_it_never_saw() -> None:
    with pytest.raises(RecipeError, match=r"marbles does not know 'zebra': it is a tiny model"):
        run(study(edits=["inject 'a green zebra'"], seeds=1))


def test_every_text_is_encoded_once_and_passed_on() -> None:
    expression = {"expression": "a - 0.5*b", "names": {"a": "a dog", "b": "a cat"}}
    edits = [
        Inject("a green square", branch="both", donor_negative="a dog"),
        Inject(expression),
        Prompts({2: "a cat"}),
        Bend("square", "flip"),
    ]
    events = Events()
    asked = recipes(*edits, prompt="a [red|blue] (square:1.5)")
    texts = encode_prompts(model(), asked, events)
    (told,) = events.of(PromptsEncoded)
    assert told.prompts == 2 + 1 + 3  # two variations, the negative, and the square, dog and cat of the edits
    expected = {text: encode(model(), [text])[0] for text in texts.embeddings}
    assert all(torch.equal(found, expected[text]) for text, found in texts.embeddings.items())
    donors = texts.donors(asked[-1])
    assert (donors.prompt, donors.negative) == ("a blue square", "")
    assert torch.equal(donors.main, texts.conditioning(asked[-1]).cond)  # weights applied
    assert not torch.equal(donors.main, expected["a blue square"])
    assert torch.equal(donors.donor(edits[0].donor).embedding, expected["a green square"])
    assert torch.equal(donors.raw["a dog"], expected["a dog"])
    exact = expected["a dog"].double() - 0.5 * expected["a cat"].double()
    np.testing.assert_allclose(donors.donor(edits[1].donor).embedding, exact, rtol=1e-6, atol=1e-7)
    assert torch.equal(donors.raw["a cat"], expected["a cat"])
    assert donors.places == {3: {"a blue square": (2,), "a green square": (2,)}}


def test_a_donor_is_moved_to_the_requested_difference_and_the_notes_report_it() -> None:
    edit = Inject("a green square", difference=0.5)
    texts = encode_prompts(model(), recipes(edit, prompt="a red circle"), Events())
    donors = texts.donors(recipes(edit, prompt="a red circle")[-1])
    found = donors.donor(edit.donor, edit.difference)
    assert found.amplified is not None and "target 0.5" in found.note
    assert abs(relative_l2(donors.main, found.embedding) - 0.5) < 1e-3


def test_an_unreachable_difference_is_an_error_before_the_first_take(tmp_path: Path) -> None:
    edit = Inject("a red circle", difference=0.5)
    with pytest.raises(RecipeError, match=r"edits\.0: the target difference 0\.5 cannot be met"):
        run({**STUDY, "prompt": "a red circle", "edits": [edit]}, workspace=tmp_path, model=model())
    assert not list(tmp_path.glob("takes/*/take.json"))


def test_stored_embeddings_are_read_trimmed(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    embedding = stored(path, 3)
    edit = Inject({"expression": "2*x", "names": {"x": {"embedding": str(path)}}})
    asked = recipes(edit)
    texts = encode_prompts(model(), asked, Events())
    found = texts.donors(asked[-1]).donor(asked[-1].edits[0].donor)  # type: ignore[union-attr]
    assert torch.equal(found.embedding, 2 * embedding)


def test_a_stored_embedding_longer_than_the_model_reads_is_refused(tmp_path: Path) -> None:
    stored(tmp_path / "x.safetensors", 20)
    asked = recipes(Inject({"embedding": str(tmp_path / "x.safetensors")}))
    with pytest.raises(RecipeError, match=r"edits\.0: the donor has 20 tokens: the model reads 16"):
        encode_prompts(model(), asked, Events())


def test_words_of_an_edited_prompt_are_checked_for_every_variation() -> None:
    asked = recipes("bend red flip")  # the other variation is blue
    with pytest.raises(RecipeError, match="the word 'red' is not in the prompt: the prompt reads 'a blue circle'"):
        check_prompts(model().tokenizer, asked, 16, closed_vocabulary=False)


# the table and comparisons


def test_the_table_has_columns_for_edits_only_where_there_are_some(tmp_path: Path) -> None:
    place = StudyFolder(Workspace(tmp_path), "mine")
    rows = [
        IndexRow("red_baseline_seed00", "a" * 16, 0, 0, "missing", "a red circle", {"color": "red"}, edit="baseline"),
        IndexRow(
            "red_late_seed00",
            "b" * 16,
            0,
            0,
            "missing",
            "a red circle",
            {"color": "red"},
            edit="late",
            swept={"edits.0.blocks": "late"},
        ),
    ]
    place.record(rows)
    assert place.rows() == rows
    lines = list(csv.DictReader((place.folder / "index.csv").open(newline="")))
    assert [(line["edit"], line["edits.0.blocks"]) for line in lines] == [("baseline", ""), ("late", "late")]
    plain = StudyFolder(Workspace(tmp_path), "plain")
    plain.record([IndexRow("red_seed00", "a" * 16, 0, 0, "missing", "a red circle", {"color": "red"})])
    head = (plain.folder / "index.csv").read_text().splitlines()[0]
    assert head == "name,take,variation,seed,status,current,seconds,prompt,error,slot:color,checksum"


def test_takes_are_labeled_by_the_differences_of_their_edits(tmp_path: Path) -> None:
    edits = [(), (Inject("a green square", blocks="late", strength=0.4),), (Skip(3),)]
    takes = [write_take(tmp_path, plain_recipe(prompt=p, latents=False, edits=e)) for p in ("x", "y") for e in edits]
    assert table(takes) == [[0, 1, 2], [3, 4, 5]]
    assert labels_of(takes[:3]) == ["baseline", "inject 'a green square' into late at 0.4", "skip 3"]
    assert labels_of(takes[:4])[3] == "baseline, y"
    seeds = [
        write_take(tmp_path, plain_recipe(seed=s, prompt="z", latents=False, edits=e)) for e in edits for s in (0, 1)
    ]
    assert table(seeds) == [[0, 1], [2, 3], [4, 5]]
    assert labels_of(seeds)[:2] == ["baseline, seed 0", "baseline, seed 1"]


# embeddings of the catalog


def test_a_donor_can_be_named_by_label_key_or_prompt_of_the_catalog(tmp_path: Path) -> None:
    """By label, and in an expression by prompt; the take equals that with the same embedding from a file."""
    own = model()
    catalog = Catalog(tmp_path)
    donor_LD = encode(own, ["a green square"])[0] * 1.25
    key = catalog.put(donor_LD, label="warm", prompt="a warm hall")
    file = catalog.save("warm", tmp_path / "warm.safetensors")

    def made(donor: dict[str, Any]) -> Take:
        edits = [{"kind": "inject", "donor": donor, "strength": 0.5}]
        found = run({**STUDY, "edits": edits, "seeds": 1, "baseline": False}, workspace=tmp_path, model=own)
        assert not found.failed
        return found.takes[0]

    by_label, by_file = made({"embedding": "warm"}), made({"embedding": str(file)})
    (edit,) = by_label.recipe.edits
    assert isinstance(edit, Inject)
    assert edit.donor.embedding == key and edit.donor.sha256 == Tokens.of(donor_LD).content
    assert by_label.manifest.latents_sha256 == by_file.manifest.latents_sha256
    again = made({"expression": "1.0 * hall", "names": {"hall": {"embedding": "a warm hall"}}})
    assert again.manifest.latents_sha256 == by_file.manifest.latents_sha256
    by_key = made({"embedding": key[:10]})
    assert by_key.recipe.id == by_label.recipe.id  # the id does not depend on the name

    catalog.annotate("warm", label="")  # another embedding gets the label, and the take stays the same
    catalog.put(donor_LD * 2, label="warm")
    assert made({"embedding": "warm"}).recipe.id != by_label.recipe.id
    shutil.rmtree(by_label.folder)
    remade = run(by_label.recipe, workspace=tmp_path, model=own)
    assert remade.made == 1 and remade.takes[0].manifest.latents_sha256 == by_label.manifest.latents_sha256
    with pytest.raises(RecipeError, match="the workspace has no catalog yet"):
        run(by_label.recipe, workspace=tmp_path / "elsewhere", model=own)


def test_an_embedding_that_is_not_in_the_catalog_is_refused_before_any_work(tmp_path: Path) -> None:
    own = model()

    def refused(name: str) -> str:
        edits = [{"kind": "inject", "donor": {"embedding": name}}]
        with pytest.raises(RecipeError) as caught:
            run({**STUDY, "edits": edits}, workspace=tmp_path, model=own)
        assert not (tmp_path / "takes").exists() and not (tmp_path / "studies").exists()
        return str(caught.value)

    assert "'warm': it is not a .safetensors file, and not in the catalog" in refused("warm")
    catalog = Catalog(tmp_path)
    catalog.put(torch.ones(3, 7), label="narrow")
    catalog.put(torch.ones(3, own.variant.text_dim), label="read", space="context")
    assert "there is no embedding 'warm'" in refused("warm")
    assert "its shape is [3, 7], and this model's embeddings are" in refused("narrow")
    assert "'read' is in the space 'context'" in refused("read")
