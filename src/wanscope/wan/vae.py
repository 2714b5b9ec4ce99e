"""The Wan VAE, called so that it is fast and its result is the pipeline's.

`AutoencoderKLWan` walks a clip one latent frame at a time. Its causal caches make a longer chunk give the same
numbers (to float rounding), and one long chunk is about twice as fast on small frames, so the chunk length is ours.

Shape suffixes: B batch, C colour channels, Z latent channels, F frames, T latent frames = (F - 1) / 4 + 1,
H height, W width, h = H / stride, w = W / stride.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import patchify, unpatchify

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
    x = video_BCFHW if vae.config.patch_size is None else patchify(video_BCFHW, vae.config.patch_size)
    parts = []
    for chunk in _chunks(x.shape[2], 1, 4 * latent_frames):
        vae._enc_conv_idx = [0]
        parts.append(vae.encoder(x[:, :, chunk], feat_cache=vae._enc_feat_map, feat_idx=vae._enc_conv_idx))
    moments = vae.quant_conv(torch.cat(parts, dim=2))
    vae.clear_cache()
    return moments


def decode_raw(vae: AutoencoderKLWan, latents_BZThw: torch.Tensor, latent_frames: int = 4) -> torch.Tensor:
    """Video [B, C, F, H, W] of unnormalised latents, not clamped."""
    vae.clear_cache()
    z = vae.post_quant_conv(latents_BZThw)
    parts = []
    for i, chunk in enumerate(_chunks(z.shape[2], 1, latent_frames)):
        vae._conv_idx = [0]
        parts.append(vae.decoder(z[:, :, chunk], feat_cache=vae._feat_map, feat_idx=vae._conv_idx, first_chunk=i == 0))
    video = torch.cat(parts, dim=2)
    vae.clear_cache()
    return video if vae.config.patch_size is None else unpatchify(video, vae.config.patch_size)
