"""The golden identities of edits, bit for bit (DEFINITIONS, "Identity"), on tiny models of each kind and on marbles."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

from helpers.edited import DONOR, TINY, Scene, apart, edited, encoded, planned, prompted, sampler_of, unedited
from helpers.edits import WAYS
from helpers.images import IMAGE_KINDS, WithImage, image_model
from helpers.tiny import tiny_model
from wanscope.edit.edits import KINDS as EDIT_KINDS
from wanscope.edit.edits import Bend, Edit, Inject, Prompts, Skip
from wanscope.errors import RecipeError
from wanscope.wan.load import load
from wanscope.wan.model import WanModel

MARBLES = Scene(
    "a red circle moves left on a black background",
    "",
    "a large blue square moves right on a white background",
    {"width": 64, "height": 64, "frames": 9},
)
TINY_KINDS = ("2.1", "2.2", "5b", *IMAGE_KINDS)
KINDS = (*TINY_KINDS, "marbles")


@functools.cache
def subject(kind: str) -> tuple[WanModel, Scene, dict[str, Any]]:
    if kind == "marbles":
        return load("marbles", device="cpu"), MARBLES, {"steps": 2, "guidance": 4.0}
    if kind in IMAGE_KINDS:
        return image_model(kind, seed=3), TINY, {}
    return tiny_model(kind, seed=3), TINY, {}


@functools.cache
def base(kind: str) -> torch.Tensor:
    model, scene, settings = subject(kind)
    return unedited(model, scene, **settings)


@functools.cache
def by_donor(kind: str) -> torch.Tensor:
    model, scene, settings = subject(kind)
    return prompted(model, scene.donor, scene, **settings)


def run(kind: str, *edits: Edit) -> torch.Tensor:
    model, scene, settings = subject(kind)
    return edited(model, edits, scene, **settings).latents


def inject(kind: str, **fields: Any) -> Inject:
    return Inject(subject(kind)[1].donor, **fields)


def test_the_identities_can_detect_a_difference():
    for kind in KINDS:
        assert apart(base(kind), by_donor(kind)) > 0.05, kind


@pytest.mark.parametrize("kind", IMAGE_KINDS)
def test_the_image_is_read(kind: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(WithImage, "seed", 2)
    assert apart(unedited(subject(kind)[0]), base(kind)) > 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_with_no_edits_equals_the_plain_run(kind: str):
    assert torch.equal(run(kind), base(kind))


def nothing(kind: str) -> list[Edit]:
    """Return edits of every kind that change nothing: strength 0, no block, factor 1, angle 0."""
    return [
        inject(kind, strength=0.0),
        inject(kind, blocks="none"),
        inject(kind, on="both", strength=0.0),
        inject(kind, mode="tokens", schedule=0.0),
        inject(kind, mode="append", strength=0.0),
        Bend(["circle"], "amplify", factor=1.0),
        Bend(["circle"], "rotate", angle=360.0),
        Bend(["circle"], "flip", axis="x", strength=0.0),
        Skip("none"),
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_edits_of_strength_0_leave_the_plan_and_change_no_bit(kind: str):
    model, scene, settings = subject(kind)
    found = edited(model, nothing(kind), scene, **settings)
    assert found.plan.empty and not found.plan.planned() and not found.session.counts()
    assert torch.equal(found.latents, base(kind))


@pytest.mark.parametrize("mode", ["mix", "tokens"])
@pytest.mark.parametrize("kind", KINDS)
def test_context_at_strength_1_in_all_blocks_equals_prompting_with_the_donor(kind: str, mode: str):
    assert torch.equal(run(kind, inject(kind, mode=mode)), by_donor(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_boost_0_is_the_prompt_and_1_the_donor(kind: str):
    for factor, expected in ((0.0, base(kind)), (1.0, by_donor(kind))):
        assert apart(run(kind, inject(kind, boost=factor, keep_norm=False)), expected) <= 1e-4
    assert apart(run(kind, inject(kind, boost=2.0)), by_donor(kind)) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_of_two_full_replacements_wins(kind: str):
    gray = Inject("gray", mode="mix", strength=0.7)
    assert torch.equal(run(kind, gray, inject(kind)), by_donor(kind))


@pytest.mark.parametrize("mode", ["mix", "tokens"])
def test_nothing_of_an_earlier_edit_remains_when_the_text_is_replaced(mode: str):
    """Neither the log weights of appended tokens, nor a bend of words that were replaced."""
    earlier = [Inject("gray night", mode="append", strength=0.2), Bend(["circle"], "amplify", factor=5.0)]
    assert torch.equal(run("2.1", *earlier, inject("2.1", mode=mode)), by_donor("2.1"))
    hidden = run("2.1", inject("2.1", on="hidden", strength=0.5, blocks=[1]), inject("2.1", mode=mode))
    assert torch.equal(hidden, by_donor("2.1"))


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_from_step_0_equal_prompting_with_them(kind: str):
    assert torch.equal(run(kind, Prompts({0: subject(kind)[1].donor})), by_donor(kind))


@pytest.mark.parametrize("kind", TINY_KINDS)
def test_prompts_act_first_wherever_they_are_listed(kind: str):
    later = [inject(kind, strength=0.4), Prompts({2: "night"})]
    assert torch.equal(run(kind, *later), run(kind, *reversed(later)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_after_an_edited_one_equals_the_run_before_it(kind: str):
    model, scene, settings = subject(kind)
    words = [Bend(["circle"], "translate", x=0.25), inject(kind, strength=0.4), inject(kind, on="hidden", blocks=[1])]
    first = run(kind, *words)
    assert apart(first, base(kind)) > 1e-3
    assert torch.equal(unedited(model, scene, **settings), base(kind))
    assert torch.equal(run(kind, *words), first)


# Steering needs a direction learned on the model: tests/runtime/test_directions.py.
WAYS_WITHOUT_FILES = [name for name, way in WAYS.items() if way().stored_direction() is None]


def test_every_kind_of_edit_has_an_entry():
    assert {way().kind for way in WAYS.values()} == set(EDIT_KINDS)


@pytest.mark.parametrize("branch", ["cond", "uncond", "both"])
@pytest.mark.parametrize("name", WAYS_WITHOUT_FILES)
def test_every_way_to_edit_acts_where_it_is_planned_and_leaves_the_model_as_it_was(name: str, branch: str):
    model, scene, settings = subject("2.1")
    edit = WAYS[name](branch=branch)
    if edit.named_words() and branch != "cond":  # the negative prompt does not have its words
        with pytest.raises(RecipeError, match="would do nothing in block"):
            planned(model, [edit], scene, **settings)
        return
    before = unedited(model, scene, **settings)
    found = edited(model, [edit], scene, **settings)
    assert found.session.counts() == found.plan.planned() != {}
    assert {site[2] for site in found.session.counts()} == set(edit.branches)
    assert apart(found.latents, before) > 1e-4
    assert torch.equal(unedited(model, scene, **settings), before)


@pytest.mark.parametrize("name", [name for name in WAYS_WITHOUT_FILES if not WAYS[name]().sets_prompt])
def test_every_way_to_edit_changes_no_bit_where_its_schedule_is_0(name: str):
    found = edited(subject("2.1")[0], [WAYS[name](schedule=0.0)])
    assert found.plan.empty and torch.equal(found.latents, base("2.1"))


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_replaced_at_block_k_is_context_replaced_before_it(kind: str):
    for k in {1, subject(kind)[0].blocks - 1}:
        hidden = run(kind, inject(kind, on="hidden", operation="replace", blocks=[k]))
        assert torch.equal(hidden, run(kind, inject(kind, blocks=list(range(k))))), k
        assert apart(hidden, base(kind)) > 1e-6  # the first block of marbles hardly reads its text


@pytest.mark.parametrize("kind", KINDS)
def test_skip_equals_the_model_without_the_block(kind: str):
    model, scene, settings = subject(kind)
    skipped = edited(model, [Skip([1], branch="both")], scene, **settings)
    kept = [transformer.blocks for transformer in model.experts()]
    try:
        for transformer, blocks in zip(model.experts(), kept, strict=True):
            transformer.blocks = torch.nn.ModuleList([block for i, block in enumerate(blocks) if i != 1])
        without = unedited(model, scene, **settings)
    finally:
        for transformer, blocks in zip(model.experts(), kept, strict=True):
            transformer.blocks = blocks
    assert torch.equal(skipped.latents, without)
    assert apart(skipped.latents, base(kind)) > 1e-2


@pytest.mark.parametrize("operation", ["replace", "blend"])
@pytest.mark.parametrize("kind", KINDS)
def test_both_from_block_k_on_is_prompting_with_the_donor(kind: str, operation: str):
    model = subject(kind)[0]
    both = inject(kind, on="both", operation=operation, blocks=f"2-{model.blocks - 1}")
    assert torch.equal(run(kind, both), by_donor(kind))


@pytest.mark.parametrize("kind", TINY_KINDS)
def test_a_latent_donor_after_k_blocks_is_the_donors_state_at_block_k(kind: str):
    latent = Inject({"prompt": DONOR, "after_block": 2}, on="hidden", operation="replace", blocks=[2])
    own = inject(kind, on="hidden", operation="replace", blocks=[2])
    assert torch.equal(run(kind, latent), run(kind, own))
    early = Inject({"prompt": DONOR, "after_block": 2}, on="hidden", operation="replace", blocks=[1])
    assert apart(run(kind, early), run(kind, own)) > 1e-3


@pytest.mark.parametrize("kind", TINY_KINDS)
def test_the_uncond_pass_uses_its_own_donor(kind: str):
    """Both branches with their own donors equal prompting with both."""
    both = Inject(DONOR, donor_negative="black night", branch="both")
    other = Scene(DONOR, "black night", DONOR, TINY.size)
    assert torch.equal(run(kind, both), unedited(subject(kind)[0], other))
    assert torch.equal(
        run(kind, Inject("black night", branch="uncond")), unedited(subject(kind)[0], Scene(negative="black night"))
    )


@pytest.mark.parametrize("kind", TINY_KINDS)
def test_with_batched_guidance_up_to_rounding(kind: str):
    model = subject(kind)[0]
    edits = [
        Inject(DONOR, strength=0.4, blocks="1-3"),
        Bend(["circle"], "amplify", factor=3.0),
        Inject(DONOR, on="hidden", strength=0.5, blocks=[2]),
        Skip([0], part="cross_attention"),
        Skip([3], branch="uncond"),
        Inject("night", mode="append", strength=0.5, branch="both"),
    ]
    batched = edited(model, edits, cfg_batched=True)
    assert apart(batched.latents, edited(model, edits).latents) <= 2e-5
    assert batched.session.counts() == edited(model, edits).session.counts() == batched.plan.planned()
    assert apart(batched.latents, base(kind)) > 1e-2


@pytest.mark.parametrize("solver", ["heun", "euler", "dpm++", "res_2s"])
def test_with_other_solvers_every_evaluation_is_counted(solver: str):
    model = subject("2.2")[0]
    found = edited(model, [Inject(DONOR)], solver=solver)
    assert torch.equal(found.latents, prompted(model, DONOR, solver=solver))
    assert found.session.counts() == found.plan.planned()
    assert max(found.plan.planned().values()) == (2 if solver in ("heun", "res_2s") else 1)


def test_uncond_is_planned_only_where_it_is_run():
    model = subject("2.2")[0]
    found = edited(model, [Inject(DONOR, branch="both")], guidance=1.0, guidance_2=5.0, steps=5)
    branches = {site[2] for site in found.session.counts()}
    assert branches == {"cond", "uncond"}
    steps = {site[3] for site in found.session.counts() if site[2] == "uncond"}
    assert steps and steps < set(range(5))
    assert len(encoded(model, []).main)  # the texts are trimmed


def test_a_run_that_begins_later_is_planned_from_there():
    from wanscope.recipe import VideoSpec
    from wanscope.runtime.diffusers.session import attach
    from wanscope.sample import Conditioning, denoise, initial_noise

    model, edits = subject("2.1")[0], [Inject(DONOR)]
    texts, sampler = encoded(model, edits), sampler_of(model, start_step=2)
    plan = planned(model, edits, start_step=2)
    shape = model.latent_shape(VideoSpec(**TINY.size))
    noise, init = initial_noise(shape, 1), initial_noise(shape, 2)
    with attach(model, plan) as session:
        found = denoise(
            model, Conditioning(texts.main, texts.uncond), sampler, noise, init_latents=init,
            around_call=session.around_call,
        )  # fmt: skip
    session.verify()
    donor = Conditioning(texts.raw[DONOR], texts.uncond)
    assert torch.equal(found.latents, denoise(model, donor, sampler, noise, init_latents=init).latents)
    assert {site[3] for site in session.counts()} == {2, 3}
