"""Live edits on a fake with native ComfyUI's interface: identities, batching, chaining, counts."""

from __future__ import annotations

import pytest
import torch

from helpers.comfy_fakes import NativeWan, Patcher, sample
from helpers.comfy_texts import DONOR, MAIN, NEGATIVE, NOISE, OTHER, padded
from helpers.tiny import TEXT_DIM, tiny_transformer, transformer_config
from wanscope.doors.comfy import NODES
from wanscope.doors.comfy.prompt_nodes import Words
from wanscope.edit.edits import Bend, Inject, Skip, Steer
from wanscope.errors import EditNotApplied, ModelError, RecipeError
from wanscope.runtime.comfy import native
from wanscope.runtime.comfy.live import CONNECTED, Live, LiveEdit
from wanscope.runtime.comfy.live_kinds import Watch


@pytest.fixture(scope="module")
def model() -> Patcher:
    return Patcher(NativeWan(tiny_transformer(transformer_config(), seed=5)))


def inject(**data) -> LiveEdit:
    return LiveEdit(Inject(donor=CONNECTED, **data), DONOR)


def run(model: Patcher, *edits: LiveEdit, positives=(MAIN,), negatives=(NEGATIVE,), **options):
    """Return (latents, the run's record)."""
    live = Live(edits)
    patcher = native.attach(model, live) if edits else model
    out = sample(patcher, [padded(p) for p in positives], [padded(n) for n in negatives], NOISE, **options)
    return out, live.runs[-1] if edits else None


BATCHES = [
    {"order": "uncond first"},
    {"order": "cond first"},
    {"split": True},
    {"cfg": 1.0},
]


@pytest.mark.parametrize("batch", BATCHES, ids=str)
@pytest.mark.parametrize("mode", ["mix", "tokens"])
def test_strength_one_everywhere_equals_the_donor_bit_for_bit(model, batch, mode):
    edited, record = run(model, inject(mode=mode), **batch)
    donor, _ = run(model, positives=(DONOR,), **batch)
    base, _ = run(model, **batch)
    assert torch.equal(edited, donor)
    assert not torch.allclose(edited, base, atol=1e-3)
    assert record.applied_in(0) == 4 * 3  # blocks times steps


@pytest.mark.parametrize("batch", BATCHES, ids=str)
def test_strength_zero_changes_nothing_and_is_never_due(model, batch):
    edited, record = run(model, inject(strength=0.0), inject(on="hidden", strength=0.0), **batch)
    assert torch.equal(edited, run(model, **batch)[0])
    assert not record.due and not record.applied


def test_the_model_is_what_it_was_after_edited_runs(model):
    before = {name: value.clone() for name, value in model.model.diffusion_model.state_dict().items()}
    base, _ = run(model)
    for strength in (0.5, 0.9, 0.5):
        run(model, inject(strength=strength), inject(on="hidden", blocks="2"), LiveEdit(Skip("1")))
    assert torch.equal(run(model)[0], base)
    inner = model.model.diffusion_model
    assert all(torch.equal(before[name], value) for name, value in inner.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in inner.modules())
    assert all("forward" not in module.__dict__ for module in inner.modules())


def test_strength_does_not_compound_over_runs(model):
    once, _ = run(model, inject(strength=0.5))
    for _ in range(3):
        assert torch.equal(run(model, inject(strength=0.5))[0], once)
    live = Live([inject(strength=0.5)])
    patcher = native.attach(model, live)
    for _ in range(3):
        again = sample(patcher, [padded(MAIN)], [padded(NEGATIVE)], NOISE)
        assert torch.equal(again, once)


def test_two_branches_of_a_graph_are_independent(model):
    first = native.attach(model, Live([inject(strength=0.3)]))
    second = native.attach(model, Live([inject(strength=0.8)]))
    texts = [padded(MAIN)], [padded(NEGATIVE)]
    expected = [run(model, inject(strength=s))[0] for s in (0.3, 0.8)]
    for patcher, wanted in ((first, expected[0]), (second, expected[1]), (first, expected[0])):
        assert torch.equal(sample(patcher, *texts, NOISE), wanted)
    assert native.live_of(model) is None


def test_hidden_replacement_equals_context_before_it(model):
    hidden, _ = run(model, inject(on="hidden", blocks="2", operation="replace"))
    context, _ = run(model, inject(blocks="0-1"))
    assert torch.equal(hidden, context)
    both, _ = run(model, inject(on="hidden", blocks="2", operation="replace"), inject(blocks="2-3"))
    assert torch.equal(both, run(model, positives=(DONOR,))[0])


def test_only_the_positive_pass_is_edited_by_default(model):
    cond, _ = run(model, inject())
    uncond, record = run(model, inject(branch="uncond"))
    both, _ = run(model, inject(branch="both"))
    assert torch.equal(uncond, run(model, negatives=(DONOR,))[0])
    assert {site[2] for site in record.applied} == {"uncond"}
    inert, _ = run(model, positives=(DONOR,), negatives=(DONOR,))
    assert torch.equal(both, inert) and not torch.equal(both, cond)


def test_several_positives_of_unequal_length_are_all_edited(model):
    edited, record = run(model, inject(strength=1.0), positives=(MAIN, OTHER))
    assert torch.allclose(edited, run(model, positives=(DONOR, DONOR))[0], atol=1e-6)
    half, _ = run(model, inject(strength=0.5, boost=2.0), positives=(MAIN, OTHER))
    split, _ = run(model, inject(strength=0.5, boost=2.0), positives=(MAIN, OTHER), split=True)
    assert torch.allclose(half, split, atol=1e-5)
    assert record.applied_in(0) == 4 * 3


def test_schedules_refer_to_the_whole_sampling_not_to_a_stage(model):
    edit = LiveEdit(Inject(donor=CONNECTED), DONOR, start=0.5, end=1.0)  # sigma 0.5 and below
    _, first = run(model, edit, sigmas=(1.0, 0.75))
    _, second = run(model, edit, sigmas=(0.4, 0.2))
    assert first.applied_in(0) == 0 and first.in_range == {0: False}
    assert second.applied_in(0) == 4 * 2 and second.in_range == {0: True}


def test_an_edit_whose_pass_is_not_made_fails_the_run(model):
    with pytest.raises(EditNotApplied, match="no uncond pass was made"):
        run(model, inject(branch="uncond"), cfg=1.0)


def test_an_edit_that_another_node_disables_fails_the_run(model):
    patched = model.clone()
    # replaces the call and never computes the attention
    patched.model_options["transformer_options"]["optimized_attention_override"] = None

    def without_attention(args, extra):
        options = {k: v for k, v in args["transformer_options"].items() if k != "optimized_attention_override"}
        return extra["original_block"]({**args, "transformer_options": options})

    patched.set_model_patch_replace(without_attention, "dit", "double_block", 2)
    with pytest.raises(EditNotApplied, match="block 2"):
        run(patched, inject(strength=0.5))


def test_a_block_patch_of_another_node_is_chained(model):
    seen = []

    def watching(args, extra):
        seen.append(args["txt"].shape[1])
        return extra["original_block"](args)

    patched = model.clone()
    patched.set_model_patch_replace(watching, "dit", "double_block", 1)
    assert torch.equal(run(patched, inject())[0], run(model, inject())[0])
    assert len(seen) == 3


def test_a_block_skipped_by_skip_layer_guidance_is_noted(model):
    patched = model.clone()
    patched.set_model_patch_replace(lambda args, extra: args, "dit", "double_block", 1)
    edited, record = run(patched, inject(strength=0.5))
    assert record.skipped == {"block 1 was skipped by another node's patch": 3}
    assert record.applied_in(0) == 3 * 3
    assert torch.isfinite(edited).all()


def test_watching_changes_nothing_and_gives_probabilities(model):
    edit = LiveEdit(Watch("1-2"), columns=((0, 1), (3,)))
    out, record = run(model, edit)
    assert torch.equal(out, run(model)[0])
    count, sum_KQ, grid = record.maps[0]
    assert count == 2 * 3 and grid == (2, 4, 4) and sum_KQ.shape == (2, 32)
    assert float(sum_KQ.min()) > 0 and float((sum_KQ / count).sum(0).max()) < 1


def test_maps_survive_later_edits_and_belong_to_their_own_words(model):
    ball, red = (Words((word,), ((column,),)) for word, column in (("ball", 0), ("red", 3)))
    images = torch.zeros(5, 16, 16, 3)

    def report(maps) -> str:
        return NODES["WanscopeAttentionOverlay"]().run(maps, images, 1, 0.6, 0.0)["result"][2]

    def watch(given, words):
        return NODES["WanscopeWatchAttention"]().run(given, words, "all", 0.0, 1.0)["result"]

    alone = []
    for words in (ball, red):
        watched, maps = watch(model, words)
        run(watched)
        alone.append(report(maps))
    one, first = watch(model, ball)
    two, second = watch(one, red)
    given = (two, [[padded(DONOR)[None], {}]], 0.0, "all", "context", "mix", 0.0, 1.0, "cond")
    run(NODES["WanscopeInjectPrompt"]().run(*given)["result"][0])
    assert [report(first), report(second)] == alone and alone[0] != alone[1].replace("red", "ball")


def test_a_prompt_of_another_encoder_is_refused(model):
    edits = (
        LiveEdit(Inject(donor=CONNECTED), torch.randn(4, 7)),
        LiveEdit(Steer(CONNECTED), pairs=((MAIN, DONOR[:, :7]),)),
    )
    for edit in edits:
        with pytest.raises(RecipeError, match=f"7 dimensions per token: this model reads {TEXT_DIM}"):
            native.attach(model, Live([edit]))


def test_skipping_a_block_in_one_branch(model):
    both, _ = run(model, LiveEdit(Skip("1-2", branch="both")))

    def without_block(args, extra):
        return {"img": args["img"]}

    patched = model.clone()
    for i in (1, 2):
        patched.set_model_patch_replace(without_block, "dit", "double_block", i)
    assert torch.equal(both, run(patched)[0])
    cond, record = run(model, LiveEdit(Skip("1-2")))
    assert not torch.equal(cond, both) and record.applied_in(0) == 2 * 3


@pytest.mark.parametrize("part", ["block", "cross_attention"])
def test_edits_of_the_text_are_not_counted_where_no_text_is_read(model, part):
    """Blocks 1 and 2 of four read no text, in three steps; hidden states are still edited there."""
    skip = LiveEdit(Skip("1-2", part=part))
    for on, sites in (("context", 2), ("both", 2), ("hidden", 4)):
        _, record = run(model, inject(on=on, strength=0.5), skip)
        assert record.applied_in(0) == sites * 3 and record.applied_in(1) == 2 * 3
        assert record.due == record.applied


def test_bends_and_steering_act(model):
    base, _ = run(model)
    bent, record = run(model, LiveEdit(Bend(["x"], "amplify", factor=3.0), columns=((1, 2),)))
    assert record.applied_in(0) == 12 and not torch.allclose(bent, base, atol=1e-4)
    same, record = run(model, LiveEdit(Bend(["x"], "amplify", factor=1.0), columns=((1, 2),)))
    assert torch.equal(same, base) and not record.due
    steered, record = run(model, LiveEdit(Steer(CONNECTED), pairs=((MAIN, DONOR),)))
    assert record.applied_in(0) == 12 and not torch.allclose(steered, base, atol=1e-4)


def test_inputs_are_never_modified(model):
    texts = [padded(MAIN), padded(NEGATIVE)]
    kept = [t.clone() for t in texts] + [DONOR.clone(), NOISE.clone()]
    edits = Live([inject(strength=0.5), inject(on="hidden", strength=0.5), inject(mode="tokens", strength=0.2)])
    sample(native.attach(model, edits), texts[:1], texts[1:], NOISE)
    assert all(torch.equal(a, b) for a, b in zip(kept, [*texts, DONOR, NOISE], strict=True))


def test_an_interrupted_run_leaves_nothing_behind(model):
    base, _ = run(model)
    inner = model.model.diffusion_model

    def stop(module, args, output):
        raise KeyboardInterrupt

    live = Live([inject(strength=0.5), LiveEdit(Skip("1", part="cross_attention"))])
    handle = inner.blocks[3].ffn.register_forward_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        sample(native.attach(model, live), [padded(MAIN)], [padded(NEGATIVE)], NOISE)
    handle.remove()
    assert live.current is None and not live.runs[-1].finished
    assert not any(module._forward_hooks for module in inner.modules())
    assert torch.equal(run(model)[0], base)


def test_other_models_and_patterns_are_refused(model):
    with pytest.raises(ModelError, match="not a Wan transformer"):
        native.attach(Patcher(torch.nn.Linear(2, 2)), Live([inject()]))
    with pytest.raises(RecipeError, match="no block 7"):
        native.attach(model, Live([inject(blocks="7")]))
