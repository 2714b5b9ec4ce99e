"""How much memory the parts of a run take; no torch here.

The formulas are upper bounds for what eager diffusers 0.42 allocates, found by counting live tensors of the real
configs without data (tests/wan/test_wan_footprint.py counts again): per token of the transformer and per pixel of
the VAE's frames. Fused attention is assumed; attention matrices are never held. e is the bytes of one value.
"""

from __future__ import annotations

from typing import Any

from wanscope.wan.cost import tokens
from wanscope.wan.variant import Variant

MARGIN = 1.1
MAX_CHUNK = 4  # latent frames; beyond it decoding gets no faster
CHUNK_SHARE = 0.1  # of all memory, that a chunk longer than one latent frame may take


def denoise_bytes(variant: Variant, width: int, height: int, frames: int, e: int, batch: int = 1) -> int:
    """Peak of activations in one forward of a transformer, weights not counted. batch 2 is batched guidance.

    A block peaks either in its feed-forward (input and output of the GELU) or in its modulation, in float32. The 5B's
    per-token timesteps hold six modulation vectors a token besides, once as computed and once in float32.
    """
    n, d, f = tokens(variant, width, height, frames), variant.dim, variant.ffn_dim
    block = max(e * (2 * f + 4 * d), (16 + 3 * e) * d)
    per_token = batch * (block + ((7 * e + 24) * d if variant.expand_timesteps else 0)) + 2.5 * e * d
    rope = 24 * variant.head_dim
    text = batch * (variant.text_length + variant.image_tokens) * d * 13 * e
    return int(MARGIN * (n * (per_token + rope) + text))


def decode_bytes(vae: dict[str, Any], width: int, height: int, latent_frames: int, e: int) -> int:
    """Peak of activations in decoding `latent_frames` at once, the VAE's weights and the whole video not counted.

    Caches of the causal convolutions are held whatever the chunk; features at full width grow with it.
    """
    base = vae["decoder_base_dim"] or vae["base_dim"]
    patch = vae["patch_size"] or 1
    held, each = (40, 44) if vae["is_residual"] else (24, 24)
    return int(MARGIN * (held + each * latent_frames) * base / patch**2 * width * height * e)


def decode_chunk(vae: dict[str, Any], width: int, height: int, memory_bytes: int, e: int) -> int:
    """Latent frames to decode at once: as many, up to MAX_CHUNK, as a tenth of the whole memory holds; at least 1."""
    fitting = (
        n for n in range(MAX_CHUNK, 1, -1) if decode_bytes(vae, width, height, n, e) <= CHUNK_SHARE * memory_bytes
    )
    return next(fitting, 1)


def encode_bytes(variant: Variant, e: int) -> int:
    """Peak of activations in encoding one prompt, the encoder's weights not counted."""
    encoder, t = variant.encoder, variant.text_length
    scores = encoder.heads * t * t * (12 * e + 24)  # scores, bias and mask, and the softmax in float32
    return int(MARGIN * (scores + t * e * (3 * encoder.d_ff + 8 * encoder.d_model)))


def video_bytes(width: int, height: int, frames: int, e: int = 4) -> int:
    """A decoded video and the copy that joins its chunks."""
    return 2 * 3 * width * height * frames * e
