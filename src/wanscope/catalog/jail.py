"""SQL from a user: one SELECT over the catalog's tables, and nothing else.

Two safeguards. DuckDB's own parser classifies the statement, and only a single SELECT is run (PRAGMA and temporary
tables would pass the second safeguard). The connection is read-only, has no access to files, network, extensions or
Python variables, and its settings are locked. Other programs wait during a query, so its time and size are limited.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from wanscope.catalog.connect import Database
from wanscope.errors import SqlRefused

if TYPE_CHECKING:
    import pyarrow as pa
    from duckdb import DuckDBPyConnection

SECONDS = 20.0  # less than other programs wait
BYTES = 1 << 30  # of the answer in memory
BATCH_ROWS = 100_000
EXAMPLE = 'wanscope db sql "SELECT prompt, tokens FROM embeddings LIMIT 5"'


def run_sql(db: Database, sql: str) -> pa.Table:
    """Return the rows of a SELECT. Raises SqlRefused for anything else, and for a SELECT that DuckDB cannot answer."""
    import duckdb

    with db.jailed() as con:
        try:
            statements = con.extract_statements(sql)
        except duckdb.Error as error:
            raise _refused("the SQL cannot be read", error) from None
        if not statements:
            raise SqlRefused("there is no SQL", "", EXAMPLE)
        if len(statements) > 1:
            raise SqlRefused(f"these are {len(statements)} statements", "only one SELECT is run at a time", EXAMPLE)
        kind = str(statements[0].type).rpartition(".")[2]
        if kind != "SELECT":
            raise SqlRefused(f"{kind} is not allowed", "this command only reads the catalog, with one SELECT", EXAMPLE)
        try:
            with _interrupt_after(con, SECONDS):
                return _answer(con, statements[0].query)
        except duckdb.InterruptException:
            raise SqlRefused(
                f"the SQL was not answered in {SECONDS:g} seconds",
                "other programs have to wait during a query",
                "add LIMIT 1000",
            ) from None
        except duckdb.OutOfMemoryException as error:
            raise _refused("the SQL needs too much memory", error) from None
        except (
            duckdb.ProgrammingError,
            duckdb.DataError,
            duckdb.NotSupportedError,
            duckdb.PermissionException,
            duckdb.InvalidInputException,
            duckdb.OutOfRangeException,
            duckdb.TransactionException,
        ) as error:
            raise _refused("the SQL cannot be answered", error) from None


@contextmanager
def _interrupt_after(con: DuckDBPyConnection, seconds: float) -> Iterator[None]:
    timer = threading.Timer(seconds, con.interrupt)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _answer(con: DuckDBPyConnection, query: str) -> pa.Table:
    """Return all rows, read in batches so that a huge answer is refused before memory runs out."""
    import pyarrow as pa

    reader = con.sql(query).to_arrow_reader(BATCH_ROWS)
    batches, size = [], 0
    for batch in reader:
        batches.append(batch)
        size += batch.nbytes
        if size > BYTES:
            con.interrupt()
            raise SqlRefused("the answer is too large", f"it has over {BYTES >> 20} MB", "add LIMIT 1000")
    return pa.Table.from_batches(batches, reader.schema)


def _refused(what: str, error: Exception) -> SqlRefused:
    text = re.sub(r"^(\w+ )*Error: ", "", str(error).strip())
    lines = [line for line in text.split("\n") if line.strip()]
    return SqlRefused(what, "\n".join(lines[:6]), EXAMPLE)
