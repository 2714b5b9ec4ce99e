"""The denoising loop: from noise to clean latents, in steps that can be observed, interrupted and edited.

Shape suffixes: C latent channels, T latent frames, h and w latent height and width.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from wanscope.capture.moments import AroundCall, Observer, StepState
from wanscope.errors import Interrupted, NumericalError
from wanscope.recipe import SamplerSpec
from wanscope.sample.conditioning import Conditioning
from wanscope.sample.guidance import Guidance
from wanscope.sample.noise import initial_noise, starting_latents
from wanscope.sample.solvers import make_solver
from wanscope.sample.velocity import GuidedVelocity

if TYPE_CHECKING:
    from wanscope.wan.model import WanModel

__all__ = ["Denoised", "Observer", "StepState", "denoise", "initial_noise"]


@dataclass(frozen=True)
class Denoised:
    """The result of a run.

    latents: float32 [1, C, T, h, w]. sigmas: the noise levels of all its states, from the first to the last.
    evaluations: model evaluations, where a guided one counts once. seconds: wall time of all steps, including the
    observers.
    """

    latents: Tensor
    sigmas: tuple[float, ...]
    evaluations: int
    seconds: float


@torch.no_grad()
def denoise(
    model: WanModel,
    conditioning: Conditioning,
    sampler: SamplerSpec,
    noise: Tensor,
    *,
    init_latents: Tensor | None = None,
    observers: Sequence[Observer] = (),
    interrupt: Callable[[], bool] = lambda: False,
    on_step: Callable[[StepState], None] | None = None,
    around_call: AroundCall | None = None,
) -> Denoised:
    """Denoise `noise` [1, C, T, h, w], conditioned on `conditioning`, and return the clean latents.

    init_latents: [1, C, T, h, w]; if given, the run starts from them, noised to the level of `sampler.start_step`.
    sampler: resolved. around_call(moment): returns a context manager that each model call runs in. on_step: called
    after each step, after the observers. With the same components, seed and scheduler, the latents equal those of
    diffusers' WanPipeline bit for bit if it makes the same passes.

    Raises RecipeError or ModelError before any work if the run is impossible, Interrupted before a step at which
    `interrupt()` is true, and NumericalError after a step that produces NaN or Inf.
    """
    model.require_text_only()
    for expert in model.experts():
        expert._reset_stateful_cache()  # a step cache, where one is on, must not carry over from an earlier run
    solver = make_solver(sampler, model.scheduler_config, model.device)
    velocity = GuidedVelocity(model, conditioning, Guidance(sampler, solver.sigmas), solver, around_call)
    first, steps = sampler.start_step, len(solver.evaluations)
    x = starting_latents(noise.to(model.device), init_latents, solver.sigmas[first], first)
    solver.begin(first)

    began = time.perf_counter()
    for observer in observers:
        observer.start(x, solver.sigmas[first:])
    for step in range(first, steps):
        if interrupt():
            raise Interrupted(f"stopped before step {step} of {steps}", "the finished steps are not kept")
        step_began = time.perf_counter()
        velocity.begin(step)
        x = solver.step(step, x, velocity)
        _require_finite(x, step, steps, solver.sigmas[step])
        state = StepState(
            step=step,
            steps=steps,
            sigma=solver.sigmas[step],
            sigma_next=solver.sigmas[step + 1],
            latents=x.float(),
            denoised=velocity.denoised,
            evaluations=velocity.evaluation,
            seconds=time.perf_counter() - step_began,
        )
        for observer in observers:
            observer.step(state)
        if on_step is not None:
            on_step(state)
    seconds = time.perf_counter() - began
    return Denoised(x.float(), solver.sigmas[first:], sum(solver.evaluations[first:]), seconds)


def _require_finite(x: Tensor, step: int, steps: int, sigma: float) -> None:
    if torch.isfinite(x).all():
        return
    raise NumericalError(
        f"the latents have NaN or Inf after step {step} of {steps}, at sigma {sigma:.4f}",
        "the model's values overflowed (fp16 has the smallest range), or its weights or the text embedding are damaged"
        "; a lower guidance or another solver may help too",
        "dtype: fp32",
    )
