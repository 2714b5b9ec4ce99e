"""Locks between processes, so that two runs of one study do not make a take twice.

A lock is an operating-system lock on a file in `.locks/`. The system releases it when its process ends, however that
happens, so a lock file is never stale. The files are never removed: removing one while another process waits for it
would let two processes in.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from wanscope.take.disk import guarded

LOCKS = ".locks"
STUDY_WAIT_SECONDS = 60.0


@contextlib.contextmanager
def held(folder: Path, name: str, wait_seconds: float = 0.0) -> Iterator[bool]:
    """Hold the lock `name` of `folder` inside the `with` block.

    Yields True, or False where another process held the lock for all of `wait_seconds`. Raises StorageError where the
    folder cannot be written.
    """
    with guarded(folder):
        (folder / LOCKS).mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCKS / f"{name}.lock")
        try:
            lock.acquire(timeout=wait_seconds, poll_interval=0.02)
        except Timeout:
            lock = None
    if lock is None:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()
