"""Heun's method."""

from __future__ import annotations

from wanscope.sample.solvers import solver
from wanscope.sample.solvers.diffusers_solver import DiffusersSolver


# diffusers' Heun makes its own sigmas and takes none from outside.
@solver("heun", order=2, takes_sigmas=False, calls_per_step=2, last_step_calls=1)
class Heun(DiffusersSolver):
    """Heun's method from diffusers.

    The last step, to sigma = 0, is Euler's: 20 steps take 39 evaluations.
    """

    scheduler_class, shift_name = "FlowMatchHeunDiscreteScheduler", "shift"
