"""Heun's method."""

from __future__ import annotations

from wanscope.sample.solvers import solver
from wanscope.sample.solvers.diffusers_solver import DiffusersSolver


# diffusers' Heun computes its own sigmas and does not accept explicit ones.
@solver("heun", order=2, takes_sigmas=False, calls_per_step=2, last_step_calls=1)
class Heun(DiffusersSolver):
    """Heun's method from diffusers.

    The last step, to sigma = 0, is an Euler step, so 20 steps take 39 evaluations.
    """

    scheduler_class, shift_name = "FlowMatchHeunDiscreteScheduler", "shift"
