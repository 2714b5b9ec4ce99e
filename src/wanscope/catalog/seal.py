"""Files of version 0.1 get a checksum over their header and mean token, once they have been verified.

What can be verified is: the values, by the key; the mean token, by computing it again; and everything else in the
header, by replacing it with the row of the catalog, which the database keeps under checksums of its own.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from wanscope.catalog.connect import Database
from wanscope.catalog.embedding_file import Header, pack
from wanscope.catalog.files import EmbeddingFiles
from wanscope.catalog.rows import select
from wanscope.errors import CatalogDamaged, StorageError

BATCH = 64  # files in memory at once


def seal(db: Database, files: EmbeddingFiles, keys: Sequence[str]) -> list[str]:
    """Rewrite verified files of version 0.1 in the present format; return notes on what was done and what was not."""
    if not keys:
        return []
    subject = f"{len(keys)} file{'s'[: len(keys) != 1]} of version 0.1"
    cannot = f"{subject} have no checksum of their header (values and mean tokens are verified, prompts and dates not)"
    if not os.access(files.folder, os.W_OK):
        return [f"{cannot}, and cannot be sealed: the folder cannot be written"]
    other = 0
    try:
        for start in range(0, len(keys), BATCH):
            other += _seal(db, files, keys[start : start + BATCH])
    except (StorageError, CatalogDamaged) as error:
        return [f"{cannot}, and could not all be sealed: {error.what} ({error.why})"]
    notes = [f"{subject} had no checksum of their header; they were verified, and have one now"]
    if other:
        notes.append(f"the text in {other} of these headers differed from the catalog, and was replaced by it")
    return notes


def _seal(db: Database, files: EmbeddingFiles, keys: Sequence[str]) -> int:
    """Rewrite a batch, and return how many headers had another text than their row."""
    with db.writing() as con:  # nobody removes an embedding meanwhile
        rows = select(
            con,
            "SELECT key, model, encoder, space, prompt, source, created FROM embeddings "
            "WHERE key IN (SELECT unnest(?))",
            [list(keys)],
        ).to_pylist()
        other, written = 0, {}
        for row in rows:
            key, created = row.pop("key"), row.pop("created").isoformat(timespec="seconds")
            tokens, head = files.read_all(key)
            header = Header(**row, created=created)
            other += (header.prompt, header.source) != (head.header.prompt, head.header.source)
            written[key] = pack(tokens, header)
        files.write(written)
        for key, data in written.items():
            con.execute("UPDATE embeddings SET file_bytes = ? WHERE key = ?", [len(data), key])
    return other
