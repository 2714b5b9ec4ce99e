"""The process that runs a user's SQL, so that it can be stopped at any moment and cannot take the machine's memory.

DuckDB looks for interrupts between chunks of rows: a single function call such as repeat('x', 3000000000) runs to its
end, whatever its memory limit says. Killing a process always works.

Requests and answers are frames: 8 bytes of length and that many bytes. A request is JSON. An answer begins with one
byte: A for an Arrow stream, E for the JSON of a refusal.
"""

from __future__ import annotations

import contextlib
import json
import re
import struct
import sys
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Any

from wanscope.spec.strict_json import read_json

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

MEMORY_BYTES = 4 << 30  # of address space of the process
DUCKDB_BYTES = 2 << 30
BATCH_ROWS = 100_000
LENGTH = struct.Struct(">Q")
CONFIG: dict[str, str | bool | int | float | list[str]] = {
    "enable_external_access": "false",
    "autoload_known_extensions": "false",
    "autoinstall_known_extensions": "false",
    "python_enable_replacements": "false",
    "memory_limit": f"{DUCKDB_BYTES >> 20}MB",
    "temp_directory": "",
}
# With enable_external_access alone, a query could still read the catalog's own file. It is already open and needs no
# file system any more.
RESTRICTIONS = ("SET disabled_filesystems = 'LocalFileSystem'", "SET lock_configuration = true")


class Refused(Exception):
    """The SQL is not run or has no answer: what, why, fix."""


def write_frame(pipe: IO[bytes], data: bytes) -> None:
    """Write one frame and flush."""
    pipe.write(LENGTH.pack(len(data)) + data)
    pipe.flush()


def read_frame(pipe: IO[bytes]) -> bytes | None:
    """Read one frame; None at the end of the stream, also in the middle of a frame."""
    head = pipe.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    (length,) = LENGTH.unpack(head)
    data = pipe.read(length)
    return data if len(data) == length else None


@contextlib.contextmanager
def connected(path: str | None) -> Iterator[DuckDBPyConnection]:
    """Yield a connection to the file, or to an empty catalog for None, that cannot access anything else."""
    import duckdb

    if path is None:
        from wanscope.catalog import migrations

        with duckdb.connect(":memory:", config=CONFIG) as con:
            migrations.create(con)
            yield con
        return
    with duckdb.connect(path, read_only=True, config=CONFIG) as con:
        yield con


def answer(path: str | None, sql: str, most_bytes: int) -> bytes:
    """Return the rows of one SELECT as an Arrow stream. Raises Refused."""
    import duckdb
    import pyarrow as pa

    try:
        with connected(path) as con:
            for restriction in RESTRICTIONS:
                con.execute(restriction)
            try:
                reader = con.sql(sql).to_arrow_reader(BATCH_ROWS)
                sink = pa.BufferOutputStream()
                size = 0
                with pa.ipc.new_stream(sink, reader.schema) as writer:
                    for batch in reader:
                        size += batch.nbytes
                        if size > most_bytes:
                            raise Refused(
                                "the answer is too large", f"it has over {most_bytes >> 20} MB", "add LIMIT 1000"
                            )
                        writer.write_batch(batch)
                return sink.getvalue().to_pybytes()
            except (duckdb.OutOfMemoryException, MemoryError, pa.ArrowMemoryError) as error:
                raise Refused("the SQL needs too much memory", _text(error), "") from None
            except (duckdb.Error, pa.ArrowException, OverflowError, ValueError) as error:
                raise Refused("the SQL cannot be answered", _text(error), "") from None
    except duckdb.Error as error:
        raise Refused("the catalog cannot be opened for SQL", _text(error), "") from None


def _text(error: BaseException) -> str:
    text = re.sub(r"^(\w+ )*Error: ", "", str(error).strip())
    return "\n".join([line for line in text.split("\n") if line.strip()][:6])


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:  # Windows has no such limit; the time limit still holds
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(MEMORY_BYTES, hard)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (most, hard))


def main() -> None:
    """Answer requests until the other end closes."""
    import duckdb  # noqa: F401  # before the first request: its time is not the query's
    import pyarrow as pa  # noqa: F401

    _limit_memory()
    given, out = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # nothing else may be written between frames
    write_frame(out, b"")  # ready
    while (request := read_frame(given)) is not None:
        asked: dict[str, Any] = read_json(request.decode())
        try:
            reply = b"A" + answer(asked["path"], asked["sql"], asked["bytes"])
        except Refused as refused:
            reply = b"E" + json.dumps(refused.args).encode()
        except MemoryError:
            reply = b"E" + json.dumps(["the SQL needs too much memory", "", ""]).encode()
        write_frame(out, reply)


if __name__ == "__main__":
    main()
