"""Files on disk: syncing, checksums, free space, and the disk's errors in plain words."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from wanscope.errors import StorageError, StorageRefused

# Error codes of a disk that is full, that may not be written, and that cannot be used for another reason.
_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
_OTHER = {errno.EIO, errno.EEXIST, errno.ENOTDIR, errno.ENAMETOOLONG, errno.EISDIR}


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
    return StorageError(what, f"{why}; {kept}" if kept else why, "free some space and run the same again")


@contextlib.contextmanager
def guarded(folder: Path) -> Iterator[None]:
    """Turn an OSError of the disk inside the block into a StorageError that names the folder and the sizes."""
    try:
        yield
    except OSError as error:
        code = error.errno
        if code in _FULL:
            raise full_disk(folder, error.strerror if code != errno.ENOSPC else None) from error
        if code in _FORBIDDEN:
            raise StorageError(
                f"{error.filename or folder} cannot be written",
                f"the system reports: {error.strerror or error}",
                "another folder (--output-dir, --out)",
            ) from error
        if code in _OTHER:
            raise StorageError(
                f"{folder} cannot be used", f"the system reports: {error}", "another folder (--output-dir, --out)"
            ) from error
        raise


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
