"""SQL from a person: one SELECT over the catalogue's tables, and nothing else.

Two walls. DuckDB's own parser says what the statement is, and only a single SELECT goes on (PRAGMA and temporary tables
would pass the second wall). The connection is read only, reaches no file, network, extension or variable of Python, and
its settings are locked.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from wanscope.catalog.connect import Database
from wanscope.errors import SqlRefused

if TYPE_CHECKING:
    import pyarrow as pa

EXAMPLE = 'wanscope db sql "SELECT prompt, tokens FROM embeddings LIMIT 5"'


def run_sql(db: Database, sql: str) -> pa.Table:
    """The rows of a SELECT. SqlRefused for everything else, and for a SELECT that DuckDB cannot answer."""
    import duckdb

    with db.jailed() as con:
        try:
            statements = con.extract_statements(sql)
        except duckdb.Error as error:
            raise _refused("the SQL cannot be read", error) from None
        if not statements:
            raise SqlRefused("there is no SQL", "", EXAMPLE)
        if len(statements) > 1:
            raise SqlRefused(f"these are {len(statements)} statements", "one SELECT is run at a time", EXAMPLE)
        kind = str(statements[0].type).rpartition(".")[2]
        if kind != "SELECT":
            raise SqlRefused(
                f"{kind} is not allowed", "this reads the catalogue, and only one SELECT can be said here", EXAMPLE
            )
        try:
            return con.sql(statements[0].query).to_arrow_table()
        except (
            duckdb.ProgrammingError,
            duckdb.DataError,
            duckdb.NotSupportedError,
            duckdb.PermissionException,
            duckdb.InvalidInputException,
            duckdb.OutOfRangeException,
        ) as error:
            raise _refused("the SQL cannot be answered", error) from None


def _refused(what: str, error: Exception) -> SqlRefused:
    text = re.sub(r"^(\w+ )*Error: ", "", str(error).strip())
    lines = [line for line in text.split("\n") if line.strip()]
    return SqlRefused(what, "\n".join(lines[:6]), EXAMPLE)
