"""The table against what is published, and the checks of sizes."""

from __future__ import annotations

import hashlib
import math
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wanscope.errors import ModelError, RecipeError
from wanscope.wan.constants import NEGATIVE, VAE_2_2
from wanscope.wan.variants import VARIANTS, check_video, from_configs, latent_shape, resolve, token_grid

# (dim, ffn, blocks, heads) of the papers; boundary, shift, guidance, steps, frames, fps of the official configs.
PUBLISHED = {
    "wan2.1-t2v-1.3b": ((1536, 8960, 30, 12), None, 8.0, (6.0,), 50, 81, 16),
    "wan2.1-t2v-14b": ((5120, 13824, 40, 40), None, 5.0, (5.0,), 50, 81, 16),
    "wan2.1-i2v-14b-480p": ((5120, 13824, 40, 40), None, 3.0, (5.0,), 40, 81, 16),
    "wan2.1-i2v-14b-720p": ((5120, 13824, 40, 40), None, 5.0, (5.0,), 40, 81, 16),
    "wan2.2-t2v-a14b": ((5120, 13824, 40, 40), 0.875, 12.0, (4.0, 3.0), 40, 81, 16),
    "wan2.2-i2v-a14b": ((5120, 13824, 40, 40), 0.9, 5.0, (3.5, 3.5), 40, 81, 16),
    "wan2.2-ti2v-5b": ((3072, 14336, 30, 24), None, 5.0, (5.0,), 50, 121, 24),
}


def test_every_variant_is_compared_with_published_figures():
    assert set(VARIANTS) - set(PUBLISHED) == {"marbles"}, "give it a row in PUBLISHED of tests/wan/test_wan_variants.py"


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_facts(name):
    v = VARIANTS[name]
    d = v.defaults
    dims = (v.dim, v.ffn_dim, v.blocks, v.heads)
    assert (dims, v.boundary_ratio, d.shift, d.guidance, d.steps, d.frames, d.fps) == PUBLISHED[name]
    assert v.head_dim == 128 and v.text_length == 512 and v.text_dim == 4096
    assert len(d.guidance) == v.experts == (2 if v.boundary_ratio else 1)
    assert NEGATIVE in d.negative_prompt and v.image_conditioned == ("i2v" in name and "ti2v" not in name)


def test_negative_prompt_is_the_official_one():
    assert NEGATIVE.startswith("色调艳丽，过曝，静态") and NEGATIVE.endswith("背景人很多，倒着走")
    assert hashlib.sha256(NEGATIVE.encode()).hexdigest().startswith("ce96e0324e4b54ce")  # of wan/configs, 2.1 and 2.2
    assert VARIANTS["marbles"].defaults.negative_prompt == ""


def test_vae_facts():
    assert len(VAE_2_2["latents_mean"]) == len(VAE_2_2["latents_std"]) == 48
    for v in VARIANTS.values():
        assert v.latent_channels == v.vae["z_dim"] == v.out_channels
        assert v.vae_stride == (v.vae["scale_factor_temporal"], *(v.vae["scale_factor_spatial"],) * 2)


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=lambda v: v.name)
def test_defaults_are_legal(variant):
    d = variant.defaults
    shape = latent_shape(variant, d.width, d.height, d.frames)
    assert shape[0] == variant.latent_channels
    for width, height in variant.sizes:
        check_video(variant, width, height, d.frames)
    values = d.values()
    assert ("guidance_2" in values) == (variant.experts == 2)


def test_token_counts():
    """32,760 at 480p and 75,600 at 720p."""
    v = VARIANTS["wan2.1-t2v-14b"]
    assert math.prod(token_grid(v, 832, 480, 81)) == 32_760
    assert math.prod(token_grid(v, 1280, 720, 81)) == 75_600
    assert latent_shape(v, 832, 480, 81) == (16, 21, 60, 104)
    assert latent_shape(VARIANTS["wan2.2-ti2v-5b"], 1280, 704, 121) == (48, 31, 44, 80)
    assert token_grid(VARIANTS["marbles"], 128, 128, 17)[1:] == (8, 8)


@pytest.mark.parametrize(("frames", "near"), [(18, "17 or 21"), (80, "77 or 81"), (0, "1"), (2, "1 or 5"), (-4, "1")])
def test_frame_errors_name_the_nearest_counts(frames, near):
    with pytest.raises(RecipeError, match=rf"4n \+ 1 frames, such as {near}\.") as error:
        check_video(VARIANTS["wan2.1-t2v-1.3b"], 832, 480, frames)
    assert error.value.fix in [f"video.frames={value}" for value in near.split(" or ")]  # a single one can be pasted


@pytest.mark.parametrize(
    ("name", "width", "near"),
    [
        ("wan2.1-t2v-14b", 833, "832 or 848"),
        ("wan2.2-ti2v-5b", 1296, "1280 or 1312"),
        ("wan2.1-t2v-14b", 8, "16"),
        ("wan2.1-t2v-14b", 9000, "8192"),
    ],
)
def test_size_errors_name_the_nearest_sizes(name, width, near):
    with pytest.raises(RecipeError, match=rf"such as {near}\.") as error:
        check_video(VARIANTS[name], width, 480, 81)
    assert error.value.fix in [f"video.width={value}" for value in near.split(" or ")]


def test_positions_end():
    with pytest.raises(RecipeError, match="1024 patches"):
        check_video(VARIANTS["wan2.1-t2v-1.3b"], 832, 480, 4 * 1024 + 1)


@given(st.sampled_from(list(VARIANTS.values())), st.integers(-9, 400), st.integers(-9, 9000), st.integers(-9, 9000))
def test_every_size_is_made_or_refused_with_values_that_work(variant, frames, width, height):
    try:
        shape = latent_shape(variant, width, height, frames)
    except RecipeError as error:
        if "video." in error.fix:
            key, _, value = error.fix.removeprefix("video.").partition("=")
            for near in (value, *error.why.rpartition(" such as ")[2].split(" or ")):
                legal = {"frames": 5, "width": 64, "height": 64, key: int(near)}
                check_video(variant, **legal)
        return
    t, h, w = variant.vae_stride
    assert (shape[1] - 1) * t + 1 == frames and shape[2] * h == height and shape[3] * w == width


def test_resolve():
    assert resolve(" Wan2.1-T2V-14B ").name == "wan2.1-t2v-14b"
    assert resolve("Wan-AI/Wan2.2-TI2V-5B-Diffusers").name == "wan2.2-ti2v-5b"
    with pytest.raises(ModelError, match="did you mean 'marbles'"):
        resolve("marble")
    with pytest.raises(ModelError, match="known: marbles"):
        resolve("something else entirely")


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=lambda v: v.name)
def test_from_configs_finds_it_again(variant):
    found = from_configs(
        variant.name,
        variant.transformer_config(),
        variant.vae_config(),
        {**variant.encoder.config(), "num_layers": variant.encoder.layers},
        experts=variant.experts,
        boundary_ratio=variant.boundary_ratio,
        expand_timesteps=variant.expand_timesteps,
        text_length=variant.text_length,
    )
    assert found == variant


def test_unknown_dims_make_their_own_variant():
    v = VARIANTS["wan2.1-t2v-1.3b"]
    found = from_configs("mine", {**v.transformer_config(), "num_layers": 7}, v.vae_config(), text_length=33)
    assert (found.name, found.blocks, found.text_length, found.hub_id) == ("mine", 7, 33, None)
    two = from_configs("mine", {**v.transformer_config(), "num_layers": 7}, v.vae_config(), experts=2)
    assert len(two.defaults.guidance) == 2


@pytest.mark.parametrize("v", VARIANTS.values(), ids=lambda v: v.name)
def test_configs_are_what_diffusers_takes(v):
    import torch
    from diffusers import AutoencoderKLWan, WanTransformer3DModel

    with torch.device("meta"):
        model = WanTransformer3DModel(**{**v.transformer_config(), "num_layers": 1})
        AutoencoderKLWan(**v.vae_config())
    want = v.transformer_config() | {"num_layers": 1}
    assert {k: model.config[k] for k in want} == want


def test_no_torch_is_imported():
    code = (
        "import sys, wanscope.wan.variants, wanscope.wan.cost, wanscope.wan.footprint, wanscope.wan.environment, "
        "wanscope.wan.locate, wanscope.wan.doctor; "
        "sys.exit(any(m in sys.modules for m in ('torch', 'diffusers', 'transformers', 'huggingface_hub')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
