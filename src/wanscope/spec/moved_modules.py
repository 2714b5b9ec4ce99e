"""Modules that 0.1 documented under another name: the old import still works, and warns.

`install` adds a finder that knows the old names alone and loads nothing until one of them is imported.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {
    "wanscope.capture.base": "wanscope.capture.moments",
    "wanscope.edit.embeds": "wanscope.edit.embedding_algebra",
    "wanscope.wan.memory": "wanscope.wan.memory_plan",
}


class _MovedModules(MetaPathFinder, Loader):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in MOVED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        old, new = spec.name, MOVED[spec.name]
        warnings.warn(f"{old} has moved: import {new}", DeprecationWarning, stacklevel=2)
        module = ModuleType(old, f"Deprecated alias for {new}.")
        module.__dict__.update({name: value for name, value in vars(import_module(new)).items() if name[:2] != "__"})
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Everything is in place once the module exists."""


def install() -> None:
    """Let the old names be imported; again without effect."""
    if not any(isinstance(finder, _MovedModules) for finder in sys.meta_path):
        sys.meta_path.append(_MovedModules())
