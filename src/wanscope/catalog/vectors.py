"""Compact search vectors: 256 numbers that represent a mean token of any dimension.

For up to 256 dimensions they are the direction itself, padded with zeros (basis 0). For more, they are its principal
components, fitted on a sample of what is stored (randomized PCA: Halko, Martinsson and Tropp 2011), and `rest` is the
squared length that they leave out. The squared distance of two directions is then about |c_a - c_b|^2 + rest_a +
rest_b, because the residuals of two vectors are nearly orthogonal. Search re-ranks its candidates exactly, so the
approximation can reduce recall but never gives a wrong figure.

Shape suffixes: N vectors, D dimension, K components, Q components including oversampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from wanscope.catalog.files import EmbeddingFiles
from wanscope.catalog.rows import changed, insert, now, one

if TYPE_CHECKING:
    import pyarrow as pa
    from duckdb import DuckDBPyConnection

COMPONENTS = 256
SAMPLE = 8192  # the most vectors that a basis is fitted on
FIT_AT = 2048  # with fewer vectors of one dimension, all are compared exactly
GROWTH = 4  # a basis is refitted when there are this many times more vectors than it was fitted on, up to SAMPLE
OVERSAMPLING = 32
ROUNDS = 2


@dataclass(frozen=True, eq=False)
class Basis:
    """The mean and principal axes for one dimension; number 0 is the basis that only pads with zeros."""

    number: int
    dim: int
    mean_D: np.ndarray
    axes_KD: np.ndarray
    fitted_on: int

    def compact(self, units_ND: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return compact vectors, float32 [N, K], and the squared lengths that they leave out, float32 [N]."""
        centered_ND = units_ND.astype(np.float32) - self.mean_D
        compact_NK = centered_ND @ self.axes_KD.T
        rest_N = np.einsum("nd,nd->n", centered_ND, centered_ND) - np.einsum("nk,nk->n", compact_NK, compact_NK)
        return compact_NK, np.maximum(rest_N, 0)


def padding_basis(dim: int) -> Basis:
    """Return the basis for up to 256 dimensions, which leaves nothing out."""
    return Basis(0, dim, np.zeros(dim, np.float32), np.eye(COMPONENTS, dim, dtype=np.float32), 0)


def fit(units_ND: np.ndarray, number: int, seed: int = 0) -> Basis:
    """Fit the leading principal components of a sample of unit vectors."""
    count, dim = units_ND.shape
    mean_D = units_ND.mean(axis=0, dtype=np.float64).astype(np.float32)
    centered_ND = units_ND.astype(np.float32) - mean_D
    draw = np.random.default_rng(seed).standard_normal((dim, COMPONENTS + OVERSAMPLING), dtype=np.float32)
    span_ND = centered_ND @ draw
    for _ in range(ROUNDS):
        span_ND, _ = np.linalg.qr(span_ND)
        span_ND = centered_ND @ (centered_ND.T @ span_ND)
    basis_NQ, _ = np.linalg.qr(span_ND)
    _, _, axes_QD = np.linalg.svd(basis_NQ.T @ centered_ND, full_matrices=False)
    axes_KD = np.zeros((COMPONENTS, dim), np.float32)
    axes_KD[: min(COMPONENTS, len(axes_QD))] = axes_QD[:COMPONENTS]
    return Basis(number, dim, mean_D, axes_KD, count)


def bases(con: DuckDBPyConnection) -> dict[int, Basis]:
    """Return the newest basis of each dimension."""
    rows = con.execute("SELECT number, dim, mean, axes, fitted_on FROM search_basis ORDER BY number").fetchall()
    return {
        dim: Basis(
            number, dim, np.frombuffer(mean, "<f4"), np.frombuffer(axes, "<f4").reshape(COMPONENTS, dim), fitted_on
        )
        for number, dim, mean, axes, fitted_on in rows
    }


def compact_rows(con: DuckDBPyConnection, units: Sequence[tuple[str, np.ndarray]]) -> pa.Table:
    """Return rows of search_vectors for new embeddings; those whose dimension has no basis yet get none.

    units: pairs of a key and a unit vector, float [D].
    """
    known: dict[int, Basis] | None = None
    groups: dict[int, list[tuple[str, np.ndarray]]] = {}
    for key, unit_D in units:
        groups.setdefault(len(unit_D), []).append((key, unit_D))
    keys: list[str] = []
    numbers: list[int] = []
    vectors: list[np.ndarray] = []
    rests: list[np.ndarray] = []
    for dim, members in groups.items():
        if dim <= COMPONENTS:
            basis = padding_basis(dim)
        else:
            known = bases(con) if known is None else known
            if dim not in known:
                continue
            basis = known[dim]
        compact_NK, rest_N = basis.compact(np.stack([unit for _, unit in members]))
        keys += [key for key, _ in members]
        numbers += [basis.number] * len(members)
        vectors.append(compact_NK)
        rests.append(rest_N)
    return _table(keys, numbers, vectors, rests)


def _table(keys: list[str], numbers: list[int], vectors: list[np.ndarray], rests: list[np.ndarray]) -> pa.Table:
    import pyarrow as pa

    flat = np.concatenate([v.astype(np.float32).ravel() for v in vectors]) if vectors else np.zeros(0, np.float32)
    rest = np.concatenate(rests) if rests else np.zeros(0, np.float32)
    columns: dict[str, Any] = {
        "key": pa.array(keys, pa.string()),
        "basis": pa.array(numbers, pa.int32()),
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(flat), COMPONENTS),
        "rest": pa.array(rest.astype(np.float32)),
    }
    return pa.table(columns)


def due(con: DuckDBPyConnection) -> list[int]:
    """Return the dimensions whose basis has to be fitted or refitted."""
    counts = con.execute(
        "SELECT dim, count(*) FROM embeddings WHERE dim > ? AND norm > 0 GROUP BY dim ORDER BY dim", [COMPONENTS]
    ).fetchall()
    seen = dict(con.execute("SELECT dim, max(fitted_on) FROM search_basis GROUP BY dim").fetchall())
    return [
        dim
        for dim, count in counts
        if count >= FIT_AT and (dim not in seen or (seen[dim] < SAMPLE and count >= GROWTH * seen[dim]))
    ]


def refit(con: DuckDBPyConnection, files: EmbeddingFiles, dim: int) -> Basis:
    """Fit a basis on a sample and write the compact vectors of all embeddings, in the caller's transaction."""
    found = con.execute("SELECT key FROM embeddings WHERE dim = ? AND norm > 0 ORDER BY key", [dim]).fetchall()
    keys = [key for (key,) in found]  # hashes, so that the first ones are a random sample
    units_ND, _ = files.pooled_many(keys[:SAMPLE])
    row = one(con, "SELECT coalesce(max(number), 0) + 1 FROM search_basis")
    basis = fit(units_ND.astype(np.float32), int(row[0]) if row else 1)
    con.execute("DELETE FROM search_vectors WHERE key IN (SELECT key FROM embeddings WHERE dim = ?)", [dim])
    con.execute("DELETE FROM search_basis WHERE dim = ?", [dim])
    con.execute(
        "INSERT INTO search_basis VALUES (?, ?, ?, ?, ?, ?)",
        [basis.number, dim, basis.mean_D.tobytes(), basis.axes_KD.tobytes(), basis.fitted_on, now()],
    )
    for start in range(0, len(keys), 4096):
        some = keys[start : start + 4096]
        units_ND, _ = files.pooled_many(some)
        compact_NK, rest_N = basis.compact(units_ND)
        insert(con, "search_vectors", _table(some, [basis.number] * len(some), [compact_NK], [rest_N]))
    changed(con)
    return basis
