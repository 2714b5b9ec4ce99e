"""The catalogue's file: short turns, one program at a time, and every refusal said plainly.

DuckDB lets one process write, or several read, and answers everyone else with an error at once. So each use here is a
turn: take the lock file, open, one transaction, close. Who comes meanwhile waits, up to `wait_seconds`. Locks are the
operating system's, so a killed process gives them back. The write-ahead log is folded into the file when it has grown,
not at every turn.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from wanscope import __version__
from wanscope.catalog import migrations
from wanscope.errors import CatalogBusy, CatalogDamaged, CatalogNewer, RequestError, StorageError, WanscopeError
from wanscope.take.disk import full_disk, guarded, sync_folder

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

WAIT_SECONDS = 30.0
POLL_SECONDS = 0.005  # of the next in line; the others begin with four times less often
LEAST_POLL_SECONDS = 0.001
LOG_BYTES = 1 << 17  # a longer write-ahead log makes every opening slow
NAME = "catalog.duckdb"

_DAMAGED = re.compile(
    r"not a valid DuckDB|corrupt|checksum|serializ|deserializ|failed to replay|failure while replaying|"
    r"could not read enough|reading WAL|invalidated|INTERNAL Error|wal file",
    re.IGNORECASE,
)
_LIMIT = re.compile(r"disk quota|file too large|max_temp_directory", re.I)  # the disk itself may have space
_FULL = re.compile(rf"no space left|disk is full|could not write all|{_LIMIT.pattern}", re.I)
_LOCKED = re.compile(r"could not set lock|conflicting lock|being used by another process", re.IGNORECASE)
_NEWER = re.compile(r"newer version|version number|storage version|unsupported (storage|serialization)", re.IGNORECASE)


class Database:
    """The file at `path`. Nothing is created before something is written; reading what is not there finds it empty."""

    def __init__(self, path: Path, wait_seconds: float = WAIT_SECONDS) -> None:
        self.path, self.wait_seconds = path, wait_seconds
        self._mine = threading.local()
        self._checked: tuple[Any, ...] | None = None

    @property
    def log(self) -> Path:
        return self.path.with_name(self.path.name + ".wal")

    def stamp(self) -> tuple[Any, ...]:
        """Changes with the file's content; equal stamps mean that nobody has written."""
        return tuple(_facts(path) for path in (self.path, self.log))

    @contextlib.contextmanager
    def reading(self) -> Iterator[DuckDBPyConnection]:
        """A connection that cannot change anything. Of a file that is not there: an empty catalogue in memory."""
        with self._turn(writing=False) as deadline:
            if not self.path.exists():
                with self._said(), _closing(self._memory()) as con:
                    yield con
                return
            self._up_to_date(deadline)
            with self._said(), _closing(self._open(deadline, read_only=True)) as con:
                yield con

    @contextlib.contextmanager
    def jailed(self) -> Iterator[DuckDBPyConnection]:
        """As `reading`, on a connection that reaches neither files, network, extensions nor Python's variables."""
        config: dict[str, Any] = {
            "enable_external_access": "false",
            "autoload_known_extensions": "false",
            "autoinstall_known_extensions": "false",
            "python_enable_replacements": "false",
        }
        # The first alone still lets a query read the catalogue's own file; it is open by now and needs no file system.
        walls = ("SET disabled_filesystems = 'LocalFileSystem'", "SET lock_configuration = true")
        with self._turn(writing=False) as deadline:
            there = self.path.exists()
            if there:
                self._up_to_date(deadline)
            with (
                self._said(),
                _closing(self._open(deadline, read_only=True, config=config) if there else self._memory(config)) as con,
            ):
                for wall in walls:
                    con.execute(wall)
                yield con

    @contextlib.contextmanager
    def writing(self) -> Iterator[DuckDBPyConnection]:
        """One transaction: committed at the end of the block, undone when it raises."""
        with self._turn(writing=True) as deadline:
            if not self.path.exists():
                self._create()
            self._up_to_date(deadline)
            with self._said(), _closing(self._open(deadline)) as con:
                con.execute("BEGIN")
                try:
                    yield con
                except BaseException:
                    with contextlib.suppress(Exception):  # the block's own error is the one to tell
                        con.execute("ROLLBACK")
                    raise
                con.execute("COMMIT")
                if self.log.exists() and self.log.stat().st_size > LOG_BYTES:
                    con.execute("CHECKPOINT")

    def checkpoint(self) -> None:
        """Fold the write-ahead log into the file, so that the file alone is everything."""
        if self.path.exists():
            with self._turn(writing=True) as deadline:
                self._up_to_date(deadline)
                with self._said(), _closing(self._open(deadline)) as con:
                    con.execute("CHECKPOINT")

    def set_aside(self) -> Path | None:
        """Move a file that cannot be opened out of the way; its new name, None where it opens well or is not there."""
        with self._turn(writing=True) as deadline:
            if not self.path.exists():
                return None
            try:
                self._up_to_date(deadline)
                return None
            except CatalogDamaged:
                pass
            place = _free_name(self.path, f"damaged-{_today()}")
            with guarded(self.path.parent):
                if self.log.exists():
                    os.replace(self.log, place.with_name(place.name + ".wal"))
                os.replace(self.path, place)
            return place

    # one turn

    @contextlib.contextmanager
    def _turn(self, writing: bool) -> Iterator[float]:
        """Alone with the file. Yields the moment at which waiting ends."""
        if getattr(self._mine, "turn", False):
            raise AssertionError("a turn inside a turn would wait for itself")
        deadline = time.monotonic() + self.wait_seconds
        lock = self._waited_for(deadline, writing)
        self._mine.turn = True
        try:
            yield deadline
        finally:
            self._mine.turn = False
            if lock is not None:
                lock.release()

    def _waited_for(self, deadline: float, writing: bool) -> FileLock | None:
        """The file's lock. Who comes waits at a second one first, where only the next in line stands: so nobody who
        has just had a turn takes another before those that wait."""
        folder = self.path.parent
        if writing:
            with guarded(folder):
                folder.mkdir(parents=True, exist_ok=True)
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            return None  # nobody can write here, and DuckDB lets many read
        line, lock = (FileLock(folder / f".{self.path.name}.{name}") for name in ("line", "lock"))
        try:
            _take(line, deadline, 4 * POLL_SECONDS)
            _take(lock, deadline, POLL_SECONDS)
        except Timeout:
            raise self._busy("another wanscope program") from None
        finally:
            line.release()
        return lock

    def _open(
        self, deadline: float, *, read_only: bool = False, config: dict[str, Any] | None = None
    ) -> DuckDBPyConnection:
        import duckdb

        while True:
            try:
                con = duckdb.connect(str(self.path), read_only=read_only, config=config or {})
                break
            except duckdb.Error as error:
                if not _LOCKED.search(str(error)):
                    raise self._explained(error) from error
                if time.monotonic() >= deadline:
                    pid = re.search(r"\(PID (\d+)\)", str(error))
                    raise self._busy(f"another program (PID {pid[1]})" if pid else "another program") from None
            time.sleep(POLL_SECONDS * random.uniform(2, 8))
        if not read_only:
            con.execute("PRAGMA disable_checkpoint_on_shutdown")
        return con

    def _memory(self, config: dict[str, Any] | None = None) -> DuckDBPyConnection:
        import duckdb

        con = duckdb.connect(":memory:", config=config or {})
        migrations.create(con)
        return con

    def _create(self) -> None:
        """A whole new file, renamed into place: half a file cannot be opened."""
        import duckdb

        beside = self.path.with_name(f".{self.path.name}.{os.getpid()}.new")
        with self._said(), guarded(self.path.parent):
            try:
                beside.unlink(missing_ok=True)
                with _closing(duckdb.connect(str(beside))) as con:
                    con.execute("BEGIN")
                    migrations.create(con)
                    con.execute("COMMIT")
                    con.execute("CHECKPOINT")
                # a log without its file belongs to a catalogue that was taken away
                if self.log.exists():
                    os.replace(self.log, _free_name(self.log, f"left-{_today()}"))
                os.replace(beside, self.path)
            finally:
                beside.unlink(missing_ok=True)
                beside.with_name(beside.name + ".wal").unlink(missing_ok=True)
            sync_folder(self.path.parent)

    def _up_to_date(self, deadline: float) -> None:
        """Migrate an older file, with a backup beside it; refuse what is newer, damaged or no catalogue."""
        facts = _facts(self.path)
        identity = facts and facts[0]
        if self._checked == (identity,):
            return
        with self._said(), _closing(self._open(deadline, read_only=True)) as con:
            version = migrations.version_of(con)
        if version is None:
            raise RequestError(
                f"{self.path} is no catalogue of wanscope", "it is a DuckDB file with other tables", "another workspace"
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
        with self._said(), _closing(self._open(deadline)) as con:
            con.execute("CHECKPOINT")  # so that a copy of the file is a copy of everything
        backup = _free_name(self.path, f"version-{version}")
        with guarded(self.path.parent):
            try:
                shutil.copy2(self.path, backup)
            except BaseException:
                backup.unlink(missing_ok=True)
                raise
        with self._said(), _closing(self._open(deadline)) as con:
            con.execute("BEGIN")
            migrations.migrate(con, version)
            con.execute("COMMIT")
            con.execute("CHECKPOINT")

    # errors

    def _busy(self, who: str) -> CatalogBusy:
        return CatalogBusy(
            f"{self.path} is in use",
            f"{who} has kept it for {self.wait_seconds:g} seconds",
            "close that program and run the same again",
        )

    @contextlib.contextmanager
    def _said(self) -> Iterator[None]:
        """DuckDB's errors inside the block become ours."""
        try:
            yield
        except Exception as error:
            if type(error).__module__.split(".")[0] not in ("duckdb", "_duckdb"):
                raise
            import duckdb

            if isinstance(error, duckdb.ProgrammingError) and not _DAMAGED.search(str(error)):
                raise  # a mistake of ours in SQL, not the file's
            raise self._explained(error) from error

    def _explained(self, error: Exception) -> WanscopeError:
        first = str(error).strip().split("\n")[0]
        if _FULL.search(first):
            limit = first[:300] if _LIMIT.search(first) else None
            return full_disk(self.path, limit, "what was committed before stays")
        if _NEWER.search(first) and not re.search("corrupt", first, re.IGNORECASE):
            return CatalogNewer(
                f"{self.path} was written by a newer DuckDB", first[:300], "pip install --upgrade wanscope duckdb"
            )
        if _DAMAGED.search(first):
            return CatalogDamaged(
                f"{self.path} is damaged",
                first[:300],
                "wanscope index --rebuild  (sets this file aside, and reads takes and embeddings from their own files)",
            )
        if re.search(r"permission denied|read-only file system|cannot open file", first, re.IGNORECASE):
            return StorageError(f"{self.path} cannot be opened", first[:300], "another workspace (--output-dir)")
        return StorageError(f"{self.path} could not be used", first[:300])


def _take(lock: FileLock, deadline: float, poll_seconds: float) -> None:
    """Have the lock, or Timeout at the deadline. Who has waited longer asks more often, so that nobody waits for ever
    while others come and go."""
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
    """`catalog.version-1.duckdb`, with a number where that is taken."""
    for number in range(1, 1_000_000):
        more = "" if number == 1 else f"-{number}"
        place = path.with_name(f"{path.stem}.{word}{more}{path.suffix}")
        if not place.exists():
            return place
    raise AssertionError("a million files of one name")


def _facts(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


@contextlib.contextmanager
def _closing(con: DuckDBPyConnection) -> Iterator[DuckDBPyConnection]:
    try:
        yield con
    finally:
        con.close()
