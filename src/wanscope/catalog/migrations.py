"""Migrations of an older catalog to the current schema: ordered, named functions, all in one transaction.

A new file is made from schema.sql, which is the result of all migrations. To change the schema, change schema.sql and
add a function at the end; never edit one that was released.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from importlib.resources import files
from typing import TYPE_CHECKING

from wanscope import __version__
from wanscope.catalog.rows import one

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection


def embeddings_and_operations(con: DuckDBPyConnection) -> None:
    """Add token matrices by prompt, and what was computed from them."""
    con.execute("""
        CREATE TABLE embeddings (
          key VARCHAR PRIMARY KEY, content VARCHAR NOT NULL, created TIMESTAMP NOT NULL, model VARCHAR NOT NULL,
          encoder VARCHAR NOT NULL, space VARCHAR NOT NULL, dtype VARCHAR NOT NULL, tokens INTEGER NOT NULL,
          dim INTEGER NOT NULL, prompt VARCHAR, source VARCHAR NOT NULL, label VARCHAR, norm DOUBLE NOT NULL,
          raw_bytes BIGINT NOT NULL, file_bytes BIGINT NOT NULL, encode_seconds DOUBLE, uses BIGINT NOT NULL,
          last_used TIMESTAMP, origin VARCHAR NOT NULL
        );
        CREATE TABLE embedding_prompts (
          prompt VARCHAR NOT NULL, encoder VARCHAR NOT NULL, environment VARCHAR NOT NULL, key VARCHAR NOT NULL,
          PRIMARY KEY (prompt, encoder, environment)
        );
        CREATE TABLE embedding_tags (key VARCHAR NOT NULL, tag VARCHAR NOT NULL, PRIMARY KEY (key, tag));
        CREATE TABLE vector_operations (
          id VARCHAR PRIMARY KEY, operation VARCHAR NOT NULL, result VARCHAR NOT NULL, created TIMESTAMP NOT NULL,
          seconds DOUBLE NOT NULL, bytes BIGINT NOT NULL, note VARCHAR NOT NULL, wanscope VARCHAR NOT NULL,
          torch VARCHAR NOT NULL
        );
        CREATE TABLE operation_inputs (
          operation VARCHAR NOT NULL, position INTEGER NOT NULL, name VARCHAR NOT NULL, key VARCHAR NOT NULL,
          PRIMARY KEY (operation, position)
        );
        CREATE TABLE operation_parameters (
          operation VARCHAR NOT NULL, name VARCHAR NOT NULL, value VARCHAR NOT NULL, PRIMARY KEY (operation, name)
        );
        CREATE TABLE embedding_analysis (
          key VARCHAR NOT NULL, name VARCHAR NOT NULL, value DOUBLE NOT NULL, PRIMARY KEY (key, name)
        );
        CREATE TABLE embedding_similarities (
          key_a VARCHAR NOT NULL, key_b VARCHAR NOT NULL, metric VARCHAR NOT NULL, value DOUBLE NOT NULL,
          PRIMARY KEY (key_a, key_b, metric)
        );
    """)


def takes_as_an_index(con: DuckDBPyConnection) -> None:
    """Add the index of takes, the studies that name them, and their edits."""
    con.execute("""
        CREATE TABLE takes (
          id VARCHAR PRIMARY KEY, status VARCHAR NOT NULL, damage VARCHAR NOT NULL, folder VARCHAR NOT NULL,
          made TIMESTAMP, model VARCHAR, variant VARCHAR, dtype VARCHAR, prompt VARCHAR, negative VARCHAR, seed BIGINT,
          width INTEGER, height INTEGER, frames INTEGER, fps DOUBLE, solver VARCHAR, steps INTEGER, shift DOUBLE,
          guidance VARCHAR, latents BOOLEAN, edited BOOLEAN, seconds DOUBLE, bytes BIGINT, latents_sha256 VARCHAR,
          device VARCHAR, wanscope VARCHAR, torch VARCHAR, recipe VARCHAR, origin VARCHAR NOT NULL
        );
        CREATE TABLE variations (
          study VARCHAR NOT NULL, name VARCHAR NOT NULL, take VARCHAR NOT NULL, variation INTEGER NOT NULL,
          seed BIGINT NOT NULL, status VARCHAR NOT NULL, current BOOLEAN NOT NULL, slots VARCHAR NOT NULL,
          origin VARCHAR NOT NULL, PRIMARY KEY (study, name, take, origin)
        );
        CREATE TABLE edits (
          take VARCHAR NOT NULL, position INTEGER NOT NULL, kind VARCHAR NOT NULL, edit VARCHAR NOT NULL,
          planned BIGINT, applied BIGINT, PRIMARY KEY (take, position)
        );
    """)


def search_vectors(con: DuckDBPyConnection) -> None:
    """Add compact search vectors; those of existing embeddings are computed at the first search."""
    con.execute("""
        CREATE TABLE search_basis (
          number INTEGER PRIMARY KEY, dim INTEGER NOT NULL, mean BLOB NOT NULL, axes BLOB NOT NULL,
          fitted_on BIGINT NOT NULL, created TIMESTAMP NOT NULL
        );
        CREATE TABLE search_vectors (
          key VARCHAR PRIMARY KEY, basis INTEGER NOT NULL, vector FLOAT[256] NOT NULL, rest FLOAT NOT NULL
        );
        CREATE TABLE catalog_facts (name VARCHAR PRIMARY KEY, value BIGINT NOT NULL);
        INSERT INTO catalog_facts VALUES ('generation', 0);
    """)


def metrics_and_atlas(con: DuckDBPyConnection) -> None:
    """Add the results of analyses about takes and blocks."""
    con.execute("""
        CREATE TABLE metrics (
          take VARCHAR NOT NULL, name VARCHAR NOT NULL, step INTEGER NOT NULL, value DOUBLE NOT NULL,
          unit VARCHAR NOT NULL, source VARCHAR NOT NULL, PRIMARY KEY (take, name, step, source)
        );
        CREATE TABLE atlas (
          model VARCHAR NOT NULL, block INTEGER NOT NULL, site VARCHAR NOT NULL, strength DOUBLE NOT NULL,
          metric VARCHAR NOT NULL, value DOUBLE NOT NULL, low DOUBLE, high DOUBLE, pairs INTEGER NOT NULL,
          source VARCHAR NOT NULL, PRIMARY KEY (model, block, site, strength, metric, source)
        );
    """)


MIGRATIONS: tuple[Callable[[DuckDBPyConnection], None], ...] = (
    embeddings_and_operations,
    takes_as_an_index,
    search_vectors,
    metrics_and_atlas,
)
VERSION = len(MIGRATIONS)

_RECORD = """
CREATE TABLE IF NOT EXISTS schema_migrations (
  number INTEGER PRIMARY KEY, name VARCHAR NOT NULL, applied TIMESTAMP NOT NULL, wanscope VARCHAR NOT NULL
)
"""


def version_of(con: DuckDBPyConnection) -> int | None:
    """Return the schema's version in an open file; None where it is not a wanscope catalog, 0 where it is empty."""
    tables = {name for (name,) in con.execute("SELECT table_name FROM duckdb_tables() WHERE NOT internal").fetchall()}
    if "schema_migrations" not in tables:
        return None if tables else 0
    row = one(con, "SELECT coalesce(max(number), 0) FROM schema_migrations")
    return int(row[0]) if row else 0


def migrate(con: DuckDBPyConnection, version: int, to: int = VERSION) -> list[str]:
    """Apply the missing migrations in the caller's transaction; return their names."""
    con.execute(_RECORD)
    for number in range(version + 1, to + 1):
        MIGRATIONS[number - 1](con)
        _record(con, number)
    return [step.__name__ for step in MIGRATIONS[version:to]]


def create(con: DuckDBPyConnection) -> None:
    """Create the current schema in an empty file."""
    con.execute(files("wanscope.catalog").joinpath("schema.sql").read_text(encoding="utf-8"))
    for number in range(1, VERSION + 1):
        _record(con, number)


def _record(con: DuckDBPyConnection, number: int) -> None:
    now = datetime.now(UTC).replace(tzinfo=None)
    name = MIGRATIONS[number - 1].__name__
    con.execute("INSERT INTO schema_migrations VALUES (?, ?, ?, ?)", [number, name, now, __version__])
