"""What 0.1's documentation told people to import still imports, with a warning that names the new place."""

from __future__ import annotations

from importlib import import_module

import pytest

from wanscope.spec.moved_modules import MOVED

# As docs of 0.1 had them.
DOCUMENTED = {
    "wanscope.capture.base": ("Observer", "StepState", "Moment"),
    "wanscope.edit.embeds": ("interpolate", "difference", "weighted_sum"),
    "wanscope.wan.memory": ("plan_memory",),
    "wanscope.analysis.attention": ("profile",),
    "wanscope.analysis.metric": ("metric", "one", "Subject"),
    "wanscope.sample.solvers": ("solver",),
    "wanscope.edit.amplify": ("amplify",),
    "wanscope.edit.shorthand": ("parse", "shorthand"),
    "wanscope.prompt.tokens": ("find_words",),
    "wanscope.wan.load": ("load",),
    "wanscope.wan.text": ("encode",),
    "wanscope.wan.variants": ("VARIANTS",),
}


@pytest.mark.parametrize("module", DOCUMENTED)
@pytest.mark.filterwarnings("ignore:.* has moved")
def test_documented_modules_are_where_they_were(module: str) -> None:
    found = import_module(module)
    assert all(hasattr(found, name) for name in DOCUMENTED[module])


@pytest.mark.parametrize("old", MOVED)
def test_an_old_name_warns_and_is_the_new_module(old: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.delitem(sys.modules, old, raising=False)
    with pytest.warns(DeprecationWarning, match=f"import {MOVED[old]}"):
        found = import_module(old)
    new = import_module(MOVED[old])
    assert all(getattr(found, name) is value for name, value in vars(new).items() if name[:2] != "__")


def test_other_names_are_not_found() -> None:
    with pytest.raises(ModuleNotFoundError):
        import_module("wanscope.edit.embedz")
