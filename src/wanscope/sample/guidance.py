"""Guidance: how the conditional and the unconditional velocity become one.

Velocities v and latents x are [B, C, T, h, w]; a predicted clean latent is D = x - sigma v.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wanscope.recipe import Keyframes, SamplerSpec

# CFG-Zero* sets the velocity of the first steps to zero; its authors advise 4% of the steps.
ZERO_INIT_SHARE = 0.04


@dataclass(frozen=True)
class Guidance:
    """The guidance of a resolved sampler, for each step and expert. sigmas: where each of its steps begins."""

    sampler: SamplerSpec
    sigmas: Sequence[float] = ()

    def scale(self, step: int, expert: int) -> float | None:
        """The scale w, or None where guidance is off and the second pass is not made.

        Off at exactly 1, for each expert and step by itself. With `cfg_per_expert` off it is decided once, as
        WanPipeline does: on for all where the first expert's guidance exceeds 1 (anywhere, if it has keyframes).
        """
        value = _at(self._of(expert), step, self.sigmas[step] if self.sigmas else None)
        if self.sampler.cfg_per_expert:
            return None if value == 1 else value
        return value if _largest(self._of(0)) > 1 else None

    def needs_uncond(self, experts: int) -> bool:
        """Whether any step of any expert may be guided."""
        steps = range(self.sampler.start_step, self.sampler.steps or 0)
        return any(self.scale(step, expert) is not None for expert in range(experts) for step in steps)

    def combine(self, cond: Tensor, uncond: Tensor, *, scale: float, step: int, x: Tensor, sigma: float) -> Tensor:
        """The guided velocity, uncond + scale (cond - uncond), with CFG-Zero* and skimming where they are on.

        CFG-Zero* comes first and skimming acts on its result. Plain guidance stays in the model's dtype, as in
        WanPipeline; the others are computed in float32.
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


def _largest(value: float | Keyframes | None) -> float:
    return max(number for _, number in value.keys) if isinstance(value, Keyframes) else _at(value, 0, None)


def optimized_scale(cond: Tensor, uncond: Tensor) -> Tensor:
    """s = <cond, uncond> / |uncond|^2 of each sample, [B, 1, 1, 1, 1]: the s that brings s * uncond nearest to cond.

    CFG-Zero* (Fan, Zheng, Yeh, Liu 2025, arXiv 2503.18886), with its code's 1e-8 added to the denominator.
    """
    c, u = cond.flatten(1).double(), uncond.flatten(1).double()
    s = (c * u).sum(1) / (u.square().sum(1) + 1e-8)
    return s.to(cond.dtype).view(-1, *[1] * (cond.ndim - 1))


def zero_init_steps(steps: int) -> int:
    """How many first steps CFG-Zero* leaves the latents where they are: 4% of the schedule, rounded.

    1 of 20, 2 of 50, none of 12 or fewer.
    """
    return round(ZERO_INIT_SHARE * steps)


def skimmed(cond: Tensor, uncond: Tensor, scale: float, skim: float, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """cond and uncond velocities, moved so that guidance acts with the lower scale `skim` where it would burn.

    Skimmed CFG (https://github.com/Extraltodeus/Skimmed_CFG, the single-scale node), derived anew for velocities. In
    an element where a branch's clean prediction D, its difference to the other branch, the guided prediction
    G = D_other + scale (D - D_other) and the guided change G - x all have one sign, guidance pushes an extreme value
    further out, and D is pulled toward the other branch until G is what `skim` would have given. First uncond is
    skimmed against cond, then cond against the new uncond. Nothing changes where skim >= scale.
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
    burns = (difference.sign() == sign) & (guided.sign() == sign) & ((guided - x).sign() == sign)
    return this - burns * ((1 - skim / scale) * (this - other))
