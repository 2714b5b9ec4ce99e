"""Live edits on a fake with WanVideoWrapper's interface: identities, removal of hooks, recognition of passes."""

from __future__ import annotations

import copy

import pytest
import torch

from helpers.comfy_fakes import Patcher, WrapperWan, wrapper_sample
from helpers.tiny import TEXT_DIM, tiny_transformer, transformer_config
from wanscope.edit.edits import Bend, Inject, Skip
from wanscope.errors import ModelError
from wanscope.runtime.comfy import wrapper
from wanscope.runtime.comfy.live import CONNECTED, Live, LiveEdit
from wanscope.runtime.comfy.live_kinds import Guide


def text(tokens: int, seed: int) -> torch.Tensor:
    return torch.randn(tokens, TEXT_DIM, generator=torch.Generator().manual_seed(seed))


MAIN, DONOR, NEGATIVE = text(5, 1), text(9, 2), text(3, 3)
NOISE = torch.randn(1, 16, 2, 8, 8, generator=torch.Generator().manual_seed(0))


def embeds(prompt: torch.Tensor = MAIN) -> dict:
    return {"prompt_embeds": [prompt], "negative_prompt_embeds": [NEGATIVE]}


@pytest.fixture
def model() -> Patcher:
    transformer = WrapperWan(tiny_transformer(transformer_config(), seed=5))
    return Patcher(transformer, {"transformer_options": {"merge_loras": True}})


def inject(**data) -> LiveEdit:
    return LiveEdit(Inject(donor=CONNECTED, **data), DONOR)


def run(model: Patcher, *edits: LiveEdit, text_embeds=None, **options):
    live = Live(edits)
    patcher = wrapper.attach(model, live, [NEGATIVE]) if edits else model
    out = wrapper_sample(patcher, text_embeds or embeds(), NOISE, **options)
    return out, live.runs[-1] if live.runs else None


@pytest.mark.parametrize("cfg", [1.0, 3.0])
@pytest.mark.parametrize("mode", ["mix", "tokens"])
def test_strength_one_everywhere_equals_the_donor_bit_for_bit(model, mode, cfg):
    edited, record = run(model, inject(mode=mode), cfg=cfg)
    assert torch.equal(edited, run(model, text_embeds=embeds(DONOR), cfg=cfg)[0])
    assert not torch.allclose(edited, run(model, cfg=cfg)[0], atol=1e-3)
    assert record.applied_in(0) == 4 * 3 and {site[2] for site in record.applied} == {"cond"}


def test_strength_zero_changes_nothing(model):
    base, _ = run(model)
    edited, record = run(model, inject(strength=0.0))
    assert torch.equal(edited, base) and not record.due


def test_hidden_replacement_equals_context_before_it(model):
    hidden, _ = run(model, inject(on="hidden", blocks="2", operation="replace"))
    assert torch.equal(hidden, run(model, inject(blocks="0-1"))[0])
    both, _ = run(model, inject(on="hidden", blocks="2", operation="replace"), inject(blocks="2-3"))
    assert torch.equal(both, run(model, text_embeds=embeds(DONOR))[0])


def test_the_hook_does_nothing_without_our_key_and_is_placed_once(model):
    base, _ = run(model)
    transformer = model.model.diffusion_model
    for _ in range(5):
        run(model, inject(strength=0.5))
    assert len(transformer._forward_pre_hooks) == 1 and len(transformer._forward_hooks) == 1
    assert torch.equal(run(model)[0], base)
    inside = [m for m in transformer.modules() if m is not transformer]
    assert not any(m._forward_hooks or m._forward_pre_hooks or "forward" in m.__dict__ for m in inside)


def test_options_of_the_wrapper_are_kept(model):
    patcher = wrapper.attach(model, Live([inject()]))
    assert patcher.model_options["transformer_options"]["merge_loras"] is True
    assert "wanscope" not in model.model_options["transformer_options"]
    live = wrapper.live_of(patcher)
    assert copy.deepcopy(patcher.model_options)["transformer_options"]["wanscope"] is live


def test_an_exception_inside_leaves_nothing_behind(model):
    base, _ = run(model)
    transformer = model.model.diffusion_model

    def fail(module, args, output):
        raise ValueError("inside")

    handle = transformer.blocks[2].ffn.register_forward_hook(fail)
    with pytest.raises(ValueError, match="inside"):
        run(model, inject(strength=0.5))
    handle.remove()
    assert all("forward" not in m.__dict__ for m in transformer.modules())
    assert torch.equal(run(model)[0], base)


def test_blocks_that_are_wrapped_again_in_each_run_are_edited(model):
    transformer = model.model.diffusion_model
    donor, half = run(model, text_embeds=embeds(DONOR))[0], run(model, inject(strength=0.5))[0]
    for _ in range(2):
        for i, block in enumerate(transformer.blocks):
            inner = getattr(block, "_orig_mod", block)
            transformer.blocks[i] = torch.compile(inner, backend="eager")
        edited, record = run(model, inject())
        assert torch.equal(edited, donor)
        assert record.notes == ["Compiled blocks run uncompiled in the calls in which an edit acts in them."]
        assert torch.allclose(run(model, inject(strength=0.5))[0], half, atol=1e-6)


def test_an_extra_pass_is_recognized_by_its_negative_prompt(model):
    live = Live([inject()])
    patcher = wrapper.attach(model, live, [NEGATIVE])
    transformer, options = model.model.diffusion_model, patcher.model_options["transformer_options"]
    call = {"x": [NOISE[0]], "t": torch.tensor([900.0]), "seq_len": 0, "transformer_options": options}
    audio = transformer(context=[NEGATIVE], is_uncond=False, **call)[0][0]
    plain = transformer(context=[NEGATIVE], **{**call, "transformer_options": {}})[0][0]
    assert torch.equal(audio, plain)
    assert live.runs[-1].passes == {"uncond": 1} and not live.runs[-1].applied


def test_calls_answered_by_a_cache_are_noted(model):
    model.model.diffusion_model.answer_from_cache = True
    _, record = run(model, inject())
    assert record.skipped == {"a call was answered by a step cache, without running the model": 3}


def test_blocks_skipped_by_skip_layer_guidance_are_noted(model):
    model.model.diffusion_model.slg_blocks = [1]
    _, record = run(model, inject(branch="both"))
    assert record.skipped == {"block 1 was skipped by skip-layer guidance": 3}
    assert record.applied_in(0) == 3 * (4 + 3)


def test_it_is_noted_that_vace_reads_the_unedited_prompt(model):
    patcher = wrapper.attach(model, live := Live([inject()]))
    options = patcher.model_options["transformer_options"]
    call = {"x": [NOISE[0]], "t": torch.tensor([900.0]), "seq_len": 0, "transformer_options": options}
    model.model.diffusion_model(context=[MAIN], vace_data=[{}], **call)
    assert "VACE" in live.runs[-1].notes[0]


def test_second_guidance_with_equal_scales_is_the_second_prompt(model):
    edited, record = run(model, LiveEdit(Guide(1.0), DONOR))
    assert torch.allclose(edited, run(model, text_embeds=embeds(DONOR))[0], atol=1e-5)
    assert record.applied_in(0) == 3


def test_second_guidance_acts_even_if_the_first_block_is_skipped(model):
    skip = LiveEdit(Skip("0"))
    edited, record = run(model, LiveEdit(Guide(1.0), DONOR), skip)
    assert record.applied_in(0) == 3 and not torch.allclose(edited, run(model, skip)[0], atol=1e-3)


def test_a_skipped_block_returns_what_the_wrapper_expects(model):
    _, record = run(model, LiveEdit(Skip("1", branch="both")))
    assert record.applied_in(0) == 2 * 3


def test_bends_act_only_on_the_attention_to_the_text(model):
    base, _ = run(model)
    bent, record = run(model, LiveEdit(Bend(["x"], "suppress", factor=4.0), columns=((1, 2),)))
    assert record.applied_in(0) == 12 and not torch.allclose(bent, base, atol=1e-4)


def test_other_models_are_refused(model):
    with pytest.raises(ModelError, match="not a WanVideoWrapper transformer"):
        wrapper.attach(Patcher(torch.nn.Linear(2, 2)), Live([inject()]))
