"""Parameter counts from dims equal those of the real classes, built on the meta device."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from transformers import UMT5Config, UMT5EncoderModel

from wanscope.wan import parameters
from wanscope.wan.constants import VAE_2_1, VAE_2_2
from wanscope.wan.variant import Encoder, Variant
from wanscope.wan.variants import VARIANTS

BASE = VARIANTS["wan2.1-t2v-1.3b"]
SMALL = replace(BASE, name="small", dim=48, ffn_dim=80, blocks=3, heads=4, text_dim=20, freq_dim=16, in_channels=7)
IMAGE = replace(SMALL, name="image", image_dim=24, added_kv_dim=36, out_channels=5, patch=(2, 1, 3))
SMALL_ENCODER = Encoder(d_model=12, d_ff=20, layers=3, heads=2, d_kv=5, vocab=31, buckets=6)
VAES: dict[str, dict[str, Any]] = {
    "attention": {**VAE_2_1, "base_dim": 8, "dim_mult": [1, 2, 3], "attn_scales": [1.0, 0.25], "num_res_blocks": 3},
    "flat": {**VAE_2_1, "base_dim": 4, "dim_mult": [2], "temperal_downsample": []},
    "wide decoder": {**VAE_2_1, "base_dim": 6, "decoder_base_dim": 10, "dim_mult": [1, 3, 3]},
    "residual": {**VAE_2_2, "base_dim": 6, "decoder_base_dim": 8, "temperal_downsample": [True, False, True]},
}


def size(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@lru_cache
def built_encoder(encoder: Encoder) -> int:
    with torch.device("meta"):
        return size(UMT5EncoderModel(UMT5Config(**encoder.config())))


@pytest.mark.parametrize("variant", [*VARIANTS.values(), SMALL, IMAGE], ids=lambda v: v.name)
def test_counts_of_a_variant(variant: Variant) -> None:
    found = parameters.counts(variant)
    with torch.device("meta"):
        transformer = WanTransformer3DModel(**variant.transformer_config())
        vae = AutoencoderKLWan(**variant.vae_config())
    assert found.transformer == size(transformer)
    assert found.vae == size(vae)
    assert found.encoder == built_encoder(variant.encoder)
    assert parameters.block(variant) == size(transformer.blocks[0])


@pytest.mark.parametrize("name", VAES)
def test_counts_of_other_vaes(name: str) -> None:
    with torch.device("meta"):
        assert parameters.vae(VAES[name]) == size(AutoencoderKLWan(**VAES[name]))


def test_counts_of_another_encoder() -> None:
    assert parameters.encoder(SMALL_ENCODER) == built_encoder(SMALL_ENCODER)
