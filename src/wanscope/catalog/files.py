"""Embeddings on disk: one file each, named by its key, written under a temporary name and then renamed.

embeddings/3f/3fa9....emb
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from wanscope.catalog.content import Header, Tokens, read_head, unpack
from wanscope.errors import CatalogDamaged
from wanscope.take.disk import guarded, sync_file, sync_folder

SUFFIX = ".emb"
HEAD_BYTES = 12 + 1024  # enough for the header with a usual prompt; a longer one is read in a second step
SYNC_THREADS = 16


class EmbeddingFiles:
    """The folder of all embeddings of one catalog."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, key: str) -> Path:
        """Return the path of an embedding's file."""
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
        path = self.path(key)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise CatalogDamaged(
                f"the file of embedding {key[:12]} is missing", f"there is no {path}", "wanscope db check"
            ) from None
        tokens, header, _ = unpack(data, str(path), key)
        return tokens, header

    def pooled(self, key: str) -> tuple[np.ndarray, float]:
        """Return the mean token's direction, fp16 [D], and its length; only the beginning of the file is read."""
        path = self.path(key)
        try:
            with path.open("rb", buffering=0) as file:
                data = file.read(HEAD_BYTES + 2 * 4096)
                facts, end = (
                    read_head(data, str(path))
                    if len(data) >= 12 and _has_header(data)
                    else _read_long_header(file, path)
                )
                need = end + 2 * facts["dim"]
                if len(data) < need:
                    file.seek(0)
                    data = file.read(need)
        except FileNotFoundError:
            raise CatalogDamaged(
                f"the file of embedding {key[:12]} is missing", f"there is no {path}", "wanscope db check"
            ) from None
        return np.frombuffer(data, "<f2", facts["dim"], end), float(facts["norm"])

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


def _has_header(data: bytes) -> bool:
    """Return whether the beginning of a file contains the whole header."""
    return len(data) >= 12 + int.from_bytes(data[8:12], "little")


def _read_long_header(file: Any, path: Path) -> tuple[dict[str, Any], int]:
    """Return the header and where it ends, for a header longer than usual."""
    file.seek(0)
    first = file.read(12)
    length = int.from_bytes(first[8:12], "little") if len(first) == 12 else 0
    if length > 1 << 24:
        raise CatalogDamaged(f"{path} is damaged", "its header would be impossibly long", "wanscope db check --deep")
    return read_head(first + file.read(length), str(path))
