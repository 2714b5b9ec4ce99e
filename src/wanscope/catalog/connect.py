"""Access to the catalog's file: short turns, one program at a time, with clear errors.

DuckDB lets one process write, or several read, and fails immediately for all others. So each use here is a turn: take
the lock file, open, one transaction, close. Other programs wait up to `wait_seconds`. The locks are the operating
system's, which releases them when a process is killed. The write-ahead log is merged into the file when it has grown,
not after every turn.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from wanscope import __version__
from wanscope.catalog import migrations
from wanscope.catalog.instances import attached
from wanscope.catalog.shape import foreign_objects
from wanscope.catalog.turns import count_turn, note_turn
from wanscope.errors import CatalogBusy, CatalogDamaged, CatalogNewer, RequestError, StorageError, WanscopeError
from wanscope.take.building import new_file
from wanscope.take.disk import full_disk, guarded, sync_folder

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

WAIT_SECONDS = 30.0
POLL_SECONDS = 0.005  # of the next in line; the others begin by polling four times less often
LEAST_POLL_SECONDS = 0.001
LOG_BYTES = 1 << 17  # a longer write-ahead log makes opening the file slow
NAME = "catalog.duckdb"

_DAMAGED = re.compile(
    r"not a valid DuckDB|corrupt|checksum|serializ|deserializ|failed to replay|failure while replaying|"
    r"could not read enough|reading WAL|invalidated|INTERNAL Error|wal file",
    re.IGNORECASE,
)
_LIMIT = re.compile(r"disk quota|file too large|max_temp_directory", re.I)  # the disk itself may have space
_FULL = re.compile(rf"no space left|disk is full|could not write all|{_LIMIT.pattern}", re.I)
_LOCKED = re.compile(
    r"could not set lock|conflicting lock|being used by another process|already attached", re.IGNORECASE
)
_NEWER = re.compile(r"newer version|version number|storage version|unsupported (storage|serialization)", re.IGNORECASE)


class Database:
    """The file at `path`. It is created when something is first written; until then reading finds it empty."""

    def __init__(self, path: Path, wait_seconds: float = WAIT_SECONDS) -> None:
        self.path, self.wait_seconds = path, wait_seconds
        self._local = threading.local()
        self._checked: tuple[Any, ...] | None = None

    @property
    def log(self) -> Path:
        """DuckDB's write-ahead log."""
        return self.path.with_name(self.path.name + ".wal")

    def stamp(self) -> tuple[Any, ...]:
        """Return a value that changes with the file's content; equal stamps mean that nobody has written."""
        return tuple(_facts(path) for path in (self.path, self.log))

    @contextlib.contextmanager
    def reading(self) -> Iterator[DuckDBPyConnection]:
        """Yield a read-only connection; where the file does not exist, one to an empty catalog in memory.

        Raises CatalogBusy, CatalogDamaged, CatalogNewer, RequestError for another DuckDB file, or StorageError.
        """
        with self._turn(writing=False) as deadline:
            if not self.path.exists():
                with self._translate_errors(), attached(None) as con:
                    migrations.create(con)
                    yield con
                return
            self._require_current(deadline)
            with self._translate_errors(), self._opened(deadline, read_only=True) as con:
                yield con

    @contextlib.contextmanager
    def held(self) -> Iterator[bool]:
        """Hold the turn for a process of ours that opens the file itself; yield whether the file exists.

        Raises the errors of `reading`.
        """
        with self._turn(writing=False) as deadline:
            exists = self.path.exists()
            if exists:
                self._require_current(deadline)
            yield exists

    @contextlib.contextmanager
    def writing(self) -> Iterator[DuckDBPyConnection]:
        """Yield a connection in a transaction: committed at the end of the block, rolled back when it raises.

        Raises the errors of `reading`.
        """
        with self._turn(writing=True) as deadline:
            if not self.path.exists():
                self._create()
            self._require_current(deadline)
            with self._translate_errors(), self._opened(deadline) as con:
                con.execute("BEGIN")
                try:
                    yield con
                    turn = count_turn(con, self.path)
                except BaseException:
                    with contextlib.suppress(Exception):  # the block's own error is the one to report
                        con.execute("ROLLBACK")
                    raise
                con.execute("COMMIT")
                with guarded(self.path.parent):
                    note_turn(self.path, turn)
                if self.log.exists() and self.log.stat().st_size > LOG_BYTES:
                    con.execute("CHECKPOINT")

    def checkpoint(self) -> None:
        """Merge the write-ahead log into the file, so that the file alone is complete."""
        if self.path.exists():
            with self._turn(writing=True) as deadline:
                self._require_current(deadline)
                with self._translate_errors(), self._opened(deadline) as con:
                    con.execute("CHECKPOINT")

    def set_aside(self) -> Path | None:
        """Rename a file that is damaged; return its new path, or None where it can be opened or does not exist."""
        with self._turn(writing=True) as deadline:
            if not self.path.exists():
                return None
            try:
                self._require_current(deadline)
                return None
            except CatalogDamaged:
                pass
            target = _free_name(self.path, f"damaged-{_today()}")
            with guarded(self.path.parent):
                if self.log.exists():
                    os.replace(self.log, target.with_name(target.name + ".wal"))
                os.replace(self.path, target)
            return target

    # one turn

    @contextlib.contextmanager
    def _turn(self, writing: bool) -> Iterator[float]:
        """Hold the file's lock during the block. Yields the time, by time.monotonic(), at which waiting ends."""
        if getattr(self._local, "turn", False):
            raise AssertionError("a turn inside a turn would wait for itself")
        deadline = time.monotonic() + self.wait_seconds
        lock = self._locked(deadline, writing)
        self._local.turn = True
        try:
            yield deadline
        finally:
            self._local.turn = False
            if lock is not None:
                lock.release()

    def _locked(self, deadline: float, writing: bool) -> FileLock | None:
        """Acquire and return the file's lock, or None where nobody can write. Raises CatalogBusy at the deadline.

        Waiting is in two stages: only the holder of the `line` lock waits for the file's lock, so that a program that
        has just had a turn does not get the next one before those that are waiting.
        """
        folder = self.path.parent
        if writing:
            with guarded(folder):
                folder.mkdir(parents=True, exist_ok=True)
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            return None  # nobody can write here, and DuckDB allows several readers
        line, lock = (FileLock(folder / f".{self.path.name}.{name}") for name in ("line", "lock"))
        try:
            with guarded(folder):
                _acquire(line, deadline, 4 * POLL_SECONDS)
                _acquire(lock, deadline, POLL_SECONDS)
        except Timeout:
            raise self._busy("another wanscope program") from None
        finally:
            line.release()
        return lock

    @contextlib.contextmanager
    def _opened(self, deadline: float, *, read_only: bool = False) -> Iterator[DuckDBPyConnection]:
        """Yield a connection to the file, waiting until the deadline for another program that has it open."""
        import duckdb

        with contextlib.ExitStack() as stack:

            def open_file() -> DuckDBPyConnection:
                with contextlib.suppress(duckdb.ResourceInUseException):
                    return stack.enter_context(attached(self.path, read_only=read_only))
                # This process has the file open, for example in a notebook: use that instance.
                con = stack.enter_context(duckdb.connect(str(self.path), read_only=read_only))
                if not read_only:
                    con.execute("PRAGMA disable_checkpoint_on_shutdown")
                return con

            yield self._waiting(deadline, open_file)

    def _waiting(self, deadline: float, open_file: Callable[[], DuckDBPyConnection]) -> DuckDBPyConnection:
        """Call `open_file` until no other program has the file open. Raises CatalogBusy at the deadline."""
        import duckdb

        while True:
            try:
                return open_file()
            except duckdb.Error as error:
                if not _LOCKED.search(str(error)):
                    raise self._as_wanscope_error(error) from error
                if time.monotonic() >= deadline:
                    pid = re.search(r"\(PID (\d+)\)", str(error))
                    raise self._busy(f"another program (PID {pid[1]})" if pid else "another program") from None
            time.sleep(POLL_SECONDS * random.uniform(2, 8))

    def _create(self) -> None:
        """Create the file under a temporary name, then rename it: an incomplete file could not be opened."""
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.new")
        with self._translate_errors(), guarded(self.path.parent):
            try:
                for left in self.path.parent.glob(f".{self.path.name}.*.new*"):  # of killed processes: this is our turn
                    left.unlink(missing_ok=True)
                with attached(temporary) as con:
                    con.execute("BEGIN")
                    migrations.create(con)
                    con.execute("COMMIT")
                    con.execute("CHECKPOINT")
                # a log without its file belongs to a catalog that was removed
                if self.log.exists():
                    os.replace(self.log, _free_name(self.log, f"left-{_today()}"))
                os.replace(temporary, self.path)
            finally:
                temporary.unlink(missing_ok=True)
                temporary.with_name(temporary.name + ".wal").unlink(missing_ok=True)
            sync_folder(self.path.parent)

    def _require_current(self, deadline: float) -> None:
        """Migrate an older file after a backup; raise where it is newer, damaged or not a catalog."""
        facts = _facts(self.path)
        identity = facts and facts[0]
        if self._checked == (identity,):
            return
        with self._translate_errors(), self._opened(deadline, read_only=True) as con:
            foreign = foreign_objects(con)
            version = None if foreign else migrations.version_of(con)
        if foreign:
            raise CatalogDamaged(
                f"{self.path} is not as wanscope writes a catalog",
                f"it has {', '.join(foreign[:4])}, which could run SQL of whoever made the file; a catalog has plain "
                "tables only",
            )
        if version is None:
            raise RequestError(
                f"{self.path} is not a wanscope catalog", "it is a DuckDB file with other tables", "another workspace"
            )
        if version > migrations.VERSION:
            raise CatalogNewer(
                f"{self.path} was written by a newer wanscope",
                f"its schema has version {version} and wanscope {__version__} knows {migrations.VERSION}",
                "pip install --upgrade wanscope",
            )
        if version < migrations.VERSION:
            self._migrate(deadline, version)
        self._checked = (identity,)

    def _migrate(self, deadline: float, version: int) -> None:
        with self._translate_errors(), self._opened(deadline) as con:
            con.execute("CHECKPOINT")  # so that a copy of the file alone is complete
        backup = _free_name(self.path, f"version-{version}")
        with guarded(self.path.parent), new_file(backup) as new:
            shutil.copy2(self.path, new)
        with self._translate_errors(), self._opened(deadline) as con:
            con.execute("BEGIN")
            migrations.migrate(con, version)
            con.execute("COMMIT")
            con.execute("CHECKPOINT")

    # errors

    def _busy(self, who: str) -> CatalogBusy:
        return CatalogBusy(
            f"{self.path} is in use",
            f"{who} has held it for {self.wait_seconds:g} seconds",
            "close that program and run the same command again",
        )

    @contextlib.contextmanager
    def _translate_errors(self) -> Iterator[None]:
        """Turn DuckDB's errors inside the block into wanscope's."""
        try:
            yield
        except Exception as error:
            if type(error).__module__.split(".")[0] not in ("duckdb", "_duckdb"):
                raise
            import duckdb

            if isinstance(error, duckdb.ProgrammingError) and not _DAMAGED.search(str(error)):
                raise  # a mistake in our SQL, not a problem of the file
            raise self._as_wanscope_error(error) from error

    def _as_wanscope_error(self, error: Exception) -> WanscopeError:
        first = str(error).strip().split("\n")[0]
        if _FULL.search(first):
            limit = first[:300] if _LIMIT.search(first) else None
            return full_disk(self.path, limit, "everything committed before is safe")
        if _NEWER.search(first) and not re.search("corrupt", first, re.IGNORECASE):
            return CatalogNewer(
                f"{self.path} was written by a newer DuckDB", first[:300], "pip install --upgrade wanscope duckdb"
            )
        if _DAMAGED.search(first):
            return CatalogDamaged(
                f"{self.path} is damaged",
                first[:300],
                "wanscope index --rebuild  (renames this file, and reads takes and embeddings from their own files)",
            )
        if re.search(r"permission denied|read-only file system|cannot open file", first, re.IGNORECASE):
            return StorageError(f"{self.path} cannot be opened", first[:300], "another workspace (--output-dir)")
        return StorageError(f"{self.path} could not be used", first[:300])


def _acquire(lock: FileLock, deadline: float, poll_seconds: float) -> None:
    """Acquire the lock, or raise Timeout at the deadline.

    The longer a program has waited, the more often it polls, so that none waits forever while others come and go.
    """
    began = time.monotonic()
    while True:
        try:
            lock.acquire(timeout=0)
            return
        except Timeout:
            if time.monotonic() >= deadline:
                raise
        waited = time.monotonic() - began
        time.sleep(max(poll_seconds / (1 + 2 * waited), LEAST_POLL_SECONDS) * random.uniform(0.5, 1.5))


def _today() -> str:
    return datetime.now(UTC).strftime("%Y%m%d")


def _free_name(path: Path, word: str) -> Path:
    """Return a path such as `catalog.version-1.duckdb`, with a number appended where that exists."""
    for number in range(1, 1_000_000):
        more = "" if number == 1 else f"-{number}"
        target = path.with_name(f"{path.stem}.{word}{more}{path.suffix}")
        if not target.exists():
            return target
    raise AssertionError("a million files of the same name")


def _facts(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
