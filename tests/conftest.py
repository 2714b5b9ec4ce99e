"""What holds for every test."""

from helpers.doc_pages import pytest_runtest_makereport

__all__ = ["pytest_runtest_makereport"]
