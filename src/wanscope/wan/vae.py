"""The Wan VAE, called so that it is fast and its result is the pipeline's.

`AutoencoderKLWan` walks a clip one latent frame at a time. Its causal caches make a longer chunk give the same
numbers (to float rounding), and one long chunk is about twice as fast on small frames, so the chunk length is ours.
It follows from the frame's size and the machine's memory as a whole, never from what happens to be free: the same
machine decodes the same latents to the same bits.

Shape suffixes: B batch, C color channels, Z latent channels, F frames, T latent frames = (F - 1) / 4 + 1,
H height, W width, h = H / stride, w = W / stride.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import patchify, unpatchify

from wanscope.wan import footprint

if TYPE_CHECKING:
    from diffusers import AutoencoderKLWan


def _chunks(length: int, first: int, size: int) -> list[slice]:
    """The first chunk alone (the VAE treats it apart), then chunks of `size`."""
    return [slice(0, first), *(slice(i, min(i + size, length)) for i in range(first, length, size))]


def encode_moments(vae: AutoencoderKLWan, video_BCFHW: torch.Tensor, latent_frames: int = 4) -> torch.Tensor:
    """Means and log-variances [B, 2Z, T, h, w] of a clip in -1..1 with F = 4n + 1 frames.

    `latent_frames` is how many latent frames one chunk makes; more is faster and takes more memory.
    """
    vae.clear_cache()
    patch = vae.config["patch_size"]
    x = video_BCFHW if patch is None else patchify(video_BCFHW, patch)
    parts = []
    for chunk in _chunks(x.shape[2], 1, 4 * latent_frames):
        vae._enc_conv_idx = [0]
        parts.append(vae.encoder(x[:, :, chunk], feat_cache=vae._enc_feat_map, feat_idx=vae._enc_conv_idx))
    moments = vae.quant_conv(torch.cat(parts, dim=2))
    vae.clear_cache()
    return moments


def _decoded(vae: AutoencoderKLWan, latents_BZThw: torch.Tensor, latent_frames: int) -> Iterator[torch.Tensor]:
    """The video's parts, chunk by chunk."""
    vae.clear_cache()
    patch = vae.config["patch_size"]
    z = vae.post_quant_conv(latents_BZThw)
    for i, chunk in enumerate(_chunks(z.shape[2], 1, latent_frames)):
        vae._conv_idx = [0]
        part = vae.decoder(z[:, :, chunk], feat_cache=vae._feat_map, feat_idx=vae._conv_idx, first_chunk=i == 0)
        yield part if patch is None else unpatchify(part, patch)
    vae.clear_cache()


def decode_raw(vae: AutoencoderKLWan, latents_BZThw: torch.Tensor, latent_frames: int = 4) -> torch.Tensor:
    """Video [B, C, F, H, W] of unnormalised latents, not clamped."""
    return torch.cat(list(_decoded(vae, latents_BZThw, latent_frames)), dim=2)


def chunk_length(vae: AutoencoderKLWan, width: int, height: int) -> int:
    """Latent frames to decode at once at a size in pixels; at least 1."""
    parameter = next(vae.parameters())
    memory_bytes = _memory_bytes(parameter.device)
    return footprint.decode_chunk(dict(vae.config), width, height, memory_bytes, parameter.element_size())


def _memory_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    import psutil

    return psutil.virtual_memory().total


def _statistics(vae: AutoencoderKLWan, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and 1 / std of the latents as the pipeline rounds them."""
    mean = torch.tensor(vae.config["latents_mean"]).view(1, -1, 1, 1, 1).to(like)
    inverse_std = 1.0 / torch.tensor(vae.config["latents_std"]).view(1, -1, 1, 1, 1).to(like)
    return mean, inverse_std


@torch.no_grad()
def decode(vae: AutoencoderKLWan, latents_BZThw: torch.Tensor, latent_frames: int | None = None) -> torch.Tensor:
    """Video [B, C, F, H, W] in -1..1 of the model's normalised latents, as WanPipeline decodes them.

    `latent_frames`: how many to decode at once; None lets the frame's size and the memory decide. With 1 the result
    is `vae.decode`'s, bit for bit. From a GPU the video comes back in host memory, part by part.
    """
    parameter = next(vae.parameters())
    latents = latents_BZThw.to(parameter.device, parameter.dtype)
    mean, inverse_std = _statistics(vae, latents)
    if latent_frames is None:
        stride = vae.config["scale_factor_spatial"]
        latent_frames = chunk_length(vae, latents.shape[-1] * stride, latents.shape[-2] * stride)
    parts = _decoded(vae, latents / inverse_std + mean, latent_frames)
    return torch.cat([part.clamp(-1.0, 1.0).float().cpu() for part in parts], dim=2)


@torch.no_grad()
def encode(vae: AutoencoderKLWan, video_BCFHW: torch.Tensor, latent_frames: int = 1) -> torch.Tensor:
    """Normalised latents [B, Z, T, h, w] of a video in -1..1: the mean of the VAE's distribution, no draw."""
    parameter = next(vae.parameters())
    moments = encode_moments(vae, video_BCFHW.to(parameter.device, parameter.dtype), latent_frames)
    mean, inverse_std = _statistics(vae, moments)
    return (moments.chunk(2, dim=1)[0] - mean) * inverse_std
