"""Flips a bit of one file, cuts it short, or fills a part of it with zeros, and asks every reader of that kind of file.

A damage is reported where a reader raises one of the product's errors or a check names a problem, and harmless where
everything that is read is as before. Else it is silent, and that is a fault, as is an error that is not the product's.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from faults.workspace import NAME, Catalog, Events, analyze, forked
from wanscope.errors import WanscopeError
from wanscope.take.disk import file_sha256
from wanscope.take.store import Take

KINDS = {
    "take.json": "takes/*/take.json",
    "video.mp4": "takes/*/video.mp4",
    "recipe in an MP4": "takes/*/video.mp4",
    "poster.webp": "takes/*/poster.webp",
    "final.npy": "takes/*/final.npy",
    "events.jsonl": "takes/*/events.jsonl",
    "latents, a chunk": "takes/*/latents.zarr/c.*",
    "latents, their metadata": "takes/*/latents.zarr/zarr.json",
    "attention, a chunk": "takes/*/attention.zarr/c.*",
    "attention, its metadata": "takes/*/attention.zarr/zarr.json",
    "attention, exponents": "takes/*/attention.exponents.npy",
    "embedding": "embeddings/*/*.emb",
    "catalog.duckdb": "catalog.duckdb",
    "catalog.duckdb.wal": "catalog.duckdb.wal",
    "index.csv": f"studies/{NAME}/index.csv",
    "study.yaml": f"studies/{NAME}/study.yaml",
    "analysis results": f"studies/{NAME}/analysis/*.*",
    "bundle": f"exports/{NAME}/**/*",
    "catalog export": "exports/db/*",
}
HOWS = ("flip", "flip", "flip", "flip", "cut", "zeros", "gone")


def digest(*values: Any) -> str:
    out = hashlib.sha256()
    for value in values:
        out.update(value if isinstance(value, bytes) else repr(value).encode())
    return out.hexdigest()


def of_take(space: Path, file: Path) -> Iterator[Any]:
    take = Take.open(space / file.relative_to(space).parts[0] / file.relative_to(space).parts[1])
    yield take.manifest.dumped()
    take.verify()
    yield take.final.tobytes(), take.frames.tobytes(), take.latents[:].tobytes(), take.attention.array[:].tobytes()
    yield take.events(), take.poster.read_bytes()


def of_mp4(space: Path, file: Path) -> Iterator[Any]:
    """Read an MP4 that came alone, with the recipe in it."""
    from wanscope.study.read_request import read_source
    from wanscope.workspace import Workspace

    alone = space / "alone.mp4"
    if file.exists():
        shutil.copyfile(file, alone)
    request = read_source(alone, Workspace(space))
    yield [recipe.model_dump_json() for recipe in request.recipes], sorted(map(repr, request.replays.items()))


def of_embedding(space: Path, file: Path) -> Iterator[Any]:
    catalog, key = Catalog(space), file.stem
    yield tuple(catalog.check(deep=True).problems)
    embedding = catalog.get(key, count=False)
    yield embedding.tokens.data, catalog.files.pooled(key)[0].tobytes(), catalog.files.pooled(key)[1]
    yield catalog.files.read(key)[1]


def of_catalog(space: Path, file: Path) -> Iterator[Any]:
    catalog = Catalog(space)
    yield tuple(catalog.check(deep=True).problems)
    from wanscope.catalog.upkeep import TABLES

    for table in TABLES:
        with catalog.db.reading() as con:
            yield sorted(map(repr, con.execute(f"SELECT * FROM {table}").fetchall()))


def of_study(space: Path, file: Path) -> Iterator[Any]:
    """Analyze the study; and for its file, run it again without working: what would be made, and the notes."""
    analysis = analyze(NAME, workspace=space, report=False, write=False, on_event=Events())
    yield analysis.summary.partition("\n")[0]
    yield [member.name for member in analysis.members], [dict(member.labels) for member in analysis.members]
    yield sorted(map(repr, analysis.table.records())), sorted(repr(test.record()) for test in analysis.tests.tests)
    yield sorted(map(repr, analysis.collection.left_out))


def of_results(space: Path, file: Path) -> Iterator[Any]:
    """What an analysis wrote is read by people; the next analysis writes all of it again."""
    analyze(NAME, workspace=space, report=False, on_event=Events())
    folder = space / "studies" / NAME / "analysis"
    for path in sorted(folder.rglob("*.csv")):
        yield path.name, path.read_bytes()


def of_bundle(space: Path, file: Path) -> Iterator[Any]:
    """`sha256sum -c`, as the README of a bundle says."""
    folder = space / "exports" / NAME
    if not (folder / "SHA256SUMS").is_file():
        raise WanscopeError("SHA256SUMS: No such file or directory")
    for line in (folder / "SHA256SUMS").read_text(encoding="utf-8").splitlines():
        wanted, _, name = line.partition("  ")
        if not (folder / name).is_file() or file_sha256(folder / name) != wanted:
            raise WanscopeError(f"{name}: FAILED")
    yield sorted(path.name for path in folder.rglob("*"))


def of_export(space: Path, file: Path) -> Iterator[Any]:
    from wanscope.catalog.upkeep import TABLES

    other = Catalog(space / "other")
    other.import_(space / "exports" / "db")
    yield tuple(other.check(deep=True).problems)
    for table in TABLES:
        with other.db.reading() as con:
            names = [
                row[0] for row in con.execute(f"DESCRIBE {table}").fetchall() if row[0] not in ("created", "fitted")
            ]
            yield sorted(map(repr, con.execute(f"SELECT {', '.join(names)} FROM {table}").fetchall()))


READERS: dict[str, Callable[[Path, Path], Iterator[Any]]] = {
    "recipe in an MP4": of_mp4,
    "embedding": of_embedding,
    "catalog.duckdb": of_catalog,
    "catalog.duckdb.wal": of_catalog,
    "index.csv": of_study,
    "study.yaml": of_study,
    "analysis results": of_results,
    "bundle": of_bundle,
    "catalog export": of_export,
}


def told(kind: str, space: Path, file: Path) -> dict[str, Any]:
    """Return what the readers of a file say: `digest`, or the product's `error`, or a `crash`."""
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            found = list(READERS.get(kind, of_take)(space, file))
    except WanscopeError as error:
        return {"error": str(error)}
    except Exception as error:  # noqa: BLE001 - it is what is looked for
        import traceback

        return {"crash": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
    problems = found[0] if kind in ("embedding", "catalog.duckdb", "catalog.duckdb.wal", "catalog export") else ()
    if problems:
        return {"error": "; ".join(problems)}
    return {"digest": digest(*found), "parts": [digest(part) for part in found]}


def harm(file: Path, how: str, draw: random.Random) -> str:
    size = file.stat().st_size
    if how == "gone" or size == 0:
        file.unlink()
        return "gone"
    if how == "cut":
        length = draw.randrange(size)
        os.truncate(file, length)
        return f"cut to {length} of {size} bytes"
    data = bytearray(file.read_bytes())
    at = draw.randrange(size)
    if how == "zeros":
        end = min(size, at + draw.choice((1, 16, 512, 4096)))
        if not any(data[at:end]):
            return "nothing changed"
        data[at:end] = bytes(end - at)
        what = f"zeros from {at} to {end}"
    else:
        bit = draw.randrange(8)
        data[at] ^= 1 << bit
        what = f"bit {bit} of byte {at}"
    file.write_bytes(data)
    return f"{what} of {size}"


class Flips:
    """Damages by number: each is drawn from its number alone, so that a campaign can be continued."""

    def __init__(self, base: Path, folder: Path) -> None:
        self.base, self.folder = base, folder
        self.reference: dict[tuple[str, str], dict[str, Any]] = {}

    def files(self, kind: str) -> list[str]:
        found = (p for p in self.base.glob(KINDS[kind]) if p.is_file() and not p.is_symlink())
        return sorted(path.relative_to(self.base).as_posix() for path in found)

    def one(self, number: int) -> dict[str, Any]:
        """Return what came of a damage: its `verdict` is reported, harmless, silent or crash."""
        draw = random.Random(f"flip {number}")
        kind = list(KINDS)[number % len(KINDS)]
        return self.flip(kind, draw.choice(self.files(kind)), draw.choice(HOWS), draw)

    def flip(self, kind: str, name: str, how: str, draw: random.Random) -> dict[str, Any]:
        if (kind, name) not in self.reference:
            self.reference[kind, name] = self.read(kind, name, lambda file: "")[0]
            assert "digest" in self.reference[kind, name], (kind, name, self.reference[kind, name])
        found, what = self.read(kind, name, lambda file: harm(file, how, draw))
        out = {"kind": kind, "file": name, "harm": what}
        whole = self.reference[kind, name]
        if "error" in found:
            return {**out, "verdict": "reported", "said": found["error"][:200]}
        if "digest" not in found:
            return {**out, "verdict": "crash", **found}
        return {**out, "verdict": "harmless" if found["digest"] == whole["digest"] else "silent"}

    def read(self, kind: str, name: str, harming: Callable[[Path], str]) -> tuple[dict[str, Any], str]:
        space = self.folder / "flipped"
        shutil.rmtree(space, ignore_errors=True)
        _linked(self.base, space, name)
        what = harming(space / name)
        result = forked(lambda: told(kind, space, space / name), 60)
        return result.get("result", result), what


def _linked(base: Path, space: Path, name: str) -> None:
    """Copy a workspace; files that nobody writes in place are hard links, except the one that is harmed."""
    for root, _, files in os.walk(base):
        here = Path(root)
        (space / here.relative_to(base)).mkdir(parents=True, exist_ok=True)
        for file in files:
            path = here / file
            to = space / path.relative_to(base)
            if path.is_symlink():
                to.symlink_to(os.readlink(path))
            elif path.relative_to(base).as_posix() == name or path.suffix in (".duckdb", ".wal", ".lock", ".line"):
                shutil.copy2(path, to)
            else:
                os.link(path, to)


__all__ = ["Flips", "json"]
