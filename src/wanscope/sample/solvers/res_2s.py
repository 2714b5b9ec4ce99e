"""The refined exponential solver res_2s, with two evaluations per step."""

from __future__ import annotations

import math

from torch import Tensor

from wanscope.sample.solvers import Velocity, solver
from wanscope.sample.solvers.exponential import ExponentialSolver, h_phi


@solver("res_2s", order=2, calls_per_step=2)
class Res2S(ExponentialSolver):
    """Refined exponential solver, singlestep. arXiv 2308.02157.

    The second evaluation is halfway in log(sigma) (c = 1/2, at sqrt(sigma sigma')). The last step, to sigma' = 0, is
    the explicit midpoint rule in sigma, of the same order. To compare it with other solvers, use half their steps.
    """

    def step(self, step: int, x: Tensor, velocity: Velocity) -> Tensor:
        sigma, sigma_next = self.sigmas[step : step + 2]
        v = self._evaluate(x, sigma, velocity)
        middle = math.sqrt(sigma * sigma_next) if sigma_next > 0 else sigma / 2
        x_middle = x + (middle - sigma) * v  # the exponential Euler step equals Euler's, because D is constant along it
        v_middle = self._evaluate(x_middle, middle, velocity)
        if sigma_next == 0:
            return x - sigma * v_middle
        phi_1, phi_2 = h_phi(math.log(sigma / sigma_next))
        d, d_middle = x - sigma * v, x_middle - middle * v_middle
        return (sigma_next / sigma) * x + (phi_1 - 2 * phi_2) * d + 2 * phi_2 * d_middle
