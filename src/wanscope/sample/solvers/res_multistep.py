"""The refined exponential solver res_multistep, which reuses the previous step's prediction."""

from __future__ import annotations

import math

from torch import Tensor

from wanscope.sample.solvers import Velocity, solver
from wanscope.sample.solvers.exponential import ExponentialSolver, h_phi


@solver("res_multistep", order=2)
class ResMultistep(ExponentialSolver):
    """Refined exponential solver, multistep. arXiv 2308.02157.

    The previous step's prediction is the second stage (c = -h_previous / h); the first step is first-order. The last
    step, to sigma' = 0, is x' = D, as in diffusers' multistep solvers. The error of that one step is proportional to
    its length squared, so the whole solver remains second-order.
    """

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
