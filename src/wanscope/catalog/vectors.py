"""Compact search vectors: 256 numbers that stand for a mean token of any dimension.

Of up to 256 dimensions they are the direction itself, filled up with zeros (basis 0). Of more they are its principal
components, fitted on a sample of what is stored (randomized PCA: Halko, Martinsson and Tropp 2011), and `rest` is the
squared length that they leave out. The squared distance of two directions is then about |c_a - c_b|^2 + rest_a +
rest_b, since what is left out of two vectors has nearly a right angle between it. Search re-ranks exactly what this
finds, so the approximation costs recall only, never a wrong figure.

Shape suffixes: N vectors, D dimension, K components.
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
SAMPLE = 8192  # vectors that a basis is fitted on at most
FIT_AT = 2048  # vectors of one dimension below which all are compared exactly
GROWTH = 4  # a basis is fitted anew when there are so many times more than it saw, until it saw a whole sample
OVERSAMPLING = 32
ROUNDS = 2


@dataclass(frozen=True, eq=False)
class Basis:
    """mean_D and axes_KD of one dimension; number 0 stands for none."""

    number: int
    dim: int
    mean_D: np.ndarray
    axes_KD: np.ndarray
    fitted_on: int

    def compact(self, units_ND: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """float32 [N, K] and what they leave out, float32 [N]."""
        centered_ND = units_ND.astype(np.float32) - self.mean_D
        compact_NK = centered_ND @ self.axes_KD.T
        rest_N = np.einsum("nd,nd->n", centered_ND, centered_ND) - np.einsum("nk,nk->n", compact_NK, compact_NK)
        return compact_NK, np.maximum(rest_N, 0)


def padding_basis(dim: int) -> Basis:
    """For up to 256 dimensions: nothing is left out."""
    return Basis(0, dim, np.zeros(dim, np.float32), np.eye(COMPONENTS, dim, dtype=np.float32), 0)


def fit(units_ND: np.ndarray, number: int, seed: int = 0) -> Basis:
    """The leading components of a sample."""
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
    """The newest basis of each dimension."""
    rows = con.execute("SELECT number, dim, mean, axes, fitted_on FROM search_basis ORDER BY number").fetchall()
    return {
        dim: Basis(
            number, dim, np.frombuffer(mean, "<f4"), np.frombuffer(axes, "<f4").reshape(COMPONENTS, dim), fitted_on
        )
        for number, dim, mean, axes, fitted_on in rows
    }


def compact_rows(con: DuckDBPyConnection, units: Sequence[tuple[str, np.ndarray]]) -> pa.Table:
    """Rows of search_vectors for new embeddings; those whose dimension has no basis yet get none."""
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
    """Dimensions of which a basis should be fitted, or fitted anew."""
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
    """Fit a basis on a sample of what is stored and write the compact vectors of all; in the caller's transaction."""
    found = con.execute("SELECT key FROM embeddings WHERE dim = ? AND norm > 0 ORDER BY key", [dim]).fetchall()
    keys = [key for (key,) in found]  # hashes, so that the first ones are a fair sample
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
