"""Files on disk: syncing, checksums, free space, and the disk's errors in plain words."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from wanscope.errors import StorageError, StorageRefused

# Error codes of a disk that is full, that may not be used, and that cannot be used for another reason.
_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
_OTHER = {errno.EIO, errno.EEXIST, errno.ENOTDIR, errno.EISDIR}
# What a process or the machine has run out of: whatever comes next would meet the same.
_LIMITS = {
    errno.EMFILE: ("this process has as many files open as it may", "ulimit -n 4096  (and run the same again)"),
    errno.ENFILE: ("this machine has as many files open as it can", "close other programs and run the same again"),
    errno.ENOMEM: ("the memory is full", "close other programs and run the same again"),
}
_ENDING = {*_FULL, *_LIMITS, errno.EIO, errno.EROFS}


def size_text(count: float) -> str:
    """Return a number of bytes in decimal units, such as `1.5 GB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _existing(folder: Path) -> Path:
    """Return `folder`, or its closest parent that exists."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


def free_bytes(folder: Path) -> int:
    """Return the free space for files in `folder`, in bytes. The folder need not exist yet."""
    return shutil.disk_usage(_existing(folder)).free


def require_space(folder: Path, needed: int, takes: int) -> None:
    """Raise StorageRefused unless the disk of `folder` has `needed` bytes free.

    takes: how many takes need them, for the message.
    """
    require_place(folder)
    free = free_bytes(folder)
    if needed > free:
        subject = "1 take needs" if takes == 1 else f"{takes} takes need"
        raise StorageRefused(
            f"there is not enough space in {folder}",
            f"{subject} about {size_text(needed)}, and {size_text(free)} are free",
            "another --output-dir, fewer seeds, or no captured latents",
        )


def require_place(folder: Path) -> None:
    """Raise StorageRefused where `folder` cannot be written or made. This only looks; `require_writable` tries."""
    existing = _existing(folder)
    kind = "file" if existing == folder else "folder"
    if not existing.is_dir():
        why = f"{existing} is not a folder"
    elif shutil.disk_usage(existing).total == 0:  # /proc and similar
        why = f"{existing} is not on a disk: it belongs to the system, and no {kind} can be made there"
    elif not os.access(existing, os.W_OK | os.X_OK):
        why = f"you have no permission to write in {existing}"
    else:
        return
    what = f"{folder} cannot be {'written' if existing == folder else 'made'}"
    raise StorageRefused(what, why, "another folder (--output-dir, --out)")


def require_writable(folder: Path) -> None:
    """Make `folder` and write a test file in it; called before any work. Raises StorageRefused where that fails."""
    require_place(folder)
    try:
        with guarded(folder):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f".write-{os.getpid()}").write_bytes(b"x")
            for probe in folder.glob(".write-*"):  # those of killed processes, too
                probe.unlink(missing_ok=True)
    except StorageError as error:
        raise StorageRefused(error.what, error.why, error.fix) from error


def full_disk(place: Path, limit: str | None = None, kept: str = "") -> StorageError:
    """Return the error for a write that did not fit on the disk of `place`.

    limit: the system's message where a quota or another limit was reached, so that the free space does not matter.
    kept: what is safe nevertheless.
    """
    if limit is not None:
        why = f"the system reports: {limit}"
    else:
        left = size_text(free_bytes(place if place.is_dir() else place.parent))
        why = f"the data needs more than the {left} that are left"
    what = f"the disk of {place} is full"
    return StorageError(what, f"{why}; {kept}" if kept else why, "free some space and run the same command again")


@contextlib.contextmanager
def guarded(folder: Path, use: str = "written") -> Iterator[None]:
    """Turn an OSError of the disk or the machine inside the block into a StorageError that names the folder.

    use: what is done there, "written" or "read", for the message.
    """
    try:
        yield
    except (OSError, MemoryError) as error:
        storage = _storage_error(error, folder, use)
        if storage is None:
            raise
        raise storage from error


def _storage_error(error: BaseException, folder: Path, use: str) -> StorageError | None:
    code = errno.ENOMEM if isinstance(error, MemoryError) else getattr(error, "errno", None)
    if code in _FULL:
        return full_disk(folder, getattr(error, "strerror", None) if code != errno.ENOSPC else None)
    reported = f"the system reports: {getattr(error, 'strerror', None) or error}"
    if code in _LIMITS:
        what, fix = _LIMITS[code]
        return StorageError(what, reported, fix)
    place = getattr(error, "filename", None) or folder
    if code == errno.ENAMETOOLONG:
        name = max(Path(os.fsdecode(place)).parts, key=len, default="")
        shown = f"{name[:40]}..." if len(name) > 43 else name
        return StorageRefused(
            f"the name {shown} is too long for the disk",
            f"it has {len(os.fsencode(name))} bytes, and a disk takes names of up to 255",
            "a shorter name",
        )
    if code in _FORBIDDEN:
        return StorageError(f"{place} cannot be {use}", reported, "another folder (--output-dir, --out)")
    if code == errno.EIO or (code in _OTHER and use == "written"):
        return StorageError(f"{folder} cannot be used", reported, "another folder (--output-dir, --out)")
    return None


def ending(error: BaseException, folder: Path) -> StorageError | None:
    """Return the StorageError behind `error` where whatever comes next would meet it too; else None.

    That is a full or broken disk, or a limit of the process or the machine: also where a library has wrapped it in an
    error of its own.
    """
    seen: set[int] = set()
    at: BaseException | None = error
    while at is not None and id(at) not in seen:
        seen.add(id(at))
        if isinstance(at, StorageError):
            return at
        if isinstance(at, MemoryError) or (isinstance(at, OSError) and at.errno in _ENDING):
            return _storage_error(at, folder, "used")
        if isinstance(at, RuntimeError) and re.search("DefaultCPUAllocator|can't start new thread", str(at)):  # torch's
            return _storage_error(MemoryError(str(at).split("\n")[0][:200]), folder, "used")
        at = at.__cause__ or (None if at.__suppress_context__ else at.__context__)
    return None


def sync_file(path: Path) -> None:
    """Flush a file's content to the disk."""
    # Windows syncs only handles that are open for writing.
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Flush a folder's directory entries to the disk. Windows has no such call and needs none."""
    if os.name != "nt":
        sync_file(folder)


def sync_tree(folder: Path) -> None:
    """Flush `folder` and everything below it; concurrently, so that the file system can combine the writes."""
    with ThreadPoolExecutor(max_workers=16) as pool:
        list(pool.map(sync_file, (folder / path for path in files_below(folder))))
    for root, _, _ in os.walk(folder):
        sync_folder(Path(root))


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a whole file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_below(folder: Path) -> list[Path]:
    """Return every file below `folder`, relative to it, sorted."""
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


def bytes_below(folder: Path) -> int:
    """Return the total size of all files below `folder`, in bytes."""
    return sum((folder / path).stat().st_size for path in files_below(folder))
