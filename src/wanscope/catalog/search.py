"""Finding embeddings: by words, tags or vector; near-duplicates; tables of similarities.

By vector: all compact vectors are compared in memory, where they are kept between searches until somebody writes. The
best few hundred are compared exactly by their mean tokens and, on request, the best of these by their whole token
matrices. Up to `vectors.FIT_AT` embeddings per dimension everything is exact.

Shape suffixes: N embeddings, K compact components, D dimension, L tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from wanscope.catalog.connect import Database
from wanscope.catalog.content import Tokens
from wanscope.catalog.embeddings import LISTED, tagged
from wanscope.catalog.files import EmbeddingFiles
from wanscope.catalog.rows import insert, one, select
from wanscope.catalog.vectors import COMPONENTS, Basis, bases, due, padding_basis, refit
from wanscope.errors import CatalogDamaged, RecipeError, nearest

if TYPE_CHECKING:
    import pyarrow as pa
    from duckdb import DuckDBPyConnection

Metric = Literal["cosine", "l2"]
METRICS = ("cosine", "l2")
CANDIDATES = 400  # compared exactly
TOKEN_CANDIDATES = 60  # of these, compared token by token
BLOCK = 1024
ROUNDING = 5e-3  # of squared distances between fp16 directions


@dataclass(eq=False)
class _Group:
    """All embeddings of one dimension.

    square_N: squared lengths of the compact vectors. unindexed: embeddings without a compact vector, with their
    directions fp16 [N, D]. norm_N: lengths of mean tokens, first of embeddings with a compact vector, then of these.
    encodings: the number of each embedding's (encoder, space) in `Index.encodings`.
    """

    keys: np.ndarray
    encodings: np.ndarray
    compact_NK: np.ndarray
    square_N: np.ndarray
    rest_N: np.ndarray
    norm_N: np.ndarray
    basis: Basis | None
    unindexed_keys: np.ndarray
    unindexed_encodings: np.ndarray
    unindexed_ND: np.ndarray | None = None


@dataclass(eq=False)
class Index:
    """The stored embeddings in memory, as a search compares them."""

    db: Database
    files: EmbeddingFiles
    stamp: Any = None
    generation: int = -1
    encodings: list[tuple[str, str]] = field(default_factory=list)
    groups: dict[int, _Group] = field(default_factory=dict)
    about: Any = None  # Arrow table with the columns that are shown of each embedding
    rows: dict[str, int] = field(default_factory=dict)  # its row number in that table, by key

    def refresh(self) -> None:
        """Reload if embeddings were added or removed; fit a basis that is due."""
        stamp = self.db.stamp()
        if stamp == self.stamp:
            return
        with self.db.reading() as con:
            row = one(con, "SELECT value FROM catalog_facts WHERE name = 'generation'")
            dims = due(con) if row and row[0] != self.generation else []
            if row and row[0] != self.generation and not dims:
                self._load(con)
                self.generation = row[0]
        if dims:
            with self.db.writing() as con:
                for dim in dims:
                    refit(con, self.files, dim)
            return self.refresh()
        self.stamp = stamp
        return None

    def _load(self, con: DuckDBPyConnection) -> None:
        found = select(
            con,
            "SELECT e.key, e.dim, e.norm, e.encoder, e.space, e.prompt, e.label, e.tokens, e.model, v.vector, v.rest "
            "FROM embeddings e "
            "LEFT JOIN search_vectors v ON e.key = v.key WHERE e.tokens > 0 ORDER BY e.dim, v.key IS NULL, e.key",
        )
        names = list(zip(found["encoder"].to_pylist(), found["space"].to_pylist(), strict=True))
        numbers = {name: i for i, name in enumerate(dict.fromkeys(names))}
        self.encodings = list(numbers)
        encoding_N = np.array([numbers[name] for name in names], np.int32)
        keys = np.array(found["key"].to_pylist(), dtype=object)
        self.about = found.select(["prompt", "label", "tokens", "dim", "model"])
        self.rows = {key: i for i, key in enumerate(keys.tolist())}
        dims = found["dim"].to_numpy()
        norm_N = found["norm"].to_numpy().astype(np.float64)
        known = bases(con)
        self.groups = {}
        for dim in np.unique(dims).tolist():
            rows = np.flatnonzero(dims == dim)
            part = found.slice(int(rows[0]), len(rows))
            has = part["vector"].is_valid().to_numpy()
            count = int(has.sum())
            vector = part["vector"].slice(0, count).combine_chunks()
            flat = vector.flatten() if count else None
            compact_NK = (
                flat.to_numpy(zero_copy_only=False).reshape(count, COMPONENTS)
                if flat is not None
                else np.zeros((0, COMPONENTS))
            )
            compact_NK = np.ascontiguousarray(compact_NK, np.float32)
            self.groups[dim] = _Group(
                keys[rows[:count]],
                encoding_N[rows[:count]],
                compact_NK,
                np.einsum("nk,nk->n", compact_NK, compact_NK),
                part["rest"].slice(0, count).to_numpy().astype(np.float32),
                norm_N[rows[:count]],
                padding_basis(dim) if dim <= COMPONENTS else known.get(dim),
                keys[rows[count:]],
                encoding_N[rows[count:]],
            )

    def shown(self, key: str) -> dict[str, Any]:
        """Return the columns to show of an embedding: prompt, label, tokens, dim, model."""
        return self.about.slice(self.rows[key], 1).to_pylist()[0]

    def nearest(
        self, unit_D: np.ndarray, norm: float, metric: Metric, count: int, encoding: tuple[str, str] | None
    ) -> list[tuple[str, float, float]]:
        """Return (key, cosine, L2 distance of mean tokens) of the nearest embeddings, best first.

        unit_D, norm: the query's mean token as a unit vector and its length. encoding: only this (encoder, space).
        """
        group = self.groups.get(len(unit_D))
        if group is None or (encoding is not None and encoding not in self.encodings):
            return []
        number = None if encoding is None else self.encodings.index(encoding)
        keys = [*self._candidates(group, unit_D, norm, metric, max(CANDIDATES, 4 * count), number)]
        units_ND = np.zeros((0, len(unit_D)), np.float32)
        norms_N = np.zeros(0)
        if keys:
            units_ND, norms_N = self.files.pooled_many(keys)
        if len(group.unindexed_keys):
            if group.unindexed_ND is None or len(group.unindexed_ND) != len(group.unindexed_keys):
                group.unindexed_ND, group.norm_N = _read_unindexed(self.files, group)
            take = slice(None) if number is None else group.unindexed_encodings == number
            keys += group.unindexed_keys[take].tolist()
            units_ND = np.concatenate([units_ND, group.unindexed_ND[take]])
            norms_N = np.concatenate([norms_N, group.norm_N[len(group.keys) :][take]])
        if not keys:
            return []
        cosine_N, l2_N = compare(unit_D, norm, units_ND, norms_N)
        order = np.argsort(-cosine_N if metric == "cosine" else l2_N, kind="stable")[:count]
        return [(keys[i], float(cosine_N[i]), float(l2_N[i])) for i in order]

    def _candidates(
        self, group: _Group, unit_D: np.ndarray, norm: float, metric: Metric, count: int, number: int | None
    ) -> Iterator[str]:
        if group.basis is None or not len(group.keys):
            return
        compact_1K, rest_1 = group.basis.compact(unit_D[None])
        near_N = group.square_N - 2 * (group.compact_NK @ compact_1K[0]) + float((compact_1K**2).sum())
        near_N = np.maximum(near_N, 0)
        # The parts that two compact vectors leave out may be equal (a copy) or, usually, orthogonal: half of the
        # candidates are chosen under each assumption.
        chosen: list[np.ndarray] = []
        for left_N in (group.rest_N + rest_1[0], (np.sqrt(group.rest_N) - np.sqrt(rest_1[0])) ** 2):
            gap_N = near_N + left_N
            if metric == "l2":
                norm_N = group.norm_N[: len(group.keys)]
                gap_N = (norm_N - norm) ** 2 + norm_N * norm * gap_N
            if number is not None:
                gap_N = np.where(group.encodings == number, gap_N, np.inf)
            best = np.argpartition(gap_N, count // 2)[: count // 2] if count < len(gap_N) else np.arange(len(gap_N))
            chosen.append(best[np.isfinite(gap_N[best])])
        yield from group.keys[np.unique(np.concatenate(chosen))].tolist()


def _read_unindexed(files: EmbeddingFiles, group: _Group) -> tuple[np.ndarray, np.ndarray]:
    units_ND, norms_N = files.pooled_many(group.unindexed_keys.tolist())
    return units_ND, np.concatenate([group.norm_N[: len(group.keys)], norms_N])


def compare(
    unit_D: np.ndarray, norm: float, units_ND: np.ndarray, norms_N: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return cosine and L2 distance of a mean token and N others, float64 [N] each.

    unit_D, norm: direction and length of the one; units_ND, norms_N: those of the others.
    """
    units_ND = units_ND.astype(np.float32)
    dots_N = (units_ND @ unit_D.astype(np.float32)).astype(np.float64)
    squares_N = np.einsum("nd,nd->n", units_ND, units_ND).astype(np.float64)  # fp16 directions are not exactly 1 long
    own = float((unit_D.astype(np.float64) ** 2).sum())
    denominator_N = np.sqrt(squares_N * own)
    cosine_N = np.clip(np.divide(dots_N, denominator_N, out=np.zeros_like(dots_N), where=denominator_N > 0), -1, 1)
    l2_N = np.sqrt(np.maximum((norms_N - norm) ** 2 + 2 * norms_N * norm * (1 - cosine_N), 0))
    return cosine_N, l2_N


def token_distance(a: Tokens, b: Tokens) -> tuple[float, float]:
    """Return (cosine, L2 distance) of two token matrices [L, D]; missing tokens of the shorter one count as zero."""
    length = max(a.tokens, b.tokens)
    a_LD, b_LD = (np.zeros((length, x.dim)) for x in (a, b))
    a_LD[: a.tokens], b_LD[: b.tokens] = a.array(), b.array()
    denominator = float(np.linalg.norm(a_LD) * np.linalg.norm(b_LD))
    cosine = float((a_LD * b_LD).sum()) / denominator if denominator else 0.0
    return min(1.0, max(-1.0, cosine)), float(np.linalg.norm(a_LD - b_LD))


def check_metric(metric: str) -> Metric:
    """Return the metric. Raises RecipeError for an unknown one."""
    if metric not in METRICS:
        raise RecipeError(f"{metric!r} is not a metric", nearest(metric, METRICS), "cosine")
    return metric  # type: ignore[return-value]


def similar(
    index: Index,
    query: Tokens,
    *,
    metric: str = "cosine",
    count: int = 20,
    tokens: bool = False,
    encoding: tuple[str, str] | None = None,
    without: str | None = None,
) -> list[dict[str, Any]]:
    """Return the nearest stored embeddings, best first, with key, cosine and l2 of mean tokens.

    tokens: also compare whole token matrices, and order by that. encoding: only this (encoder, space). without: a key
    to leave out. Raises RecipeError for an unknown metric.
    """
    chosen = check_metric(metric)
    index.refresh()
    unit_D, norm = query.pooled
    wide = max(TOKEN_CANDIDATES, 2 * count) if tokens else count
    try:
        found = index.nearest(unit_D, norm, chosen, wide + 1, encoding)
    except CatalogDamaged:
        if index.db.stamp() == index.stamp:
            raise
        index.refresh()  # another process has cleaned up since we loaded
        found = index.nearest(unit_D, norm, chosen, wide + 1, encoding)
    rows: list[dict[str, Any]] = [
        {"key": key, "cosine": cosine, "l2": l2} for key, cosine, l2 in found if key != without
    ][:wide]
    if tokens:
        for row in rows:
            row["token_cosine"], row["token_l2"] = token_distance(query, index.files.read(row["key"])[0])
        rows.sort(key=lambda row: -row["token_cosine"] if chosen == "cosine" else row["token_l2"])
    return [{**row, **index.shown(row["key"])} for row in rows[:count]]


def by_words(con: DuckDBPyConnection, text: str, tags: Sequence[str] = (), limit: int = 50) -> pa.Table:
    """Return embeddings whose prompt or label contains every word of `text`: whole phrases first, then by length."""
    where, parameters = tagged("e.key", tags)
    conditions, words = [where], text.split()
    for word in words:
        conditions.append(
            "(contains(lower(coalesce(e.label, '')), lower(?)) OR contains(lower(coalesce(e.prompt, '')), lower(?)) OR "
            "e.key IN (SELECT key FROM embedding_prompts WHERE contains(lower(prompt), lower(?))))"
        )
        parameters += [word] * 3
    order = "NOT contains(lower(coalesce(e.prompt, '')), lower(?)), length(e.prompt) NULLS LAST, e.prompt, e.key"
    sql = f"{LISTED} WHERE {' AND '.join(conditions)} ORDER BY {order} LIMIT {int(limit)}"
    return select(con, sql, [*parameters, text.strip()])


def near_duplicates(index: Index, threshold: float, limit: int) -> list[dict[str, Any]]:
    """Return pairs of the same encoder and space whose mean tokens have at least this cosine, nearest first.

    Raises RecipeError for a threshold that is not a cosine.
    """
    if not -1 < threshold <= 1:
        raise RecipeError(f"the threshold is {threshold:g}", "a cosine is above -1 and at most 1", "0.99")
    index.refresh()
    pairs: list[tuple[str, str]] = []
    for group in index.groups.values():
        pairs += _close_pairs(group.keys, group.encodings, group.compact_NK, threshold)
        if len(group.unindexed_keys):
            units_ND, _ = index.files.pooled_many(group.unindexed_keys.tolist())
            pairs += _close_pairs(
                group.unindexed_keys, group.unindexed_encodings, units_ND.astype(np.float32), threshold
            )
    out = [row for row in _exact_pairs(index.files, pairs) if row["cosine"] >= threshold]
    return sorted(out, key=lambda row: (-row["cosine"], row["key_a"], row["key_b"]))[:limit]


def _close_pairs(
    keys: np.ndarray, encodings: np.ndarray, vectors_NK: np.ndarray, threshold: float
) -> Iterator[tuple[Any, Any]]:
    """Yield pairs that may reach the threshold: compact vectors are never farther apart than the full ones."""
    square_N = np.einsum("nk,nk->n", vectors_NK, vectors_NK)
    for start in range(0, len(keys), BLOCK):
        block = slice(start, start + BLOCK)
        gap = square_N[block, None] + square_N[None, start:] - 2 * vectors_NK[block] @ vectors_NK[start:].T
        close = (gap <= 2 - 2 * threshold + ROUNDING) & (encodings[block, None] == encodings[None, start:])
        for i, j in np.argwhere(np.triu(close, 1)):
            yield keys[start + i], keys[start + j]


def _exact_pairs(files: EmbeddingFiles, pairs: Sequence[tuple[str, str]]) -> Iterator[dict[str, Any]]:
    known: dict[str, tuple[np.ndarray, float]] = {}
    for a, b in pairs:
        for key in (a, b):
            if key not in known:
                known[key] = files.pooled(key)
        (unit_a, norm_a), (unit_b, norm_b) = known[a], known[b]
        cosine, l2 = compare(unit_a, norm_a, unit_b[None], np.array([norm_b]))
        yield {"key_a": a, "key_b": b, "cosine": float(cosine[0]), "l2": float(l2[0])}


def same_content(con: DuckDBPyConnection) -> pa.Table:
    """Return embeddings with equal values that are stored separately because model, encoder or space differ."""
    return select(
        con,
        "SELECT content, count(*) AS copies, string_agg(key, ' ' ORDER BY key) AS keys, sum(file_bytes) AS bytes "
        "FROM embeddings GROUP BY content HAVING count(*) > 1 ORDER BY copies DESC, content",
    )


def similarity_table(db: Database, files: EmbeddingFiles, keys: Sequence[str]) -> list[dict[str, Any]]:
    """Return cosine and L2 of mean tokens and of token matrices for every pair of `keys`, and store them.

    Raises RecipeError where their dimensions differ.
    """
    matrices = {key: files.read(key)[0] for key in dict.fromkeys(keys)}
    names, rows = list(matrices), []
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            x, y = matrices[a], matrices[b]
            if x.dim != y.dim:
                raise RecipeError(
                    f"{a[:12]} has {x.dim} dimensions and {b[:12]} has {y.dim}", "they come from different encoders"
                )
            cosine, l2 = compare(*x.pooled, y.pooled[0][None], np.array([y.pooled[1]]))
            of_tokens = token_distance(x, y)
            figures = {"cosine": float(cosine[0]), "l2": float(l2[0])}
            figures |= {"token_cosine": of_tokens[0], "token_l2": of_tokens[1]}
            rows.append({"key_a": a, "key_b": b, **figures})
    kept = [
        {"key_a": min(r["key_a"], r["key_b"]), "key_b": max(r["key_a"], r["key_b"]), "metric": m, "value": r[m]}
        for r in rows
        for m in ("cosine", "l2", "token_cosine", "token_l2")
    ]
    with db.writing() as con:
        insert(con, "embedding_similarities", kept, new=False)
    return rows
