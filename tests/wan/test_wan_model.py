"""WanModel: its facts, and conversion to and from diffusers' pipeline."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from helpers.tiny import KINDS, tiny_model, tiny_pipeline, video
from wanscope.errors import ModelError, RecipeError
from wanscope.wan.model import WanModel
from wanscope.wan.tokenizer import text_length_of

torch.set_num_threads(1)


@pytest.mark.parametrize("kind", KINDS)
def test_facts(kind):
    model = tiny_model(kind, blocks=3)
    assert model.blocks == 3 and model.variant.blocks == 3
    assert len(model.experts()) == model.variant.experts == (2 if kind.endswith("2.2") else 1)
    assert model.expand_timesteps is model.variant.expand_timesteps is (kind == "5b")
    c, stride = (48, 16) if kind == "5b" else (16, 8)
    assert model.latent_shape(SimpleNamespace(**video())) == (c, 3, 64 // stride, 64 // stride)
    with pytest.raises(RecipeError, match="10 frames"):
        model.latent_shape(SimpleNamespace(width=64, height=64, frames=10))


def test_sizes_left_open_are_the_variants_own():
    model = tiny_model()
    own = model.variant.defaults
    shape = model.latent_shape(SimpleNamespace(width=None, height=None, frames=None))
    assert shape == (16, (own.frames - 1) // 4 + 1, own.height // 8, own.width // 8)


@pytest.mark.parametrize("kind", ["2.1", "2.2", "5b"])
def test_to_pipeline_and_back_shares_components(kind):
    source = tiny_pipeline(kind)
    model = WanModel.from_pipeline(source)
    pipe = model.to_pipeline()
    assert pipe.transformer is source.transformer and pipe.transformer_2 is source.transformer_2
    assert pipe.vae is source.vae and pipe.text_encoder is source.text_encoder
    assert pipe.config["boundary_ratio"] == source.config["boundary_ratio"]
    assert pipe.config["expand_timesteps"] == source.config["expand_timesteps"]
    assert pipe.scheduler is not source.scheduler
    config = {k: v for k, v in pipe.scheduler.config.items() if k != "_class_name"}
    assert config == {**source.scheduler.config} and type(pipe.scheduler) is type(source.scheduler)
    assert pipe.scheduler.config["flow_shift"] == 5.0


def test_half_a_pair_of_experts():
    model = tiny_model("2.2")
    parts = {k: v for k, v in vars(model).items() if k != "boundary_ratio"}
    with pytest.raises(ModelError, match="needed together"):
        WanModel(**parts)


def test_image_tokens_fix_the_text_length():
    with pytest.raises(ModelError, match="take 512"):
        tiny_model("i2v-2.1", text_length=16)


def test_text_length_of():
    assert text_length_of(SimpleNamespace(model_max_length=64)) == 64  # type: ignore[arg-type]
    assert text_length_of(SimpleNamespace(model_max_length=10**30)) == 512  # type: ignore[arg-type]
    assert text_length_of(SimpleNamespace(model_max_length=None)) == 512  # type: ignore[arg-type]


def test_deterministic_by_seed():
    assert tiny_model(seed=1).identity == tiny_model(seed=1).identity != tiny_model(seed=2).identity
