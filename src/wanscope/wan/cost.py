"""The cost of a video in FLOPs, bytes of latents and seconds, for planning. This module does not import torch.

FLOPs of one forward = L (12 N d^2 + 4 T d^2 + 4 N d f + 4 N^2 d + 4 N T d) for L blocks, N video tokens, T text tokens,
width d and feed-forward width f. A multiply-add counts as two. Embeddings and the head are left out, because they are
below one percent.

FLOPs of decoding are those of the VAE's convolutions (2 k c_in c_out per value, with k kernel elements) and of its one
attention layer.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

from wanscope.spec import solver_facts
from wanscope.wan.variant import Variant, latent_shape, token_grid

BYTES = {"fp16": 2, "float16": 2, "bf16": 2, "bfloat16": 2, "fp32": 4, "float32": 4}


def tokens(variant: Variant, width: int, height: int, frames: int) -> int:
    """Return the number of video tokens, N, for a size in pixels and frames."""
    return math.prod(token_grid(variant, width, height, frames))


def flops_per_forward(variant: Variant, width: int, height: int, frames: int) -> float:
    """Return the FLOPs of one forward of one branch, for a size in pixels and frames."""
    n, t = tokens(variant, width, height, frames), variant.text_length + variant.image_tokens
    d, f = variant.dim, variant.ffn_dim
    return float(variant.blocks * (12 * n * d * d + 4 * t * d * d + 4 * n * d * f + 4 * n * n * d + 4 * n * t * d))


def evaluations(solver: str, steps: int) -> int:
    """Return how many denoised predictions a solver needs for `steps` steps; each is one forward per branch."""
    return solver_facts.facts(solver).evaluations(steps)


def flops_per_video(
    variant: Variant, width: int, height: int, frames: int, *, solver: str, steps: int, branches: int = 2
) -> float:
    """Return the FLOPs of all forwards of one video, without encoding and decoding. branches: 1 without guidance."""
    return flops_per_forward(variant, width, height, frames) * evaluations(solver, steps) * branches


def decode_flops(vae: dict[str, Any], width: int, height: int, frames: int) -> float:
    """Return the FLOPs of decoding one video with an AutoencoderKLWan of config `vae`, for a size in pixels."""
    base, mult, patch = vae["decoder_base_dim"] or vae["base_dim"], list(vae["dim_mult"]), vae["patch_size"] or 1
    dims = [base * m for m in (mult[-1], *reversed(mult))]
    stride = patch * 2 ** (len(mult) - 1)
    upsamples_time = list(reversed(vae["temperal_downsample"]))  # the config's own spelling
    t, h, w = 1 + (frames - 1) // 2 ** sum(upsamples_time), height // stride, width // stride

    def res(c_in: int, c_out: int, cells: int) -> float:
        return 2.0 * cells * (27 * c_in * c_out + 27 * c_out * c_out + (c_in * c_out if c_in != c_out else 0))

    cells, top = t * h * w, dims[0]
    total = 2.0 * cells * (vae["z_dim"] ** 2 + 27 * vae["z_dim"] * top) + 2 * res(top, top, cells)
    total += cells * (8.0 * top * top + 4.0 * h * w * top)
    for level, (c_in, c_out) in enumerate(pairwise(dims)):
        if level > 0 and not vae["is_residual"]:
            c_in //= 2  # the previous level's upsampling has halved the channels
        total += res(c_in, c_out, t * h * w) + vae["num_res_blocks"] * res(c_out, c_out, t * h * w)
        if level == len(mult) - 1:
            continue
        if upsamples_time[level]:
            total += 2.0 * 3 * c_out * 2 * c_out * (t - 1) * h * w  # the first frame is not doubled
            t = 2 * t - 1
        h, w = 2 * h, 2 * w
        total += 2.0 * 9 * c_out * (c_out if vae["is_residual"] else c_out // 2) * t * h * w
    return total + 2.0 * 27 * dims[-1] * vae["out_channels"] * t * h * w


def seconds(flops: float, tflops: float) -> float:
    """Return the time in seconds at a sustained speed in TFLOP/s."""
    return flops / (tflops * 1e12)


def latent_bytes(variant: Variant, width: int, height: int, frames: int, dtype: str = "fp16", states: int = 1) -> int:
    """Return the uncompressed bytes of `states` latent states of a video of this size."""
    return math.prod(latent_shape(variant, width, height, frames)) * BYTES[dtype] * states
