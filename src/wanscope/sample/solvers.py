"""Solvers: how latents get from one noise level to the next.

A solver is one class with two facts and two methods (`Solver`), registered under the name that recipes use:

    @solver("name")
    class Name(Solver): ...

All solve dx/dsigma = v(x, sigma) from sigma = 1 (noise) down to 0 (clean), where Wan predicts the velocity
v = noise - clean and x = (1 - sigma) clean + sigma noise. Here are diffusers' own; ours are in res.py.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from wanscope.errors import ModelError, RecipeError, WorkError
from wanscope.recipe import SamplerSpec
from wanscope.spec import solver_facts


class Velocity(Protocol):
    def __call__(self, x: Tensor, t: Tensor, sigma: float) -> Tensor:
        """The velocity at x, shaped like x, in the model's dtype. t: the model's timestep, a 0-dim tensor."""
        ...


class Solver(ABC):
    """sigmas: the S + 1 noise levels of the states, ending in 0. evaluations: model evaluations of each step."""

    sigmas: tuple[float, ...]
    evaluations: tuple[int, ...]

    @abstractmethod
    def __init__(self, sampler: SamplerSpec, scheduler_config: Mapping[str, Any], device: torch.device) -> None: ...

    @abstractmethod
    def begin(self, step: int) -> None:
        """Forget all history; the next call is of this step."""

    @abstractmethod
    def step(self, step: int, x: Tensor, velocity: Velocity) -> Tensor:
        """The state at sigmas[step + 1] from x at sigmas[step]. Steps are taken in order, without gaps."""


SolverClass = TypeVar("SolverClass", bound=type[Solver])
_registry: dict[str, type[Solver]] = {}


def solver(
    name: str, *, takes_sigmas: bool = True, calls_per_step: int = 1, last_step_calls: int | None = None
) -> Callable[[SolverClass], SolverClass]:
    """Registers a solver under the name that recipes use, with what `wanscope.solvers.SolverFacts` has to know."""

    def register(cls: SolverClass) -> SolverClass:
        solver_facts.register(
            solver_facts.SolverFacts(name, cls.__module__, takes_sigmas, calls_per_step, last_step_calls)
        )
        _registry[name] = cls
        return cls

    return register


def make_solver(sampler: SamplerSpec, scheduler_config: Mapping[str, Any], device: torch.device | str) -> Solver:
    """The solver of a resolved sampler, at its first step.

    `scheduler_config` is the model's scheduler as a dict: where its class is the one asked for, its other settings
    hold. Raises RecipeError for open values, unknown names, and sigmas given to a solver that takes none.
    """
    _require_resolved(sampler)
    name = str(sampler.solver)
    if name not in _registry:
        solver_facts.import_solver(name)
    if sampler.sigmas and not solver_facts.facts(name).takes_sigmas:
        raise RecipeError(f"solver {name!r} takes no explicit sigmas", "it makes its own", "solver: unipc, or euler")
    made = _registry[name](sampler, scheduler_config, torch.device(device))
    made.begin(0)
    return made


def _require_resolved(sampler: SamplerSpec) -> None:
    open_values = [key for key in ("solver", "steps", "shift", "guidance") if getattr(sampler, key) is None]
    open_values += [] if sampler.denoise is None else ["denoise"]
    if open_values:
        raise RecipeError(
            f"the sampler is not resolved ({', '.join(open_values)})",
            "the loop leaves nothing open",
            "sampler.resolved(model.variant.defaults.values(), experts=len(model.experts()))",
        )
    steps = len(explicit_sigmas(sampler) or ()) or sampler.steps or 0
    if sampler.steps != steps or sampler.start_step >= steps:
        raise RecipeError(
            f"start_step {sampler.start_step} of {sampler.steps} steps cannot be run",
            f"the schedule has steps 0 to {steps - 1}",
            f"steps: {steps}, start_step: {max(steps - 1, 0)} at most",
        )


def explicit_sigmas(sampler: SamplerSpec) -> tuple[float, ...] | None:
    """The sampler's own sigmas without the closing 0, or None."""
    return tuple(s for s in sampler.sigmas if s > 0) if sampler.sigmas else None


class DiffusersSolver(Solver):
    """A diffusers scheduler with flow sigmas, driven exactly as WanPipeline drives it.

    Euler, Heun and DPM++ hand back latents in the model's dtype (UniPC keeps float32). That is left as it is: a bf16
    model's latents would not equal WanPipeline's otherwise.
    """

    scheduler_class: ClassVar[str]
    shift_name: ClassVar[str]
    settings: ClassVar[dict[str, Any]] = {}  # where the model's own scheduler is of another class
    calls_per_step: ClassVar[int] = 1
    largest_sigma: ClassVar[float] = 1.0

    def __init__(self, sampler: SamplerSpec, scheduler_config: Mapping[str, Any], device: torch.device) -> None:
        import diffusers

        self._class = getattr(diffusers, self.scheduler_class)
        self._device, self._steps, self._given = device, sampler.steps, explicit_sigmas(sampler)
        self._config = self._configured(scheduler_config) | {self.shift_name: sampler.shift}
        if self._given is not None:
            self._config |= {k: v for k, v in _SIGMAS_AS_GIVEN.items() if k in self._known()}
            self._config[self.shift_name] = 1.0
        self.begin(0)
        calls = len(self.scheduler.timesteps)
        firsts = range(0, calls, self.calls_per_step)
        self._call_sigmas: list[float] = self.scheduler.sigmas.tolist()
        self.sigmas = (*(self._call_sigmas[i] for i in firsts), self._call_sigmas[-1])
        self.evaluations = tuple(min(self.calls_per_step, calls - i) for i in firsts)

    def begin(self, step: int) -> None:
        self.scheduler = self._class(**self._config)
        if self._given is None:
            self.scheduler.set_timesteps(self._steps, device=self._device)
        else:
            self.scheduler.set_timesteps(sigmas=np.array(self._given), device=self._device)
            self._use_exactly(self._given)
        self.scheduler.set_begin_index(step * self.calls_per_step)

    def step(self, step: int, x: Tensor, velocity: Velocity) -> Tensor:
        first = step * self.calls_per_step
        for call in range(first, first + self.evaluations[step]):
            t = self.scheduler.timesteps[call]
            v = velocity(x, t, self._call_sigmas[call])
            x = self.scheduler.step(v, t, x, return_dict=False)[0]
        return x

    def _use_exactly(self, given: tuple[float, ...]) -> None:
        """The scheduler's sigmas become those given; what it had made of them may differ by diffusers' own 1e-6."""
        wanted = torch.tensor([*given, 0.0], dtype=torch.float32, device=self.scheduler.sigmas.device)
        if self.scheduler.sigmas.shape != wanted.shape or (self.scheduler.sigmas - wanted).abs().max() > 2e-6:
            raise WorkError(
                f"diffusers' {self.scheduler_class} changed the sigmas it was given",
                f"{given} became {tuple(self.scheduler.sigmas.tolist())}",
                "solver: res_multistep",
            )
        self.scheduler.sigmas = wanted.clamp(max=self.largest_sigma)

    def _known(self) -> set[str]:
        return set(inspect.signature(self._class.__init__).parameters) - {"self"}

    def _configured(self, config: Mapping[str, Any]) -> dict[str, Any]:
        if config.get("_class_name", self.scheduler_class) != self.scheduler_class:
            return {"num_train_timesteps": train_timesteps(config), **self.settings}
        if config.get("stochastic_sampling") or str(config.get("algorithm_type")).startswith("sde"):
            raise ModelError(
                "the model's scheduler draws noise at every step",
                "a take must come out the same from its recipe and seed",
                "a solver that does not: unipc, or euler with stochastic_sampling off in scheduler_config.json",
            )
        return {**self.settings, **{k: v for k, v in config.items() if k in self._known()}}


# Whatever would change sigmas that were given.
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


def train_timesteps(scheduler_config: Mapping[str, Any]) -> int:
    """The model's timestep is sigma times this (1000)."""
    return int(scheduler_config.get("num_train_timesteps", 1000))


_FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}


@solver("unipc")
class UniPC(DiffusersSolver):
    """UniPC, a multistep predictor-corrector of second order (Zhao et al. 2023, arXiv 2302.04867); Wan's own choice.

    It takes log(1 - sigma), so diffusers lowers a first sigma of 1 by 1e-6; an explicit one becomes the largest float32
    below 1, which is nearer. The model sees whole timesteps (sigma * 1000, rounded down), as diffusers has it.
    """

    scheduler_class, shift_name, settings = "UniPCMultistepScheduler", "flow_shift", _FLOW
    largest_sigma = 1 - 2.0**-24


@solver("euler")
class Euler(DiffusersSolver):
    """Euler's method, first order."""

    scheduler_class, shift_name = "FlowMatchEulerDiscreteScheduler", "shift"


@solver("heun")
class Heun(DiffusersSolver):
    """Heun's method, second order: two evaluations a step, one in the last (20 steps, 39 evaluations)."""

    scheduler_class, shift_name, calls_per_step = "FlowMatchHeunDiscreteScheduler", "shift", 2


@solver("dpm++")
class DPMSolverPlusPlus(DiffusersSolver):
    """DPM-Solver++(2M), second-order multistep (Lu et al. 2022, arXiv 2211.01095)."""

    scheduler_class, shift_name, settings = "DPMSolverMultistepScheduler", "flow_shift", _FLOW
