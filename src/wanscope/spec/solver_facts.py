"""Which solvers there are, and what has to be known about them before torch is loaded.

A solver is one file with a class below `@solver("name", order=2, ...)` (see sample/solvers/__init__.py). Recipes may
use its name from then on. A solver is found in one of three ways:

    built in        its file is in sample/solvers/; the decorator is read there without importing the file
    a package       its entry point `wanscope.solvers` names the module (see plugins.py), which is imported
    a session       it was imported, or typed into a notebook, and the decorator registered it here
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path

from wanscope.errors import RecipeError, nearest
from wanscope.spec.other_names import our_solver
from wanscope.spec.plugins import load, plugins

ENTRY_POINT = "wanscope.solvers"
FOLDER, PACKAGE = Path(__file__).parents[1] / "sample" / "solvers", "wanscope.sample.solvers"


@dataclass(frozen=True)
class SolverFacts:
    """What is known of a solver.

    module: the file that registers the class. order: of convergence between two noise levels; doubling the steps
    divides the error by 2^order (None: not stated). takes_sigmas: whether explicit ones can be given. calls_per_step:
    model evaluations of a step, a guided one counted once; last_step_calls: of the last step, where they differ.
    about: the first paragraph of the class's docstring.
    """

    name: str
    module: str
    order: int | None = None
    takes_sigmas: bool = True
    calls_per_step: int = 1
    last_step_calls: int | None = None
    about: str = field(default="", compare=False)

    def calls(self, steps: int) -> tuple[int, ...]:
        """Model evaluations of each of `steps` steps."""
        last = self.calls_per_step if self.last_step_calls is None else self.last_step_calls
        return (*(self.calls_per_step,) * (steps - 1), last) if steps > 0 else ()

    def evaluations(self, steps: int) -> int:
        """Model evaluations of `steps` steps."""
        return sum(self.calls(steps))


def first_paragraph(docstring: str | None) -> str:
    """On one line; "" where there is none."""
    return " ".join(inspect.cleandoc(docstring or "").partition("\n\n")[0].split())


@cache
def built_in() -> dict[str, SolverFacts]:
    """The solvers of sample/solvers/ by name, read from their decorators. RecipeError where two have one name."""
    found: dict[str, SolverFacts] = {}
    for path in sorted(FOLDER.glob("*.py")):
        for facts in read_file(path):
            if facts.name in found:
                raise _taken(found[facts.name], facts)
            found[facts.name] = facts
    return found


def read_file(path: Path) -> Iterator[SolverFacts]:
    """The facts of every class in a file of sample/solvers/ that has the decorator `solver`; nothing is imported.

    RecipeError where an argument of the decorator is not a literal.
    """
    module = f"{PACKAGE}.{path.stem}"
    body = ast.parse(path.read_text(encoding="utf-8"), str(path)).body
    for node in (each for each in body if isinstance(each, ast.ClassDef)):
        for call in node.decorator_list:
            if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "solver"):
                continue
            try:
                (name,) = (ast.literal_eval(argument) for argument in call.args)
                options = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
                yield SolverFacts(name, module, **options, about=first_paragraph(ast.get_docstring(node)))
            except (ValueError, TypeError) as error:
                raise RecipeError(
                    f"the solver in {path.name}, line {call.lineno}, cannot be registered",
                    f"its decorator is read without running the file, so its arguments are literals: {error}",
                    '@solver("name", order=2, calls_per_step=2)',
                ) from error


_registered: dict[str, SolverFacts] = {}  # by packages and in the session


def register(facts: SolverFacts) -> None:
    """Called by the decorator. RecipeError where another module has a solver of that name."""
    known = built_in().get(facts.name) or _registered.get(facts.name, facts)
    if known.module != facts.module:
        raise _taken(known, facts)
    if facts.name not in built_in():
        _registered[facts.name] = facts


def _taken(known: SolverFacts, other: SolverFacts) -> RecipeError:
    return RecipeError(
        f"two solvers are called {known.name!r}",
        f"one is in {known.module}, the other in {other.module}",
        "rename yours: names with your package's in front stay free",
    )


def solver_names() -> tuple[str, ...]:
    """All names that a recipe may use; nothing is imported."""
    return tuple(dict.fromkeys((*built_in(), *_registered, *plugins(ENTRY_POINT))))


def names_that_take_sigmas() -> tuple[str, ...]:
    """The solvers of wanscope's own that explicit sigmas can be given to."""
    return tuple(name for name, row in built_in().items() if row.takes_sigmas)


def require_known(name: str) -> None:
    """ValueError, with the nearest name, for one that no solver has."""
    if name not in solver_names():
        raise ValueError(f"{name!r} is not a solver; {_hint(name)}")


def facts(name: str) -> SolverFacts:
    """What is known of a solver. One of another package is imported for it. RecipeError for an unknown name."""
    known = built_in().get(name) or _registered.get(name)
    if known is not None:
        return known
    if name not in plugins(ENTRY_POINT):
        raise RecipeError(f"{name!r} is not a solver", _hint(name))
    load(ENTRY_POINT, name)
    if name not in _registered:
        value = plugins(ENTRY_POINT)[name].value
        raise RecipeError(
            f"{name!r} is not registered by {value}",
            "its entry point names that module, and importing it registers no solver of that name",
            f'@solver("{name}") above the class',
        )
    return _registered[name]


def import_solver(name: str) -> None:
    """Import the module of the solver's class, which registers it."""
    import_module(facts(name).module)


def _hint(name: str) -> str:
    """Return our name of another tool's solver, or the nearest of ours."""
    ours = our_solver(name)
    return f"here it is called {ours!r}" if ours is not None else nearest(name, solver_names())
