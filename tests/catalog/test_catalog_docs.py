"""docs/catalog.md is up to date: it lists every table and column, and its examples run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from wanscope.catalog import upkeep
from wanscope.catalog.catalog import Catalog
from wanscope.catalog.exchange import columns
from wanscope.catalog.operations import FUNCTIONS

PAGE = (Path(__file__).parents[2] / "docs" / "catalog.md").read_text(encoding="utf-8")


def test_the_page_lists_exactly_the_tables_and_columns() -> None:
    schema = PAGE.split("## Schema")[1]
    shown = {}
    for line in re.findall(r"^\| `.*$", schema, flags=re.MULTILINE):
        table, _, said = (cell.strip() for cell in line.strip("| ").split(" | "))
        shown[table.strip("`")] = re.findall(r"`(\w+)`", said)
    assert shown == {table: [name for name, _, _ in found] for table, found in columns().items()}
    assert set(upkeep.TABLES) | {"schema_migrations", "catalog_facts"} == set(shown)


def test_the_parsed_schema_is_the_one_that_duckdb_has(tmp_path: Path) -> None:
    with Catalog(tmp_path).db.reading() as con:
        rows = con.execute(
            "SELECT table_name, column_name, data_type FROM duckdb_columns() WHERE NOT internal "
            "ORDER BY table_name, column_index"
        ).fetchall()
    found: dict[str, list[tuple[str, str]]] = {}
    for table, name, kind in rows:
        found.setdefault(table, []).append((name, kind))
    assert found == {table: [(name, kind) for name, kind, _ in said] for table, said in columns().items()}


def test_the_page_names_every_operation() -> None:
    assert set(
        re.findall(r"^\| `(\w+)` \|", PAGE.split("## Operations")[1].split("\n## ")[0], flags=re.MULTILINE)
    ) == set(FUNCTIONS)


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first, second = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
    names: dict = {}
    exec(first, names)
    assert names["catalog"].recompute("gothic beach")[0][1]
    exec(second, names)
    names["catalog"].export(tmp_path / "out")
    import numpy as np
    import pyarrow.parquet as pq

    for row in pq.read_table(tmp_path / "out" / "embeddings.parquet").to_pylist():
        assert np.array_equal(names["matrix"](row), names["catalog"].get(row["key"]).array())
