"""What a video costs: FLOPs, bytes of latents, seconds. The planner's arithmetic; no torch here.

FLOPs of one forward = L (12 N d^2 + 4 T d^2 + 4 N d f + 4 N^2 d + 4 N T d): L blocks, N video tokens, T text tokens,
width d, feed-forward width f. A multiply-add counts as two. Embeddings and the head are below one percent and left
out.
"""

from __future__ import annotations

import math

from wanscope import solvers
from wanscope.wan.variant import Variant, latent_shape, token_grid

BYTES = {"fp16": 2, "float16": 2, "bf16": 2, "bfloat16": 2, "fp32": 4, "float32": 4}


def tokens(variant: Variant, width: int, height: int, frames: int) -> int:
    """N: video tokens."""
    return math.prod(token_grid(variant, width, height, frames))


def flops_per_forward(variant: Variant, width: int, height: int, frames: int) -> float:
    """FLOPs of one forward of one branch."""
    n, t = tokens(variant, width, height, frames), variant.text_length + variant.image_tokens
    d, f = variant.dim, variant.ffn_dim
    return float(variant.blocks * (12 * n * d * d + 4 * t * d * d + 4 * n * d * f + 4 * n * n * d + 4 * n * t * d))


def evaluations(solver: str, steps: int) -> int:
    """How often a solver asks for a denoised prediction (each is one forward a branch)."""
    return solvers.facts(solver).evaluations(steps)


def flops_per_video(
    variant: Variant, width: int, height: int, frames: int, *, solver: str, steps: int, branches: int = 2
) -> float:
    """FLOPs of all forwards of one video; branches is 1 where guidance is off. Encoding and decoding come on top."""
    return flops_per_forward(variant, width, height, frames) * evaluations(solver, steps) * branches


def seconds(flops: float, tflops: float) -> float:
    """Time at a sustained speed in TFLOP/s."""
    return flops / (tflops * 1e12)


def latent_bytes(variant: Variant, width: int, height: int, frames: int, dtype: str = "fp16", states: int = 1) -> int:
    """Bytes of `states` latent states, as they are stored uncompressed."""
    return math.prod(latent_shape(variant, width, height, frames)) * BYTES[dtype] * states
