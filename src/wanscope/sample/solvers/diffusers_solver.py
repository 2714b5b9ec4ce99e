"""Solvers that use a scheduler of diffusers, exactly as WanPipeline does."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from wanscope.errors import ModelError, WorkError
from wanscope.recipe import SamplerSpec
from wanscope.sample.solvers import Solver, Velocity, explicit_sigmas, train_timesteps

# The settings that Wan needs, for a scheduler of another class than the model's own.
FLOW: dict[str, Any] = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}

# Settings with which a scheduler does not change the sigmas that it is given.
_SIGMAS_AS_GIVEN: dict[str, Any] = {
    "use_flow_sigmas": True,
    "use_dynamic_shifting": False,
    "shift_terminal": None,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "invert_sigmas": False,
    "final_sigmas_type": "zero",
}


class DiffusersSolver(Solver):
    """A diffusers scheduler with flow sigmas, used exactly as in WanPipeline.

    Euler, Heun and DPM++ return latents in the model's dtype (UniPC keeps float32). This is not changed, because
    otherwise the latents of a bf16 model would not equal those of WanPipeline.

    scheduler_class: the name of the scheduler's class. shift_name: the name of its shift setting. settings: its
    settings if the model's own scheduler is of another class. largest_sigma: the largest noise level that it can
    compute with.
    """

    scheduler_class: ClassVar[str]
    shift_name: ClassVar[str]
    settings: ClassVar[dict[str, Any]] = {}
    largest_sigma: ClassVar[float] = 1.0

    def __init__(self, sampler: SamplerSpec, scheduler_config: Mapping[str, Any], device: torch.device) -> None:
        import diffusers

        self._class = getattr(diffusers, self.scheduler_class)
        self._device, self._steps, self._given = device, sampler.steps, explicit_sigmas(sampler)
        self._config = self._configured(scheduler_config) | {self.shift_name: sampler.shift}
        if self._given is not None:
            self._config |= {k: v for k, v in _SIGMAS_AS_GIVEN.items() if k in _arguments(self._class)}
            self._config[self.shift_name] = 1.0
        self.begin(0)
        calls = len(self.scheduler.timesteps)
        each = self.facts.calls_per_step
        firsts = range(0, calls, each)
        self._call_sigmas: list[float] = self.scheduler.sigmas.tolist()
        self.sigmas = (*(self._call_sigmas[i] for i in firsts), self._call_sigmas[-1])
        self.evaluations = tuple(min(each, calls - i) for i in firsts)

    def begin(self, step: int) -> None:
        self.scheduler = self._class(**self._config)
        if self._given is None:
            self.scheduler.set_timesteps(self._steps, device=self._device)
        else:
            self.scheduler.set_timesteps(sigmas=np.array(self._given), device=self._device)
            self._use_exactly(self._given)
        self.scheduler.set_begin_index(step * self.facts.calls_per_step)

    def step(self, step: int, x: Tensor, velocity: Velocity) -> Tensor:
        first = step * self.facts.calls_per_step
        for call in range(first, first + self.evaluations[step]):
            t = self.scheduler.timesteps[call]
            v = velocity(x, t, self._call_sigmas[call])
            x = self.scheduler.step(v, t, x, return_dict=False)[0]
        return x

    def _use_exactly(self, given: tuple[float, ...]) -> None:
        """Set the scheduler's sigmas to the given ones, from which diffusers' own may differ by 1e-6."""
        wanted = torch.tensor([*given, 0.0], dtype=torch.float32, device=self.scheduler.sigmas.device)
        if self.scheduler.sigmas.shape != wanted.shape or (self.scheduler.sigmas - wanted).abs().max() > 2e-6:
            raise WorkError(
                f"diffusers' {self.scheduler_class} changed the sigmas it was given",
                f"{given} became {tuple(self.scheduler.sigmas.tolist())}",
                "solver: res_multistep",
            )
        self.scheduler.sigmas = wanted.clamp(max=self.largest_sigma)

    def _configured(self, config: Mapping[str, Any]) -> dict[str, Any]:
        if config.get("_class_name", self.scheduler_class) != self.scheduler_class:
            return {"num_train_timesteps": train_timesteps(config), **self.settings}
        if config.get("stochastic_sampling") or str(config.get("algorithm_type")).startswith("sde"):
            raise ModelError(
                "the model's scheduler draws noise at every step",
                "a take must be reproducible from its recipe and seed",
                "solver: unipc",
            )
        return {**self.settings, **{k: v for k, v in config.items() if k in _arguments(self._class)}}


@functools.cache  # diffusers' decorator makes the signature slow to read
def _arguments(scheduler: type) -> frozenset[str]:
    """Return the names of the arguments that a scheduler class takes."""
    return frozenset(inspect.signature(scheduler.__init__).parameters) - {"self"}
