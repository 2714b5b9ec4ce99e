"""Embeddings on disk: one file each, named by its key, written beside its place and renamed in.

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
HEAD_BYTES = 12 + 1024  # of a header with a usual prompt; what is longer is read again
SYNC_THREADS = 16


class EmbeddingFiles:
    """The folder of all embeddings of one catalogue."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def place(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}{SUFFIX}"

    def size(self, key: str) -> int | None:
        """Bytes of the file, None where there is none."""
        try:
            return self.place(key).stat().st_size
        except FileNotFoundError:
            return None

    def holds(self, key: str, size: int) -> bool:
        """Whether the embedding is there, whole. A file of another size is read: its prompt may be another one."""
        found = self.size(key)
        if found is None or found == size:
            return found is not None
        try:
            self.read(key)
        except CatalogDamaged:
            return False
        return True

    def write(self, contents: Mapping[str, bytes]) -> None:
        """Every file whole and on the disk, or not there. StorageError when the disk refuses."""
        if not contents:
            return
        beside: dict[Path, Path] = {}
        with guarded(self.folder):
            try:
                for key, data in contents.items():
                    place = self.place(key)
                    place.parent.mkdir(parents=True, exist_ok=True)
                    part = place.with_name(f".{key}.{os.getpid()}.new")
                    beside[part] = place
                    part.write_bytes(data)
                _all_at_once(sync_file, beside)
                for part, place in beside.items():
                    os.replace(part, place)
            except BaseException:
                for part in beside:
                    part.unlink(missing_ok=True)
                raise
            _all_at_once(sync_folder, {place.parent for place in beside.values()})

    def read(self, key: str) -> tuple[Tokens, Header]:
        """Values and header, checked against the key. CatalogDamaged when the file is missing or not as written."""
        place = self.place(key)
        try:
            data = place.read_bytes()
        except FileNotFoundError:
            raise CatalogDamaged(
                f"the file of embedding {key[:12]} is missing", f"there is no {place}", "wanscope db check"
            ) from None
        tokens, header, _ = unpack(data, str(place), key)
        return tokens, header

    def pooled(self, key: str) -> tuple[np.ndarray, float]:
        """The mean token's direction, fp16 [D], and its length; reads the file's beginning alone."""
        place = self.place(key)
        try:
            with place.open("rb", buffering=0) as file:
                data = file.read(HEAD_BYTES + 2 * 4096)
                facts, end = read_head(data, str(place)) if len(data) >= 12 and _whole(data) else _head(file, place)
                need = end + 2 * facts["dim"]
                if len(data) < need:
                    file.seek(0)
                    data = file.read(need)
        except FileNotFoundError:
            raise CatalogDamaged(
                f"the file of embedding {key[:12]} is missing", f"there is no {place}", "wanscope db check"
            ) from None
        return np.frombuffer(data, "<f2", facts["dim"], end), float(facts["norm"])

    def pooled_many(self, keys: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Directions fp16 [N, D] and lengths float64 [N]; all of one dimension."""
        found = [self.pooled(key) for key in keys]
        return np.stack([unit for unit, _ in found]), np.array([norm for _, norm in found])

    def remove(self, keys: Sequence[str]) -> None:
        with guarded(self.folder):
            for key in keys:
                self.place(key).unlink(missing_ok=True)

    def keys(self) -> Iterator[str]:
        """Keys of all files that are there."""
        if self.folder.is_dir():
            for path in sorted(self.folder.glob(f"*/*{SUFFIX}")):
                if not path.name.startswith("."):
                    yield path.name.removesuffix(SUFFIX)

    def unfinished(self) -> list[Path]:
        """What killed writers left beside its place."""
        return sorted(self.folder.glob("*/.*.new")) if self.folder.is_dir() else []


def _all_at_once(sync: Callable[[Path], None], paths: Collection[Path]) -> None:
    """The disk joins syncs that come together; for one or two a pool is not worth it."""
    if len(paths) < 3:
        for path in paths:
            sync(path)
        return
    with ThreadPoolExecutor(SYNC_THREADS) as pool:
        list(pool.map(sync, paths))


def _whole(data: bytes) -> bool:
    return len(data) >= 12 + int.from_bytes(data[8:12], "little")


def _head(file: Any, place: Path) -> tuple[dict[str, Any], int]:
    """Of a header longer than is usual."""
    file.seek(0)
    first = file.read(12)
    length = int.from_bytes(first[8:12], "little") if len(first) == 12 else 0
    if length > 1 << 24:
        raise CatalogDamaged(f"{place} is damaged", "its header would be longer than any", "wanscope db check --deep")
    return read_head(first + file.read(length), str(place))
