"""Reading a catalog of somebody else through a private copy of its file."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from wanscope.catalog.connect import Database
from wanscope.catalog.sql_worker import RESTRICTIONS, connected
from wanscope.errors import CatalogBusy
from wanscope.take.disk import guarded

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection


@contextlib.contextmanager
def reading_copy(database: Database) -> Iterator[DuckDBPyConnection]:
    """Yield a connection to a copy of a catalog, which cannot access files, network, extensions or Python variables.

    Nothing is changed next to the original: an older one is migrated in the copy. Raises the errors of
    `Database.reading`.
    """
    with tempfile.TemporaryDirectory(prefix="wanscope-catalog-") as folder:
        copy = Database(Path(folder) / database.path.name, database.wait_seconds)
        with _lock_of_others(database):
            for source, target in ((database.path, copy.path), (database.log, copy.log)):
                if source.exists():
                    with guarded(source, "read"):
                        shutil.copyfile(source, target)
        with copy.held() as exists, connected(str(copy.path) if exists else None) as con:
            for restriction in RESTRICTIONS:
                con.execute(restriction)
            yield con


@contextlib.contextmanager
def _lock_of_others(database: Database) -> Iterator[None]:
    """Hold the catalog's lock if programs on this machine use one; a new lock file is not made."""
    path = database.path.parent / f".{database.path.name}.lock"
    if not path.exists() or not os.access(path, os.W_OK):
        yield
        return
    try:
        with FileLock(path, timeout=database.wait_seconds):
            yield
    except Timeout:
        raise CatalogBusy(
            f"{database.path} is in use",
            f"another wanscope program has held it for {database.wait_seconds:g} seconds",
            "run the same command again",
        ) from None
