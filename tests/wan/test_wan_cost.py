"""FLOPs against the published table and against torch's own counter."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKLWan
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from helpers.tiny import TEXT_LENGTH, tiny_model
from wanscope.wan import cost
from wanscope.wan.vae import decode_raw
from wanscope.wan.variants import VARIANTS, latent_shape

torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("name", "size", "pflop"),
    [
        ("wan2.1-t2v-1.3b", (832, 480, 81), 0.283),
        ("wan2.1-t2v-14b", (832, 480, 81), 1.678),
        ("wan2.1-t2v-14b", (1280, 720, 81), 6.523),
        ("wan2.2-ti2v-5b", (1280, 704, 121), 0.517),
    ],
)
def test_published_table(name, size, pflop):
    assert round(cost.flops_per_forward(VARIANTS[name], *size) / 1e15, 3) == pflop


def test_against_torch_counting_a_forward():
    """The formula leaves out embeddings and the head; the blocks alone must agree to the last multiply-add."""
    model = tiny_model()
    size = 64, 64, 9
    n = cost.tokens(model.variant, *size)
    x, text = torch.randn(1, 16, 3, 8, 8), torch.randn(1, TEXT_LENGTH, 32)
    # torch counts the unfused attention's two products; it has no count for the CPU's fused attention.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model.transformer(x, torch.tensor([500.0]), text, return_dict=False)
    blocks = sum(
        sum(flops.values())
        for name, flops in counter.get_flop_counts().items()
        if name.startswith("WanTransformer3DModel.blocks.") and name.count(".") == 2
    )
    assert n == 48
    assert blocks == cost.flops_per_forward(model.variant, *size)


def test_evaluations_and_time():
    v = VARIANTS["wan2.1-t2v-1.3b"]
    assert [cost.evaluations(s, 20) for s in ("unipc", "euler", "dpm++", "heun", "res_2s")] == [20, 20, 20, 39, 40]
    one = cost.flops_per_forward(v, 832, 480, 81)
    assert cost.flops_per_video(v, 832, 480, 81, solver="unipc", steps=50) == 100 * one
    assert cost.flops_per_video(v, 832, 480, 81, solver="heun", steps=20, branches=1) == 39 * one
    assert cost.seconds(4e15, 200) == 20


@pytest.mark.parametrize("name", ["wan2.1-t2v-14b", "wan2.2-ti2v-5b", "marbles"])
@pytest.mark.parametrize("frames", [1, 9])
def test_decoding_against_torchs_count(name: str, frames: int):
    """On the meta device, where nothing is computed. Only frames that the causal cache repeats may differ."""
    v = VARIANTS[name]
    width = height = 64
    with torch.device("meta"):
        vae = AutoencoderKLWan(**v.vae_config())
        latents = torch.zeros(1, *latent_shape(v, width, height, frames))
    with torch.no_grad(), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        decode_raw(vae, latents, 1)
    counted = counter.get_total_flops()
    assert cost.decode_flops(v.vae_config(), width, height, frames) == pytest.approx(counted, rel=0.01)


def test_latent_bytes():
    v = VARIANTS["wan2.1-t2v-14b"]
    values = 16 * 21 * 60 * 104
    assert cost.latent_bytes(v, 832, 480, 81) == 2 * values
    assert cost.latent_bytes(v, 832, 480, 81, "fp32", states=51) == 4 * 51 * values
