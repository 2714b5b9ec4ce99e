"""Does a solver do what it states? Its order of convergence, measured in float64 against a closed form.

The world: every latent value on its own is drawn from a mixture of Gaussians. Its exact velocity is in closed form. So
is the exact state at every noise level: the probability flow moves in one dimension and keeps the order of values, so
it takes a quantile of the noise to the same quantile of the data mixed with noise. With several means the equation is
not linear, so a solver that is right for linear equations alone is found as well.

    from wanscope.sample.convergence import disagreements

    assert disagreements("my_solver") == []

Tensors have any shape, because every value is on its own.
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

TOLERANCE = 0.3  # of a measured order
FLOW = {"_class_name": "UniPCMultistepScheduler", "prediction_type": "flow_prediction", "use_flow_sigmas": True}


@dataclass(frozen=True)
class MixtureWorld:
    """Data from a mixture of equally likely Gaussians with one spread."""

    name: str
    means: tuple[float, ...]
    spread: float

    def velocity(self, x: Tensor, t: Tensor, sigma: float) -> Tensor:
        """The exact velocity (x - E[clean | x]) / sigma, computed in float64, in the dtype and shape of x."""
        alpha = 1 - sigma
        variance = alpha**2 * self.spread**2 + sigma**2
        means = torch.tensor(self.means, dtype=torch.float64)
        away = x.double()[..., None] - alpha * means
        weights = torch.softmax(-away.square() / (2 * variance), dim=-1)
        clean = (weights * (means + alpha * self.spread**2 / variance * away)).sum(-1)
        return ((x.double() - clean) / sigma).to(x.dtype)

    def state(self, noise: Tensor, sigma: float = 0.0) -> Tensor:
        """The exact state at sigma of the paths that begin at this noise, float64: by bisection to its precision."""
        alpha = 1 - sigma
        means = alpha * torch.tensor(self.means, dtype=torch.float64)
        spread = math.sqrt(alpha**2 * self.spread**2 + sigma**2)
        goal = torch.special.ndtr(noise.double())
        low = torch.full_like(goal, float(means.min()) - 10 * spread)
        high = torch.full_like(goal, float(means.max()) + 10 * spread)
        for _ in range(64):
            middle = (low + high) / 2
            below = torch.special.ndtr((middle[..., None] - means) / spread).mean(-1) < goal
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2


# Smooth enough that 40 steps are in the asymptotic range of every order up to 4.
WORLD = MixtureWorld("three kinds, blurred together", (-1.0, 0.2, 1.1), 0.6)


def noise_values(count: int = 33) -> Tensor:
    """Noise [1, 1, 1, 1, count] in float64: evenly spaced, so that no seed decides what is measured."""
    return torch.linspace(-2, 2, count, dtype=torch.float64).reshape(1, 1, 1, 1, count)


def measured_order(name: str, steps: Sequence[int] = (40, 80, 160)) -> float:
    """The order at which a solver's error falls from the first to the last of these numbers of steps.

    Measured between the noise levels after a fifth and after four fifths of the solver's own schedule at shift 1,
    beginning there from the exact state, without history. The ends of a schedule are left out: at sigma = 0 every
    solver of log(sigma) takes a step of first order, and diffusers' schedules have ends that steps do not refine.
    """
    errors = []
    for count in steps:
        made = _made(name, count)
        first, last = count // 5, count * 4 // 5
        x = WORLD.state(noise_values(), made.sigmas[first])
        made.begin(first)
        for step in range(first, last):
            x = made.step(step, x, WORLD.velocity)
        errors.append(float((x - WORLD.state(noise_values(), made.sigmas[last])).square().mean().sqrt()))
    return math.log(errors[0] / errors[-1]) / math.log(steps[-1] / steps[0])


def disagreements(name: str) -> list[str]:
    """Where a registered solver does not do what it states, a sentence each: its order, and its evaluations."""
    stated = facts(name)
    found = []
    measured = measured_order(name)
    if stated.order is None:
        found.append(f"{name} states no order; it measures {measured:.2f}")
    elif abs(measured - stated.order) > TOLERANCE:
        found.append(f"{name} states order {stated.order} and measures {measured:.2f}")
    # Up to 4 a singlestep method can have as many orders as evaluations (Butcher); a multistep one has more.
    if stated.order is not None and stated.order < min(stated.calls_per_step, 4):
        found.append(f"{name} takes {stated.calls_per_step} evaluations per step for order {stated.order}")
    for steps in (1, 2, 7):
        made = _made(name, steps)
        counted = _counted_calls(made)
        if not counted == made.evaluations == stated.calls(steps):
            found.append(
                f"{name} states {stated.calls(steps)} evaluations for {steps} steps, its object says "
                f"{made.evaluations}, and it makes {counted}"
            )
    return found


def _counted_calls(made: Solver) -> tuple[int, ...]:
    """How often each step asks for the velocity."""
    count = 0

    def velocity(x: Tensor, t: Tensor, sigma: float) -> Tensor:
        nonlocal count
        count += 1
        return WORLD.velocity(x, t, sigma)

    x, counts = noise_values(), [0]
    for step in range(len(made.sigmas) - 1):
        x = made.step(step, x, velocity)
        counts.append(count)
    return tuple(b - a for a, b in itertools.pairwise(counts))


def _made(name: str, steps: int) -> Solver:
    return make_solver(SamplerSpec(solver=name, steps=steps, shift=1.0, guidance=1.0), FLOW, "cpu")
