"""Files and folders that are built next to their destination and renamed into it, so that a kill loses nothing.

    .<tag>.<process>.new<suffix>    a file while it is written
    .<tag>.<process>.partial        a folder while it is built; a lock next to it (.lock) is held by its builder
    .<tag>.<process>.old            what was in the folder's place before, between two renames

The tag is a hash of the final name. The system releases a lock when its process ends, however that happens, so whoever
builds there next knows what a killed process left, and removes it.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from wanscope.errors import StorageRefused
from wanscope.take.disk import guarded, sync_file, sync_folder, sync_tree

STALE_SECONDS = 3600  # an unfinished file that is older belongs to a killed process; files have no lock
_count = itertools.count(1)


def _tag(name: str) -> str:
    return hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:12]


@contextlib.contextmanager
def new_file(path: Path, *, sync: bool = True) -> Iterator[Path]:
    """Yield the path of a temporary file that replaces `path` at the end of the block; on an error it is removed.

    Its suffix is that of `path`. The folder exists already. sync: flush the file to the disk before it is renamed;
    without, a power failure may leave it empty.
    """
    tag, now = _tag(path.name), time.time()
    for left in path.parent.glob(f".{tag}.*.new{path.suffix}"):
        with contextlib.suppress(FileNotFoundError):  # another process removes it, too
            if now - left.stat().st_mtime > STALE_SECONDS:
                left.unlink()
    temporary = path.with_name(f".{tag}.{os.getpid()}-{next(_count)}.new{path.suffix}")
    try:
        yield temporary
        if sync:
            sync_file(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if sync:
        sync_folder(path.parent)


def write_atomic(path: Path, text: str) -> None:
    """Replace the text of a file atomically: at any moment it holds the old text or the new one, never a part."""
    with new_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def new_folder(parent: Path, name: str) -> Iterator[Path]:
    """Yield an empty folder inside `parent`, which is removed at the end of the block unless it was renamed.

    name: what is built there; folders that killed processes left when they built the same are removed first.
    """
    tag = _tag(name)
    with guarded(parent):
        parent.mkdir(parents=True, exist_ok=True)
        _remove_left(parent, tag)
        stem = f".{tag}.{os.getpid()}-{next(_count)}"
        lock = FileLock(parent / f"{stem}.lock")
        lock.acquire(timeout=5)
    folder = parent / f"{stem}.partial"
    try:
        with guarded(parent):
            folder.mkdir()
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.release()
        Path(lock.lock_file).unlink(missing_ok=True)


def _remove_left(parent: Path, tag: str) -> None:
    for partial in parent.glob(f".{tag}.*.partial"):
        if _abandoned(partial.with_suffix(".lock")):
            shutil.rmtree(partial, ignore_errors=True)
    for file in parent.glob(f".{tag}.*.lock"):
        if not file.with_suffix(".partial").exists() and _abandoned(file):
            file.unlink(missing_ok=True)


def _abandoned(file: Path) -> bool:
    """Return whether no process holds this lock."""
    if not file.exists():
        return True
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    lock.release()
    return True


@contextlib.contextmanager
def built_beside(place: Path) -> Iterator[Path]:
    """Yield an empty folder that takes the place of `place` at the end of the block.

    On an error and after a kill, what was at `place` is still there, or comes back when the same is built again. Raises
    StorageRefused where a folder cannot be renamed to `place`.
    """
    place = Path(os.path.realpath(place))  # where it is a link, the link stays
    if place.is_mount() or (place.exists() and not os.access(place.parent, os.W_OK)):
        raise StorageRefused(
            f"{place} cannot be replaced",
            "it is built beside its place and renamed, and its place is fixed",
            f"{place}/new",
        )
    tag = _tag(place.name)
    with new_folder(place.parent, place.name) as folder:
        with guarded(place.parent):
            _restore(place, tag)
        yield folder
        with guarded(place.parent):
            sync_tree(folder)
            older = folder.with_suffix(".old")
            if place.exists():
                os.rename(place, older)
            os.rename(folder, place)
            sync_folder(place.parent)
            shutil.rmtree(older, ignore_errors=True)


def _restore(place: Path, tag: str) -> None:
    """Put back what a process moved away that was killed before it put something in its place."""
    for older in sorted(place.parent.glob(f".{tag}.*.old")):
        if place.exists():
            shutil.rmtree(older, ignore_errors=True)
        else:
            os.rename(older, place)
