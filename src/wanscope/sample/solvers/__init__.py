"""Solvers: how latents get from one noise level to the next. What a solver is, and the registry of all of them.

A solver is one file with one class, which has two facts and two methods (`Solver`) and is registered under the name
that recipes use:

    @solver("name", order=2, calls_per_step=2)
    class Name(Solver): ...

All solve dx/dsigma = v(x, sigma) from sigma = 1 (noise) down to 0 (clean), where Wan predicts the velocity
v = noise - clean and x = (1 - sigma) clean + sigma noise. Every file of this folder that registers a solver is found by
`wanscope.spec.solver_facts`, which reads the decorator without importing the file. convergence.py measures the order.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol, TypeVar

import torch
from torch import Tensor

from wanscope.errors import RecipeError
from wanscope.recipe import SamplerSpec
from wanscope.spec import solver_facts
from wanscope.spec.solver_facts import SolverFacts


class Velocity(Protocol):
    def __call__(self, x: Tensor, t: Tensor, sigma: float) -> Tensor:
        """The velocity at x, shaped like x, in the model's dtype. t: the model's timestep, a 0-dim tensor."""
        ...


class Solver(ABC):
    """sigmas: the S + 1 noise levels of the states, ending in 0. evaluations: model evaluations of each step.

    facts is what the decorator `solver` was given.
    """

    facts: ClassVar[SolverFacts]

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
    name: str,
    *,
    order: int | None = None,
    takes_sigmas: bool = True,
    calls_per_step: int = 1,
    last_step_calls: int | None = None,
) -> Callable[[SolverClass], SolverClass]:
    """Registers a solver under the name that recipes use, with what `SolverFacts` of spec/solver_facts.py describes.

    For a file of this folder the arguments are literals, because they are also read without importing it. RecipeError
    where another file has a solver of that name.
    """

    def register(cls: SolverClass) -> SolverClass:
        cls.facts = SolverFacts(
            name=name,
            module=cls.__module__,
            order=order,
            takes_sigmas=takes_sigmas,
            calls_per_step=calls_per_step,
            last_step_calls=last_step_calls,
            about=solver_facts.first_paragraph(cls.__doc__),
        )
        solver_facts.register(cls.facts)
        _registry[name] = cls
        return cls

    return register


def solver_class(name: str) -> type[Solver]:
    """The class of a registered solver; its file is imported if it was not yet. RecipeError for an unknown name."""
    if name not in _registry:
        solver_facts.import_solver(name)
    return _registry[name]


def make_solver(sampler: SamplerSpec, scheduler_config: Mapping[str, Any], device: torch.device | str) -> Solver:
    """The solver of a resolved sampler, at its first step.

    `scheduler_config` is the model's scheduler as a dict: where its class is the one asked for, its other settings
    hold. Raises RecipeError for open values, unknown names, and sigmas given to a solver that takes none.
    """
    _require_resolved(sampler)
    name = str(sampler.solver)
    cls = solver_class(name)
    if sampler.sigmas and not solver_facts.facts(name).takes_sigmas:
        other = solver_facts.names_that_take_sigmas()[-1]
        raise RecipeError(f"solver {name!r} takes no explicit sigmas", "it makes its own", f"solver: {other}")
    made = cls(sampler, scheduler_config, torch.device(device))
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


def train_timesteps(scheduler_config: Mapping[str, Any]) -> int:
    """The model's timestep is sigma times this (1000)."""
    return int(scheduler_config.get("num_train_timesteps", 1000))
