"""Notes on edits that a run reports before it makes a take, and keeps in the take: moved donors, other directions."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.studies import STUDY, Events, model
from helpers.tiny import tiny_model
from wanscope.doors.cli.show import edit_facts
from wanscope.edit.amplify import amplify, boost
from wanscope.edit.direction import Direction, weights_behind
from wanscope.edit.edits import Bend, Edit, Inject, Steer
from wanscope.errors import RecipeError
from wanscope.events import ModelLoading, Note
from wanscope.recipe import SamplerSpec, VideoSpec
from wanscope.sample.learn_direction import learn_direction
from wanscope.study.run import run
from wanscope.take.store import Take
from wanscope.wan.model import Lora, WanModel
from wanscope.wan.text import encode

PROMPT, DONOR = "a red circle", "a green square on black"
PAIRS = [("a red circle", "a blue circle"), ("a red square", "a blue square")]


def made(edit: Edit, workspace: Path, on: WanModel | None = None, **changes: Any) -> tuple[Take, list[str]]:
    """Return the edited take and the notes that were reported."""
    told = Events()
    study = {**STUDY, "prompt": PROMPT, "seeds": 1, "edits": [edit], "baseline": False, **changes}
    result = run(study, workspace=workspace, model=on or model(), on_event=told)
    assert not result.failed, result.failed
    return result.takes[0], [note.text for note in told.of(Note)]


def learned(on: WanModel, path: Path, **settings: Any) -> Direction:
    """Learn a context direction, store it at `path` and return it."""
    found = learn_direction(on, PAIRS, SamplerSpec(), VideoSpec(), on="context", **settings)
    found.save(path)
    return found


# donors that are moved


def projected(on: WanModel, text: str) -> torch.Tensor:
    with torch.no_grad():
        return on.transformer.condition_embedder.text_embedder(encode(on, [text])[0][None])[0]


@pytest.mark.parametrize("keep_norm", [None, False])
def test_the_boosters_before_and_after_are_reported_and_kept_in_the_take(
    tmp_path: Path, keep_norm: bool | None
) -> None:
    take, notes = made(Inject(DONOR, boost=10, keep_norm=keep_norm), tmp_path)
    pad_D = model().transformer.condition_embedder.text_embedder(torch.zeros(1, 1, 32))[0, 0].detach()
    kept = keep_norm is None
    expected = boost(projected(model(), PROMPT), projected(model(), DONOR), 10, keep_norm=kept, pad_D=pad_D)
    assert expected.after > 1.2 * expected.before > 0
    (said,) = take.manifest.applied_edits[0].notes
    assert said == expected.describe() and f"projected difference {expected.before:.3f}, now" in said
    assert notes == [f"take {take.id}: edits.0: {said}"]
    assert Take.open(take.folder).manifest.applied_edits[0].notes == (said,)
    assert ("", said) in edit_facts(take.manifest)


def test_the_reachable_difference_is_given_in_the_form_of_the_edit(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        made(Inject(DONOR, difference=9.0, keep_norm=True), tmp_path)
    fix = caught.value.fix.removeprefix("difference: ").partition(",")[0]
    take, _ = made(Inject(DONOR, difference=float(fix), keep_norm=True), tmp_path)
    assert f"(target {float(fix):.3f}" in take.manifest.applied_edits[0].notes[0]


def test_a_word_of_a_donor_that_is_not_read_yet_is_noted(tmp_path: Path) -> None:
    bend = Bend(["circle", "square"], "amplify", factor=2.0)
    take, notes = made(bend, tmp_path, edits=[bend, Inject(DONOR, strength=0.5)])
    assert "edits.0 does nothing to 'square': no text that is read where it acts has it" in notes[0]
    assert take.manifest.applied_edits[0].planned


def test_an_exact_difference_is_reported_and_kept_in_the_take(tmp_path: Path) -> None:
    take, notes = made(Inject(DONOR, difference=0.5), tmp_path)
    main, donor = encode(model(), [PROMPT, DONOR])
    expected = amplify(main, donor, 0.5)
    assert take.manifest.applied_edits[0].notes == (expected.describe(),)
    assert re.search(r"from a difference of \d\.\d+ to 0\.500 \(target 0\.500", expected.describe())
    assert notes == [f"take {take.id}: edits.0: {expected.describe()}"]


def test_each_expert_and_pass_has_its_own_boost_and_an_inactive_one_has_none(tmp_path: Path) -> None:
    two = tiny_model("2.2", blocks=2, heads=2)
    edits = [Inject(DONOR, boost=3, branch="both", donor_negative="night"), Inject(DONOR, boost=3, blocks="none")]
    study = {**STUDY, "prompt": PROMPT, "seeds": 1, "edits": edits, "baseline": False}
    (take,) = run(study, workspace=tmp_path, model=two).takes
    first, second = take.manifest.applied_edits
    ends = [re.findall(r"\(expert.*\)$", note) for note in first.notes]
    assert ends == [["(expert 0)"], ["(expert 1)"], ["(expert 0, uncond)"], ["(expert 1, uncond)"]]
    assert len({note.partition(" (")[0] for note in first.notes}) == 4
    assert second.notes == ("acts nowhere: it selects no block",)


# directions learned on other weights


def test_a_direction_of_other_weights_steers_with_a_note_that_is_kept(tmp_path: Path) -> None:
    learned(tiny_model("2.1", blocks=2, heads=2, seed=9), tmp_path / "red.safetensors")
    steer = Steer(str(tmp_path / "red.safetensors"))
    take, notes = made(steer, tmp_path / "other")
    (said,) = take.manifest.applied_edits[0].notes
    assert said.startswith("the direction was learned on other weights (") and "not the same: transformer)" in said
    assert notes == [f"take {take.id}: edits.0: {said}"]
    assert take.manifest.applied_edits[0].applied > 0

    learned(model(), tmp_path / "own.safetensors")
    take, notes = made(Steer(str(tmp_path / "own.safetensors")), tmp_path / "own")
    assert notes == [] and take.manifest.applied_edits[0].notes == ()


def test_a_lora_counts_as_other_weights() -> None:
    own, lora = {"transformer": "ab", "vae": "cd"}, Lora("x.safetensors", 0.5, "both", "ef", "lora0")
    plain, with_lora = weights_behind(own, ()), weights_behind(own, (lora,))
    assert plain == {"transformer": "ab"} and with_lora == {**plain, "LoRA 1 (both, 0.5)": "ef"}
    found = learn_direction(model(), PAIRS, SamplerSpec(), VideoSpec(), on="context")
    at = {name: replace(found, manifest=replace(found.manifest, weights=w)) for name, w in
          {"plain": plain, "lora": with_lora, "comfy": {"text_embedding of expert 0": "12"}}.items()}  # fmt: skip
    assert at["plain"].weights_mismatch_note(plain) == at["lora"].weights_mismatch_note(with_lora) == ""
    assert "not the same: LoRA)" in at["plain"].weights_mismatch_note(with_lora)
    assert "not the same: LoRA)" in at["lora"].weights_mismatch_note(plain)
    assert "not the same: transformer)" in at["plain"].weights_mismatch_note({"transformer": "xy"})
    assert "is not known" in at["comfy"].weights_mismatch_note(plain)
    assert "not the same: transformer_2)" in at["plain"].weights_mismatch_note({**plain, "transformer_2": "12"})


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"on": "hidden"}, "edits.0 steers hidden with a direction learned on context"),
        ({"blocks": "all"}, "edits.0: the direction was not learned in block 0: it was learned in blocks 1"),
        ({}, "edits.0: the direction does not fit this model"),
    ],
)
def test_a_direction_that_does_not_fit_is_refused_before_the_model_is_loaded(
    tmp_path: Path, tiny_on_disk: Path, fields: dict[str, Any], says: str
) -> None:
    of = model() if fields else tiny_model("2.1", blocks=3, heads=2)
    learned(of, tmp_path / "red.safetensors", blocks="1")
    study = {**STUDY, "model": str(tiny_on_disk), "edits": [Steer(str(tmp_path / "red.safetensors"), **fields)]}
    told = Events()
    with pytest.raises(RecipeError, match=re.escape(says)):
        run(study, workspace=tmp_path / "out", device="cpu", on_event=told)
    assert not told.of(ModelLoading) and not (tmp_path / "out" / "takes").exists()


@pytest.fixture(scope="module")
def tiny_on_disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from helpers.tiny import tiny_folder

    return tiny_folder(tmp_path_factory.mktemp("models") / "tiny", blocks=2, heads=2)
