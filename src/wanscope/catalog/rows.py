"""Reading and writing rows: Arrow tables with the database's own columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from wanscope.errors import EmbeddingNotFound

if TYPE_CHECKING:
    import pyarrow as pa
    from duckdb import DuckDBPyConnection

# The tables that are exchanged in addition to embeddings, in the order of import. Search vectors are computed again.
SHARED = (
    "embedding_prompts",
    "embedding_tags",
    "vector_operations",
    "operation_inputs",
    "operation_parameters",
    "embedding_analysis",
    "embedding_similarities",
    "takes",
    "variations",
    "edits",
    "metrics",
    "atlas",
)

HEX = set("0123456789abcdef")


def now() -> datetime:
    """Return the time in UTC without a time zone, as the tables store it."""
    return datetime.now(UTC).replace(tzinfo=None)


def one(con: DuckDBPyConnection, sql: str, parameters: Sequence[Any] = ()) -> tuple[Any, ...] | None:
    """Return the first row or None. All rows are read, because a half-read result blocks the connection."""
    return next(iter(con.execute(sql, list(parameters)).fetchall()), None)


def select(con: DuckDBPyConnection, sql: str, parameters: Sequence[Any] = ()) -> pa.Table:
    """Return the rows of a query as an Arrow table."""
    return con.sql(sql, params=list(parameters)).to_arrow_table()


_schemas: dict[str, Any] = {}  # Arrow schema of each table; the same in every file of this version


def insert(
    con: DuckDBPyConnection, table: str, rows: Iterable[Mapping[str, Any]] | pa.Table, *, new: bool = True
) -> None:
    """Add rows. Where a key exists already, the older row stays with `new`, and is replaced otherwise."""
    import pyarrow as pa

    incoming: Any = rows
    if not isinstance(rows, pa.Table):
        listed = [dict(row) for row in rows]
        if not listed:
            return
        if table not in _schemas:
            _schemas[table] = select(con, f"SELECT * FROM {table} LIMIT 0").schema
        incoming = pa.Table.from_pylist(listed, schema=_schemas[table])
    if not incoming.num_rows:
        return
    con.register("incoming_rows", incoming)
    try:
        con.execute(f"INSERT OR {'IGNORE' if new else 'REPLACE'} INTO {table} BY NAME SELECT * FROM incoming_rows")
    finally:
        con.unregister("incoming_rows")


def count(con: DuckDBPyConnection, table: str, where: str = "true", parameters: Sequence[Any] = ()) -> int:
    """Return the number of rows of a table that meet an SQL condition."""
    row = one(con, f"SELECT count(*) FROM {table} WHERE {where}", list(parameters))
    return int(row[0]) if row else 0


def changed(con: DuckDBPyConnection) -> None:
    """Record that embeddings were added or removed, so that searches reload them."""
    con.execute("UPDATE catalog_facts SET value = value + 1 WHERE name = 'generation'")


def find_key(con: DuckDBPyConnection, name: str) -> str:
    """Return the key of an embedding, by the start of its key, its label, or a prompt it is stored for.

    Raises EmbeddingNotFound when there is none, or when several match.
    """
    text = str(name).strip()
    if len(text) >= 4 and set(text) <= HEX:
        found = con.execute("SELECT key FROM embeddings WHERE starts_with(key, ?) LIMIT 2", [text]).fetchall()
        if len(found) == 1:
            return found[0][0]
        if len(found) > 1:
            raise EmbeddingNotFound(f"several embeddings' keys begin with {text}", f"{found[0][0]}, {found[1][0]}")
    for sql in (
        "SELECT DISTINCT key FROM embeddings WHERE label = ?",
        "SELECT key FROM (SELECT p.key, max(e.created) AS newest FROM embedding_prompts p JOIN embeddings e "
        "ON p.key = e.key WHERE p.prompt = ? GROUP BY p.key UNION SELECT key, created FROM embeddings WHERE prompt = ?"
        ") GROUP BY key ORDER BY max(newest) DESC",
    ):
        found = con.execute(sql, [text] * sql.count("?")).fetchall()
        if len(found) == 1 or (found and "prompt" in sql):
            return found[0][0]
        if found:
            shown = ", ".join(key[:12] for (key,) in found[:4])
            raise EmbeddingNotFound(f"{len(found)} embeddings have the label {text!r}", shown, "one of their keys")
    raise EmbeddingNotFound(
        f"there is no embedding {text!r}",
        f"none of the {count(con, 'embeddings')} embeddings has that key, label or prompt",
        "wanscope db search WORDS",
    )
