"""The latents that a run starts from: noise from a seed, or given latents with noise added.

Shape suffixes: C latent channels, T latent frames, h and w latent height and width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from wanscope.errors import NumericalError, RecipeError


def initial_noise(shape: Sequence[int], seed: int) -> Tensor:
    """Return standard normal noise [1, C, T, h, w], float32, for a latent shape (C, T, h, w) or (1, C, T, h, w).

    It is drawn by a CPU generator, so it is the same for every device, and the same that WanPipeline draws with
    `torch.Generator().manual_seed(seed)`. Raises RecipeError for another shape.
    """
    full = tuple(shape) if len(shape) == 5 else (1, *shape)
    if len(full) != 5 or full[0] != 1:
        raise RecipeError(
            f"noise cannot have the shape {tuple(shape)}", "latents are (channels, frames, height, width)"
        )
    return torch.randn(full, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)


def starting_latents(noise: Tensor, init: Tensor | None, sigma: float, start_step: int) -> Tensor:
    """Return x = (1 - sigma) init + sigma noise, float32 [1, C, T, h, w]; the noise itself if `init` is None.

    noise, init: [1, C, T, h, w] or [C, T, h, w], of the same size. sigma: the schedule's noise level at `start_step`.
    Raises RecipeError for a start_step without init, for an init at a noise level of 1, and for sizes that differ;
    NumericalError for values that are not finite.
    """
    noise = noise.float()
    if noise.ndim == 4:
        noise = noise[None]
    _require_finite(noise, "initial noise values")
    if init is None:
        if start_step:
            raise RecipeError(
                f"sampler.start_step is {start_step} but there is nothing to start from",
                "a run that skips the first steps starts from a take, a file of latents or a video, given in `init`",
                "start_step: 0",
            )
        return noise
    init = init.to(noise.device, torch.float32)
    if init.ndim == 4:
        init = init[None]
    if init.shape != noise.shape:
        raise RecipeError(
            f"the initial latents have shape {tuple(init.shape[1:])}",
            f"this video's latents have {tuple(noise.shape[1:])} (channels, frames, height, width); its width, height "
            "and frames must be those of the initial video",
        )
    if sigma > 1 - 1e-5:
        raise RecipeError(
            f"start_step is {start_step}, where the schedule is pure noise",
            "the initial latents would have no effect; half of the steps is a good first choice for start_step",
            "start_step: 1",
        )
    _require_finite(init, "initial latents")
    return (1 - sigma) * init + sigma * noise


def _require_finite(x: Tensor, what: str) -> None:
    if not torch.isfinite(x).all():
        raise NumericalError(f"the {what} contain NaN or Inf", "they did so before the first step")
