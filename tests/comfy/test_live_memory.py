"""What stays in memory: nothing of a call, the records of one prompt, and a kept projection until its run ends."""

from __future__ import annotations

import gc

import pytest
import torch

from helpers.comfy_fakes import NativeWan, Patcher, WrapperWan, sample, wrapper_sample
from helpers.tiny import TEXT_DIM, tiny_transformer, transformer_config
from wanscope.edit.edits import Inject
from wanscope.runtime.comfy import native, wrapper
from wanscope.runtime.comfy.call import Call
from wanscope.runtime.comfy.live import CONNECTED, Live, LiveEdit
from wanscope.runtime.comfy.live_kinds import Watch


def text(tokens: int, seed: int) -> torch.Tensor:
    return torch.randn(tokens, TEXT_DIM, generator=torch.Generator().manual_seed(seed))


MAIN, DONOR, NEGATIVE = text(5, 1), text(9, 2), text(3, 3)
NOISE = torch.randn(1, 16, 2, 8, 8, generator=torch.Generator().manual_seed(0))
PADDED = [torch.cat([t, torch.zeros(16 - len(t), TEXT_DIM)]) for t in (MAIN, NEGATIVE)]
EDITS = (
    LiveEdit(Inject(CONNECTED, strength=0.5), DONOR),
    LiveEdit(Inject(CONNECTED, on="hidden", strength=0.5, blocks="2-3"), DONOR, after_block=1, keep_context=True),
    LiveEdit(Watch(), columns=((0, 1),)),
)


class Native:
    def __init__(self) -> None:
        self.model = Patcher(NativeWan(tiny_transformer(transformer_config(), seed=5)))
        self.runtime = native

    def sampled(self, edits=EDITS) -> tuple[torch.Tensor, Live]:
        live = Live(edits)
        patcher = native.attach(self.model, live) if edits else self.model
        return sample(patcher, PADDED[:1], PADDED[1:], NOISE), live


class Wrapper:
    def __init__(self) -> None:
        self.model = Patcher(WrapperWan(tiny_transformer(transformer_config(), seed=5)))
        self.runtime = wrapper

    def sampled(self, edits=EDITS) -> tuple[torch.Tensor, Live]:
        live = Live(edits)
        patcher = wrapper.attach(self.model, live, [NEGATIVE]) if edits else self.model
        embeds = {"prompt_embeds": [MAIN], "negative_prompt_embeds": [NEGATIVE]}
        return wrapper_sample(patcher, embeds, NOISE), live


@pytest.fixture(params=[Native, Wrapper])
def runner(request):
    return request.param()


def test_a_call_and_its_tensors_are_freed_immediately(runner):
    """By reference counting alone: a cycle would keep a call's latents on the device until garbage collection."""
    runner.sampled()
    gc.collect()
    gc.disable()
    try:
        _, live = runner.sampled()
        assert not [o for o in gc.get_objects() if isinstance(o, Call)]
        assert live.runs[-1].contexts == {}
    finally:
        gc.enable()


def test_records_of_earlier_prompts_are_released(runner, monkeypatch):
    prompt = ["a"]
    monkeypatch.setattr(runner.runtime, "prompt_id", lambda: prompt[0])
    _, live = runner.sampled()
    patcher = runner.runtime.attach(runner.model, live)
    sizes = []
    for prompt[0] in "abbcde":  # the first two prompts have two stages
        if runner.runtime is native:
            sample(patcher, PADDED[:1], PADDED[1:], NOISE)
        else:
            wrapper_sample(patcher, {"prompt_embeds": [MAIN], "negative_prompt_embeds": [NEGATIVE]}, NOISE)
        sizes.append(len(live.runs))
    assert sizes == [2, 1, 2, 1, 1, 1]


def test_a_kept_projection_is_computed_once_per_run_and_changes_nothing(runner, monkeypatch):
    made = []
    first = runner.model.model.diffusion_model.text_embedding[0]
    handle = first.register_forward_pre_hook(lambda module, args: made.append(1))
    edit = {"edit": Inject(CONNECTED, on="hidden", strength=0.5, blocks="2-3"), "donor_LD": DONOR, "after_block": 1}
    each, _ = runner.sampled((LiveEdit(**edit),))
    count, made[:] = len(made), []
    kept, _ = runner.sampled((LiveEdit(**edit, keep_context=True),))
    handle.remove()
    assert torch.equal(each, kept)
    assert count - len(made) == 2  # three calls on cond, one projection
