"""The error of each solver at equal model evaluations, in worlds with a known exact result.

    python benchmarks/solvers.py [--shift 5.0]

Claim: on smooth data, or with enough steps to resolve it, the second-order solvers are closer to the exact result than
Euler at the same number of model evaluations; with few steps on sharply separated data they are not. res_2s halves the
number of steps, so it needs the most evaluations before it pays off.

The worlds are one-dimensional data distributions (each latent value is independent) whose denoiser and exact result are
both known in closed form. The probability flow in one dimension preserves the order of values, so it maps quantiles of
the noise to those of the data: x_0 = F_data^-1(F_noise(x_1)). Printed: root mean square error over 4,096 values.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from wanscope.recipe import SOLVERS, SOLVERS_WITHOUT_SIGMAS, SamplerSpec
from wanscope.sample import make_solver
from wanscope.sample.res import shifted_sigmas

FLOW = {"_class_name": "UniPCMultistepScheduler", "prediction_type": "flow_prediction", "use_flow_sigmas": True}
EVALUATIONS = (8, 16, 32, 64)
VALUES = 4096


@dataclass(frozen=True)
class World:
    """A mixture of equally likely Gaussians with the same standard deviation, `spread`."""

    name: str
    means: tuple[float, ...]
    spread: float

    def velocity(self, x: Tensor, t: Tensor, sigma: float) -> Tensor:
        """Return (x - E[clean | x]) / sigma for x of any shape, in the same shape."""
        alpha = 1 - sigma
        variance = alpha**2 * self.spread**2 + sigma**2
        means = torch.tensor(self.means, dtype=torch.float64)
        away = x.double()[..., None] - alpha * means
        weights = torch.softmax(-away.square() / (2 * variance), dim=-1)
        clean = (weights * (means + alpha * self.spread**2 / variance * away)).sum(-1)
        return ((x.double() - clean) / sigma).to(x.dtype)

    def exact(self, noise: Tensor) -> Tensor:
        """Return the data's quantiles for noise of any shape, float64 in the same shape, by bisection."""
        means = torch.tensor(self.means, dtype=torch.float64)
        goal = torch.special.ndtr(noise.double())
        low = torch.full_like(goal, min(self.means) - 10 * self.spread)
        high = torch.full_like(goal, max(self.means) + 10 * self.spread)
        for _ in range(100):
            middle = (low + high) / 2
            below = torch.special.ndtr((middle[..., None] - means) / self.spread).mean(-1) < goal
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2


WORLDS = (
    World("one broad Gaussian", (0.7,), 0.5),
    World("three kinds, blurred", (-1.5, 0.2, 1.0), 0.15),
    World("two kinds, sharp", (-1.0, 1.0), 0.05),
)


def sampled(sampler: SamplerSpec, noise: Tensor, velocity: Callable[..., Tensor]) -> tuple[Tensor, int]:
    """Return the result, in the same shape as the noise (any), and the number of model evaluations."""
    made = make_solver(sampler, FLOW, "cpu")
    x = noise
    for step in range(len(made.evaluations)):
        x = made.step(step, x, velocity)
    return x, sum(made.evaluations)


def sampler(name: str, evaluations: int, shift: float, same_sigmas: bool) -> SamplerSpec:
    """Return settings with as many steps as fit into `evaluations`; Heun uses one evaluation less."""
    steps = evaluations // 2 if name in ("heun", "res_2s") else evaluations
    sigmas = (*shifted_sigmas(steps, shift), 0.0) if same_sigmas else None
    return SamplerSpec(solver=name, steps=steps, shift=shift, guidance=1.0, sigmas=sigmas)


def table(world: World, shift: float, same_sigmas: bool, noise: Tensor) -> None:
    """Print the errors of all solvers in a world, from noise of any shape."""
    exact = world.exact(noise)
    schedule = "the same sigmas for all" if same_sigmas else "each solver's own sigmas"
    print(f"\n{world.name}, shift {shift:g}, {schedule}: RMS error (times Euler's) at n model evaluations")
    print(f"{'solver':<15}" + "".join(f"{f'n = {n}':>22}" for n in EVALUATIONS))
    euler: dict[int, float] = {}
    for name in ("euler", *(s for s in SOLVERS if s != "euler")):
        if same_sigmas and name in SOLVERS_WITHOUT_SIGMAS:
            continue
        cells = []
        for n in EVALUATIONS:
            x, used = sampled(sampler(name, n, shift, same_sigmas), noise, world.velocity)
            error = math.sqrt(float((x.double() - exact).square().mean()))
            euler.setdefault(n, error)
            cells.append(f"{error:.5f} ({error / euler[n]:.2f})" + ("" if used == n else f" [{used}]"))
        print(f"{name:<15}" + "".join(f"{cell:>22}" for cell in cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shift", type=float, default=5.0, help="shift of the schedule (default 5, Wan's)")
    shift = parser.parse_args().shift
    noise = torch.randn(1, 1, 1, 1, VALUES, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    for same_sigmas in (True, False):
        for world in WORLDS:
            table(world, shift, same_sigmas, noise)
    print("\n[k]: with k evaluations. res_2s takes half the steps, so its sigmas are coarser even with the same rule.")


if __name__ == "__main__":
    main()
