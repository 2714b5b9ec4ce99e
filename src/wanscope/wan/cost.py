"""What a video costs: FLOPs, bytes of latents, seconds. The planner's arithmetic; no torch here.

FLOPs of one forward = L (12 N d^2 + 4 T d^2 + 4 N d f + 4 N^2 d + 4 N T d): L blocks, N video tokens, T text tokens,
width d, feed-forward width f. A multiply-add counts as two. Embeddings and the head are below one percent and left
out.

FLOPs of decoding are those of the VAE's convolutions (2 k c_in c_out a value, k kernel cells) and of its one attention.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

from wanscope.spec import solver_facts
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
    return solver_facts.facts(solver).evaluations(steps)


def flops_per_video(
    variant: Variant, width: int, height: int, frames: int, *, solver: str, steps: int, branches: int = 2
) -> float:
    """FLOPs of all forwards of one video; branches is 1 where guidance is off. Encoding and decoding come on top."""
    return flops_per_forward(variant, width, height, frames) * evaluations(solver, steps) * branches


def decode_flops(vae: dict[str, Any], width: int, height: int, frames: int) -> float:
    """FLOPs of decoding one video with an AutoencoderKLWan of that config, sizes in pixels."""
    base, mult, patch = vae["decoder_base_dim"] or vae["base_dim"], list(vae["dim_mult"]), vae["patch_size"] or 1
    dims = [base * m for m in (mult[-1], *reversed(mult))]
    shrunk = patch * 2 ** (len(mult) - 1)
    later = list(reversed(vae["temperal_downsample"]))  # the config's own spelling
    t, h, w = 1 + (frames - 1) // 2 ** sum(later), height // shrunk, width // shrunk

    def res(c_in: int, c_out: int, cells: int) -> float:
        return 2.0 * cells * (27 * c_in * c_out + 27 * c_out * c_out + (c_in * c_out if c_in != c_out else 0))

    cells, top = t * h * w, dims[0]
    total = 2.0 * cells * (vae["z_dim"] ** 2 + 27 * vae["z_dim"] * top) + 2 * res(top, top, cells)
    total += cells * (8.0 * top * top + 4.0 * h * w * top)
    for level, (c_in, c_out) in enumerate(pairwise(dims)):
        if level > 0 and not vae["is_residual"]:
            c_in //= 2  # the upsampling before has halved them
        total += res(c_in, c_out, t * h * w) + vae["num_res_blocks"] * res(c_out, c_out, t * h * w)
        if level == len(mult) - 1:
            continue
        if later[level]:
            total += 2.0 * 3 * c_out * 2 * c_out * (t - 1) * h * w  # the first frame is not doubled
            t = 2 * t - 1
        h, w = 2 * h, 2 * w
        total += 2.0 * 9 * c_out * (c_out if vae["is_residual"] else c_out // 2) * t * h * w
    return total + 2.0 * 27 * dims[-1] * vae["out_channels"] * t * h * w


def seconds(flops: float, tflops: float) -> float:
    """Time at a sustained speed in TFLOP/s."""
    return flops / (tflops * 1e12)


def latent_bytes(variant: Variant, width: int, height: int, frames: int, dtype: str = "fp16", states: int = 1) -> int:
    """Bytes of `states` latent states, as they are stored uncompressed."""
    return math.prod(latent_shape(variant, width, height, frames)) * BYTES[dtype] * states
