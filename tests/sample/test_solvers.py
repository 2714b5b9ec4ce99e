"""Solvers on problems with a closed-form solution, in float64."""

from __future__ import annotations

import itertools
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
from wanscope.sample.convergence import disagreements, measured_order
from wanscope.sample.solvers import solver_class
from wanscope.sample.solvers.exponential import ExponentialSolver, h_phi, shifted_sigmas
from wanscope.spec import solver_facts
from wanscope.spec.solver_facts import facts, read_file, solver_names

UNIPC = {"_class_name": "UniPCMultistepScheduler", "prediction_type": "flow_prediction", "use_flow_sigmas": True}
DEFAULTS = {"solver": "unipc", "steps": 8, "shift": 5.0, "guidance": 1.0}
OURS = ("res_2s", "res_multistep")
TAKING = [name for name in solver_names() if facts(name).takes_sigmas]
MEAN, SPREAD = 0.7, 0.5


def solver_of(name: str, **values: object) -> Solver:
    return make_solver(SamplerSpec(solver=name, **values).resolved(DEFAULTS), UNIPC, "cpu")


def gaussian_velocity(x: Tensor, t: Tensor, sigma: float) -> Tensor:
    """Return the exact velocity for data N(MEAN, SPREAD^2): (x - E[clean | x]) / sigma."""
    alpha = 1 - sigma
    gain = alpha * SPREAD**2 / (alpha**2 * SPREAD**2 + sigma**2)
    return (x - (MEAN + gain * (x - alpha * MEAN))) / sigma


def gaussian_path(x_start: Tensor, sigma: float) -> Tensor:
    """Return the exact state at sigma of a path from x_start at sigma = 1: the linear map between the two Gaussians."""
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
    """Return noise levels evenly spaced from 1 to `last` in `steps` steps."""
    return tuple(np.linspace(1, last, steps + 1))


@pytest.mark.parametrize("name", solver_names())
def test_a_solver_has_the_order_and_the_evaluations_that_it_states(name: str):
    assert disagreements(name) == []


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove solvers that a test registers after it."""
    monkeypatch.setattr(solver_facts, "_registered", dict(solver_facts._registered))


class Rule(ExponentialSolver):
    """An explicit method with two evaluations per step, from which mutants are made.

    x' = x + h (a v_1 + b v_2), with v_2 at x + c h v_1 and sigma + d h. The last step, to sigma = 0, is Euler's.
    """

    a = b = 0.5
    c = d = 1.0

    def step(self, step: int, x: Tensor, velocity: Callable[..., Tensor]) -> Tensor:
        sigma, sigma_next = self.sigmas[step : step + 2]
        h = sigma_next - sigma
        v = self._evaluate(x, sigma, velocity)
        if sigma_next == 0:
            return x + h * v
        return x + h * (self.a * v + self.b * self._evaluate(x + self.c * h * v, sigma + self.d * h, velocity))


class Res2SWithAWrongWeight(ExponentialSolver):
    def step(self, step: int, x: Tensor, velocity: Callable[..., Tensor]) -> Tensor:
        sigma, sigma_next = self.sigmas[step : step + 2]
        v = self._evaluate(x, sigma, velocity)
        middle = math.sqrt(sigma * sigma_next) if sigma_next > 0 else sigma / 2
        x_middle = x + (middle - sigma) * v
        v_middle = self._evaluate(x_middle, middle, velocity)
        if sigma_next == 0:
            return x - sigma * v_middle
        phi_1, phi_2 = h_phi(math.log(sigma / sigma_next))
        d, d_middle = x - sigma * v, x_middle - middle * v_middle
        return (sigma_next / sigma) * x + (phi_1 - phi_2) * d + phi_2 * d_middle  # c = 1, but the node is at c = 1/2


def rule(**values: float) -> type[Rule]:
    return type("Mutant", (Rule,), values)


TWO = {"calls_per_step": 2, "last_step_calls": 1}
MUTANTS: dict[str, tuple[type[ExponentialSolver], dict[str, Any], str]] = {
    "Euler with a wasted call": (rule(a=1.0, b=0.0), {"order": 2, **TWO}, "states order 2 and measures 1.0"),
    "Euler with a wasted call that it admits": (rule(a=1.0, b=0.0), {"order": 1, **TWO}, "2 evaluations per step for"),
    "Euler with a call that it hides": (rule(a=1.0, b=0.0), {"order": 1}, r"it makes \(2, 2, 2, 2, 2, 2, 1\)"),
    "Heun with a sign error in the average": (rule(b=-0.5), {"order": 2, **TWO}, "states order 2 and measures -?0"),
    "Heun with a sign error in the second point": (
        rule(c=-1.0),
        {"order": 2, **TWO},
        "states order 2 and measures 0.9|1",
    ),
    "Heun whose second evaluation is told the old sigma": (rule(d=0.0), {"order": 2, **TWO}, "measures (0.9|1)"),
    "res_2s with a wrong weight": (Res2SWithAWrongWeight, {"order": 2, "calls_per_step": 2}, "measures (0.9|1)"),
    "Heun that states too little": (Rule, {"order": 1, **TWO}, "states order 1 and measures (1.9|2)"),
    "Heun that states nothing": (Rule, TWO, "states no order; it measures (1.9|2)"),
}


@pytest.mark.usefixtures("session")
@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_wrong_solver_is_detected(mutant: str):
    cls, facts_, expected = MUTANTS[mutant]
    solver("mutant", **facts_)(cls)
    found = disagreements("mutant")
    assert any(re.search(expected, sentence) for sentence in found), found


@pytest.mark.usefixtures("session")
def test_a_correct_solver_is_not():
    solver("heun_by_hand", order=2, **TWO)(Rule)
    solver("midpoint", order=2, **TWO)(rule(a=0.0, b=1.0, c=0.5, d=0.5))
    assert disagreements("heun_by_hand") == disagreements("midpoint") == []
    assert measured_order("heun_by_hand") == pytest.approx(measured_order("heun"), abs=0.1)


@pytest.mark.parametrize("name", TAKING)
def test_order_of_convergence_up_to_a_noise_level(name: str):
    """From pure noise (sigma exactly 1) to sigma 0.1."""
    errors = [error(solver_of(name, sigmas=even(n, 0.1)), until=n) for n in (32, 64, 128)]
    orders = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert orders == pytest.approx([facts(name).order] * 2, abs=0.2), errors


@pytest.mark.parametrize("name", TAKING)
def test_order_of_convergence_down_to_clean(name: str):
    """All the way to 0 the error of a second-order solver is log(n) / n^2: the steps near 0 are long in log(sigma).

    For the same reason a solver of log(sigma) has at most the second order there.
    """
    errors = [error(solver_of(name, sigmas=even(n, 0)[:-1])) for n in (64, 128, 256)]
    orders = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    stated = facts(name).order or 0
    assert all(min(stated, 2) - 0.3 < order < stated + 0.2 for order in orders), (errors, orders)


def test_res_2s_beats_euler_at_equal_evaluations():
    for evaluations in (8, 16, 32):
        euler, res = (
            solver_of("euler", sigmas=shifted_sigmas(evaluations, 5.0)),
            solver_of("res_2s", steps=evaluations // 2),
        )
        assert sum(euler.evaluations) == sum(res.evaluations) == evaluations
        assert error(res) < error(euler) / 2


@pytest.mark.parametrize("name", solver_names())
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_every_solver_is_exact_where_the_clean_latents_are_certain(name: str, steps: int):
    """D constant: the exponential form is exact in any number of steps. Tolerances: float32, except for ours."""
    clean = 0.3
    made = solver_of(name, steps=steps)
    x = run(made, start(), lambda x, t, sigma: (x - clean) / sigma)
    assert (x - clean).abs().max() < (1e-12 if name in OURS else 2e-5)


@pytest.mark.parametrize("name", OURS)
def test_our_solvers_are_exact_where_the_prediction_is_linear_in_log_sigma(name: str):
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


@pytest.mark.parametrize("name", TAKING)
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


@pytest.mark.parametrize("name", TAKING)
def test_explicit_sigmas_of_a_solvers_own_schedule_give_its_own_result(name: str):
    own = solver_of(name, steps=6)
    again = solver_of(name, sigmas=tuple(own.sigmas))
    assert again.sigmas == own.sigmas
    x = start().float()
    assert torch.equal(run(again, x), run(own, x))


@pytest.mark.parametrize("name", [name for name in solver_names() if name not in TAKING])
def test_explicit_sigmas_are_refused_where_they_cannot_be_used(name: str):
    with pytest.raises(RecipeError):
        SamplerSpec.model_construct(solver=name, sigmas=GIVEN, steps=6).resolved(DEFAULTS)
    unchecked = (
        SamplerSpec().resolved(DEFAULTS).model_copy(update={"solver": name, "sigmas": GIVEN, "steps": len(GIVEN)})
    )
    with pytest.raises(RecipeError, match="takes no explicit sigmas"):
        make_solver(unchecked, UNIPC, "cpu")


@pytest.mark.parametrize("name", solver_names())
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
        assert torch.equal(*results)  # no history remains from before
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


@pytest.mark.parametrize("name", TAKING)
def test_as_many_steps_as_sigmas(name: str):
    assert len(solver_of(name, sigmas=GIVEN, steps=None).sigmas) == len(GIVEN) + 1


@pytest.mark.usefixtures("session")
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
    (said,) = disagreements("session_euler")
    assert re.match(r"session_euler states no order; it measures 1\.0", said)
    with pytest.raises(ValueError, match="explicit sigmas"):
        solver_of("session_euler", sigmas=GIVEN)
    with pytest.raises(RecipeError, match="two solvers are called 'euler'"):
        solver("euler")(SessionEuler)


FILE = """
from wanscope.sample.solvers import solver
@solver("in_a_file", order=ORDER, calls_per_step=2)
class InAFile:
    '''One

    two.'''
"""


def test_a_solvers_file_is_read_without_running_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "one.py").write_text(FILE.replace("ORDER", "2"))
    (row,) = read_file(tmp_path / "one.py")
    assert (row.name, row.module, row.order, row.calls_per_step) == ("in_a_file", "wanscope.sample.solvers.one", 2, 2)
    assert row.about == "One" and row.takes_sigmas
    (tmp_path / "two.py").write_text(FILE)
    with pytest.raises(RecipeError, match=r"two\.py, line 3, cannot be registered: .* its arguments are literals"):
        list(read_file(tmp_path / "two.py"))
    (tmp_path / "two.py").write_text(FILE.replace("ORDER", "1"))
    monkeypatch.setattr(solver_facts, "FOLDER", tmp_path)
    with pytest.raises(RecipeError, match="two solvers are called 'in_a_file'"):
        solver_facts.built_in.__wrapped__()


def test_what_is_read_is_what_the_decorator_registers():
    for name, row in solver_facts.built_in().items():
        registered = solver_class(name).facts
        assert (registered, registered.about) == (row, row.about) and row.about and row.order


PLUGIN = """
from wanscope.sample.res import ExponentialSolver  # where 0.1 had it
from wanscope.sample.solvers import solver

@solver("plugin_euler", order=1, calls_per_step=1)
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
from wanscope.sample.convergence import disagreements
from wanscope.sample import solver_names
assert "plugin_euler" in solver_names() and disagreements("plugin_euler") == []
"""


def test_an_installed_package_provides_a_solver_by_an_entry_point(tmp_path):
    """Recipes know its name without importing it; a package that cannot be imported is named."""
    (tmp_path / "plugin_solver.py").write_text(PLUGIN)
    info = tmp_path / "plugin_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[wanscope.solvers]\nplugin_euler = plugin_solver\nbroken = no_such_module\n"
    )
    source = str(Path(solver_facts.__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(tmp_path), source))}
    done = subprocess.run([sys.executable, "-c", USE], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "'broken' of the package plugin-package cannot be loaded: no_such_module" in done.stdout


def test_an_unresolved_sampler_is_refused():
    with pytest.raises(RecipeError, match="not resolved"):
        make_solver(SamplerSpec(solver="euler"), UNIPC, "cpu")


@pytest.mark.usefixtures("session")
def test_the_page_registers_a_solver_and_measures_it():
    """docs/sampling.md, Adding a solver."""
    page = (Path(__file__).parents[2] / "docs" / "sampling.md").read_text(encoding="utf-8")
    section = page.split("### Adding a solver")[1].split("\n## ")[0]
    namespace = {"__name__": "a_notebook"}
    for code in re.findall(r"```python\n(.*?)```", section, re.DOTALL):
        exec(compile(code, "docs/sampling.md, Adding a solver", "exec"), namespace)
    assert solver_of("my_euler").evaluations == (1,) * 8
