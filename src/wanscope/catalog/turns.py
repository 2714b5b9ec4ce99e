"""Whether the catalog has every change that was committed to it.

DuckDB finds damage inside its file by checksums. It cannot find that the file or the end of its log was removed, cut
short, or replaced by an older copy: what is left is a catalog like any other. So every change is numbered in the
catalog, and the last number is written next to it as well, in `.catalog.duckdb.turns`, after the change is committed. A
kill between the two leaves a number that is too small, which says nothing.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from wanscope.catalog.rows import one

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

TURNS, LOST = "turns", "lost_turns"


def _beside(catalog: Path) -> Path:
    return catalog.with_name(f".{catalog.name}.turns")


def _last(catalog: Path) -> int:
    """Return the number next to the catalog; 0 where there is none."""
    try:
        text = _beside(catalog).read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return 0
    return int(text) if text.strip().isdigit() and len(text) < 20 else 0


def _fact(con: DuckDBPyConnection, name: str) -> int:
    found = one(con, f"SELECT value FROM catalog_facts WHERE name = '{name}'")
    return int(found[0]) if found else 0


def _set(con: DuckDBPyConnection, name: str, value: int) -> None:
    con.execute(
        "INSERT INTO catalog_facts VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value", [name, value]
    )


def count_turn(con: DuckDBPyConnection, catalog: Path) -> int:
    """Number the change that is about to be committed, and return its number."""
    had, last = _fact(con, TURNS), _last(catalog)
    if last > had:
        _set(con, LOST, _fact(con, LOST) + last - had)
    number = max(had, last) + 1
    _set(con, TURNS, number)
    return number


def note_turn(catalog: Path, number: int) -> None:
    """Write a committed change's number next to the catalog; only in the turn in which it was made."""
    temporary = catalog.with_name(f".{catalog.name}.turns.new")
    temporary.write_text(f"{number}\n", encoding="ascii")
    os.replace(temporary, _beside(catalog))


def lost_turns(con: DuckDBPyConnection, catalog: Path) -> int:
    """Return how many committed changes the catalog does not have."""
    return _fact(con, LOST) + max(0, _last(catalog) - _fact(con, TURNS))


def forget_lost(con: DuckDBPyConnection, catalog: Path) -> None:
    """Accept the catalog as it is; the change that is being made numbers on from the highest number."""
    _set(con, TURNS, max(_fact(con, TURNS), _last(catalog)))
    _set(con, LOST, 0)
