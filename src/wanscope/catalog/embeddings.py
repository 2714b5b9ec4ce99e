"""Embeddings in the catalog: stored once by content, found by prompt and encoder, with a count of their uses."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wanscope.catalog.connect import Database
from wanscope.catalog.content import SPACES, Tokens
from wanscope.catalog.embedding_file import Header, pack
from wanscope.catalog.files import EmbeddingFiles
from wanscope.catalog.rows import changed, find_key, insert, now, select
from wanscope.catalog.vectors import compact_rows
from wanscope.errors import RecipeError, nearest
from wanscope.take.building import new_file
from wanscope.take.disk import guarded

if TYPE_CHECKING:
    import pyarrow as pa
    from duckdb import DuckDBPyConnection
    from torch import Tensor

BATCH = 256  # files in memory at once


@dataclass(frozen=True, eq=False)
class New:
    """An embedding to be stored. values: [L, D] or [1, L, D], a torch tensor or numpy array, of any float dtype.

    prompt, encoder, environment: what `Catalog.stored` finds it by; encoder and environment are strings that the caller
    chooses to identify whatever may change its bits. seconds: how long encoding took. alias: whether it can be found by
    its prompt. origin: where it comes from, "" for this workspace; the label of an imported embedding never replaces
    an existing one.
    """

    values: Any
    prompt: str | None = None
    model: str = ""
    encoder: str = ""
    environment: str = ""
    space: str = "text"
    source: str = "python"
    label: str | None = None
    tags: tuple[str, ...] = ()
    seconds: float | None = None
    origin: str = ""
    alias: bool = True


@dataclass(frozen=True, eq=False)
class Embedding:
    """A stored token matrix and its row in the catalog (`row`: the columns of the table embeddings)."""

    key: str
    tokens: Tokens = field(repr=False)
    row: dict[str, Any] = field(repr=False)

    @property
    def prompt(self) -> str | None:
        return self.row.get("prompt")

    def tensor(self, length: int | None = None) -> Tensor:
        """Return the values [L, D] in the encoder's dtype on the CPU; with `length`, padded with zeros."""
        return self.tokens.tensor(length)

    def array(self) -> np.ndarray:
        """Return the exact values [L, D]; bfloat16 as float32."""
        return self.tokens.array()


@dataclass(frozen=True)
class _Packed:
    key: str
    tokens: Tokens
    unit_D: np.ndarray
    norm: float
    data: bytes
    new: New


def put_many(db: Database, files: EmbeddingFiles, items: Iterable[New]) -> list[str]:
    """Store embeddings and return their keys. Identical ones that are already stored are not stored again.

    Raises RecipeError for an unknown space, a tag with a comma, or values that are not a finite float matrix.
    """
    items = list(items)
    for item in items:
        if item.space not in SPACES:
            raise RecipeError(f"{item.space!r} is not a space", nearest(item.space, SPACES), "space='text'")
    keys: list[str] = []
    for start in range(0, len(items), BATCH):
        keys += _put_batch(db, files, items[start : start + BATCH])
    return keys


def _put_batch(db: Database, files: EmbeddingFiles, items: Sequence[New]) -> list[str]:
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:  # hashing and zstd release the GIL
        packed = list(pool.map(_packed, items))
    by_key: dict[str, _Packed] = {}
    for one in packed:
        by_key.setdefault(one.key, one)
    # Files first: a row never names a file that does not exist.
    written = {key: one.data for key, one in by_key.items() if not files.holds(key, len(one.data))}
    files.write(written)
    with db.writing() as con:
        # Another process may have cleaned up in between; none can during this transaction.
        files.write({key: one.data for key, one in by_key.items() if files.size(key) is None})
        fresh = _without_known(con, list(by_key.values()))
        for key in written.keys() - {one.key for one in fresh}:  # it was damaged, or two processes wrote it at once
            con.execute("UPDATE embeddings SET file_bytes = ? WHERE key = ?", [files.size(key), key])
        if fresh:
            insert(con, "embeddings", [_row(one, files) for one in fresh])
            insert(con, "search_vectors", compact_rows(con, [(one.key, one.unit_D) for one in fresh]))
            changed(con)
        prompts = {
            (one.new.prompt, one.new.encoder, one.new.environment): one.key
            for one in packed
            if one.new.prompt is not None and one.new.alias
        }
        insert(
            con,
            "embedding_prompts",
            [{"prompt": p, "encoder": e, "environment": v, "key": key} for (p, e, v), key in prompts.items()],
            new=False,
        )
        insert(con, "embedding_tags", [{"key": one.key, "tag": tag} for one in packed for tag in _tags(one.new.tags)])
        for one in packed:
            if one.new.label:
                keep = " AND label IS NULL" if one.new.origin else ""
                con.execute(f"UPDATE embeddings SET label = ? WHERE key = ?{keep}", [one.new.label, one.key])
    return [one.key for one in packed]


def _packed(new: New) -> _Packed:
    tokens = Tokens.of(new.values)
    unit_D, norm = tokens.pooled
    created = now().isoformat(timespec="seconds")
    header = Header(new.model, new.encoder, new.space, new.prompt, new.source, created)
    key = tokens.key(new.model, new.encoder, new.space)
    return _Packed(key, tokens, unit_D, norm, pack(tokens, header), new)


def _without_known(con: DuckDBPyConnection, packed: Sequence[_Packed]) -> list[_Packed]:
    found = con.execute("SELECT key FROM embeddings WHERE key IN (SELECT unnest(?))", [[p.key for p in packed]])
    known = {key for (key,) in found.fetchall()}
    return [one for one in packed if one.key not in known]


def _row(one: _Packed, files: EmbeddingFiles) -> dict[str, Any]:
    new, tokens = one.new, one.tokens
    return {
        "key": one.key,
        "content": tokens.content,
        "created": now(),
        "model": new.model,
        "encoder": new.encoder,
        "space": new.space,
        "dtype": tokens.dtype,
        "tokens": tokens.tokens,
        "dim": tokens.dim,
        "prompt": new.prompt,
        "source": new.source,
        "label": None,
        "norm": one.norm,
        "raw_bytes": len(tokens.data),
        "file_bytes": files.size(one.key) or len(one.data),
        "encode_seconds": new.seconds,
        "uses": 0,
        "last_used": None,
        "origin": new.origin,
    }


def _tags(tags: Iterable[str]) -> list[str]:
    out = []
    for tag in tags:
        tag = tag.strip()
        if not tag or "," in tag:
            raise RecipeError(f"{tag!r} cannot be a tag", "a tag is one or more words without commas", "style")
        out.append(tag)
    return list(dict.fromkeys(out))


def get(db: Database, files: EmbeddingFiles, name: str, *, count: bool = True) -> Embedding:
    """Return an embedding by key, start of a key, label or prompt, with verified content; `count` records the use."""
    with db.reading() as con:
        key = find_key(con, name)
        row = select(con, "SELECT * FROM embeddings WHERE key = ?", [key]).to_pylist()[0]
    tokens, _ = files.read(key)
    if count:
        note_uses(db, [key])
    return Embedding(key, tokens, row)


def save(embedding: Embedding, path: Path) -> Path:
    """Write the matrix [L, D] to a new .safetensors file, with its provenance in the metadata; return the path.

    Raises RecipeError for another file type or a file that exists.
    """
    from safetensors.torch import save_file

    if path.suffix != ".safetensors":
        raise RecipeError(f"{path} is not a .safetensors file", "an embedding is written as one", f"{path}.safetensors")
    if path.exists():
        raise RecipeError(
            f"{path} already exists", "an embedding is written to a new file", f"{path.with_stem(path.stem + '-2')}"
        )
    about = {name: str(embedding.row.get(name) or "") for name in ("model", "encoder", "space", "prompt", "label")}
    with guarded(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        with new_file(path) as temporary:
            save_file({"embedding": embedding.tensor()}, temporary, {"key": embedding.key, **about})
    return path


def stored(
    db: Database, files: EmbeddingFiles, prompts: Sequence[str], encoder: str, environments: Sequence[str]
) -> dict[str, Embedding]:
    """Return the stored embeddings of `prompts` of this encoder and one of these environments, preferring the first."""
    if not db.path.exists() or not prompts:
        return {}
    with db.reading() as con:
        found = select(
            con,
            "SELECT p.prompt AS asked, p.environment, e.* FROM embedding_prompts p JOIN embeddings e ON p.key = e.key "
            "WHERE p.prompt IN (SELECT unnest(?)) AND p.encoder = ? AND p.environment IN (SELECT unnest(?))",
            [list(prompts), encoder, list(environments)],
        ).to_pylist()
    order = {name: rank for rank, name in enumerate(environments)}
    out: dict[str, dict[str, Any]] = {}
    for row in sorted(found, key=lambda row: -order[row.pop("environment")]):
        out[row.pop("asked")] = row
    embeddings = {p: Embedding(row["key"], files.read(row["key"])[0], row) for p, row in out.items()}
    if embeddings:
        note_uses(db, [e.key for e in embeddings.values()])
    return embeddings


def note_uses(db: Database, keys: Sequence[str]) -> None:
    """Record one more use for every key of the list; a key may occur several times."""
    with db.writing() as con:
        con.execute(
            "UPDATE embeddings SET uses = uses + n, last_used = ? FROM "
            "(SELECT key AS used, count(*) AS n FROM (SELECT unnest(?) AS key) GROUP BY key) WHERE key = used",
            [now(), list(keys)],
        )


def annotate(db: Database, name: str, label: str | None, add: Sequence[str] = (), remove: Sequence[str] = ()) -> str:
    """Set the label ('' removes it, None keeps it), add and remove tags; return the key."""
    added = _tags(add)
    with db.writing() as con:
        key = find_key(con, name)
        if label is not None:
            con.execute("UPDATE embeddings SET label = ? WHERE key = ?", [label or None, key])
        insert(con, "embedding_tags", [{"key": key, "tag": tag} for tag in added])
        con.execute("DELETE FROM embedding_tags WHERE key = ? AND tag IN (SELECT unnest(?))", [key, list(remove)])
        changed(con)
    return key


LISTED = """
SELECT e.key, e.prompt, e.label, coalesce(t.tags, '') AS tags, e.tokens, e.dim, e.dtype, e.space, e.model, e.source,
       e.created, e.uses, e.last_used, e.file_bytes, e.origin
FROM embeddings e LEFT JOIN (SELECT key, string_agg(tag, ', ' ORDER BY tag) AS tags FROM embedding_tags GROUP BY key) t
ON e.key = t.key
"""


def listed(con: DuckDBPyConnection, *, tags: Sequence[str] = (), limit: int | None = None) -> pa.Table:
    """Return embeddings, newest first; with `tags`, those that have all of them."""
    where, parameters = tagged("e.key", tags)
    end = "" if limit is None else f" LIMIT {int(limit)}"
    return select(con, f"{LISTED} WHERE {where} ORDER BY e.created DESC, e.key{end}", parameters)


def tagged(column: str, tags: Sequence[str]) -> tuple[str, list[Any]]:
    """Return an SQL condition for embeddings with all of `tags`, and its parameters."""
    if not tags:
        return "true", []
    wanted = list(dict.fromkeys(tags))
    return (
        f"{column} IN (SELECT key FROM embedding_tags WHERE tag IN (SELECT unnest(?)) "
        "GROUP BY key HAVING count(DISTINCT tag) = ?)",
        [wanted, len(wanted)],
    )


def remove_rows(con: DuckDBPyConnection, keys: Sequence[str]) -> None:
    """Remove embeddings from every table; the caller removes their files after the commit."""
    gone = [list(keys)]
    for table in ("search_vectors", "embedding_prompts", "embedding_tags", "embedding_analysis"):
        con.execute(f"DELETE FROM {table} WHERE key IN (SELECT unnest(?))", gone)
    con.execute("DELETE FROM embedding_similarities WHERE key_a IN (SELECT unnest(?))", gone)
    con.execute("DELETE FROM embedding_similarities WHERE key_b IN (SELECT unnest(?))", gone)
    made = "SELECT id FROM vector_operations WHERE result IN (SELECT unnest(?))"
    for table in ("operation_inputs", "operation_parameters"):
        con.execute(f"DELETE FROM {table} WHERE operation IN ({made})", gone)
    con.execute("DELETE FROM vector_operations WHERE result IN (SELECT unnest(?))", gone)
    con.execute("DELETE FROM embeddings WHERE key IN (SELECT unnest(?))", gone)
    changed(con)
