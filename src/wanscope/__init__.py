"""wanscope opens up Wan text-to-video diffusion transformers.

This module lists the public names. Importing it loads neither torch nor any of these names: each one is imported when
it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from wanscope.analysis.analyze import analyze
    from wanscope.analysis.result import Analysis
    from wanscope.api import difference, generate, learn_direction, open_take
    from wanscope.catalog.catalog import Catalog
    from wanscope.edit.edits import Bend, Donor, Inject, Prompts, Skip, Steer
    from wanscope.errors import WanscopeError
    from wanscope.recipe import CaptureSpec as Capture
    from wanscope.recipe import Recipe, Study
    from wanscope.study.prepare import plan
    from wanscope.study.run import StudyResult, run
    from wanscope.take.compare import contact_sheet, side_by_side
    from wanscope.take.store import Take
    from wanscope.wan.load import load
    from wanscope.workspace import Workspace

# Where each public name is defined: the module, and its name there.
_NAMES = {
    "Bend": ("wanscope.edit.edits", "Bend"),
    "Analysis": ("wanscope.analysis.result", "Analysis"),
    "Capture": ("wanscope.recipe", "CaptureSpec"),
    "Catalog": ("wanscope.catalog.catalog", "Catalog"),
    "Donor": ("wanscope.edit.edits", "Donor"),
    "Inject": ("wanscope.edit.edits", "Inject"),
    "Prompts": ("wanscope.edit.edits", "Prompts"),
    "Recipe": ("wanscope.recipe", "Recipe"),
    "Skip": ("wanscope.edit.edits", "Skip"),
    "Steer": ("wanscope.edit.edits", "Steer"),
    "Study": ("wanscope.recipe", "Study"),
    "StudyResult": ("wanscope.study.run", "StudyResult"),
    "Take": ("wanscope.take.store", "Take"),
    "WanscopeError": ("wanscope.errors", "WanscopeError"),
    "Workspace": ("wanscope.workspace", "Workspace"),
    "analyze": ("wanscope.analysis.analyze", "analyze"),
    "contact_sheet": ("wanscope.take.compare", "contact_sheet"),
    "difference": ("wanscope.api", "difference"),
    "generate": ("wanscope.api", "generate"),
    "learn_direction": ("wanscope.api", "learn_direction"),
    "load": ("wanscope.wan.load", "load"),
    "open_take": ("wanscope.api", "open_take"),
    "plan": ("wanscope.study.prepare", "plan"),
    "run": ("wanscope.study.run", "run"),
    "side_by_side": ("wanscope.take.compare", "side_by_side"),
}

__all__ = [
    "Analysis",
    "Bend",
    "Capture",
    "Catalog",
    "Donor",
    "Inject",
    "Prompts",
    "Recipe",
    "Skip",
    "Steer",
    "Study",
    "StudyResult",
    "Take",
    "WanscopeError",
    "Workspace",
    "__version__",
    "analyze",
    "contact_sheet",
    "difference",
    "generate",
    "learn_direction",
    "load",
    "open_take",
    "plan",
    "run",
    "side_by_side",
]


def __getattr__(name: str) -> object:
    if name not in _NAMES:
        raise AttributeError(f"module 'wanscope' has no attribute {name!r}")
    module, attribute = _NAMES[name]
    found = getattr(import_module(module), attribute)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
