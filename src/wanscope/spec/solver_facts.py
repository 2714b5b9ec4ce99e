"""Which solvers there are, and what has to be known about them before torch is loaded.

A solver is one file: a class under `@wanscope.sample.solver("name")` (see sample/solvers.py), which registers it here.
Recipes may name it from then on. The file is found in one of three ways:

    built in        a row in BUILT_IN below names the module
    a package       its entry point `wanscope.solvers` names the module (see plugins.py)
    a session       it was imported, or typed into a notebook
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module

from wanscope.errors import RecipeError, nearest
from wanscope.spec.plugins import load, plugins

ENTRY_POINT = "wanscope.solvers"


@dataclass(frozen=True)
class SolverFacts:
    """What is known about a solver without importing it.

    module: the file that registers the class. takes_sigmas: whether explicit sigmas can be given. calls_per_step: model
    evaluations per step and branch of the guidance; last_step_calls: those of the last step, where they differ.
    """

    name: str
    module: str
    takes_sigmas: bool = True
    calls_per_step: int = 1
    last_step_calls: int | None = None

    def evaluations(self, steps: int) -> int:
        """Return the number of model evaluations that `steps` steps take."""
        last = self.calls_per_step if self.last_step_calls is None else self.last_step_calls
        return self.calls_per_step * (steps - 1) + last if steps > 0 else 0


_DIFFUSERS, _RES = "wanscope.sample.solvers", "wanscope.sample.res"
# diffusers' Heun and DPM++ compute their own sigmas and do not accept explicit ones.
BUILT_IN = (
    SolverFacts("unipc", _DIFFUSERS),
    SolverFacts("euler", _DIFFUSERS),
    SolverFacts("heun", _DIFFUSERS, takes_sigmas=False, calls_per_step=2, last_step_calls=1),
    SolverFacts("dpm++", _DIFFUSERS, takes_sigmas=False),
    SolverFacts("res_2s", _RES, calls_per_step=2),
    SolverFacts("res_multistep", _RES),
)
_facts: dict[str, SolverFacts] = {row.name: row for row in BUILT_IN}


def register(facts: SolverFacts) -> None:
    """Register a solver; called by the decorator. Raises RecipeError where another module has one of that name."""
    known = _facts.setdefault(facts.name, facts)
    if known.module != facts.module:
        raise RecipeError(
            f"two solvers are called {facts.name!r}",
            f"one is in {known.module}, the other in {facts.module}",
            "rename yours, with your package's name as a prefix",
        )
    if known not in BUILT_IN:  # for a built-in solver, the row above is what counts
        _facts[facts.name] = facts


def solver_names() -> tuple[str, ...]:
    """Return all names that a recipe may use, without importing anything."""
    return tuple(dict.fromkeys((*_facts, *plugins(ENTRY_POINT))))


def require_known(name: str) -> None:
    """Raise ValueError, with the nearest name, where no solver has this name."""
    if name not in _facts and name not in plugins(ENTRY_POINT):
        raise ValueError(f"{name!r} is not a solver; {nearest(name, solver_names())}")


def facts(name: str) -> SolverFacts:
    """Return the facts about a solver, importing it if it comes from another package.

    Raises RecipeError for an unknown name.
    """
    if name not in _facts:
        if name not in plugins(ENTRY_POINT):
            raise RecipeError(f"{name!r} is not a solver", nearest(name, solver_names()))
        load(ENTRY_POINT, name)
        if name not in _facts:
            value = plugins(ENTRY_POINT)[name].value
            raise RecipeError(
                f"{name!r} is not registered by {value}",
                "its entry point names that module, but importing it registers no solver of that name",
                f'@solver("{name}") above the class',
            )
    return _facts[name]


def import_solver(name: str) -> None:
    """Import the module of the solver's class, which registers it."""
    import_module(facts(name).module)
