"""The parts that the refined exponential solvers res_2s and res_multistep share: schedule, timesteps, phi functions.

Source: Zhang, Song, Chen, "Improved Order Analysis and Design of Exponential Integrator for Diffusion Models Sampling"
(Refined Exponential Solver), 2023, arXiv 2308.02157. They are stated there for dx/dlambda = -x + D(x, lambda). A flow
model predicts the clean latents D = x - sigma v, and its equation dx/dsigma = v = (x - D) / sigma has exactly that form
in the time lambda = -log(sigma), without rescaling x. (The time of DPM-Solver++, log((1 - sigma) / sigma), would be
infinite at sigma = 1, where every run starts; this one is 0 there.)

With h = lambda' - lambda = log(sigma / sigma') and phi_1(z) = (e^z - 1) / z, phi_2(z) = (phi_1(z) - 1) / z, a second
prediction D_2 at lambda + c h gives, from the order conditions b_1 + b_2 = phi_1(-h) and b_2 c = phi_2(-h),

    x' = e^-h x + h [ (phi_1(-h) - phi_2(-h) / c) D_1 + phi_2(-h) / c D_2 ].

At sigma' = 0, h is infinite and extrapolating along lambda would diverge; each solver documents what it does there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from wanscope.recipe import SamplerSpec
from wanscope.sample.solvers import Solver, Velocity, explicit_sigmas, train_timesteps


def shifted_sigmas(steps: int, shift: float, train_steps: int = 1000) -> tuple[float, ...]:
    """Return Wan's schedule of flow sigmas, starting at 1, without the final 0; the same as in diffusers' UniPC."""
    even = [1 - (1 - 1 / train_steps) * i / steps for i in range(steps)]
    return tuple(shift * s / (1 + (shift - 1) * s) for s in even)


def h_phi(h: float) -> tuple[float, float]:
    """Return h phi_1(-h) = 1 - e^-h and h phi_2(-h) = 1 - (1 - e^-h) / h, to full precision for any h > 0."""
    first = -math.expm1(-h)
    if h > 0.1:
        return first, 1 - first / h
    # The difference would lose precision by cancellation; this is its power series.
    return first, sum((-1) ** (k + 1) * h**k / math.factorial(k + 1) for k in range(1, 12))


class ExponentialSolver(Solver):
    """A solver with Wan's own schedule (or explicit sigmas) and the model's exact, unrounded timesteps.

    A subclass implements `step`, and calls `_evaluate(x, sigma, velocity)` for the velocity, shaped like x.
    """

    def __init__(self, sampler: SamplerSpec, scheduler_config: Mapping[str, Any], device: torch.device) -> None:
        self._device, self._train = device, train_timesteps(scheduler_config)
        given = explicit_sigmas(sampler)
        if given is None:
            given = shifted_sigmas(sampler.steps or 0, sampler.shift or 0, self._train)
        self.sigmas = (*given, 0.0)
        self.evaluations = self.facts.calls(len(given))
        self.begin(0)

    def begin(self, step: int) -> None:
        self._previous: tuple[Tensor, float] | None = None

    def _evaluate(self, x: Tensor, sigma: float, velocity: Velocity) -> Tensor:
        t = torch.tensor(self._train * sigma, dtype=torch.float32, device=self._device)
        return velocity(x, t, sigma).to(x.dtype)
