"""A catalog from somebody else cannot read files, run code or change by being read; one of ours is merged as before."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import duckdb
import pytest
import torch

from wanscope.catalog import migrations
from wanscope.catalog.catalog import Catalog
from wanscope.catalog.shape import foreign_objects
from wanscope.errors import CatalogDamaged, SqlRefused, WanscopeError

SECRET = "the content of a private file"


@pytest.fixture
def theirs(tmp_path: Path) -> Catalog:
    catalog = Catalog(tmp_path / "theirs")
    catalog.put(torch.ones(4, 8), prompt="a red circle", model="marbles", label="red")
    catalog.db.checkpoint()
    (tmp_path / "secret.txt").write_text(SECRET)
    return catalog


@pytest.fixture
def mine(tmp_path: Path) -> Catalog:
    catalog = Catalog(tmp_path / "mine")
    catalog.put(torch.zeros(4, 8), prompt="mine", model="marbles")
    return catalog


def changed(theirs: Catalog, *statements: str) -> None:
    with duckdb.connect(str(theirs.path)) as con:
        for statement in statements:
            con.execute(statement.replace("SECRET", str(theirs.workspace.folder.parent / "secret.txt")))


def state(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def columns_of(theirs: Catalog, table: str, text: str) -> str:
    """Return a SELECT with the columns of a table, in which every text is `text`."""
    with duckdb.connect(str(theirs.path), read_only=True) as con:
        kinds = con.execute(f"DESCRIBE {table}").fetchall()
    cells = [text if kind == "VARCHAR" else f"NULL::{kind}" for _, kind, *_ in kinds]
    return ", ".join(f"{cell} AS {name}" for cell, (name, *_) in zip(cells, kinds, strict=True))


FOREIGN = {
    "a view for a table": ("takes", "the view takes"),
    "a view for prompts": ("embedding_prompts", "the view embedding_prompts"),
    "another view": ("", "the view x"),
    "a macro for a function": ("", "the macro lower"),
    "a table macro for a list of views": ("", "the macro duckdb_views"),
    "a computed column": ("", "a computed column in x"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_what_is_no_table_is_refused_before_it_runs(kind: str, theirs: Catalog, mine: Catalog) -> None:
    table, said = FOREIGN[kind]
    if table:
        select = columns_of(theirs, table, "(SELECT content FROM read_text('SECRET'))")
        changed(theirs, f"DROP TABLE {table} CASCADE", f"CREATE VIEW {table} AS SELECT {select}")
    elif "macro" in said:
        macro = {
            "the macro lower": "CREATE MACRO lower(x) AS (SELECT content FROM read_text('SECRET'))",
            "the macro duckdb_views": "CREATE MACRO duckdb_views() AS TABLE SELECT 'x' AS view_name, true AS internal",
        }[said]
        changed(theirs, macro)
    elif "view" in said:
        changed(theirs, "CREATE VIEW x AS SELECT content FROM read_text('SECRET')")
    else:
        changed(theirs, "CREATE TABLE x (a INTEGER, b INTEGER GENERATED ALWAYS AS (a + 1))")
    before, ours = state(theirs.workspace.folder), mine.stats()
    for act in (lambda: mine.merge(theirs), lambda: Catalog(theirs.workspace).stats()):
        with pytest.raises(CatalogDamaged) as error:
            act()
        assert said in str(error.value) and SECRET not in str(error.value)
    assert state(theirs.workspace.folder) == before and mine.stats() == ours


@pytest.mark.parametrize(
    "sql", ["SELECT * FROM read_text('SECRET')", "SELECT * FROM 'SECRET'", "SELECT * FROM glob('/*')"]
)
def test_the_copy_that_is_read_has_no_access_to_files(sql: str, theirs: Catalog) -> None:
    from wanscope.catalog.read_copy import reading_copy

    with reading_copy(theirs.db) as con, pytest.raises(duckdb.Error):
        con.execute(sql.replace("SECRET", str(theirs.workspace.folder.parent / "secret.txt")))
    with pytest.raises(SqlRefused):
        theirs.sql(sql.replace("SECRET", str(theirs.workspace.folder.parent / "secret.txt")))


@pytest.mark.parametrize("locks", [True, False])
def test_merging_changes_nothing_in_theirs(locks: bool, theirs: Catalog, mine: Catalog) -> None:
    if not locks:
        for path in theirs.workspace.folder.glob(".*"):
            path.unlink()
    before = state(theirs.workspace.folder)
    found = mine.merge(theirs)
    assert found.rows["embeddings"] == 1 and "red" in str(mine.list())
    assert state(theirs.workspace.folder) == before


def test_an_older_catalog_is_migrated_only_in_the_copy(theirs: Catalog, mine: Catalog) -> None:
    """One made by the first version of the schema."""
    path = theirs.path
    os.unlink(path)
    with duckdb.connect(str(path)) as con:
        migrations.migrate(con, 0, 1)
    before = state(theirs.workspace.folder)
    mine.merge(theirs.workspace)
    assert state(theirs.workspace.folder) == before
    with duckdb.connect(str(path), read_only=True) as con:
        assert migrations.version_of(con) == 1


def test_ours_has_nothing_foreign_in_any_version(tmp_path: Path) -> None:
    for version in range(1, migrations.VERSION + 1):
        with duckdb.connect(str(tmp_path / f"{version}.duckdb")) as con:
            migrations.migrate(con, 0, version)
            assert foreign_objects(con) == []


def test_a_file_that_is_no_database_is_refused(mine: Catalog, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "catalog.duckdb").write_bytes(b"no database" * 100)
    with pytest.raises(WanscopeError):
        mine.merge(tmp_path / "x")
