"""Solvers against worlds whose answer is known in closed form, in float64."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
from collections.abc import Callable

import diffusers
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from wanscope.errors import ModelError, RecipeError
from wanscope.recipe import SamplerSpec
from wanscope.sample import Solver, make_solver, solver
from wanscope.sample.res import ExponentialSolver, h_phi, shifted_sigmas
from wanscope.spec.solver_facts import BUILT_IN, facts

UNIPC = {"_class_name": "UniPCMultistepScheduler", "prediction_type": "flow_prediction", "use_flow_sigmas": True}
DEFAULTS = {"solver": "unipc", "steps": 8, "shift": 5.0, "guidance": 1.0}
OURS = ("res_2s", "res_multistep")
MEAN, SPREAD = 0.7, 0.5


def solver_of(name: str, **values: object) -> Solver:
    return make_solver(SamplerSpec(solver=name, **values).resolved(DEFAULTS), UNIPC, "cpu")


def gaussian_velocity(x: Tensor, t: Tensor, sigma: float) -> Tensor:
    """The exact velocity where the data are N(MEAN, SPREAD^2): (x - E[clean | x]) / sigma."""
    alpha = 1 - sigma
    gain = alpha * SPREAD**2 / (alpha**2 * SPREAD**2 + sigma**2)
    return (x - (MEAN + gain * (x - alpha * MEAN))) / sigma


def gaussian_path(x_start: Tensor, sigma: float) -> Tensor:
    """The exact state at sigma of a path from x_start at sigma = 1: the linear map between the two Gaussians."""
    alpha = 1 - sigma
    return alpha * MEAN + math.sqrt(alpha**2 * SPREAD**2 + sigma**2) * x_start


def run(
    made: Solver, x: Tensor, velocity: Callable[..., Tensor] = gaussian_velocity, until: int | None = None
) -> Tensor:
    for step in range(len(made.evaluations) if until is None else until):
        x = made.step(step, x, velocity)
    return x


def start(count: int = 64) -> Tensor:
    return torch.randn(1, 1, 1, 1, count, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def error(made: Solver, until: int | None = None) -> float:
    x = start()
    sigma = made.sigmas[-1 if until is None else until]
    return float((run(made, x, until=until) - gaussian_path(x, sigma)).square().mean().sqrt())


def even(steps: int, last: float) -> tuple[float, ...]:
    """Evenly spaced from 1 to `last` in `steps` steps."""
    return tuple(np.linspace(1, last, steps + 1))


@pytest.mark.parametrize(
    ("name", "low", "high"), [("euler", 0.9, 1.1), ("res_2s", 1.9, 2.1), ("res_multistep", 1.9, 2.1)]
)
def test_order_of_convergence_up_to_a_noise_level(name: str, low: float, high: float):
    """From pure noise (sigma exactly 1) to sigma 0.1."""
    errors = [error(solver_of(name, sigmas=even(n, 0.1)), until=n) for n in (32, 64, 128)]
    orders = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert all(low < order < high for order in orders), (errors, orders)


@pytest.mark.parametrize(
    ("name", "low", "high"), [("euler", 0.9, 1.1), ("res_2s", 1.7, 2.2), ("res_multistep", 1.7, 2.2)]
)
def test_order_of_convergence_down_to_clean(name: str, low: float, high: float):
    """All the way to 0 the error of a second-order solver is log(n) / n^2: the steps near 0 are long in log(sigma)."""
    errors = [error(solver_of(name, sigmas=even(n, 0)[:-1])) for n in (64, 128, 256)]
    orders = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert all(low < order < high for order in orders), (errors, orders)


def test_res_2s_beats_euler_at_equal_evaluations():
    for evaluations in (8, 16, 32):
        euler, res = (
            solver_of("euler", sigmas=shifted_sigmas(evaluations, 5.0)),
            solver_of("res_2s", steps=evaluations // 2),
        )
        assert sum(euler.evaluations) == sum(res.evaluations) == evaluations
        assert error(res) < error(euler) / 2


@pytest.mark.parametrize("name", [row.name for row in BUILT_IN])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_every_solver_is_exact_where_the_clean_latents_are_certain(name: str, steps: int):
    """D constant: the exponential form is exact in any number of steps. Tolerances: float32 but for our own."""
    clean = 0.3
    made = solver_of(name, steps=steps)
    x = run(made, start(), lambda x, t, sigma: (x - clean) / sigma)
    assert (x - clean).abs().max() < (1e-12 if name in OURS else 2e-5)


@pytest.mark.parametrize("name", OURS)
def test_ours_are_exact_where_the_prediction_is_linear_in_log_sigma(name: str):
    """The order conditions, met: D = a + b lambda with lambda = -log(sigma) is integrated without error.

    dx/dlambda = -x + a + b lambda has the solution a - b + b lambda + c e^-lambda.
    """
    a, b = 0.4, -1.3
    made = solver_of(name, sigmas=(1.0, 0.8, 0.75, 0.4, 0.1))
    x = start()
    # The multistep's first step is of first order, so both are taken from the exact state at sigmas[1].
    c = x - (a - b)
    exact = [a - b - b * math.log(sigma) + c * sigma for sigma in made.sigmas[:-1]]
    velocity = lambda x, t, sigma: (x - (a - b * math.log(sigma))) / sigma  # noqa: E731
    made.step(0, x, velocity)
    got = exact[1]
    for step in (1, 2, 3):
        got = made.step(step, got, velocity)
        assert (got - exact[step + 1]).abs().max() < 1e-13


@given(st.floats(1e-9, 50))
@settings(max_examples=200)
def test_phi_functions_to_full_precision(h: float):
    """Against 60-digit arithmetic."""
    from decimal import Decimal, getcontext

    getcontext().prec = 60
    exact_1 = 1 - (-Decimal(h)).exp()
    exact_2 = 1 - exact_1 / Decimal(h)
    for got, exact in zip(h_phi(h), (exact_1, exact_2), strict=True):
        assert abs(Decimal(got) - exact) <= Decimal("1e-14") * exact


@pytest.mark.parametrize("name", OURS)
def test_model_is_asked_at_its_own_noise_levels_only(name: str):
    made, asked = solver_of(name, steps=6), []

    def velocity(x: Tensor, t: Tensor, sigma: float) -> Tensor:
        asked.append((float(t), sigma))
        return gaussian_velocity(x, t, sigma)

    run(made, start(), velocity)
    assert len(asked) == sum(made.evaluations) == (12 if name == "res_2s" else 6)
    assert all(t == pytest.approx(1000 * sigma, rel=1e-6) and 0 < sigma <= 1 for t, sigma in asked)
    assert asked[0] == (1000.0, 1.0)
    sigmas = [sigma for _, sigma in asked]
    assert all(a > b for a, b in itertools.pairwise(sigmas))


def test_our_schedule_is_diffusers_unipcs():
    theirs = diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0)
    theirs.set_timesteps(20)
    ours = solver_of("res_multistep", steps=20).sigmas
    assert ours[0] == 1
    assert np.allclose(ours, theirs.sigmas.numpy(), atol=1.1e-6)


GIVEN = (1.0, 0.9375, 0.85, 0.7, 0.31, 0.123456789)


@pytest.mark.parametrize("name", ["unipc", "euler", "res_2s", "res_multistep"])
@pytest.mark.parametrize("closed", [True, False])
def test_explicit_sigmas_are_final(name: str, closed: bool):
    made = solver_of(name, sigmas=(*GIVEN, 0.0) if closed else GIVEN, shift=5.0)
    assert np.abs(np.array(made.sigmas) - (*GIVEN, 0.0)).max() <= 1e-7
    asked: list[float] = []

    def velocity(x: Tensor, t: Tensor, sigma: float) -> Tensor:
        asked.append(sigma)
        assert abs(float(t) - 1000 * sigma) < (1 if name == "unipc" else 1e-3)
        return gaussian_velocity(x, t, sigma)

    assert run(made, start().float(), velocity).isfinite().all()
    assert np.abs(np.array(asked[:: made.evaluations[0]]) - GIVEN).max() <= 1e-7


def test_explicit_sigmas_hold_whatever_the_models_own_scheduler_does_to_sigmas():
    config = {
        **UNIPC,
        "flow_shift": 3.0,
        "use_karras_sigmas": True,
        "shift_terminal": 0.1,
        "final_sigmas_type": "sigma_min",
    }
    made = make_solver(SamplerSpec(solver="unipc", sigmas=GIVEN).resolved(DEFAULTS), config, "cpu")
    assert np.abs(np.array(made.sigmas) - (*GIVEN, 0.0)).max() <= 1e-7


@pytest.mark.parametrize("name", ["unipc", "euler"])
def test_explicit_sigmas_of_a_solvers_own_schedule_give_its_own_result(name: str):
    own = solver_of(name, steps=6)
    again = solver_of(name, sigmas=tuple(own.sigmas))
    assert again.sigmas == own.sigmas
    x = start().float()
    assert torch.equal(run(again, x), run(own, x))


@pytest.mark.parametrize("name", ["heun", "dpm++"])
def test_explicit_sigmas_are_refused_where_they_cannot_be_used(name: str):
    with pytest.raises(RecipeError):
        SamplerSpec.model_construct(solver=name, sigmas=GIVEN, steps=6).resolved(DEFAULTS)
    unchecked = (
        SamplerSpec().resolved(DEFAULTS).model_copy(update={"solver": name, "sigmas": GIVEN, "steps": len(GIVEN)})
    )
    with pytest.raises(RecipeError, match="takes no explicit sigmas"):
        make_solver(unchecked, UNIPC, "cpu")


@pytest.mark.parametrize("name", [row.name for row in BUILT_IN])
def test_a_run_may_begin_at_any_step_and_begin_again(name: str):
    made = solver_of(name, steps=12, shift=1.0)
    x = start().float()
    for first in (0, 5, 11, 0):
        fresh = solver_of(name, steps=12, shift=1.0)
        results = []
        for each in (made, fresh):
            each.begin(first)
            state = gaussian_path(x, each.sigmas[first])
            for step in range(first, 12):
                state = each.step(step, state, gaussian_velocity)
            results.append(state)
        assert torch.equal(*results)  # no history is left from before
        assert (results[0] - gaussian_path(x, 0)).square().mean().sqrt() < SPREAD / 5


def test_heun_is_39_evaluations_for_20_steps():
    made = solver_of("heun", steps=20)
    assert sum(made.evaluations) == 39
    assert made.evaluations == (2,) * 19 + (1,)
    assert len(made.sigmas) == 21


@pytest.mark.parametrize("name", ["unipc", "euler", "heun", "dpm++"])
def test_shift_reaches_the_scheduler_whatever_the_models_own(name: str):
    config = dict(
        diffusers.UniPCMultistepScheduler(flow_shift=3.0, **{k: v for k, v in UNIPC.items() if k[0] != "_"}).config
    )
    config["_class_name"] = "UniPCMultistepScheduler"
    sigmas = [
        make_solver(SamplerSpec(solver=name, shift=shift).resolved(DEFAULTS), config, "cpu").sigmas
        for shift in (1.0, 8.0)
    ]
    middle = len(sigmas[0]) // 2
    assert sigmas[0][middle] < 0.65 and sigmas[1][middle] > 0.85


def test_the_models_own_scheduler_settings_hold_for_its_own_class_only():
    config = {**UNIPC, "solver_order": 3}
    made = {n: make_solver(SamplerSpec(solver=n).resolved(DEFAULTS), config, "cpu") for n in ("unipc", "dpm++")}
    assert made["unipc"].scheduler.config.solver_order == 3  # type: ignore[attr-defined]
    assert made["dpm++"].scheduler.config.solver_order == 2  # type: ignore[attr-defined]


def test_schedulers_that_draw_noise_are_refused():
    sde = {**UNIPC, "_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++"}
    stochastic = {"_class_name": "FlowMatchEulerDiscreteScheduler", "stochastic_sampling": True}
    for name, config in (("dpm++", sde), ("euler", stochastic)):
        with pytest.raises(ModelError, match="draws noise"):
            make_solver(SamplerSpec(solver=name).resolved(DEFAULTS), config, "cpu")


@pytest.mark.parametrize("row", BUILT_IN, ids=lambda row: row.name)
def test_what_recipes_know_of_a_solver_is_what_it_does(row):
    for steps in (1, 2, 7):
        assert sum(solver_of(row.name, steps=steps).evaluations) == facts(row.name).evaluations(steps)
    if row.takes_sigmas:
        assert len(solver_of(row.name, sigmas=GIVEN, steps=None).sigmas) == len(GIVEN) + (GIVEN[-1] > 0)


def test_a_solver_registered_in_a_session_can_be_named_at_once():
    with pytest.raises(ValueError, match="'session_euler' is not a solver"):
        SamplerSpec(solver="session_euler")

    @solver("session_euler", takes_sigmas=False)
    class SessionEuler(ExponentialSolver):
        def step(self, step, x, velocity):
            sigma, sigma_next = self.sigmas[step : step + 2]
            return x + (sigma_next - sigma) * self._evaluate(x, sigma, velocity)

    made = solver_of("session_euler", steps=40, shift=1.0)
    assert isinstance(made, SessionEuler) and error(made) < 0.05
    with pytest.raises(ValueError, match="explicit sigmas"):
        solver_of("session_euler", sigmas=GIVEN)
    with pytest.raises(RecipeError, match="two solvers are called 'euler'"):
        solver("euler")(SessionEuler)


PLUGIN = """
from wanscope.sample.res import ExponentialSolver
from wanscope.sample.solvers import solver

@solver("plugin_euler", calls_per_step=1)
class PluginEuler(ExponentialSolver):
    def step(self, step, x, velocity):
        sigma, sigma_next = self.sigmas[step : step + 2]
        return x + (sigma_next - sigma) * self._evaluate(x, sigma, velocity)
"""
USE = """
import sys
from wanscope.recipe import SamplerSpec
sampler = SamplerSpec(solver="plugin_euler", steps=4, shift=3.0, guidance=1.0)
assert "torch" not in sys.modules and "plugin_solver" not in sys.modules
from wanscope.sample import make_solver
from wanscope.wan.cost import evaluations
made = make_solver(sampler, {}, "cpu")
assert type(made).__name__ == "PluginEuler" and evaluations("plugin_euler", 4) == sum(made.evaluations) == 4
try:
    SamplerSpec(solver="plugin_eular").resolved({})
except Exception as error:
    assert "did you mean 'plugin_euler'?" in str(error), error
try:
    make_solver(SamplerSpec(solver="broken", steps=4, shift=3.0, guidance=1.0), {}, "cpu")
except Exception as error:
    print(error)
"""


def test_an_installed_package_brings_a_solver_by_an_entry_point(tmp_path):
    """Recipes know its name without importing it; a package that cannot be imported is named."""
    (tmp_path / "plugin_solver.py").write_text(PLUGIN)
    info = tmp_path / "plugin_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[wanscope.solvers]\nplugin_euler = plugin_solver\nbroken = no_such_module\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", USE], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "'broken' of the package plugin-package cannot be loaded: no_such_module" in done.stdout


def test_an_unresolved_sampler_is_refused():
    with pytest.raises(RecipeError, match="not resolved"):
        make_solver(SamplerSpec(solver="euler"), UNIPC, "cpu")
