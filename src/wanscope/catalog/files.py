"""Embeddings on disk: one file each, named by its key, written under a temporary name and then renamed.

embeddings/3f/3fa9....emb
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import FileIO
from pathlib import Path

import numpy as np

from wanscope.catalog.content import Tokens
from wanscope.catalog.embedding_file import Head, Header, damage, read_head, unpack
from wanscope.errors import CatalogDamaged
from wanscope.take.disk import guarded, sync_file, sync_folder

SUFFIX = ".emb"
KEY = re.compile(r"[0-9a-f]{8,128}")
HEAD_BYTES = 48 + 1024 + 2 * 4096  # the header with a usual prompt and the mean token; a longer one takes another read
SYNC_THREADS = 16


class EmbeddingFiles:
    """The folder of all embeddings of one catalog."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, key: str) -> Path:
        """Return the path of an embedding's file. Raises CatalogDamaged for a text that is not a key."""
        if not KEY.fullmatch(key):  # keys also come from catalogs of other people
            raise CatalogDamaged(f"{key!r} is not the key of an embedding", "a key has digits and letters from a to f")
        return self.folder / key[:2] / f"{key}{SUFFIX}"

    def size(self, key: str) -> int | None:
        """Return the size of the file in bytes, or None where it does not exist."""
        try:
            return self.path(key).stat().st_size
        except FileNotFoundError:
            return None

    def holds(self, key: str, size: int) -> bool:
        """Return whether the embedding is stored completely.

        size: the expected size in bytes. A file of another size is read to decide, because it may contain another
        prompt.
        """
        found = self.size(key)
        if found is None or found == size:
            return found is not None
        try:
            self.read(key)
        except CatalogDamaged:
            return False
        return True

    def write(self, contents: Mapping[str, bytes]) -> None:
        """Write files atomically: each is complete and on the disk, or does not exist. Raises StorageError."""
        if not contents:
            return
        temporary: dict[Path, Path] = {}
        with guarded(self.folder):
            try:
                for key, data in contents.items():
                    path = self.path(key)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    part = path.with_name(f".{key}.{os.getpid()}.new")
                    temporary[part] = path
                    part.write_bytes(data)
                _sync_concurrently(sync_file, temporary)
                for part, path in temporary.items():
                    os.replace(part, path)
            except BaseException:
                for part in temporary:
                    part.unlink(missing_ok=True)
                raise
            _sync_concurrently(sync_folder, {path.parent for path in temporary.values()})

    def read(self, key: str) -> tuple[Tokens, Header]:
        """Return values and header, verified against the key. Raises CatalogDamaged where the file does not match."""
        tokens, head = self.read_all(key)
        return tokens, head.header

    def read_all(self, key: str) -> tuple[Tokens, Head]:
        """Return values and head, as `read` does."""
        with self._opened(key) as (file, size):
            head = read_head(_Start(file), str(self.path(key)), size)
            # zstd adds little to what it cannot compress; the rest of a longer file would be read for nothing
            if size > head.end + head.bytes + (head.bytes >> 7) + 1024:
                raise damage(str(self.path(key)), f"it has {size} bytes, and its header says {head.bytes} of values")
            file.seek(0)
            data = file.read()
        return unpack(data, str(self.path(key)), key)

    def pooled(self, key: str) -> tuple[np.ndarray, float]:
        """Return the mean token's direction, fp16 [D], and its length, verified.

        Only the beginning of the file is read, except of one that has no checksum there (version 0.1).
        """
        with self._opened(key) as (file, size):
            head = read_head(_Start(file), str(self.path(key)), size)
        if not head.sealed:
            _, head = self.read_all(key)
        return head.unit_D, head.norm

    @contextlib.contextmanager
    def _opened(self, key: str) -> Iterator[tuple[FileIO, int]]:
        """Yield the file of an embedding and its size."""
        path = self.path(key)
        try:
            with guarded(path, "read"), path.open("rb", buffering=0) as file:
                yield file, os.fstat(file.fileno()).st_size
        except FileNotFoundError:
            raise CatalogDamaged(
                f"the file of embedding {key[:12]} is missing", f"there is no {path}", "wanscope db check"
            ) from None

    def pooled_many(self, keys: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return directions, fp16 [N, D], and lengths, float64 [N], of embeddings of the same dimension."""
        found = [self.pooled(key) for key in keys]
        return np.stack([unit for unit, _ in found]), np.array([norm for _, norm in found])

    def remove(self, keys: Sequence[str]) -> None:
        """Remove the files of embeddings; missing ones are ignored."""
        with guarded(self.folder):
            for key in keys:
                self.path(key).unlink(missing_ok=True)

    def keys(self) -> Iterator[str]:
        """Yield the keys of all files."""
        if self.folder.is_dir():
            for path in sorted(self.folder.glob(f"*/*{SUFFIX}")):
                if not path.name.startswith("."):
                    yield path.name.removesuffix(SUFFIX)

    def unfinished(self) -> list[Path]:
        """Return the temporary files that running or killed processes have written."""
        return sorted(self.folder.glob("*/.*.new")) if self.folder.is_dir() else []


def _sync_concurrently(sync: Callable[[Path], None], paths: Collection[Path]) -> None:
    """Sync paths concurrently, because the disk combines such requests; for one or two a pool is not worth it."""
    if len(paths) < 3:
        for path in paths:
            sync(path)
        return
    with ThreadPoolExecutor(SYNC_THREADS) as pool:
        list(pool.map(sync, paths))


class _Start:
    """The beginning of a file: all that was read of it so far, at least as much as is asked for."""

    def __init__(self, file: FileIO) -> None:
        self.file, self.data = file, b""

    def __call__(self, count: int) -> bytes:
        if len(self.data) < count:
            self.file.seek(0)
            self.data = self.file.read(max(count, HEAD_BYTES))
        return self.data
