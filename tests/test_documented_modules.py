"""Modules that the documentation of 0.1 named can still be imported."""

from __future__ import annotations

from importlib import import_module

import pytest

# From the docs of 0.1.
DOCUMENTED = {
    "wanscope.analysis.attention": ("profile",),
    "wanscope.analysis.metric": ("Subject", "metric", "one"),
    "wanscope.capture.base": ("Moment", "Observer", "StepState"),
    "wanscope.edit.amplify": ("amplify",),
    "wanscope.edit.embeds": ("difference", "interpolate", "weighted_sum"),
    "wanscope.edit.shorthand": ("parse", "shorthand"),
    "wanscope.prompt.tokens": ("find_words",),
    "wanscope.sample.res": ("ExponentialSolver",),
    "wanscope.sample.solvers": ("solver",),
    "wanscope.wan.load": ("load",),
    "wanscope.wan.memory": ("plan_memory",),
    "wanscope.wan.text": ("encode",),
    "wanscope.wan.variants": ("VARIANTS",),
}


@pytest.mark.parametrize("module", DOCUMENTED)
def test_documented_modules_can_still_be_imported(module: str) -> None:
    found = import_module(module)
    assert all(hasattr(found, name) for name in DOCUMENTED[module])
