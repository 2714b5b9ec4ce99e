"""Draws only one figure of every form, for tests that do not look at figures; it takes a tenth of the time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from wanscope.analysis.charts import Chart
from wanscope.analysis.figures import write_static


def one_of_each_form(charts: Sequence[Chart]) -> list[Chart]:
    """Return the first chart of every combination of marks and axes."""
    forms = {(frozenset(s.kind for s in c.series), c.log_y, c.zero_x): c for c in reversed(charts)}
    return list(forms.values())[::-1]


def draw_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make reports draw only one figure of every form. All are drawn in tests/analysis/test_analyze.py."""

    def few(charts: Sequence[Chart], folder: Path) -> list[Path]:
        return write_static(one_of_each_form(charts), folder)

    monkeypatch.setattr("wanscope.analysis.report.write_static", few)
