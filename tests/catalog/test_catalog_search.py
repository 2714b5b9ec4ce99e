"""Search finds what an exact comparison finds, with figures equal to an independent computation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from wanscope.catalog import vectors
from wanscope.catalog.catalog import Catalog, New
from wanscope.errors import RecipeError


def clustered(count: int, dim: int, clusters: int, rank: float, seed: int = 0) -> np.ndarray:
    """Mean tokens in clusters, with a decaying spectrum of effective rank about `rank`."""
    rng = np.random.default_rng(seed)
    scale = np.exp(-np.arange(dim) / rank).astype(np.float32)
    centers = rng.standard_normal((clusters, dim), dtype=np.float32) * scale
    return centers[rng.integers(0, clusters, count)] + 0.5 * rng.standard_normal((count, dim), dtype=np.float32) * scale


def exact_order(query: np.ndarray, rows: np.ndarray, metric: str) -> np.ndarray:
    q, x = query.astype(np.float64), rows.astype(np.float64)
    if metric == "cosine":
        return np.argsort(-(x @ q) / np.linalg.norm(x, axis=1))
    return np.argsort(np.linalg.norm(x - q, axis=1))


def filled(tmp_path: Path, rows: np.ndarray) -> tuple[Catalog, list[str]]:
    catalog = Catalog(tmp_path)
    return catalog, catalog.put_many(New(row[None], prompt=f"p{i}", encoder="e") for i, row in enumerate(rows))


@pytest.mark.parametrize("metric", ["cosine", "l2"])
@pytest.mark.parametrize("dim", [40, 400])
def test_a_small_catalog_is_searched_exactly(tmp_path: Path, metric: str, dim: int) -> None:
    rows = np.random.default_rng(1).standard_normal((60, dim)).astype(np.float32)
    catalog, keys = filled(tmp_path, rows)
    query = rows[7] + 0.1
    found = catalog.similar(query[None], count=10, metric=metric)
    assert found["key"].to_pylist() == [keys[i] for i in exact_order(query, rows, metric)[:10]]
    first = rows[keys.index(found["key"][0].as_py())].astype(np.float64)
    q = query.astype(np.float64)
    assert found["l2"][0].as_py() == pytest.approx(np.linalg.norm(first - q), rel=2e-3)
    assert found["cosine"][0].as_py() == pytest.approx(first @ q / np.linalg.norm(first) / np.linalg.norm(q), abs=1e-4)


def test_compact_vectors_find_the_nearest_of_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "FIT_AT", 500)
    monkeypatch.setattr("wanscope.catalog.search.CANDIDATES", 100)
    rows = clustered(1500, 600, 40, 100.0)
    catalog, keys = filled(tmp_path, rows)
    catalog.similar(rows[0][None], count=1)
    assert catalog.count("search_vectors") == 1500 and catalog.count("search_basis") == 1
    for metric in ("cosine", "l2"):
        hits = 0
        for i in range(0, 300, 15):
            query = rows[i] + 0.05
            found = catalog.similar(query[None], count=20, metric=metric)["key"].to_pylist()
            hits += len(set(found) & {keys[j] for j in exact_order(query, rows, metric)[:20]})
        assert hits / (20 * 20) >= 0.99, metric
    (late,) = catalog.put_many([New(rows[:1] * 1.01, prompt="late", encoder="e")])
    assert late in catalog.similar(rows[0][None], count=3)["key"].to_pylist()


def test_vectors_without_structure_still_find_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "FIT_AT", 500)
    monkeypatch.setattr("wanscope.catalog.search.CANDIDATES", 40)
    rows = np.random.default_rng(2).standard_normal((800, 1500)).astype(np.float32)
    catalog, keys = filled(tmp_path, rows)
    for i in range(0, 800, 80):
        assert catalog.similar(rows[i][None], count=1)["key"][0].as_py() == keys[i]


def test_only_embeddings_of_the_same_encoder_are_compared_by_default(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path)
    rng = np.random.default_rng(0)
    a, b, c = (rng.standard_normal((3, 20)).astype(np.float32) for _ in range(3))
    catalog.put_many(
        [New(a, prompt="a", encoder="e"), New(b, prompt="b", encoder="e"), New(c, prompt="c", encoder="f")]
    )
    assert catalog.similar("a")["prompt"].to_pylist() == ["b"]
    assert set(catalog.similar("a", any_encoder=True)["prompt"].to_pylist()) == {"b", "c"}
    assert catalog.similar(np.ones((1, 7), np.float32)).num_rows == 0


def test_token_matrices_distinguish_embeddings_with_the_same_mean(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path)
    base = np.random.default_rng(0).standard_normal((6, 30)).astype(np.float32)
    turned, near = base[::-1].copy(), base + 0.02
    catalog.put_many(
        [
            New(base, prompt="base", encoder="e"),
            New(turned, prompt="turned", encoder="e"),
            New(near, prompt="near", encoder="e"),
        ]
    )
    assert catalog.similar("base")["prompt"].to_pylist() == ["turned", "near"]
    found = catalog.similar("base", tokens=True, metric="l2")
    assert found["prompt"].to_pylist() == ["near", "turned"]
    assert found["token_l2"][0].as_py() == pytest.approx(np.linalg.norm(near.astype(np.float64) - base), rel=1e-6)


def test_words_and_tags(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path)
    rng = np.random.default_rng(0)
    for prompt, tags in [
        ("a Red circle moves", ["x"]),
        ("a red circle", []),
        ("circle in red 100%", ["x"]),
        ("blue", ["x"]),
    ]:
        catalog.put(rng.standard_normal((2, 8)).astype(np.float32), prompt=prompt, tags=tags)
    assert catalog.search("red circle")["prompt"].to_pylist() == [
        "a red circle",
        "a Red circle moves",
        "circle in red 100%",
    ]
    assert catalog.search("red circle", tags=["x"])["prompt"].to_pylist() == [
        "a Red circle moves",
        "circle in red 100%",
    ]
    assert catalog.search("100%")["prompt"].to_pylist() == ["circle in red 100%"]
    assert catalog.search("_")["prompt"].to_pylist() == []


@pytest.mark.parametrize("dim", [24, 400])
def test_duplicates_and_near_duplicates(tmp_path: Path, dim: int) -> None:
    catalog = Catalog(tmp_path)
    rows = np.random.default_rng(3).standard_normal((30, dim)).astype(np.float32)
    keys = catalog.put_many(New(row[None], encoder="e") for row in rows)
    near = catalog.put(rows[4][None] + 0.02, encoder="e")
    copy = catalog.put(rows[5][None], encoder="other")
    (pair,) = catalog.duplicates(0.99).to_pylist()
    assert {pair["key_a"], pair["key_b"]} == {keys[4], near} and pair["cosine"] > 0.99
    (same,) = catalog.duplicates().to_pylist()
    assert same["copies"] == 2 and set(same["keys"].split()) == {keys[5], copy}


def test_a_table_of_similarities_is_stored(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path)
    rows = np.random.default_rng(3).standard_normal((3, 4, 10))
    keys = catalog.put_many(New(row) for row in rows)
    table = catalog.similarities(keys)
    assert table.num_rows == 3
    a, b = rows[0], rows[1]
    assert table["token_cosine"][0].as_py() == pytest.approx((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))
    assert table["l2"][0].as_py() == pytest.approx(np.linalg.norm(a.mean(0) - b.mean(0)), rel=1e-5)
    assert catalog.count("embedding_similarities") == 12
    catalog.similarities(keys)
    assert catalog.count("embedding_similarities") == 12


def test_an_unknown_metric_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="not a metric"):
        Catalog(tmp_path).similar(np.ones((1, 4), np.float32), metric="angle")  # type: ignore[arg-type]
