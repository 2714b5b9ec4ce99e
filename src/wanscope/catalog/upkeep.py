"""Maintenance of the catalog: sizes and ratios, figures of one embedding, checking, cleaning up.

Shape suffixes: L tokens, D dimension.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np

from wanscope.catalog.connect import Database
from wanscope.catalog.content import WIDTHS, Tokens
from wanscope.catalog.embeddings import remove_rows
from wanscope.catalog.files import EmbeddingFiles
from wanscope.catalog.rows import SHARED, count, find_key, insert, now, one, select
from wanscope.catalog.seal import seal
from wanscope.catalog.turns import lost_turns
from wanscope.errors import CatalogDamaged, RecipeError, StorageError

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

PADDED_TOKENS = 512  # tokens per prompt that tools write which store whole padded tensors in fp32
TABLES = ("embeddings", *SHARED, "search_basis", "search_vectors")
ORPHAN_SECONDS = 3600  # a younger file without a row may be about to get one


def stats(con: DuckDBPyConnection, db: Database) -> dict[str, Any]:
    """Return counts, sizes in bytes, the sources of savings, and timings in seconds."""
    sums = one(
        con,
        "SELECT count(*), coalesce(sum(tokens * dim * 4), 0), coalesce(sum(raw_bytes), 0), "
        "coalesce(sum(file_bytes), 0), coalesce(sum(uses), 0), avg(encode_seconds), avg(tokens), "
        f"coalesce(sum(greatest({PADDED_TOKENS}, tokens) * dim * 4), 0) FROM embeddings",
    )
    assert sums is not None
    total, trimmed, raw, kept, uses, encode, tokens, padded = sums
    saved = one(con, "SELECT sum(uses * encode_seconds) FROM embeddings")
    ops = con.execute(
        "SELECT operation, count(*), avg(seconds), max(seconds), sum(bytes) FROM vector_operations "
        "GROUP BY operation ORDER BY count(*) DESC, operation"
    ).fetchall()
    takes = one(
        con,
        "SELECT count(*) FILTER (status = 'complete'), count(*) FILTER (status = 'damaged'), coalesce(sum(bytes), 0), "
        "coalesce(sum(seconds), 0), count(*) FILTER (origin <> '') FROM takes",
    )
    assert takes is not None
    kinds = con.execute(
        "SELECT dtype, space, dim, encoder, count(*) FROM embeddings GROUP BY ALL "
        "ORDER BY count(*) DESC, dim, dtype, encoder"
    ).fetchall()
    return {
        "catalogue": str(db.path),
        "rows": {table: count(con, table) for table in TABLES},
        "embeddings": {
            "count": total,
            "mean_tokens": tokens,
            "uses": uses,
            "kinds": [dict(zip(("dtype", "space", "dim", "encoder", "count"), row, strict=True)) for row in kinds],
        },
        "bytes": {
            "padded_fp32": padded,
            "trimmed_fp32": trimmed,
            "trimmed_dtype": raw,
            "files": kept,
            "database": sum(path.stat().st_size for path in (db.path, db.log) if path.exists()),
        },
        "ratio": {
            "trimming": _ratio(padded, trimmed),
            "dtype": _ratio(trimmed, raw),
            "zstd_and_header": _ratio(raw, kept),
            "all": _ratio(padded, kept),
        },
        "seconds": {"mean_encoding": encode, "encoding_saved_by_reuse": (saved or (None,))[0]},
        "operations": [
            dict(zip(("operation", "count", "mean_seconds", "max_seconds", "bytes"), row, strict=True)) for row in ops
        ],
        "takes": dict(zip(("complete", "damaged", "bytes", "seconds", "from_others"), takes, strict=True)),
    }


def _ratio(before: float, after: float) -> float | None:
    return before / after if after else None


# one embedding


def figures(tokens: Tokens) -> dict[str, float]:
    """Return statistics of a token matrix [L, D], computed in float64."""
    x_LD = tokens.array().astype(np.float64)
    out: dict[str, float] = {"tokens": tokens.tokens, "dim": tokens.dim}
    if not tokens.tokens:
        return out
    norm_L = np.linalg.norm(x_LD, axis=1)
    out |= {
        "mean": float(x_LD.mean()),
        "std": float(x_LD.std()),
        "largest": float(np.abs(x_LD).max()),
        "zero_share": float((x_LD == 0).mean()),
        "token_norm_min": float(norm_L.min()),
        "token_norm_mean": float(norm_L.mean()),
        "token_norm_max": float(norm_L.max()),
        "pooled_norm": tokens.pooled[1],
        "norm": float(np.linalg.norm(x_LD)),
    }
    # Principal components of the tokens, from the Gram matrix [L, L], which is smaller than the covariance [D, D].
    centered_LD = x_LD - x_LD.mean(axis=0)
    spectrum_L = np.clip(np.linalg.eigvalsh(centered_LD @ centered_LD.T)[::-1], 0, None)
    total = float(spectrum_L.sum())
    if total > 0:
        shares_L = np.cumsum(spectrum_L) / total
        out["participation_ratio"] = total**2 / float((spectrum_L**2).sum())
        out["components_90"] = float(np.searchsorted(shares_L, 0.90) + 1)
        out["components_99"] = float(np.searchsorted(shares_L, 0.99) + 1)
    unit_LD = x_LD / np.where(norm_L == 0, 1, norm_L)[:, None]
    if tokens.tokens > 1:
        cosines = unit_LD @ unit_LD.T
        out["mean_token_cosine"] = float((cosines.sum() - np.trace(cosines)) / (tokens.tokens * (tokens.tokens - 1)))
    return out


def analyze(db: Database, files: EmbeddingFiles, name: str) -> tuple[str, dict[str, float]]:
    """Return an embedding's key and figures, which are computed once and stored in embedding_analysis."""
    with db.reading() as con:
        key = find_key(con, name)
        kept = dict(con.execute("SELECT name, value FROM embedding_analysis WHERE key = ?", [key]).fetchall())
    if not kept:
        kept = figures(files.read(key)[0])
        with db.writing() as con:
            insert(con, "embedding_analysis", [{"key": key, "name": n, "value": v} for n, v in kept.items()])
    return key, kept


# checking


@dataclass(frozen=True)
class Check:
    """The result of a check. problems: what is wrong, one sentence each; notes: what could be cleaned up."""

    embeddings: int
    files: int
    takes: int
    deep: bool
    seconds: float
    problems: tuple[str, ...] = field(default=())
    notes: tuple[str, ...] = field(default=())


def check(db: Database, files: EmbeddingFiles, *, deep: bool = False) -> Check:
    """Compare rows with files and with each other; `deep` also reads every file and verifies all of it.

    `deep` gives files of version 0.1 the checksum that they lack (see `seal`), and says so in a note.
    """
    began = time.perf_counter()
    with db.reading() as con:
        rows = con.execute("SELECT key, file_bytes, raw_bytes, tokens * dim, dtype FROM embeddings").fetchall()
        problems = [*_row_problems(con)]
        takes = count(con, "takes")
        gone = one(
            con,
            "SELECT count(DISTINCT i.operation) FROM operation_inputs i LEFT JOIN embeddings e ON i.key = e.key "
            "WHERE e.key IS NULL",
        )
        there = set(files.keys())
        lost = lost_turns(con, db.path)
    if lost:
        problems.append(
            f"the catalog lacks {lost} of the changes that were made to it: its file or its log was removed, cut "
            "short, or replaced by an older copy; `wanscope index --rebuild` reads takes and embeddings again"
        )
    old = []
    for key, file_bytes, raw_bytes, values, dtype in rows:
        size = files.size(key)
        if size is None:
            problems.append(f"the file of embedding {key} is missing")
        elif deep:
            try:
                if not files.read_all(key)[1].sealed:
                    old.append(key)
            except (CatalogDamaged, StorageError) as error:
                problems.append(f"{error.what}: {error.why}")
        elif size != file_bytes:
            problems.append(f"the file of embedding {key} has {size} bytes instead of {file_bytes}")
        if values * WIDTHS.get(dtype, 0) != raw_bytes:
            problems.append(f"the row of embedding {key} is inconsistent")
    notes = seal(db, files, old)
    orphans = len(there - {key for key, *_ in rows})
    if orphans:
        notes.append(
            f"{orphans} files have no row; `wanscope index --rebuild` adds rows, `db cleanup` removes the files"
        )
    if unfinished := len(files.unfinished()):
        notes.append(f"{unfinished} files are incomplete: their writer runs or was killed; `db cleanup` removes them")
    if gone and gone[0]:
        notes.append(f"{gone[0]} operations have inputs that were cleaned up; they cannot be repeated")
    seconds = time.perf_counter() - began
    return Check(len(rows), len(there), takes, deep, seconds, tuple(problems), tuple(notes))


def _row_problems(con: DuckDBPyConnection) -> list[str]:
    out = []
    for table, column in (
        ("embedding_prompts", "key"),
        ("embedding_tags", "key"),
        ("embedding_analysis", "key"),
        ("search_vectors", "key"),
        ("embedding_similarities", "key_a"),
        ("embedding_similarities", "key_b"),
        ("vector_operations", "result"),
    ):
        lost = count(con, table, f"{column} NOT IN (SELECT key FROM embeddings)")
        if lost:
            out.append(f"{lost} rows of {table} name embeddings that do not exist")
    for table in ("operation_inputs", "operation_parameters"):
        lost = count(con, table, "operation NOT IN (SELECT id FROM vector_operations)")
        if lost:
            out.append(f"{lost} rows of {table} belong to no operation")
    lost = count(con, "edits", "take NOT IN (SELECT id FROM takes)")
    if lost:
        out.append(f"{lost} rows of edits belong to no take")
    return out


# cleaning up


@dataclass(frozen=True)
class Cleanup:
    """What a cleanup removes, or would remove. bytes: their size. orphans: how many files without a row.

    kept: how many meet the conditions but stay, because they are labeled, tagged or inputs of operations.
    """

    keys: tuple[str, ...]
    rows: tuple[dict[str, Any], ...]
    bytes: int
    kept: int
    orphans: int
    done: bool


def cleanup(
    db: Database,
    files: EmbeddingFiles,
    *,
    older_than_days: float | None = None,
    unused_days: float | None = None,
    max_uses: int | None = None,
    labeled: bool = False,
    dry_run: bool = True,
) -> Cleanup:
    """Remove embeddings that meet all given conditions; with `dry_run`, only report which.

    older_than_days: since they were stored. unused_days: since their last use, or since they were stored. max_uses:
    used at most this often. Those with a label or tags stay, unless `labeled`; so do inputs of operations whose results
    stay. Files without a row and incomplete files are removed too, once they are an hour old. Raises RecipeError for a
    negative age.
    """
    conditions, parameters = ["true"], []
    for days, column in ((older_than_days, "created"), (unused_days, "coalesce(last_used, created)")):
        if days is not None:
            if days < 0:
                raise RecipeError(f"the age is {days:g} days", "an age is not negative", "30")
            conditions.append(f"{column} <= ?")
            parameters.append(now() - timedelta(days=days))
    if max_uses is not None:
        conditions.append("uses <= ?")
        parameters.append(max_uses)
    chosen = len(conditions) > 1
    with db.reading() if dry_run else db.writing() as con:
        fit = set()
        if chosen:
            found = con.execute(f"SELECT key FROM embeddings WHERE {' AND '.join(conditions)}", parameters).fetchall()
            fit = {key for (key,) in found}
        keys = sorted(_removable(con, fit, labeled))
        rows = select(
            con,
            "SELECT key, prompt, label, created, uses, file_bytes FROM embeddings "
            "WHERE key IN (SELECT unnest(?)) ORDER BY created, key",
            [keys],
        ).to_pylist()
        if not dry_run and keys:
            remove_rows(con, keys)
        known = {key for (key,) in con.execute("SELECT key FROM embeddings").fetchall()}
    orphans = _stale(files, known | set(keys))
    if not dry_run:
        _remove_files(db, files, keys)
        for path in orphans:
            path.unlink(missing_ok=True)
    size = sum(row["file_bytes"] for row in rows)
    return Cleanup(tuple(keys), tuple(rows), size, len(fit) - len(keys), len(orphans), not dry_run)


def _removable(con: DuckDBPyConnection, fit: set[str], labeled: bool) -> set[str]:
    """Return those that meet the conditions and that no remaining embedding was computed from."""
    stay = {key for (key,) in con.execute("SELECT key FROM embeddings").fetchall()} - fit
    if not labeled:
        stay |= {key for (key,) in con.execute("SELECT key FROM embeddings WHERE label IS NOT NULL").fetchall()}
        stay |= {key for (key,) in con.execute("SELECT key FROM embedding_tags").fetchall()}
    needs: dict[str, list[str]] = {}
    for result, key in con.execute(
        "SELECT o.result, i.key FROM vector_operations o JOIN operation_inputs i ON o.id = i.operation"
    ).fetchall():
        needs.setdefault(result, []).append(key)
    pending = [key for key in stay if key in needs]
    while pending:
        for key in needs.get(pending.pop(), ()):
            if key not in stay:
                stay.add(key)
                pending.append(key)
    return fit - stay


def _remove_files(db: Database, files: EmbeddingFiles, keys: Sequence[str]) -> None:
    """Remove the files of removed rows, in a separate transaction: one that was stored again meanwhile is kept."""
    with db.writing() as con:
        back = con.execute("SELECT key FROM embeddings WHERE key IN (SELECT unnest(?))", [list(keys)]).fetchall()
        files.remove(sorted(set(keys) - {key for (key,) in back}))


def _stale(files: EmbeddingFiles, known: set[str]) -> list:
    old = time.time() - ORPHAN_SECONDS
    paths = [files.path(key) for key in files.keys() if key not in known] + files.unfinished()  # noqa: SIM118
    return [path for path in paths if path.exists() and path.stat().st_mtime < old]
