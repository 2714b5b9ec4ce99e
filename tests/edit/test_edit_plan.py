"""The plan of edits: tables, what leaves it, what is refused, and what a person is told."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from wanscope.edit.donors import DonorTexts, Places
from wanscope.edit.edits import Bend, Edit, Inject, Prompts, Skip
from wanscope.edit.plan import EditPlan, Passes, make_plan, texts_read
from wanscope.errors import RecipeError

PROMPT, NEGATIVE = "a red circle", "gray"
TOKENS = {PROMPT: 4, NEGATIVE: 2, "a blue square": 6, "night": 2, "long": 12}
SIGMAS = (1.0, 0.75, 0.5, 0.25)
BLOCKS, LENGTH, GRID = 8, 16, (2, 3, 4)


def raw(text: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(len(text))
    return torch.randn(TOKENS[text], 6, generator=generator)


def plan(*edits: Edit, places: dict[int, Places] | None = None, **passes: Any) -> EditPlan:
    known = {text: raw(text) for text in TOKENS}
    texts = DonorTexts(PROMPT, NEGATIVE, known[PROMPT], known[NEGATIVE], known, LENGTH, {}, places or {})
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
def test_what_changes_nothing_leaves_the_plan(edit: Edit):
    found = plan(edit, places={0: {PROMPT: (1,)}})
    assert found.empty and found.planned() == {}


def test_skipped_blocks_take_what_reads_text_with_them():
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


def test_words_that_no_text_has_there_are_refused():
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


def test_what_a_person_is_told():
    assert any(
        "edits.0 acts on no pass" in note
        for note in plan(Inject("night", branch="uncond"), guided=(frozenset(),)).notes
    )
    short = plan(Inject("night", mode="tokens"), places={}).notes
    assert not short  # 2 of 4 tokens are half
    TOKENS["word"] = 1
    assert "most of the prompt is blended with padding" in plan(Inject("word", mode="tokens")).notes[0]
