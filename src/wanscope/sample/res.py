"""Refined exponential solvers: res_2s and res_multistep, both of second order.

Source: Zhang, Song, Chen, "Improved Order Analysis and Design of Exponential Integrator for Diffusion Models Sampling"
(Refined Exponential Solver), 2023, arXiv 2308.02157. They are stated there for dx/dlambda = -x + D(x, lambda). A flow
model gives D = x - sigma v, the clean latents it predicts, and its equation dx/dsigma = v = (x - D) / sigma has that
very form in the time lambda = -log(sigma), with no rescaling of x. (log((1 - sigma) / sigma), the time of DPM-Solver++,
would be infinite at sigma = 1, where every video begins; this one is 0 there.)

With h = lambda' - lambda = log(sigma / sigma') and phi_1(z) = (e^z - 1) / z, phi_2(z) = (phi_1(z) - 1) / z, a second
prediction D_2 at lambda + c h gives, by the order conditions b_1 + b_2 = phi_1(-h) and b_2 c = phi_2(-h),

    x' = e^-h x + h [ (phi_1(-h) - phi_2(-h) / c) D_1 + phi_2(-h) / c D_2 ].

res_2s evaluates the model in between (c = 1/2, at sqrt(sigma sigma')); res_multistep takes the previous step's
prediction (c = -h_previous / h) and starts with a first-order step.

At sigma' = 0, h is infinite and extrapolating along lambda would diverge. res_2s then takes the explicit midpoint rule
in sigma, of the same order; res_multistep takes x' = D, as diffusers' multistep solvers do: one step with an error of
the order of its length squared, which leaves the whole of second order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from wanscope.recipe import SamplerSpec
from wanscope.sample.solvers import Solver, Velocity, explicit_sigmas, solver, train_timesteps


def shifted_sigmas(steps: int, shift: float, train_steps: int = 1000) -> tuple[float, ...]:
    """Wan's schedule of flow sigmas, from 1 (as diffusers' UniPC makes it), without the closing 0."""
    even = [1 - (1 - 1 / train_steps) * i / steps for i in range(steps)]
    return tuple(shift * s / (1 + (shift - 1) * s) for s in even)


def h_phi(h: float) -> tuple[float, float]:
    """h phi_1(-h) and h phi_2(-h), which are 1 - e^-h and 1 - (1 - e^-h) / h, to full precision for any h > 0."""
    first = -math.expm1(-h)
    if h > 0.1:
        return first, 1 - first / h
    # The difference would cancel; sum of (-1)^(k+1) h^k / (k+1)! instead.
    return first, sum((-1) ** (k + 1) * h**k / math.factorial(k + 1) for k in range(1, 12))


class ExponentialSolver(Solver):
    """What both share: the schedule and the model's exact, unrounded timesteps."""

    calls_per_step = 1

    def __init__(self, sampler: SamplerSpec, scheduler_config: Mapping[str, Any], device: torch.device) -> None:
        self._device, self._train = device, train_timesteps(scheduler_config)
        given = explicit_sigmas(sampler)
        if given is None:
            given = shifted_sigmas(sampler.steps or 0, sampler.shift or 0, self._train)
        self.sigmas = (*given, 0.0)
        self.evaluations = (self.calls_per_step,) * len(given)
        self.begin(0)

    def begin(self, step: int) -> None:
        self._previous: tuple[Tensor, float] | None = None

    def _evaluate(self, x: Tensor, sigma: float, velocity: Velocity) -> Tensor:
        t = torch.tensor(self._train * sigma, dtype=torch.float32, device=self._device)
        return velocity(x, t, sigma).to(x.dtype)


@solver("res_2s")
class Res2S(ExponentialSolver):
    """Singlestep: two evaluations a step. Compare it with others at half their steps."""

    calls_per_step = 2

    def step(self, step: int, x: Tensor, velocity: Velocity) -> Tensor:
        sigma, sigma_next = self.sigmas[step : step + 2]
        v = self._evaluate(x, sigma, velocity)
        middle = math.sqrt(sigma * sigma_next) if sigma_next > 0 else sigma / 2
        x_middle = x + (middle - sigma) * v  # the exponential Euler step is Euler's: D is constant along it
        v_middle = self._evaluate(x_middle, middle, velocity)
        if sigma_next == 0:
            return x - sigma * v_middle
        phi_1, phi_2 = h_phi(math.log(sigma / sigma_next))
        d, d_middle = x - sigma * v, x_middle - middle * v_middle
        return (sigma_next / sigma) * x + (phi_1 - 2 * phi_2) * d + 2 * phi_2 * d_middle


@solver("res_multistep")
class ResMultistep(ExponentialSolver):
    """Multistep: one evaluation a step; the previous prediction stands for the second stage."""

    def step(self, step: int, x: Tensor, velocity: Velocity) -> Tensor:
        sigma, sigma_next = self.sigmas[step : step + 2]
        d = x - sigma * self._evaluate(x, sigma, velocity)
        previous, self._previous = self._previous, (d, sigma)
        if sigma_next == 0:
            return d
        h = math.log(sigma / sigma_next)
        phi_1, phi_2 = h_phi(h)
        new = (sigma_next / sigma) * x + phi_1 * d
        if previous is None:
            return new
        d_previous, sigma_previous = previous
        share = phi_2 * h / math.log(sigma_previous / sigma)
        return new + share * (d - d_previous)
