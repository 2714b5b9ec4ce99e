"""Solvers, which take latents from one noise level to the next: their base class and their registry.

A solver is one file with one class, which has two attributes and two methods (see `Solver`) and is registered under the
name that recipes use:

    @solver("name", order=2, calls_per_step=2)
    class Name(Solver): ...

All solve dx/dsigma = v(x, sigma) from sigma = 1 (noise) down to 0 (clean), where Wan predicts the velocity
v = noise - clean and x = (1 - sigma) clean + sigma noise. `wanscope.spec.solver_facts` finds every file of this folder
that registers a solver, and reads the decorator without importing the file. convergence.py measures the order.

Latents and velocities are [1, C, T, h, w], but a solver treats every value alike, so any shape works.
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
    """The model, as a function of the latents and the noise level."""

    def __call__(self, x: Tensor, t: Tensor, sigma: float) -> Tensor:
        """Return the velocity at x, shaped like x, in the model's dtype. t: the model's timestep, a 0-dim tensor."""
        ...


class Solver(ABC):
    """Takes latents down a schedule of noise levels.

    sigmas: the noise levels of the states, one more than there are steps, ending in 0. evaluations: the number of model
    evaluations of each step. facts: the arguments of the decorator `solver`.
    """

    facts: ClassVar[SolverFacts]

    sigmas: tuple[float, ...]
    evaluations: tuple[int, ...]

    @abstractmethod
    def __init__(self, sampler: SamplerSpec, scheduler_config: Mapping[str, Any], device: torch.device) -> None:
        """Set `sigmas` and `evaluations` for a resolved sampler. scheduler_config: that of the model."""

    @abstractmethod
    def begin(self, step: int) -> None:
        """Discard all history; the next call of `step` is for this step."""

    @abstractmethod
    def step(self, step: int, x: Tensor, velocity: Velocity) -> Tensor:
        """Return the state at sigmas[step + 1] from x at sigmas[step], in the same shape.

        Steps are called in order, without gaps.
        """


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
    """Register a solver under the name that recipes use. The other arguments are described in `SolverFacts`.

    In a file of this folder the arguments must be literals, because they are also read without importing the file.
    Raises RecipeError if another file has a solver of that name.
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
    """Return the class of a registered solver, importing its file if needed. Raises RecipeError for an unknown name."""
    if name not in _registry:
        solver_facts.import_solver(name)
    return _registry[name]


def make_solver(sampler: SamplerSpec, scheduler_config: Mapping[str, Any], device: torch.device | str) -> Solver:
    """Return the solver of a resolved sampler, ready for its first step.

    scheduler_config: the config of the model's scheduler. If that is the scheduler the solver uses, its other settings
    apply. Raises RecipeError for a sampler that is not resolved, for unknown names, and for sigmas given to a solver
    that takes none.
    """
    _require_resolved(sampler)
    name = str(sampler.solver)
    cls = solver_class(name)
    if sampler.sigmas and not solver_facts.facts(name).takes_sigmas:
        other = solver_facts.names_that_take_sigmas()[-1]
        raise RecipeError(f"solver {name!r} takes no explicit sigmas", "it computes its own", f"solver: {other}")
    made = cls(sampler, scheduler_config, torch.device(device))
    made.begin(0)
    return made


def _require_resolved(sampler: SamplerSpec) -> None:
    open_values = [key for key in ("solver", "steps", "shift", "guidance") if getattr(sampler, key) is None]
    open_values += [] if sampler.denoise is None else ["denoise"]
    if open_values:
        raise RecipeError(
            f"the sampler is not resolved ({', '.join(open_values)})",
            "these values must be set before a run",
            "sampler.resolved(model.variant.defaults.values(), experts=len(model.experts()))",
        )
    steps = len(explicit_sigmas(sampler) or ()) or sampler.steps or 0
    if sampler.steps != steps or sampler.start_step >= steps:
        raise RecipeError(
            f"start_step {sampler.start_step} of {sampler.steps} steps cannot be run",
            f"the schedule has steps 0 to {steps - 1}",
            f"{{steps: {steps}, start_step: {min(sampler.start_step, max(steps - 1, 0))}}}",
        )


def explicit_sigmas(sampler: SamplerSpec) -> tuple[float, ...] | None:
    """Return the sampler's explicit sigmas without the final 0, or None if it has none."""
    return tuple(s for s in sampler.sigmas if s > 0) if sampler.sigmas else None


def train_timesteps(scheduler_config: Mapping[str, Any]) -> int:
    """Return the factor from sigma to the model's timestep (1000 by default)."""
    return int(scheduler_config.get("num_train_timesteps", 1000))
