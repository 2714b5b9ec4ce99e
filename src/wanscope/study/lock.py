"""Locks that die with their process, so that two runs of one study do not make a take twice.

An operating-system lock on a file in `.locks/`: a killed process gives it back, and no lock file is ever stale. The
files stay; removing one while another process waits for it would let two in.
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
    """Whether the lock `name` of `folder` is ours inside the block; False when another process kept it all the time."""
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
