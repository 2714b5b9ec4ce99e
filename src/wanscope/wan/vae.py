"""Runs the Wan VAE faster than the pipeline does, with the pipeline's result.

`AutoencoderKLWan` processes a clip one latent frame at a time. Because of its causal caches, a longer chunk gives the
same numbers up to float rounding, and is about twice as fast on small frames. The chunk length depends on the frame's
size and the machine's total memory, but not on how much of it is free, so that a machine always decodes the same
latents to the same bits.

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
    """Return the first chunk on its own, which the VAE handles differently, and then chunks of `size`."""
    return [slice(0, first), *(slice(i, min(i + size, length)) for i in range(first, length, size))]


def encode_moments(vae: AutoencoderKLWan, video_BCFHW: torch.Tensor, latent_frames: int = 4) -> torch.Tensor:
    """Return means and log-variances [B, 2Z, T, h, w] of a clip in -1..1 with F = 4n + 1 frames.

    latent_frames: how many latent frames one chunk makes; more is faster and needs more memory.
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


def _decode_chunks(vae: AutoencoderKLWan, latents_BZThw: torch.Tensor, latent_frames: int) -> Iterator[torch.Tensor]:
    """Yield the video [B, C, F, H, W] in chunks along F."""
    vae.clear_cache()
    patch = vae.config["patch_size"]
    z = vae.post_quant_conv(latents_BZThw)
    for i, chunk in enumerate(_chunks(z.shape[2], 1, latent_frames)):
        vae._conv_idx = [0]
        part = vae.decoder(z[:, :, chunk], feat_cache=vae._feat_map, feat_idx=vae._conv_idx, first_chunk=i == 0)
        yield part if patch is None else unpatchify(part, patch)
    vae.clear_cache()


def decode_raw(vae: AutoencoderKLWan, latents_BZThw: torch.Tensor, latent_frames: int = 4) -> torch.Tensor:
    """Return the video [B, C, F, H, W] of unnormalized latents, not clamped."""
    return torch.cat(list(_decode_chunks(vae, latents_BZThw, latent_frames)), dim=2)


def chunk_length(vae: AutoencoderKLWan, width: int, height: int) -> int:
    """Return how many latent frames to decode at once for a size in pixels; at least 1."""
    parameter = next(vae.parameters())
    memory_bytes = _memory_bytes(parameter.device)
    return footprint.decode_chunk(dict(vae.config), width, height, memory_bytes, parameter.element_size())


def _memory_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    import psutil

    return psutil.virtual_memory().total


def _statistics(vae: AutoencoderKLWan, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and 1 / std of the latents, [1, Z, 1, 1, 1], rounded as in the pipeline."""
    mean = torch.tensor(vae.config["latents_mean"]).view(1, -1, 1, 1, 1).to(like)
    inverse_std = 1.0 / torch.tensor(vae.config["latents_std"]).view(1, -1, 1, 1, 1).to(like)
    return mean, inverse_std


@torch.no_grad()
def decode(vae: AutoencoderKLWan, latents_BZThw: torch.Tensor, latent_frames: int | None = None) -> torch.Tensor:
    """Decode normalized latents [B, Z, T, h, w] to a video [B, C, F, H, W] in -1..1, as WanPipeline does.

    latent_frames: how many to decode at once; by default chosen from the frame's size and the memory. With 1, the
    result is that of `vae.decode`, bit for bit. The video is float32 in host memory.
    """
    parameter = next(vae.parameters())
    latents = latents_BZThw.to(parameter.device, parameter.dtype)
    mean, inverse_std = _statistics(vae, latents)
    if latent_frames is None:
        stride = vae.config["scale_factor_spatial"]
        latent_frames = chunk_length(vae, latents.shape[-1] * stride, latents.shape[-2] * stride)
    parts = _decode_chunks(vae, latents / inverse_std + mean, latent_frames)
    return torch.cat([part.clamp(-1.0, 1.0).float().cpu() for part in parts], dim=2)


@torch.no_grad()
def encode(vae: AutoencoderKLWan, video_BCFHW: torch.Tensor, latent_frames: int = 1) -> torch.Tensor:
    """Encode a video [B, C, F, H, W] in -1..1 to normalized latents [B, Z, T, h, w].

    They are the mean of the VAE's distribution; nothing is sampled.
    """
    parameter = next(vae.parameters())
    moments = encode_moments(vae, video_BCFHW.to(parameter.device, parameter.dtype), latent_frames)
    mean, inverse_std = _statistics(vae, moments)
    return (moments.chunk(2, dim=1)[0] - mean) * inverse_std
