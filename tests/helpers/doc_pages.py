"""If a test of a documentation page fails, names the page to edit: that in the docstring of the test or its module."""

from __future__ import annotations

import re
from collections.abc import Generator
from typing import Any

import pytest

PAGE = re.compile(r"\b(?:docs/[\w-]+|README|CONTRIBUTING|CHANGELOG)\.md\b")


def pages_of(item: pytest.Item) -> list[str]:
    """Return the pages that a test checks; none for a test of code only."""
    for owner in (getattr(item, "function", None), getattr(item, "module", None)):
        if found := PAGE.findall(getattr(owner, "__doc__", None) or ""):
            return list(dict.fromkeys(found))
    return []


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    report = yield
    if report.failed and (pages := pages_of(item)):
        report.sections.append(("documentation", f"Edit {' or '.join(pages)}, or the code that it describes."))
    return report
