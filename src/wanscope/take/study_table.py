"""index.csv, the table of a study's takes, as text: written with a checksum, and read back only as it was written.

The last column of every row is a checksum of the whole table, so that a changed cell is found, and so is a row that is
missing. Tables of version 0.1 have no such column and are read without it.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path

from wanscope.errors import RecipeError
from wanscope.take.csv_cells import harmless, original

INDEX = "index.csv"
CHECKSUM = "checksum"
NEEDED = ("name", "take", "variation", "seed", "status", "current")


def table_text(rows: Sequence[Sequence[object]]) -> str:
    """Return a table as CSV. rows: first the names of the columns; every cell as `str` writes it."""
    cells = [[harmless(str(cell)) for cell in row] for row in rows]
    found = _checksum(cells)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([[*cells[0], CHECKSUM], *([*row, found] for row in cells[1:])])
    return text.getvalue()


def read_table(path: Path) -> list[dict[str, str]]:
    """Return the rows of a table by the names of its columns, without the checksum.

    Raises RecipeError where it cannot be read or is not as it was written, and FileNotFoundError.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            cells = list(csv.reader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise _changed(path, str(error)) from None
    head = cells[0] if cells else []
    if missing := [name for name in NEEDED if name not in head]:
        raise _changed(path, f"it has no column {missing[0]}")
    if len(cells) == 1:  # a study has at least one take
        raise _changed(path, "it has no row")
    if len(set(head)) < len(head) or any(len(row) != len(head) for row in cells):
        raise _changed(path, "its rows do not fit its columns")
    if head[-1] == CHECKSUM:
        whole = [row[:-1] for row in cells]
        found = _checksum(whole)
        if any(row[-1] != found for row in cells[1:]):
            raise _changed(path, "its rows do not match their checksum")
        # An earlier version wrote tables without a checksum, and texts as they are.
        whole = [[original(cell) for cell in row] for row in whole]
        head, cells = whole[0], whole
    rows = [dict(zip(head, row, strict=True)) for row in cells[1:]]
    for row in rows:
        if row["current"] not in ("yes", "no"):
            raise _changed(path, f"{row['current']!r} in its column current is neither yes nor no")
    return rows


def _checksum(cells: Sequence[Sequence[str]]) -> str:
    return hashlib.sha256(json.dumps(cells, ensure_ascii=False).encode()).hexdigest()[:12]


def _changed(path: Path, why: str) -> RecipeError:
    return RecipeError(
        f"{path} has been changed and cannot be read",
        f"{why}. Delete the file; it is written again when the study is run",
    )
