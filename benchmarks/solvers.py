"""The error of each solver at equal model evaluations, in worlds with a known exact result.

    python benchmarks/solvers.py [--shift 5.0]

Claim: on smooth data, or with enough steps to resolve it, the second-order solvers are closer to the exact result than
Euler at the same number of model evaluations; with few steps on sharply separated data they are not. res_2s halves the
number of steps, so it needs the most evaluations before it pays off.

The worlds are `MixtureWorld`s of wanscope.sample.convergence: one-dimensional data distributions (every latent value is
independent) whose denoiser and exact result are known. Printed: root mean square error over 4,096 values.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

import torch
from torch import Tensor

from wanscope.recipe import SamplerSpec
from wanscope.sample import make_solver, solver_names
from wanscope.sample.convergence import FLOW, MixtureWorld
from wanscope.sample.solvers.exponential import shifted_sigmas
from wanscope.spec.solver_facts import facts

EVALUATIONS = (8, 16, 32, 64)
VALUES = 4096


WORLDS = (
    MixtureWorld("one broad Gaussian", (0.7,), 0.5),
    MixtureWorld("three overlapping Gaussians", (-1.5, 0.2, 1.0), 0.15),
    MixtureWorld("two narrow Gaussians", (-1.0, 1.0), 0.05),
)


def sampled(sampler: SamplerSpec, noise: Tensor, velocity: Callable[..., Tensor]) -> tuple[Tensor, int]:
    """Return the result, in the same shape as the noise (any), and the number of model evaluations."""
    made = make_solver(sampler, FLOW, "cpu")
    x = noise
    for step in range(len(made.evaluations)):
        x = made.step(step, x, velocity)
    return x, sum(made.evaluations)


def sampler(name: str, evaluations: int, shift: float, same_sigmas: bool) -> SamplerSpec:
    """Return a sampler with as many steps as `evaluations` allow; Heun uses one evaluation less."""
    steps = evaluations // facts(name).calls_per_step
    sigmas = (*shifted_sigmas(steps, shift), 0.0) if same_sigmas else None
    return SamplerSpec(solver=name, steps=steps, shift=shift, guidance=1.0, sigmas=sigmas)


def table(world: MixtureWorld, shift: float, same_sigmas: bool, noise: Tensor) -> None:
    """Print the errors of all solvers in one world. noise: any shape."""
    exact = world.state(noise)
    schedule = "the same sigmas for all" if same_sigmas else "each solver's own sigmas"
    print(f"\n{world.name}, shift {shift:g}, {schedule}: RMS error (times Euler's) at n model evaluations")
    print(f"{'solver':<15}" + "".join(f"{f'n = {n}':>22}" for n in EVALUATIONS))
    euler: dict[int, float] = {}
    for name in ("euler", *(s for s in solver_names() if s != "euler")):
        if same_sigmas and not facts(name).takes_sigmas:
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
