"""Sharing: exporting a catalog to Parquet files that any tool reads, importing it again, and merging two catalogs.

    README.md             what is in it, with every column
    card.json             the same figures for programs: counts, versions, encoders
    embeddings.parquet    one row per embedding; `values` are its numbers
    <table>.parquet       the other tables, as docs/catalog.md describes them

Embeddings are identified by content, so nothing is imported twice. Takes are imported as rows without a folder, with
the name of their origin.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.resources import files as resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wanscope import __version__
from wanscope.catalog.anonymous import without_words
from wanscope.catalog.bounded_parquet import open_bounded, read_bounded
from wanscope.catalog.connect import Database
from wanscope.catalog.content import Tokens
from wanscope.catalog.embeddings import New, put_many
from wanscope.catalog.export_card import CARD, EMBEDDINGS, FORMAT, card_sum, read_card
from wanscope.catalog.files import EmbeddingFiles
from wanscope.catalog.migrations import VERSION
from wanscope.catalog.read_copy import reading_copy
from wanscope.catalog.rows import SHARED, count, insert, now, select
from wanscope.errors import CatalogDamaged, EmbeddingNotFound, RecipeError, StorageError, TakeNotFound
from wanscope.take.building import built_beside, new_folder
from wanscope.take.disk import file_sha256, guarded

if TYPE_CHECKING:
    import pyarrow as pa

README = "README.md"
BATCH = 256


@dataclass(frozen=True)
class Exchanged:
    """What was exported or imported: rows by table.

    there: rows that existed already, by table. notes: what the user should know. bytes: the size of an export.
    """

    place: str
    rows: dict[str, int]
    there: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    bytes: int = 0


# out


def export(
    db: Database, files: EmbeddingFiles, folder: Path, *, anonymous: bool = False, half: bool = False
) -> Exchanged:
    """Write everything to a new or empty folder, which is complete or, after a kill, as it was.

    anonymous: without prompts and other text. half: values as fp16 numbers, which are smaller and which every tool
    reads, but which cannot reproduce a take bit for bit. Raises RecipeError where values do not fit fp16, or where the
    folder is not empty; the same export may be there already, and stays as it is.
    """
    there = None
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        # A process that was killed after its last rename has left the export that it did not report.
        there = read_card(folder).get("sha256") if folder.is_dir() and os.path.isfile(folder / CARD) else None
        if there is None:
            raise RecipeError(f"{folder} is not an empty folder", "an export needs one", f"{folder}-2")
    with db.reading() as con:
        tables = {name: select(con, f"SELECT * FROM {name} ORDER BY ALL") for name in SHARED}
        rows = select(con, "SELECT * FROM embeddings ORDER BY key")
    if anonymous:
        rows, tables = without_words(rows, tables)
    building = built_beside(folder) if there is None else new_folder(folder.absolute().parent, folder.name)
    with building as new, guarded(folder):
        _write_embeddings(new / EMBEDDINGS, rows, files, half)
        for name, table in tables.items():
            _write(new / f"{name}.parquet", table)
        counts = {"embeddings": rows.num_rows, **{name: table.num_rows for name, table in tables.items()}}
        sums = {path.name: file_sha256(path) for path in sorted(new.glob("*.parquet"))}
        if there not in (None, sums):
            raise RecipeError(f"{folder} has another export", "an export needs an empty folder", f"{folder}-2")
        card = {**_card(rows, tables, counts, anonymous, half), "sha256": sums}
        card["card_sha256"] = card_sum(card)
        (new / README).write_text(_readme(card, folder), encoding="utf-8")
        (new / CARD).write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return Exchanged(str(folder), counts, bytes=sum(path.stat().st_size for path in folder.iterdir()))


def _write(path: Path, table: pa.Table) -> None:
    import pyarrow.parquet as pq

    pq.write_table(table, path, compression="zstd")


def _write_embeddings(path: Path, rows: pa.Table, files: EmbeddingFiles, half: bool) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    values = pa.field("values", pa.list_(pa.float16()) if half else pa.binary())
    schema = rows.schema.append(pa.field("mean_token", pa.list_(pa.float32()))).append(values)
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for start in range(0, rows.num_rows, BATCH):
            part = rows.slice(start, BATCH)
            found = [files.read(key)[0] for key in part["key"].to_pylist()]
            means = [(unit_D * norm).astype(np.float32) for unit_D, norm in (tokens.pooled for tokens in found)]
            data = [_as_half(tokens) for tokens in found] if half else [tokens.data for tokens in found]
            part = part.append_column(schema.field("mean_token"), pa.array(means, pa.list_(pa.float32())))
            writer.write_table(part.append_column(values, pa.array(data, values.type)))


def _as_half(tokens: Tokens) -> np.ndarray:
    with np.errstate(over="ignore"):
        half = tokens.array().astype(np.float16).ravel()
    if not np.isfinite(half).all():
        raise RecipeError("an embedding does not fit into fp16", "its values are over 65504", "export without --fp16")
    return half


def _card(
    rows: pa.Table, tables: dict[str, pa.Table], counts: dict[str, int], anonymous: bool, half: bool
) -> dict[str, Any]:
    def distinct(table: pa.Table, column: str) -> list[Any]:
        return sorted({value for value in table[column].to_pylist() if value not in (None, "")})

    kinds: dict[str, int] = {}
    for dtype, space, dim in zip(*(rows[c].to_pylist() for c in ("dtype", "space", "dim")), strict=True):
        name = f"{space}, {dim} dimensions, {dtype}"
        kinds[name] = kinds.get(name, 0) + 1
    created = [value for value in rows["created"].to_pylist() if value is not None]
    return {
        "format": FORMAT,
        "schema": VERSION,
        "wanscope": __version__,
        "written": now().isoformat(timespec="seconds"),
        "anonymous": anonymous,
        "values": "fp16" if half else "exact",
        "rows": counts,
        "embeddings": kinds,
        "tokens": int(sum(rows["tokens"].to_pylist())),
        "stored": [str(min(created)), str(max(created))] if created else [],
        "models": sorted({*distinct(rows, "model"), *distinct(tables["takes"], "model")}),
        "encoders": distinct(rows, "encoder"),
        "torch": sorted({*distinct(tables["takes"], "torch"), *distinct(tables["vector_operations"], "torch")}),
    }


def columns() -> dict[str, list[tuple[str, str, str]]]:
    """Return (name, type, description) of every column, by table, as in schema.sql."""
    text = resources("wanscope.catalog").joinpath("schema.sql").read_text(encoding="utf-8")
    out: dict[str, list[tuple[str, str, str]]] = {}
    for table, body in re.findall(r"CREATE TABLE (\w+) \((.*?)\n?\);", text, flags=re.DOTALL):
        found = []
        for line in body.split("\n"):
            declared, _, comment = line.partition("--")
            for name, kind in re.findall(r"(?:^|,)\s*([a-z_0-9]+) ([A-Z]+(?:\[\d+\])?)(?=[ ,]|$)", declared):
                found.append((name, kind, comment.strip()))
        out[table] = found
    return out


def _readme(card: dict[str, Any], folder: Path) -> str:
    lines = [f"# {folder.name}", "", f"Written by wanscope {card['wanscope']} on {card['written'][:10]}.", ""]
    lines += ["| file | rows |", "|---|---|"]
    lines += [f"| {name}.parquet | {count} |" for name, count in card["rows"].items()]
    lines += ["", *(f"- {count} embeddings: {kind}" for kind, count in card["embeddings"].items())]
    lines += [f"- {name}: {', '.join(map(str, card[name]))}" for name in ("models", "encoders", "torch") if card[name]]
    if card["anonymous"]:
        lines += [
            "",
            "Prompts, labels, tags, names and recipes were left out. The embeddings still contain the meaning of their "
            "prompts: anyone with the encoder can test a guess, and inversion recovers text approximately. The names "
            "of models that embeddings were stored under are part of their keys and remain.",
        ]
    how = (
        "`values` are fp16 numbers, token by token: reshape them to `tokens` x `dim`."
        if card["values"] == "fp16"
        else "`values` are the bytes of the token matrix, little-endian, token by token, in `dtype`: in numpy "
        "`numpy.frombuffer(values, dtype).reshape(tokens, dim)`; for bfloat16 read uint16, shift left by 16 as uint32 "
        "and view as float32."
    )
    lines += ["", how, "`mean_token` is the mean of the tokens.", "", "## Columns"]
    for table, found in columns().items():
        if table in card["rows"]:
            lines += ["", f"### {table}", "", "| column | type | |", "|---|---|---|"]
            lines += [f"| {name} | {kind} | {comment} |" for name, kind, comment in found]
    return "\n".join(lines) + "\n"


# in


def read_export(db: Database, files: EmbeddingFiles, folder: Path, *, origin: str | None = None) -> Exchanged:
    """Import what `export` wrote. Every embedding is verified against its key first.

    Raises TakeNotFound where the folder is not an export, CatalogDamaged, or CatalogNewer.
    """
    import duckdb
    import pyarrow as pa

    card = read_card(folder)
    exact = card["values"] == "exact"
    try:
        with db.reading() as con:
            kinds = {name: select(con, f"SELECT * FROM {name} LIMIT 0").schema for name in SHARED}
        tables = {name: _as_ours(read_bounded(folder / f"{name}.parquet"), kinds[name]) for name in SHARED}
        batches = open_bounded(folder / EMBEDDINGS).iter_batches(BATCH)
        return _import_rows(
            db, files, (_decoded(batch, exact) for batch in batches), tables, origin or folder.name, str(folder), exact
        )
    except (pa.ArrowException, duckdb.Error, OSError, KeyError, TypeError, ValueError) as error:  # another form, too
        raise CatalogDamaged(f"the export in {folder} is damaged", str(error).split("\n")[0]) from None


def _as_ours(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return a table with its columns in the types of our own. Raises ArrowException where they do not fit."""
    import pyarrow as pa

    kinds = [schema.field(f.name).type if f.name in schema.names else f.type for f in table.schema]
    return table.cast(pa.schema(list(zip(table.column_names, kinds, strict=True))))


def merge(db: Database, files: EmbeddingFiles, other: Database, theirs: EmbeddingFiles, origin: str) -> Exchanged:
    """Import another catalog. Nothing is changed next to it, and a copy of it is read without access to other files.

    Raises TakeNotFound where it does not exist, and RecipeError where it is this catalog.
    """
    if not other.path.exists():
        raise TakeNotFound(f"there is no catalog {other.path}", "", "wanscope db merge THEIR-WORKSPACE")
    if other.path.resolve() == db.path.resolve():
        raise RecipeError(f"{other.path} is this catalog", "it cannot be merged into itself")
    with reading_copy(other) as con:
        tables = {name: select(con, f"SELECT * FROM {name} ORDER BY ALL") for name in SHARED}
        rows = select(con, "SELECT * FROM embeddings ORDER BY key")

    def batches() -> Iterator[list[tuple[dict[str, Any], Tokens]]]:
        for start in range(0, rows.num_rows, BATCH):
            yield [(row, theirs.read(row["key"])[0]) for row in rows.slice(start, BATCH).to_pylist()]

    return _import_rows(db, files, batches(), tables, origin, str(other.path), True)


def _decoded(batch: pa.RecordBatch, exact: bool) -> list[tuple[dict[str, Any], Tokens]]:
    out = []
    for row in batch.to_pylist():
        values = row.pop("values")
        row.pop("mean_token")
        if exact:
            tokens = Tokens(row["dtype"], row["tokens"], row["dim"], values)
            if tokens.key(row["model"], row["encoder"], row["space"]) != row["key"]:
                raise CatalogDamaged(
                    f"embedding {row['key'][:12]} of the export is damaged", "its content does not match its key"
                )
        else:
            tokens = Tokens.of(np.array(values, np.float16).reshape(row["tokens"], row["dim"]))
        out.append((row, tokens))
    return out


def _import_rows(
    db: Database,
    files: EmbeddingFiles,
    batches: Iterator[list[tuple[dict[str, Any], Tokens]]],
    tables: dict[str, pa.Table],
    origin: str,
    place: str,
    exact: bool,
) -> Exchanged:
    """Import embeddings in batches, then the other tables in one transaction."""
    if not re.fullmatch(r"[^\x00-\x1f]{1,200}", origin):
        raise RecipeError(f"{origin!r} cannot be an origin", "an origin is a name of up to 200 characters", "theirs")
    notes = []
    with db.writing() as con:
        before = count(con, "embeddings")
    offered = 0
    for batch in batches:
        offered += len(batch)
        put_many(db, files, [_new(row, tokens, origin, exact) for row, tokens in batch])
    with db.writing() as con:
        rows = {"embeddings": count(con, "embeddings") - before}
        if not exact:
            left = ("embedding_prompts", "vector_operations", "operation_inputs", "operation_parameters")
            tables = {n: t for n, t in tables.items() if n not in left and not n.startswith("embedding_")}
            notes.append("values are fp16: they are not found by prompt, and operations were left out")
        known = [take for (take,) in con.execute("SELECT id FROM takes").fetchall()]
        for name, table in tables.items():
            had = count(con, name)
            insert(con, name, _importable(con, name, table, origin, known))
            rows[name] = count(con, name) - had
    there = {"embeddings": offered - rows["embeddings"]}
    there |= {name: table.num_rows - rows[name] for name, table in tables.items()}
    return Exchanged(place, rows, {name: n for name, n in there.items() if n}, tuple(notes))


def _new(row: dict[str, Any], tokens: Tokens, origin: str, exact: bool) -> New:
    return New(
        tokens,
        prompt=row["prompt"],
        model=row["model"],
        encoder=row["encoder"] if exact else "",
        space=row["space"],
        source=row["source"],
        label=row["label"],
        seconds=row["encode_seconds"],
        origin=row["origin"] or origin,
        alias=False,
    )


def _importable(con: Any, name: str, table: pa.Table, origin: str, known: Sequence[str]) -> pa.Table:
    """Return the rows to import: those of new takes and of embeddings that exist here; with their origin filled in."""
    con.register("offered_rows", table)
    try:
        where, parameters, columns = "true", [], "*"
        if name in ("takes", "variations"):
            columns = "* REPLACE (CASE origin WHEN '' THEN ? ELSE origin END AS origin)"
            parameters.append(origin)
        if name == "variations":  # the same line of the same study is imported once, whatever its origin
            where = "(study, name, take) NOT IN (SELECT (study, name, take) FROM variations)"
        elif name in ("takes", "edits"):
            where = f"{'id' if name == 'takes' else 'take'} NOT IN (SELECT unnest(?))"
            parameters.append(list(known))
        elif "key" in table.column_names and name != "operation_inputs":
            where = "key IN (SELECT key FROM embeddings)"
        elif name == "vector_operations":
            where = "result IN (SELECT key FROM embeddings)"
        elif name in ("operation_inputs", "operation_parameters"):
            where = "operation IN (SELECT id FROM vector_operations)"
        elif name == "embedding_similarities":
            where = "key_a IN (SELECT key FROM embeddings) AND key_b IN (SELECT key FROM embeddings)"
        return select(con, f"SELECT {columns} FROM offered_rows WHERE {where}", parameters)
    finally:
        con.unregister("offered_rows")


def adopt(db: Database, files: EmbeddingFiles) -> tuple[int, list[str]]:
    """Add rows for files that have none, from their headers; return how many, and which files cannot be read."""
    with db.reading() as con:
        known = {key for (key,) in con.execute("SELECT key FROM embeddings").fetchall()}
    lost, unreadable = [key for key in files.keys() if key not in known], []  # noqa: SIM118
    taken = 0
    for start in range(0, len(lost), BATCH):
        batch = []
        for key in lost[start : start + BATCH]:
            try:
                tokens, header = files.read(key)
            except (CatalogDamaged, StorageError, EmbeddingNotFound) as error:
                unreadable.append(str(error.what))
                continue
            batch.append(
                New(tokens, header.prompt, header.model, header.encoder, "", header.space, header.source, alias=False)
            )
        taken += len(put_many(db, files, batch))
    return taken, unreadable
