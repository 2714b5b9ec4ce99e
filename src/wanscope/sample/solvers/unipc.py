"""UniPC, the default solver of Wan."""

from __future__ import annotations

from wanscope.sample.solvers import solver
from wanscope.sample.solvers.diffusers_solver import FLOW, DiffusersSolver


@solver("unipc", order=3)
class UniPC(DiffusersSolver):
    """UniPC from diffusers, Wan's default; multistep. Its corrector raises the predictor's order of 2 to 3. arXiv
    2302.04867.

    Source: Zhao et al. 2023. The corrector reuses the evaluation of the next step, so it adds none.

    UniPC computes log(1 - sigma), so diffusers lowers a first sigma of 1 by 1e-6. An explicit sigma of 1 becomes the
    largest float32 below 1, which is closer. The model gets integer timesteps (sigma * 1000, rounded down), as in
    diffusers.
    """

    scheduler_class, shift_name, settings = "UniPCMultistepScheduler", "flow_shift", FLOW
    largest_sigma = 1 - 2.0**-24
