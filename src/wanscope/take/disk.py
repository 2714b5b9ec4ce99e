"""Files that are whole or not there: atomic writing, syncing, checksums, and the disk's own errors said plainly."""

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

# What a disk says when it cannot take more, or may not be written.
_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
_OTHER = {errno.EIO, errno.EEXIST, errno.ENOTDIR, errno.ENAMETOOLONG, errno.EISDIR}


def size_text(count: float) -> str:
    """`1.5 GB`, in decimal units."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _existing(folder: Path) -> Path:
    """`folder`, or the closest parent that is there."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


def free_bytes(folder: Path) -> int:
    """What a file in `folder` (which may be made yet) may still take, in bytes."""
    return shutil.disk_usage(_existing(folder)).free


def require_space(folder: Path, needed: int, takes: int) -> None:
    """StorageRefused unless the `needed` bytes of so many takes fit beside what the disk of `folder` holds."""
    require_place(folder)
    free = free_bytes(folder)
    if needed > free:
        said = "1 take needs" if takes == 1 else f"{takes} takes need"
        raise StorageRefused(
            f"there is not enough space in {folder}",
            f"{said} about {size_text(needed)}, and {size_text(free)} are free",
            "another --output-dir, fewer seeds, or capture without latents",
        )


def require_place(folder: Path) -> None:
    """StorageRefused where `folder` cannot be written, or cannot be made. Looks only; `require_writable` tries."""
    there = _existing(folder)
    kind = "file" if there == folder else "folder"
    if not there.is_dir():
        why = f"{there} is not a folder"
    elif shutil.disk_usage(there).total == 0:  # /proc and its kin
        why = f"{there} is not on a disk: the system keeps it, and no {kind} can be made there"
    elif not os.access(there, os.W_OK | os.X_OK):
        why = f"{there} is read-only for you"
    else:
        return
    what = f"{folder} cannot be {'written' if there == folder else 'made'}"
    raise StorageRefused(what, why, "another folder (--output-dir, --out)")


def require_writable(folder: Path) -> None:
    """Make `folder`; StorageRefused unless a file can be written in it. To be called before any work."""
    require_place(folder)
    try:
        with guarded(folder):
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / f".write-{os.getpid()}"
            probe.write_bytes(b"x")
            probe.unlink()
    except StorageError as error:
        raise StorageRefused(error.what, error.why, error.fix) from error


def full_disk(place: Path, limit: str | None = None, kept: str = "") -> StorageError:
    """The error for a write that did not fit on the disk of `place`.

    limit: the system's words where it is a quota or another limit that is met, so that free space says nothing.
    kept: what is safe all the same.
    """
    if limit is not None:
        why = f"the system says: {limit}"
    else:
        left = size_text(free_bytes(place if place.is_dir() else place.parent))
        why = f"what was to be written needs more than the {left} that are left"
    what = f"the disk of {place} is full"
    return StorageError(what, f"{why}; {kept}" if kept else why, "free some space and run the same again")


@contextlib.contextmanager
def guarded(folder: Path) -> Iterator[None]:
    """Turns a disk's refusal inside the block into a StorageError that names the folder and the sizes."""
    try:
        yield
    except OSError as error:
        code = error.errno
        if code in _FULL:
            raise full_disk(folder, error.strerror if code != errno.ENOSPC else None) from error
        if code in _FORBIDDEN:
            raise StorageError(
                f"{error.filename or folder} cannot be written",
                f"the system says: {error.strerror or error}",
                "another folder (--output-dir, --out)",
            ) from error
        if code in _OTHER:
            raise StorageError(
                f"{folder} cannot be used", f"the system says: {error}", "another folder (--output-dir, --out)"
            ) from error
        raise


def sync_file(path: Path) -> None:
    """Have the disk hold the file's content."""
    # Windows syncs only handles that may write.
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Have the disk hold the folder's list of names. Windows has no such call and needs none."""
    if os.name != "nt":
        sync_file(folder)


def sync_tree(folder: Path) -> None:
    """Every file and folder below and with `folder`; at once, so that the file system can join the writes."""
    with ThreadPoolExecutor(max_workers=16) as pool:
        list(pool.map(sync_file, (folder / path for path in files_below(folder))))
    for root, _, _ in os.walk(folder):
        sync_folder(Path(root))


def write_atomic(path: Path, text: str) -> None:
    """`path` holds the old text or the new one, never a part."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        beside.write_text(text, encoding="utf-8")
        sync_file(beside)
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def file_sha256(path: Path) -> str:
    """SHA-256 of the whole file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_below(folder: Path) -> list[Path]:
    """Every file below `folder`, relative to it, sorted."""
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


def bytes_below(folder: Path) -> int:
    """Sum of the sizes of all files below `folder`, bytes."""
    return sum((folder / path).stat().st_size for path in files_below(folder))
