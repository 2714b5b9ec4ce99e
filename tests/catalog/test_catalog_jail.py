"""`sql` reads the tables and cannot do anything else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from wanscope.catalog import jail
from wanscope.catalog.catalog import Catalog
from wanscope.errors import SqlRefused

secret_rows = [1, 2, 3]  # a Python variable that a replacement scan would find


@pytest.fixture(scope="module")
def tmp_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("jail")


@pytest.fixture(scope="module")
def catalog(tmp_path: Path) -> Catalog:
    """Shared by all tests: nothing here may change it."""
    catalog = Catalog(tmp_path / "space")
    catalog.put(np.ones((2, 3), np.float32), prompt="a red circle")
    (tmp_path / "secret.csv").write_text("a,b\n1,2\n")
    (tmp_path / "secret.txt").write_text("secret")
    return catalog


ALLOWED = [
    "SELECT prompt, tokens FROM embeddings",
    "select count(*) from takes;",
    "WITH a AS (SELECT key FROM embeddings) SELECT * FROM a",
    "FROM embeddings SELECT dim",
    "SELECT e.prompt, array_distance(v.vector, v.vector) FROM embeddings e JOIN search_vectors v USING (key)",
    "DESCRIBE embeddings",
    "SELECT 1 UNION ALL SELECT 2 -- a comment; with a semicolon",
    "SELECT ';'",
]
FILES = [
    "SELECT * FROM '{folder}/secret.csv'",
    "SELECT * FROM read_csv('{folder}/secret.csv')",
    "SELECT * FROM read_text('{folder}/secret.txt')",
    "SELECT * FROM read_blob('{folder}/space/catalog.duckdb')",
    "SELECT * FROM read_parquet('{folder}/*.parquet')",
    "SELECT * FROM read_json_auto('{folder}/secret.txt')",
    "SELECT * FROM glob('{folder}/*')",
    "SELECT * FROM sniff_csv('{folder}/secret.csv')",
    "SELECT * FROM parquet_metadata('{folder}/x.parquet')",
    "SELECT * FROM query('SELECT * FROM read_text(''{folder}/secret.txt'')')",
    "SELECT * FROM read_csv('https://example.org/x.csv')",
    "SELECT * FROM secret_rows",
    "SELECT * FROM np",
]
STATEMENTS = [
    "COPY embeddings TO '{folder}/out.csv'",
    "COPY (SELECT 1) TO '{folder}/out.csv'",
    "COPY embeddings FROM '{folder}/secret.csv'",
    "EXPORT DATABASE '{folder}/out'",
    "IMPORT DATABASE '{folder}/out'",
    "ATTACH '{folder}/other.duckdb' AS other",
    "DETACH catalog",
    "INSTALL vss",
    "LOAD vss",
    "FORCE INSTALL httpfs",
    "PRAGMA version",
    "PRAGMA database_list",
    "PRAGMA enable_profiling",
    "SET enable_external_access = true",
    "RESET lock_configuration",
    "USE other",
    "CREATE TABLE x (a INT)",
    "CREATE TEMP TABLE x AS SELECT 1",
    "CREATE VIEW v AS SELECT 1",
    "CREATE MACRO m(a) AS a",
    "CREATE SECRET s (TYPE s3)",
    "INSERT INTO embedding_tags VALUES ('a', 'b')",
    "UPDATE embeddings SET prompt = ''",
    "DELETE FROM embeddings",
    "DROP TABLE embeddings",
    "ALTER TABLE embeddings ADD COLUMN x INT",
    "TRUNCATE embeddings",
    "CHECKPOINT",
    "VACUUM",
    "BEGIN",
    "CALL pragma_version()",
    "SELECT * FROM force_checkpoint()",
    "EXPLAIN ANALYZE SELECT 1",
    "PREPARE p AS SELECT 1",
    "EXECUTE p",
    "SELECT 1; SELECT 2",
    "SELECT 1; DROP TABLE embeddings",
    "WITH gone AS (DELETE FROM embeddings RETURNING *) SELECT * FROM gone",
    "WITH new AS (INSERT INTO embedding_tags VALUES ('a', 'b') RETURNING *) SELECT * FROM new",
    "",
    "   -- nothing",
]


@pytest.mark.parametrize("query", ALLOWED)
def test_a_select_is_answered(catalog: Catalog, query: str) -> None:
    assert catalog.sql(query).num_rows >= 1


def test_everything_else_is_refused_and_changes_nothing(catalog: Catalog, tmp_path: Path) -> None:
    before = sorted(p.name for p in tmp_path.rglob("*") if not p.name.endswith(".lock"))
    allowed, refused = [], []
    for query in [*FILES, *STATEMENTS]:
        try:
            allowed.append((query, catalog.sql(query.format(folder=tmp_path)).to_pylist()))
        except SqlRefused as error:
            refused.append(error)
    assert allowed == []
    assert {error.exit_status for error in refused} == {2}
    assert all("wanscope db sql" in error.fix for error in refused)
    assert sorted(p.name for p in tmp_path.rglob("*") if not p.name.endswith(".lock")) == before
    assert catalog.sql("SELECT prompt FROM embeddings").to_pylist() == [{"prompt": "a red circle"}]


def test_the_environment_cannot_be_read(catalog: Catalog) -> None:
    with pytest.raises(SqlRefused):
        catalog.sql("SELECT getenv('HOME')")


def test_an_endless_query_is_stopped(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jail, "BYTES", 10 << 20)
    with pytest.raises(SqlRefused, match="too large"):
        catalog.sql("SELECT * FROM range(10000000000)")
    monkeypatch.setattr(jail, "SECONDS", 0.2)
    with pytest.raises(SqlRefused, match=r"not answered in 0\.2 seconds"):
        catalog.sql("SELECT count(*) FROM range(3000000) a, range(3000000) b WHERE a.range * b.range % 7 = 3")
    assert catalog.sql("SELECT count(*) AS n FROM embeddings").to_pylist() == [{"n": 1}]


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("SELECT", "cannot be read"),
        ("SELECT FROM WHERE", "cannot be read"),
        ("SELECT promt FROM embeddings", "promt"),
        ("SELECT * FROM embedings", "embedings"),
        ("SELECT CAST('x' AS INT)", "cannot be answered"),
        ("SELECT nope(1)", "nope"),
        ("DROP TABLE takes", "DROP is not allowed"),
        ("PRAGMA version", "PRAGMA is not allowed"),
    ],
)
def test_mistakes_in_sql_have_clear_messages(catalog: Catalog, query: str, said: str) -> None:
    with pytest.raises(SqlRefused, match=said):
        catalog.sql(query)


HEAVY = [
    "SELECT repeat('x', 3000000000)",  # one call: DuckDB neither counts its memory nor interrupts it
    "SELECT length(repeat(repeat('x', 30000), 100000))",
    "SELECT list_sum(range(3000000000))",
    "SELECT string_agg(repeat('x', 10000000)) FROM range(1000)",
    "WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t) SELECT max(n) FROM t",
]


@pytest.mark.parametrize("query", HEAVY)
def test_no_query_takes_the_machine_or_the_turn(catalog: Catalog, query: str, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog.sql("SELECT 1")  # a process is ready
    monkeypatch.setattr(jail, "SECONDS", 2.0)
    with pytest.raises(SqlRefused, match=r"not answered in 2 seconds|needs too much memory"):
        catalog.sql(query)
    assert catalog.sql("SELECT count(*) AS n FROM embeddings").to_pylist() == [{"n": 1}]


@pytest.mark.parametrize(
    "query",
    [
        "SELECT 9223372036854775807 + 1",
        "SELECT CAST('999999-01-01' AS TIMESTAMP)",
        "SELECT 170141183460469231731687303715884105727::HUGEINT + 1",
        "SELECT DATE '294247-01-10' + INTERVAL 1000000 YEAR",
        "SELECT error('no')",
        "SELECT 1 / (SELECT NULL)::INT::VARCHAR::INT UNION ALL SELECT 'x'::INT",
        "SELECT unnest(range(10)) FROM nothing",
    ],
)
def test_what_overflows_or_fails_is_a_refusal(catalog: Catalog, query: str) -> None:
    with pytest.raises(SqlRefused):
        catalog.sql(query)


def test_a_process_that_has_died_is_replaced(catalog: Catalog) -> None:
    catalog.sql("SELECT 1")
    jail._idle[-1].kill()
    jail._idle[-1].wait()
    assert catalog.sql("SELECT 3 AS n").to_pylist() == [{"n": 3}]


def test_a_catalog_that_does_not_exist_yet_is_empty(tmp_path: Path) -> None:
    assert Catalog(tmp_path / "none").sql("SELECT count(*) AS n FROM takes").to_pylist() == [{"n": 0}]
