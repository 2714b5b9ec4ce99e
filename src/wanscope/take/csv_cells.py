"""Cells of CSV files that spreadsheet programs do not run as formulas.

A cell that begins with =, +, -, @, a tab or a carriage return is a formula to a spreadsheet, and a prompt or a label
can come from anybody: `=HYPERLINK(...)`. Such a text gets an apostrophe in front, which spreadsheets do not show.
Numbers stay numbers.
"""

from __future__ import annotations

import re

_FORMULA = re.compile(r"'*[=+\-@\t\r]")  # also with apostrophes in front, so that `original` can remove exactly one
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?inf|nan")


def harmless(text: str) -> str:
    """Return a cell's text with an apostrophe in front if a spreadsheet would take it for a formula."""
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


def original(cell: str) -> str:
    """Return the text that `harmless` was given."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell
