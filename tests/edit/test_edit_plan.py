"""The plan of edits: tables, what is removed from it, what is refused, and the notes for the user."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from wanscope.edit.edits import Bend, Edit, Inject, Prompts, Skip
from wanscope.edit.encoded_texts import DonorTexts, Places
from wanscope.edit.plan import EditPlan, make_plan, texts_read
from wanscope.edit.planned import Passes
from wanscope.errors import RecipeError

PROMPT, NEGATIVE = "a red circle", "gray"
TOKENS = {PROMPT: 4, NEGATIVE: 2, "a blue square": 6, "night": 2, "long": 12}
SIGMAS = (1.0, 0.75, 0.5, 0.25)
BLOCKS, LENGTH, GRID = 8, 16, (2, 3, 4)


def raw(text: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(len(text))
    return torch.randn(TOKENS[text], 6, generator=generator)


def plan(*edits: Edit, places: dict[int, Places] | None = None, words: Any = None, **passes: Any) -> EditPlan:
    known = {text: raw(text) for text in TOKENS}
    texts = DonorTexts(PROMPT, NEGATIVE, known[PROMPT], known[NEGATIVE], known, LENGTH, {}, places or {}, words or {})
    facts: dict[str, Any] = {"sigmas": SIGMAS, "evaluations": (1,) * 4, "guided": (frozenset(range(4)),)}
    return make_plan(edits, texts, Passes(**{**facts, **passes}), blocks=BLOCKS, heads=2, grid=GRID)


def test_tables_are_strength_times_schedule():
    found = plan(Inject("night", strength={"0-1": 0.5, "7": 1.0}, schedule="linear", branch="both")).edits[0]
    steps_S = np.array([1, 2 / 3, 1 / 3, 0])
    blocks_L = np.array([0.5, 0.5, 0, 0, 0, 0, 0, 1.0])
    for branch in ("cond", "uncond"):
        np.testing.assert_allclose(found.tables[branch], np.outer(steps_S, blocks_L), atol=1e-15)
    over_sigma = plan(Inject("night", schedule="step(0.5, over=sigma)")).edits[0].tables["cond"]
    assert over_sigma[:, 0].tolist() == [1, 1, 0, 0]


def test_planned_sites_are_where_strength_and_pass_are():
    found = plan(
        Inject("night", blocks="2-3", branch="both"), guided=(frozenset({1}),), evaluations=(2, 2, 2, 1), first=1
    )
    expected = {(0, block, "cond", step): (1 if step == 3 else 2) for block in (2, 3) for step in (1, 2, 3)}
    expected |= {(0, block, "uncond", 1): 2 for block in (2, 3)}
    assert found.planned() == expected


@pytest.mark.parametrize(
    "edit",
    [
        Inject("night", strength=0.0),
        Inject("night", blocks="none"),
        Inject("night", schedule=0.0),
        Bend(["red"], "scale", factor=1.0),
        Bend(["red"], "translate", x=0.0),
        Bend(["red"], "region", box=[0.0, 0.0, 1.0, 1.0]),
        Bend(["red"], "blur", sigma=0.0),
        Skip("none"),
        Skip([1], schedule=0.0),
    ],
    ids=str,
)
def test_edits_that_change_nothing_leave_the_plan(edit: Edit):
    found = plan(edit, places={0: {PROMPT: (1,)}})
    assert found.empty and found.planned() == {}


def test_skipped_blocks_remove_edits_of_the_text_there():
    found = plan(
        Inject("night", blocks="2-3"),
        Inject("night", on="hidden", blocks="2-3"),
        Bend(["red"], "amplify", factor=2.0, blocks="2-3", branch="both"),
        Skip([2]),
        Skip("2-3", part="cross_attention"),
        places={2: {PROMPT: (1,), NEGATIVE: (0,)}},
    )
    at = {(index, block, branch) for index, block, branch, _ in found.planned()}
    assert at == {(1, 2, "cond"), (1, 3, "cond"), (2, 2, "uncond"), (2, 3, "uncond"), (3, 2, "cond"), (4, 3, "cond")}
    assert any("edits.0 does not act where edits.3 skips the blocks" in note for note in found.notes)


@pytest.mark.parametrize(
    "later",
    [
        {"strength": {"0-1": 1.0, "2-7": 0.5}},
        {"mode": "tokens", "strength": {"0-1": 1.0, "2-7": 0.5}},
        {"mode": "tokens", "operation": "replace", "blocks": "0-1", "strength": 0.5},
    ],
    ids=["mix", "tokens", "replaced tokens"],
)
def test_an_edit_overridden_by_a_later_injection_is_not_planned(later: dict[str, Any]):
    """Otherwise it would be counted as applied although it changed nothing."""
    found = plan(
        Bend(["red"], "amplify", factor=2.0, branch="both"),
        Inject("night", mode="append"),
        Inject("night", on="hidden"),
        Skip("0", part="cross_attention", branch="uncond"),
        Inject("a blue square", **later),
        Inject("night", strength=0.5),
        places={0: {PROMPT: (1,), NEGATIVE: (0,)}},
    )
    acting = {i: {(b, branch) for index, b, branch, _ in found.planned() if index == i} for i in range(6)}
    rest, every = {(b, "cond") for b in range(2, 8)}, {(b, "cond") for b in range(8)}
    assert acting[0] == rest | {(b, "uncond") for b in range(1, 8)}
    assert acting[1] == rest and acting[2] == acting[5] == every and acting[3] == {(0, "uncond")}
    for index in (0, 1):
        assert f"edits.{index} does not act where edits.4 leaves nothing of it" in found.notes
    assert not any(note.startswith("edits.2") or note.startswith("edits.5") for note in found.notes)


def test_prompts_overridden_by_later_prompts_are_not_planned():
    found = plan(Prompts({0: "night"}), Prompts({2: "a blue square"}))
    assert {(index, step) for index, _, _, step in found.planned()} == {(0, 0), (0, 1), (1, 2), (1, 3)}
    assert found.notes == ("edits.0 does not act where edits.1 leaves nothing of it",)


def test_a_word_that_no_text_read_there_contains_is_noted():
    """The donor of a later mix is not read yet."""
    bend, mix = Bend(["red", "square"], "amplify", factor=2.0), Inject("a blue square", strength=0.5)
    columns: Places = {PROMPT: (1,), "a blue square": (2,)}
    words = {"red": frozenset({PROMPT}), "square": frozenset({"a blue square"})}
    before = plan(bend, mix, places={0: columns}, words={0: words})
    assert before.notes == ("edits.0 does nothing to 'square': no text that is read where it acts has it",)
    assert not plan(mix, bend, places={1: columns}, words={1: words}).notes


def test_equal_donors_are_one_text():
    """A donor's context, keys and own pass are computed once for any number of edits that use it."""
    found = plan(
        Inject("night", on="hidden", blocks="1", branch="both"),
        Inject("night", on="hidden", blocks="5"),
        Inject("a blue square", boost=2.0),
        Inject("a blue square", boost=2.0, blocks="3"),
        Inject("a blue square", boost=3.0),
        Inject("night", donor_negative=NEGATIVE, branch="both"),
    ).edits
    night = found[0].donor["cond"]
    assert night is found[0].donor["uncond"] is found[1].donor["cond"] is found[5].donor["cond"]
    boosted = found[2].donor["cond"]
    assert boosted is found[3].donor["cond"] and boosted is not found[4].donor["cond"]
    assert boosted is not found[2].donor["uncond"] and night is not found[5].donor["uncond"]


@pytest.mark.parametrize(
    ("edit", "why"),
    [
        (Inject("night", on="hidden", blocks="0"), "the hidden states that enter block 0 do not depend on the text"),
        (Inject(PROMPT, strength=0.5), "the donor is the prompt itself"),
        (Inject(PROMPT, on="both", blocks="2-4"), "the donor is the prompt itself"),
        (Inject("night", on="hidden", blocks="0-1"), ""),
        (Inject("night", on="hidden", operation="add", blocks="0"), ""),
        (Inject(PROMPT, on="both", operation="add", blocks="2-4"), ""),
        (Inject({"prompt": "night", "after_block": 2}, on="hidden", blocks="0"), ""),
        (Inject(PROMPT, mode="append"), ""),
        (Inject(PROMPT, blocks="none"), ""),
    ],
    ids=str,
)
def test_an_injection_that_changes_nothing_is_noted(edit: Edit, why: str):
    notes = plan(edit).notes
    assert [note for note in notes if "changes nothing" in note] == ([notes[0]] if why else [])
    assert not why or notes[0].startswith(f"edits.0 changes nothing: {why}")


def test_on_both_an_operation_is_of_the_state_and_the_context_is_mixed():
    found = plan(Inject("night", strength=0.4), Inject("a blue square", on="both", operation="replace", strength=0.5))
    assert not found.notes and texts_read(found, "cond", 0, 0) == [
        frozenset({name}) for name in (PROMPT, "night", "a blue square")
    ]


def test_prompts_by_step():
    found = plan(Inject("night", strength=0.5), Prompts({1: "a blue square", 3: "night"}, interpolate="linear"))
    assert [edit.index for edit in found.edits] == [1, 0]
    keyed = found.edits[0].keyed
    assert keyed[0] is None and not found.edits[0].tables["cond"][0].any()
    assert torch.equal(keyed[1].embedding, raw("a blue square")) and torch.equal(keyed[3].embedding, raw("night"))
    halfway = raw("a blue square") / 2
    halfway[:2] += raw("night") / 2
    torch.testing.assert_close(keyed[2].embedding, halfway)
    assert texts_read(found, "cond", 0, 0) == [frozenset({PROMPT}), frozenset({"night"})]
    assert texts_read(found, "cond", 3, 0) == [frozenset({"night"}), frozenset({"night"})]


def test_real_rows_are_those_of_the_longest_context():
    assert plan().real == 4
    assert plan(Inject("long", strength=0.1)).real == 12
    assert plan(Inject("long", on="hidden")).real == 4
    assert plan(Inject("a blue square", strength=0.1), Inject("night", mode="append")).real == 8
    assert plan(Inject("long", mode="append"), Inject("long", strength=0.0)).real == 16
    with pytest.raises(RecipeError, match=r"edits\.1: the donor's 12 tokens cannot be appended"):
        plan(Inject("a blue square"), Inject("long", mode="append"))


def test_words_that_no_text_contains_there_are_refused():
    words = {1: {PROMPT: (1,)}}
    plan(Inject("a blue square", strength=0.5), Bend(["red"], "amplify", factor=2.0), places=words)
    plan(Inject("a blue square", blocks="0"), Bend(["red"], "amplify", factor=2.0, blocks="1-7"), places=words)
    with pytest.raises(RecipeError, match=r"edits\.1 would do nothing in block 0 at step 0 on cond"):
        plan(Inject("a blue square"), Bend(["red"], "amplify", factor=2.0), places=words)
    with pytest.raises(RecipeError, match="on uncond"):
        plan(Bend(["red"], "amplify", factor=2.0, branch="uncond"), places={0: {PROMPT: (1,)}})


def test_strength_and_schedule_together_stay_in_range():
    with pytest.raises(RecipeError, match=r"edits\.0: strength times schedule reaches 1\.5"):
        plan(Inject("night", schedule={0: 1.5, 3: 1.0}))
    plan(Inject("night", mode="tokens", operation="add", schedule={0: 1.5, 3: 1.0}))


def test_notes_for_the_user():
    assert any(
        "edits.0 acts nowhere: the" in note
        for note in plan(Inject("night", branch="uncond"), guided=(frozenset(),)).notes
    )
    begun = plan(Inject("night", schedule="step(2)"), first=2).notes
    assert begun == ("edits.0 acts nowhere: the cond pass is not run at its steps (the run begins at step 2)",)
    short = plan(Inject("night", mode="tokens"), places={}).notes
    assert not short  # 2 of 4 tokens are half
    TOKENS["hall.safetensors"] = 4
    (called,) = plan(Inject("hall.safetensors")).notes
    assert "the donor is the text 'hall.safetensors', not a file; a file is {embedding: hall.safetensors}" in called
    TOKENS["a [red|blue] circle"] = 6
    assert "is used literally, including the brackets" in plan(Inject("a [red|blue] circle")).notes[0]
    TOKENS["word"] = 1
    assert "most of the prompt is blended with padding" in plan(Inject("word", mode="tokens")).notes[0]


@pytest.mark.parametrize(
    ("edit", "why"),
    [
        (Inject("night", blocks="none"), "it selects no block"),
        (Skip("none"), "it selects no block"),
        (Inject("night", strength=0.0), "its strength is 0 in every block it selects"),
        (Inject("night", blocks="1-2", strength={"3": 1.0}), "its strength is 0 in every block it selects"),
        (Inject("night", schedule=0.0), "its schedule is 0 at every step"),
        (Bend(["red"], "rotate", angle=0.0), "its parameters leave the map as it is"),
        (Inject("night", blocks="1"), ""),
    ],
    ids=str,
)
def test_an_edit_that_acts_nowhere_is_noted(edit: Edit, why: str):
    notes = [note for note in plan(edit, places={0: {PROMPT: (1,)}}).notes if "acts nowhere" in note]
    assert notes == ([f"edits.0 acts nowhere: {why}"] if why else [])
