"""Decoding and encoding against AutoencoderKLWan itself and WanPipeline's normalization."""

from __future__ import annotations

import pytest
import torch

from helpers.tiny import tiny_model, video
from wanscope.wan import footprint
from wanscope.wan import vae as wan_vae

torch.set_num_threads(1)
KINDS = ["2.1", "5b"]


def noise(model, frames: int = 17) -> torch.Tensor:
    shape = model.variant.latent_channels, (frames - 1) // 4 + 1, 4, 4
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(2))


def unnormalized(model, latents: torch.Tensor) -> torch.Tensor:
    config = model.vae.config
    std = torch.tensor(config["latents_std"]).view(1, -1, 1, 1, 1)
    return latents / (1.0 / std) + torch.tensor(config["latents_mean"]).view(1, -1, 1, 1, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_one_frame_at_a_time_is_the_pipelines_decode(kind):
    model = tiny_model(kind)
    latents = noise(model)
    want = model.vae.decode(unnormalized(model, latents), return_dict=False)[0]
    assert torch.equal(wan_vae.decode(model.vae, latents, latent_frames=1), want)
    assert want.shape[2] == 17


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunk", [2, 3, 4, None])
def test_longer_chunks_agree(kind, chunk):
    model = tiny_model(kind)
    latents = noise(model, frames=25)
    want = model.vae.double().decode(unnormalized(model, latents.double()), return_dict=False)[0]
    got = wan_vae.decode(model.vae.float(), latents, chunk)
    assert (got - want).abs().max() < 1e-4


def test_pipeline_output_is_reproduced():
    model = tiny_model()
    pipe = model.to_pipeline()
    pipe.set_progress_bar_config(disable=True)
    size = video()
    options = {"width": size["width"], "height": size["height"], "num_frames": size["frames"], "num_inference_steps": 2}
    options |= {"max_sequence_length": model.text_length, "negative_prompt": ""}
    runs = [
        pipe("a red circle", **options, generator=torch.Generator().manual_seed(0), output_type=kind).frames
        for kind in ("latent", "pt")
    ]
    video_BCFHW = wan_vae.decode(model.vae, runs[0], latent_frames=1)
    assert torch.equal((video_BCFHW / 2 + 0.5).clamp(0, 1).transpose(1, 2), runs[1])


@pytest.mark.parametrize("kind", KINDS)
def test_encode(kind):
    model = tiny_model(kind)
    clip = torch.rand(1, 3, 9, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mean = model.vae.encode(clip).latent_dist.mode()
    got = wan_vae.encode(model.vae, clip)
    assert torch.allclose(unnormalized(model, got), mean, atol=1e-5)
    longer = wan_vae.encode(model.vae, clip, latent_frames=2)
    assert torch.allclose(longer, got, atol=1e-4)


def test_chunk_length_follows_size_and_memory(monkeypatch):
    model = tiny_model()
    monkeypatch.setattr(wan_vae, "_memory_bytes", lambda device: 8 << 30)
    lengths = [wan_vae.chunk_length(model.vae, side, side) for side in (64, 512, 1024, 2048, 8192)]
    assert lengths[0] == footprint.MAX_CHUNK and lengths[-1] == 1
    assert lengths == sorted(lengths, reverse=True)
    monkeypatch.setattr(wan_vae, "_memory_bytes", lambda device: 1)
    assert wan_vae.chunk_length(model.vae, 64, 64) == 1
