"""DPM-Solver++."""

from __future__ import annotations

from wanscope.sample.solvers import solver
from wanscope.sample.solvers.diffusers_solver import FLOW, DiffusersSolver


# diffusers' DPM++ computes its own sigmas and does not accept explicit ones.
@solver("dpm++", order=2, takes_sigmas=False)
class DPMSolverPlusPlus(DiffusersSolver):
    """DPM-Solver++(2M) from diffusers; multistep. arXiv 2211.01095.

    Source: Lu et al. 2022.
    """

    scheduler_class, shift_name, settings = "DPMSolverMultistepScheduler", "flow_shift", FLOW
