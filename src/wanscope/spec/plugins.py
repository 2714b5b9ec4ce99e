"""Parts that other installed packages bring, by entry points. Their names are known without importing them. No torch.

A package says in its pyproject.toml, for the group of what it brings:

    [project.entry-points."wanscope.solvers"]
    my_solver = "my_package.my_solver"

The module registers what it has when it is imported, by the decorator of its kind.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from wanscope.errors import RequestError


@cache
def plugins(group: str) -> dict[str, EntryPoint]:
    """The entry points of a group by name. Installed packages do not change while a process runs."""
    return {point.name: point for point in entry_points(group=group)}


def load(group: str, name: str) -> None:
    """Import what registers `name`. RequestError, naming the package, where that fails."""
    load_point(plugins(group)[name], repr(name))


def load_point(point: EntryPoint, what: str) -> Any:
    """What an entry point names, imported. RequestError, naming `what` and the package, where that fails."""
    package = point.dist.name if point.dist is not None else point.value
    try:
        return point.load()
    except (ImportError, AttributeError, SyntaxError) as error:
        raise RequestError(
            f"{what} of the package {package} cannot be loaded",
            f"{point.value}: {error}",
            f"pip uninstall {package}",
        ) from error
