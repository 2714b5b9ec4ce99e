"""Euler's method."""

from __future__ import annotations

from wanscope.sample.solvers import solver
from wanscope.sample.solvers.diffusers_solver import DiffusersSolver


@solver("euler", order=1)
class Euler(DiffusersSolver):
    """Euler's method from diffusers."""

    scheduler_class, shift_name = "FlowMatchEulerDiscreteScheduler", "shift"
