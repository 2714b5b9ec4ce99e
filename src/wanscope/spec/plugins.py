"""Plugins of other installed packages, found by entry points. Their names are known without importing them or torch.

A package declares in its pyproject.toml, under the group for its kind of plugin:

    [project.entry-points."wanscope.solvers"]
    my_solver = "my_package.my_solver"

Importing the module registers the plugin, through the decorator for its kind.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from wanscope.errors import RequestError


@cache
def plugins(group: str) -> dict[str, EntryPoint]:
    """Return the entry points of a group by name. Installed packages do not change while a process runs."""
    return {point.name: point for point in entry_points(group=group)}


def load(group: str, name: str) -> None:
    """Import the module that registers `name`. Raises RequestError, naming the package, where that fails."""
    load_point(plugins(group)[name], repr(name))


def load_point(point: EntryPoint, what: str) -> Any:
    """Import and return what an entry point names. Raises RequestError, naming `what` and the package, on failure."""
    package = point.dist.name if point.dist is not None else point.value
    try:
        return point.load()
    except (ImportError, AttributeError, SyntaxError) as error:
        raise RequestError(
            f"{what} of the package {package} cannot be loaded",
            f"{point.value}: {error}",
            f"pip uninstall {package}",
        ) from error
