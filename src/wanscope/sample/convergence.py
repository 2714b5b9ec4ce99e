"""Checks that a solver has the order and the number of evaluations that it states.

The order of convergence is measured in float64 against an exact solution: every latent value is drawn independently
from a mixture of Gaussians, whose velocity has a closed form. The exact state at every noise level is known too: the
probability flow is one-dimensional and keeps values in order, so it maps a quantile of the noise to the same quantile
of the data mixed with noise. With several means the equation is nonlinear, so a solver that is only correct for linear
equations is detected as well.

    from wanscope.sample.convergence import disagreements

    assert disagreements("my_solver") == []

Tensors may have any shape, because every value is independent of the others.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wanscope.recipe import SamplerSpec
from wanscope.sample.solvers import Solver, make_solver
from wanscope.spec.solver_facts import facts

TOLERANCE = 0.3  # how far a measured order may be from the stated one
FLOW = {"_class_name": "UniPCMultistepScheduler", "prediction_type": "flow_prediction", "use_flow_sigmas": True}


@dataclass(frozen=True)
class MixtureWorld:
    """One-dimensional data from a mixture of equally likely Gaussians. spread: their common standard deviation."""

    name: str
    means: tuple[float, ...]
    spread: float

    def velocity(self, x: Tensor, t: Tensor, sigma: float) -> Tensor:
        """Return the exact velocity (x - E[clean | x]) / sigma, in the shape and dtype of x (any shape).

        It is computed in float64. `t` is not used; it makes this function a `Velocity`. sigma: above 0.
        """
        alpha = 1 - sigma
        variance = alpha**2 * self.spread**2 + sigma**2
        means = torch.tensor(self.means, dtype=torch.float64)
        offset = x.double()[..., None] - alpha * means
        weights = torch.softmax(-offset.square() / (2 * variance), dim=-1)
        clean = (weights * (means + alpha * self.spread**2 / variance * offset)).sum(-1)
        return ((x.double() - clean) / sigma).to(x.dtype)

    def state(self, noise: Tensor, sigma: float = 0.0) -> Tensor:
        """Return the exact state at `sigma` of the paths that begin at `noise` (any shape), in the same shape.

        The result is float64, found by bisection to full precision. sigma: 0 (clean) to 1 (noise).
        """
        alpha = 1 - sigma
        means = alpha * torch.tensor(self.means, dtype=torch.float64)
        spread = math.sqrt(alpha**2 * self.spread**2 + sigma**2)
        target = torch.special.ndtr(noise.double())
        low = torch.full_like(target, float(means.min()) - 10 * spread)
        high = torch.full_like(target, float(means.max()) + 10 * spread)
        for _ in range(64):
            middle = (low + high) / 2
            below = torch.special.ndtr((middle[..., None] - means) / spread).mean(-1) < target
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2


# Smooth enough that the error at 40 steps is already asymptotic for every order up to 4.
WORLD = MixtureWorld("three overlapping Gaussians", (-1.0, 0.2, 1.1), 0.6)


def noise_values(count: int = 33) -> Tensor:
    """Return noise [1, 1, 1, 1, count] in float64, evenly spaced so that the result does not depend on a seed."""
    return torch.linspace(-2, 2, count, dtype=torch.float64).reshape(1, 1, 1, 1, count)


def measured_order(name: str, steps: Sequence[int] = (40, 80, 160)) -> float:
    """Return the order at which a solver's error decreases from the first to the last of these numbers of steps.

    It is measured between one fifth and four fifths of the solver's own schedule at shift 1, starting there from the
    exact state, without history. The ends of the schedule are left out: at sigma = 0 every solver in log(sigma) takes
    a first-order step, and the ends of diffusers' schedules do not get finer with more steps. Raises RecipeError for
    an unknown solver.
    """
    errors = []
    for count in steps:
        solver = _new_solver(name, count)
        first, last = count // 5, count * 4 // 5
        x = WORLD.state(noise_values(), solver.sigmas[first])
        solver.begin(first)
        for step in range(first, last):
            x = solver.step(step, x, WORLD.velocity)
        errors.append(float((x - WORLD.state(noise_values(), solver.sigmas[last])).square().mean().sqrt()))
    return math.log(errors[0] / errors[-1]) / math.log(steps[-1] / steps[0])


def disagreements(name: str) -> list[str]:
    """Return a sentence for each way in which a registered solver differs from what it states; [] if it does not.

    Its order of convergence and its number of evaluations are checked. Raises RecipeError for an unknown solver.
    """
    stated = facts(name)
    found = []
    measured = measured_order(name)
    if stated.order is None:
        found.append(f"{name} states no order; it measures {measured:.2f}")
    elif abs(measured - stated.order) > TOLERANCE:
        found.append(f"{name} states order {stated.order} and measures {measured:.2f}")
    # A singlestep method can have as high an order as it has evaluations, up to 4 (Butcher); a multistep one, higher.
    if stated.order is not None and stated.order < min(stated.calls_per_step, 4):
        found.append(f"{name} takes {stated.calls_per_step} evaluations per step for order {stated.order}")
    for steps in (1, 2, 7):
        solver = _new_solver(name, steps)
        counted = _count_calls(solver)
        if not counted == solver.evaluations == stated.calls(steps):
            found.append(
                f"{name} states {stated.calls(steps)} evaluations for {steps} steps, its `evaluations` are "
                f"{solver.evaluations}, and it makes {counted}"
            )
    return found


def _count_calls(solver: Solver) -> tuple[int, ...]:
    """Return how often each step calls the velocity function."""
    count = 0

    def velocity(x: Tensor, t: Tensor, sigma: float) -> Tensor:
        nonlocal count
        count += 1
        return WORLD.velocity(x, t, sigma)

    x, counts = noise_values(), [0]
    for step in range(len(solver.sigmas) - 1):
        x = solver.step(step, x, velocity)
        counts.append(count)
    return tuple(b - a for a, b in itertools.pairwise(counts))


def _new_solver(name: str, steps: int) -> Solver:
    return make_solver(SamplerSpec(solver=name, steps=steps, shift=1.0, guidance=1.0), FLOW, "cpu")
