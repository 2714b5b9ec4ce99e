"""SQL from a person: one SELECT over the catalogue's tables, and nothing else.

Two walls. DuckDB's own parser says what the statement is, and only a single SELECT goes on (PRAGMA and temporary tables
would pass the second wall). The connection is read only, reaches no file, network, extension or variable of Python, and
its settings are locked. Others wait for their turn meanwhile, so there is an end to an answer's time and size.
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

SECONDS = 20.0  # less than others wait for their turn
BYTES = 1 << 30  # of an answer, in memory
BATCH_ROWS = 100_000
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
            with _ended_after(con, SECONDS):
                return _answer(con, statements[0].query)
        except duckdb.InterruptException:
            raise SqlRefused(
                f"the SQL was not answered in {SECONDS:g} seconds",
                "other programs wait meanwhile",
                "a smaller question",
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
def _ended_after(con: DuckDBPyConnection, seconds: float) -> Iterator[None]:
    timer = threading.Timer(seconds, con.interrupt)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _answer(con: DuckDBPyConnection, query: str) -> pa.Table:
    """All rows, read in batches: an answer without end is given up before memory is."""
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
