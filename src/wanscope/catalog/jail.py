"""SQL from a user: one SELECT over the catalog's tables, and nothing else.

Three safeguards. DuckDB's own parser classifies the statement, and only a single SELECT is run (PRAGMA and temporary
tables would pass the second safeguard). The connection is read-only, has no access to files, network, extensions or
Python variables, and its settings are locked. It is in a process of its own (sql_worker.py), whose memory is limited
and which is killed when the time is up, because other programs wait during a query.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import re
import subprocess
import sys
import threading
from typing import IO, TYPE_CHECKING

from wanscope.catalog.connect import Database
from wanscope.catalog.sql_worker import read_frame, write_frame
from wanscope.errors import SqlRefused
from wanscope.spec.strict_json import read_json

if TYPE_CHECKING:
    import pyarrow as pa

SECONDS = 20.0  # less than other programs wait
START_SECONDS = 120.0  # for the process to start, on a busy machine
BYTES = 1 << 30  # of the answer in memory
EXAMPLE = 'wanscope db sql "SELECT prompt, tokens FROM embeddings LIMIT 5"'

_idle: list[subprocess.Popen[bytes]] = []  # processes that wait for the next query


def run_sql(db: Database, sql: str) -> pa.Table:
    """Return the rows of a SELECT. Raises SqlRefused for anything else, and for a SELECT that DuckDB cannot answer."""
    import pyarrow as pa

    query = _select(sql)
    with db.held() as exists:
        reply = _ask({"path": str(db.path) if exists else None, "sql": query, "bytes": BYTES})
    if reply[:1] == b"E":
        what, why, fix = read_json(reply[1:].decode())
        raise SqlRefused(what, why, fix or EXAMPLE)
    return pa.ipc.open_stream(pa.py_buffer(reply[1:])).read_all()


def _select(sql: str) -> str:
    """Return the one SELECT in the text. Raises SqlRefused where there is anything else; nothing is run."""
    import duckdb

    with duckdb.connect(":memory:") as parser:
        try:
            statements = parser.extract_statements(sql)
        except duckdb.Error as error:
            text = re.sub(r"^(\w+ )*Error: ", "", str(error).strip())
            lines = [line for line in text.split("\n") if line.strip()]
            raise SqlRefused("the SQL cannot be read", "\n".join(lines[:6]), EXAMPLE) from None
    if not statements:
        raise SqlRefused("there is no SQL", "", EXAMPLE)
    if len(statements) > 1:
        raise SqlRefused(f"these are {len(statements)} statements", "only one SELECT is run at a time", EXAMPLE)
    kind = str(statements[0].type).rpartition(".")[2]
    if kind != "SELECT":
        raise SqlRefused(f"{kind} is not allowed", "this command only reads the catalog, with one SELECT", EXAMPLE)
    return statements[0].query


def _ask(request: dict[str, object]) -> bytes:
    """Return a process' answer to a request. Raises SqlRefused when it takes too long or the process ends."""
    worker = _waiting_worker() or _start()
    assert worker.stdin is not None
    try:
        with contextlib.suppress(BrokenPipeError):
            write_frame(worker.stdin, json.dumps(request).encode())
        reply = _reply(worker, SECONDS)
    except BaseException:  # also an interrupt: the process must not go on
        _end(worker)
        raise
    _idle.append(worker)
    return reply


def _waiting_worker() -> subprocess.Popen[bytes] | None:
    """Return a process that waits for a query, or None. One that has ended meanwhile is dropped."""
    while _idle:
        with contextlib.suppress(IndexError):  # another thread took the last one
            worker = _idle.pop()
            if worker.poll() is None:
                return worker
            _end(worker)
    return None


def _reply(worker: subprocess.Popen[bytes], seconds: float) -> bytes:
    """Return the next frame of a process. Raises SqlRefused when it takes too long or the process ends."""
    assert worker.stdout is not None
    out: IO[bytes] = worker.stdout
    replies: list[bytes | None] = []
    waiting = threading.Thread(target=lambda: replies.append(read_frame(out)), daemon=True)
    waiting.start()
    waiting.join(seconds)
    if waiting.is_alive():
        raise SqlRefused(
            f"the SQL was not answered in {seconds:g} seconds",
            "other programs have to wait during a query",
            "add LIMIT 1000",
        )
    if not replies or replies[0] is None:
        raise SqlRefused(
            "the SQL needs too much memory", "the process that ran it reached its limit of memory", "add LIMIT 1000"
        )
    return replies[0]


def _start() -> subprocess.Popen[bytes]:
    """Start a process and wait until it is ready, so that its start does not count as the query's time."""
    worker = subprocess.Popen(
        [sys.executable, "-c", "from wanscope.catalog.sql_worker import main; main()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    try:
        _reply(worker, START_SECONDS)  # an empty frame
    except BaseException:
        _end(worker)
        raise
    return worker


def _end(worker: subprocess.Popen[bytes]) -> None:
    worker.kill()
    worker.wait()
    for pipe in (worker.stdin, worker.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()


def _end_idle() -> None:
    while _idle:
        with contextlib.suppress(IndexError):  # another thread took the last one
            _end(_idle.pop())


atexit.register(_end_idle)
if hasattr(os, "register_at_fork"):  # a process belongs to the one that started it
    os.register_at_fork(before=_end_idle)
