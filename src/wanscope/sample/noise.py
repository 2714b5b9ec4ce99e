"""Where a run begins: noise from a seed, or noised latents.

Shape suffixes: C latent channels, T latent frames, h and w latent height and width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from wanscope.errors import NumericalError, RecipeError


def initial_noise(shape: Sequence[int], seed: int) -> Tensor:
    """Standard normal noise [1, C, T, h, w] in float32 for a latent shape (C, T, h, w), from a CPU generator.

    The same numbers on every device, and those WanPipeline draws with `torch.Generator().manual_seed(seed)`.
    """
    full = tuple(shape) if len(shape) == 5 else (1, *shape)
    if len(full) != 5 or full[0] != 1:
        raise RecipeError(
            f"noise of shape {tuple(shape)} was asked for", "latents are (channels, frames, height, width)"
        )
    return torch.randn(full, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)


def starting_latents(noise: Tensor, init: Tensor | None, sigma: float, start_step: int) -> Tensor:
    """x = (1 - sigma) init + sigma noise, in float32; the noise itself where there is no `init`.

    `sigma` is the schedule's at `start_step`. Raises RecipeError for a start_step without init, an init that the noise
    would drown, and shapes that differ; NumericalError for values that are not finite.
    """
    noise = noise.float()
    if noise.ndim == 4:
        noise = noise[None]
    _require_finite(noise, "noise")
    if init is None:
        if start_step:
            raise RecipeError(
                f"sampler.start_step is {start_step} but there is nothing to start from",
                "a partial denoising begins from a take, a file of latents or a video",
                "init: {take: ID}, or start_step: 0",
            )
        return noise
    init = init.to(noise.device, torch.float32)
    if init.ndim == 4:
        init = init[None]
    if init.shape != noise.shape:
        raise RecipeError(
            f"the initial latents have shape {tuple(init.shape[1:])}",
            f"this video's have {tuple(noise.shape[1:])} (channels, frames, height, width)",
            "the width, height and frames of the initial video",
        )
    if sigma > 1 - 1e-5:
        raise RecipeError(
            f"start_step is {start_step}, where the schedule is all noise",
            "the initial latents would have no effect",
            "start_step: 1 or more (half of steps is a good start), or denoise: 0.5",
        )
    _require_finite(init, "initial latents")
    return (1 - sigma) * init + sigma * noise


def _require_finite(x: Tensor, what: str) -> None:
    if not torch.isfinite(x).all():
        raise NumericalError(f"the {what} have NaN or Inf", "they were so before the first step")
