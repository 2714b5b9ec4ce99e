"""Sampling: the denoising loop, its solvers and its guidance."""

from wanscope.capture.moments import AroundCall, Moment, Observer, StepState
from wanscope.sample.conditioning import Conditioning
from wanscope.sample.loop import Denoised, denoise
from wanscope.sample.noise import initial_noise
from wanscope.sample.solvers import Solver, make_solver, solver
from wanscope.spec.solver_facts import solver_names

__all__ = [
    "AroundCall",
    "Conditioning",
    "Denoised",
    "Moment",
    "Observer",
    "Solver",
    "StepState",
    "denoise",
    "initial_noise",
    "make_solver",
    "solver",
    "solver_names",
]
