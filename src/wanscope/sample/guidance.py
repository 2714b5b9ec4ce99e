"""Classifier-free guidance: combines the conditional and the unconditional velocity.

Velocities v and latents x are [B, C, T, h, w]: B batch, C latent channels, T latent frames, h and w latent height and
width. The predicted clean latents are D = x - sigma v.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wanscope.recipe import Keyframes, SamplerSpec

# CFG-Zero* sets the velocity of the first steps to zero; its authors recommend 4% of the steps.
ZERO_INIT_SHARE = 0.04


@dataclass(frozen=True)
class Guidance:
    """The guidance of a resolved sampler, for each step and expert. sigmas: the noise level where each step begins."""

    sampler: SamplerSpec
    sigmas: Sequence[float] = ()

    def scale(self, step: int, expert: int) -> float | None:
        """Return the guidance scale, or None if guidance is off and the unconditional pass is not run.

        Guidance is off where the scale is exactly 1, decided separately for each expert and step. With `cfg_per_expert`
        off, it is decided once for all, as in WanPipeline: it is on if the first expert's guidance exceeds 1 (at any
        keyframe, if it has keyframes).
        """
        value = _at(self._of(expert), step, self.sigmas[step] if self.sigmas else None)
        if self.sampler.cfg_per_expert:
            return None if value == 1 else value
        return value if _maximum(self._of(0)) > 1 else None

    def needs_uncond(self, experts: int) -> bool:
        """Return whether guidance is on for any expert at any step."""
        steps = range(self.sampler.start_step, self.sampler.steps or 0)
        return any(self.scale(step, expert) is not None for expert in range(experts) for step in steps)

    def combine(self, cond: Tensor, uncond: Tensor, *, scale: float, step: int, x: Tensor, sigma: float) -> Tensor:
        """Return the guided velocity uncond + scale (cond - uncond), shaped like cond, uncond and x.

        CFG-Zero* and skimming are applied if they are on: CFG-Zero* first, then skimming on its result. Plain guidance
        is computed in the model's dtype, as in WanPipeline; with either of them it is computed in float32.
        """
        sampler = self.sampler
        if sampler.zero_star:
            if step < zero_init_steps(sampler.steps or 0):
                return torch.zeros_like(cond)
            cond, uncond = cond.float(), uncond.float()
            uncond = optimized_scale(cond, uncond) * uncond
        if sampler.skim is not None and sampler.skim < scale:
            cond, uncond = skimmed(cond.float(), uncond.float(), scale, sampler.skim, x.float(), sigma)
        return uncond + scale * (cond - uncond)

    def _of(self, expert: int) -> float | Keyframes | None:
        second = self.sampler.guidance_2
        return second if expert and second is not None else self.sampler.guidance


def _at(value: float | Keyframes | None, step: int, sigma: float | None) -> float:
    return value.at(step, sigma) if isinstance(value, Keyframes) else 1.0 if value is None else value


def _maximum(value: float | Keyframes | None) -> float:
    return max(number for _, number in value.keys) if isinstance(value, Keyframes) else _at(value, 0, None)


def optimized_scale(cond: Tensor, uncond: Tensor) -> Tensor:
    """Return s = <cond, uncond> / |uncond|^2 for each sample, [B, 1, 1, 1, 1], in cond's dtype.

    s * uncond is the multiple of uncond closest to cond. cond, uncond: [B, C, T, h, w]. Source: CFG-Zero* (Fan, Zheng,
    Yeh, Liu 2025, arXiv 2503.18886), with the 1e-8 that its code adds to the denominator.
    """
    c, u = cond.flatten(1).double(), uncond.flatten(1).double()
    s = (c * u).sum(1) / (u.square().sum(1) + 1e-8)
    return s.to(cond.dtype).view(-1, *[1] * (cond.ndim - 1))


def zero_init_steps(steps: int) -> int:
    """Return the number of first steps in which CFG-Zero* does not change the latents: 4% of the schedule, rounded.

    That is 1 of 20 steps, 2 of 50, and none of 12 or fewer.
    """
    return round(ZERO_INIT_SHARE * steps)


def skimmed(cond: Tensor, uncond: Tensor, scale: float, skim: float, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """Return (cond, uncond) changed so that guidance acts at the lower scale `skim` where it would oversaturate.

    All tensors are [B, C, T, h, w]; cond and uncond are velocities, x the latents at `sigma`. The method is Skimmed CFG
    (https://github.com/Extraltodeus/Skimmed_CFG, the single-scale node), rederived for velocities. In elements where a
    branch's clean prediction D, its difference from the other branch's, the guided prediction
    G = D_other + scale (D - D_other) and the guided change G - x all have the same sign, guidance pushes an extreme
    value further out. There D is pulled toward the other branch's until G is what `skim` would have given. uncond is
    skimmed against cond first, then cond against the new uncond. Nothing changes if skim >= scale.
    """
    if skim >= scale:
        return cond, uncond
    uncond = _skim_one(uncond, cond, scale, skim, x, sigma)
    return _skim_one(cond, uncond, scale, skim, x, sigma), uncond


def _skim_one(this: Tensor, other: Tensor, scale: float, skim: float, x: Tensor, sigma: float) -> Tensor:
    d, d_other = x - sigma * this, x - sigma * other
    difference = d - d_other
    guided = d_other + scale * difference
    sign = d.sign()
    overshoots = (difference.sign() == sign) & (guided.sign() == sign) & ((guided - x).sign() == sign)
    return this - overshoots * ((1 - skim / scale) * (this - other))
