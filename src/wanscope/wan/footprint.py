"""The memory that the parts of a run need. This module does not import torch.

The formulas are upper bounds for what eager diffusers 0.42 allocates, per token of the transformer and per pixel of the
VAE's frames. They were found by counting live tensors of the real configs on the meta device, and
tests/wan/test_wan_footprint.py counts them again. Fused attention is assumed, which never stores attention matrices.
e is the number of bytes per value.
"""

from __future__ import annotations

from typing import Any

from wanscope.wan.cost import tokens
from wanscope.wan.variant import Variant

MARGIN = 1.1
MAX_CHUNK = 4  # latent frames; a longer chunk does not decode faster
CHUNK_SHARE = 0.1  # the share of all memory that a chunk of more than one latent frame may use


def denoise_bytes(variant: Variant, width: int, height: int, frames: int, e: int, batch: int = 1) -> int:
    """Return the peak bytes of activations in one forward of a transformer, without weights.

    batch: 2 for batched guidance. A block peaks either in its feed-forward (input and output of the GELU) or in its
    float32 modulation. The 5B's per-token timesteps also hold six modulation vectors per token, once as computed and
    once in float32.
    """
    n, d, f = tokens(variant, width, height, frames), variant.dim, variant.ffn_dim
    block = max(e * (2 * f + 4 * d), (16 + 3 * e) * d)
    per_token = batch * (block + ((7 * e + 24) * d if variant.expand_timesteps else 0)) + 2.5 * e * d
    rope = 24 * variant.head_dim
    text = batch * (variant.text_length + variant.image_tokens) * d * 13 * e
    return int(MARGIN * (n * (per_token + rope) + text))


def decode_bytes(vae: dict[str, Any], width: int, height: int, latent_frames: int, e: int) -> int:
    """Return the peak bytes of activations when decoding `latent_frames` at once, for a size in pixels.

    The VAE's weights and the decoded video are not counted. The caches of the causal convolutions have a fixed size;
    features at full resolution grow with the chunk.
    """
    base = vae["decoder_base_dim"] or vae["base_dim"]
    patch = vae["patch_size"] or 1
    fixed, per_frame = (40, 44) if vae["is_residual"] else (24, 24)
    return int(MARGIN * (fixed + per_frame * latent_frames) * base / patch**2 * width * height * e)


def decode_chunk(vae: dict[str, Any], width: int, height: int, memory_bytes: int, e: int) -> int:
    """Return how many latent frames to decode at once: 1 to MAX_CHUNK, as many as fit into a tenth of the memory."""
    fitting = (
        n for n in range(MAX_CHUNK, 1, -1) if decode_bytes(vae, width, height, n, e) <= CHUNK_SHARE * memory_bytes
    )
    return next(fitting, 1)


def encode_bytes(variant: Variant, e: int) -> int:
    """Return the peak bytes of activations when encoding one prompt, without the encoder's weights."""
    encoder, t = variant.encoder, variant.text_length
    scores = encoder.heads * t * t * (12 * e + 24)  # scores, bias and mask, and the softmax in float32
    return int(MARGIN * (scores + t * e * (3 * encoder.d_ff + 8 * encoder.d_model)))


def video_bytes(width: int, height: int, frames: int, e: int = 4) -> int:
    """Return the bytes of a decoded video and of the copy that joins its chunks."""
    return 2 * 3 * width * height * frames * e
