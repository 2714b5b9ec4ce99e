"""Statistics add up, a cleanup removes what it reports, and figures equal an independent computation."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from wanscope.catalog.catalog import Catalog, New
from wanscope.catalog.rows import now
from wanscope.errors import RecipeError


def values(seed: int, tokens: int = 4, dim: int = 40) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((tokens, dim)).astype(np.float16)


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    """Ten embeddings, i days old and used i times."""
    catalog = Catalog(tmp_path)
    keys = catalog.put_many(New(values(i), prompt=str(i), seconds=0.5) for i in range(10))
    with catalog.db.writing() as con:
        for i, key in enumerate(keys):
            moment = now() - timedelta(days=i, seconds=1)
            con.execute("UPDATE embeddings SET created = ?, uses = ? WHERE key = ?", [moment, i, key])
    return catalog


def remaining(catalog: Catalog) -> list[int]:
    return sorted(int(p) for p in catalog.list()["prompt"].to_pylist() if p is not None)


@pytest.mark.parametrize(
    ("conditions", "gone"),
    [
        ({"older_than_days": 7}, {7, 8, 9}),
        ({"max_uses": 1}, {0, 1}),
        ({"older_than_days": 5, "max_uses": 6}, {5, 6}),
        ({"unused_days": 9}, {9}),
        ({"older_than_days": 100}, set()),
        ({}, set()),
    ],
)
def test_cleanup_counts_are_right_and_a_dry_run_changes_nothing(catalog: Catalog, conditions, gone) -> None:
    dry = catalog.cleanup(**conditions)
    assert (len(dry.keys), dry.done) == (len(gone), False) and remaining(catalog) == list(range(10))
    before = sum(path.stat().st_size for path in (catalog.path.parent / "embeddings").rglob("*.emb"))
    done = catalog.cleanup(**conditions, dry_run=False)
    assert (done.keys, done.bytes, done.done) == (dry.keys, dry.bytes, True)
    assert remaining(catalog) == sorted(set(range(10)) - gone)
    after = sum(path.stat().st_size for path in (catalog.path.parent / "embeddings").rglob("*.emb"))
    assert before - after == done.bytes
    assert catalog.check(deep=True).problems == () == catalog.check().notes
    assert catalog.count("embedding_prompts") == catalog.count("search_vectors") == 10 - len(gone)


def test_labeled_tagged_and_needed_embeddings_stay(catalog: Catalog) -> None:
    catalog.annotate("1", label="mine")
    catalog.annotate("2", add=["style"])
    made = catalog.compute("difference", ["3", "4"], label="made")
    found = catalog.cleanup(max_uses=9, dry_run=False)
    assert (len(found.keys), found.kept) == (6, 5) and remaining(catalog) == [1, 2, 3, 4]
    assert all(same for _, same in catalog.recompute(made.key))
    assert len(catalog.cleanup(max_uses=9, labeled=True, dry_run=False).keys) == 5
    assert catalog.count("embeddings") == catalog.count("vector_operations") == catalog.count("operation_inputs") == 0


def test_removing_results_removes_their_operations(catalog: Catalog) -> None:
    catalog.compute("product", ["3", "4"])
    assert len(catalog.cleanup(max_uses=0, dry_run=False).keys) == 2  # the result and number 0
    assert catalog.count("operation_parameters") == catalog.count("vector_operations") == 0
    assert remaining(catalog) == list(range(1, 10))


def test_files_without_a_row_are_noted_and_removed_once_they_are_old(catalog: Catalog) -> None:
    key = "ab" * 32
    catalog.files.write({key: catalog.files.path(catalog.get("1").key).read_bytes()})
    half = catalog.files.path(key).with_name(f".{key}.1.new")
    half.write_bytes(b"half")
    found = catalog.check()
    assert found.problems == () and len(found.notes) == 2
    assert catalog.cleanup(dry_run=False).orphans == 0
    old = time.time() - 7200
    for path in (catalog.files.path(key), half):
        os.utime(path, (old, old))
    assert catalog.cleanup().orphans == 2
    catalog.cleanup(dry_run=False)
    assert catalog.check().notes == () and remaining(catalog) == list(range(10))


def test_inconsistent_rows_are_problems(catalog: Catalog) -> None:
    with catalog.db.writing() as con:
        con.execute("INSERT INTO embedding_tags VALUES ('nobody', 'x')")
        con.execute("UPDATE embeddings SET tokens = 5 WHERE prompt = '1'")
    assert len(catalog.check().problems) == 2


def test_negative_ages_are_refused(catalog: Catalog) -> None:
    with pytest.raises(RecipeError, match="not negative"):
        catalog.cleanup(older_than_days=-1)


def test_statistics_add_up(catalog: Catalog) -> None:
    catalog.compute("difference", ["3", "4"])
    stats = catalog.stats()
    count = 11
    assert stats["embeddings"]["count"] == stats["rows"]["embeddings"] == count
    size = stats["bytes"]
    assert size["padded_fp32"] == count * 512 * 40 * 4
    assert size["trimmed_fp32"] == count * 4 * 40 * 4 == 2 * size["trimmed_dtype"]
    assert size["files"] == sum(path.stat().st_size for path in (catalog.path.parent / "embeddings").rglob("*.emb"))
    ratio = stats["ratio"]
    assert (ratio["trimming"], ratio["dtype"]) == (128.0, 2.0)
    assert ratio["all"] == pytest.approx(ratio["trimming"] * ratio["dtype"] * ratio["zstd_and_header"])
    assert stats["seconds"] == {"mean_encoding": 0.5, "encoding_saved_by_reuse": 0.5 * sum(range(10))}
    (ops,) = stats["operations"]
    assert (ops["operation"], ops["count"], ops["bytes"]) == ("difference", 1, 3 * 4 * 40 * 2)


def test_figures_of_an_embedding(catalog: Catalog) -> None:
    x = values(5).astype(np.float64)
    found = catalog.analyze("5")
    assert found == catalog.analyze("5") and catalog.count("embedding_analysis") == len(found)
    assert found["token_norm_mean"] == pytest.approx(np.linalg.norm(x, axis=1).mean())
    spectrum = np.linalg.svd(x - x.mean(0), compute_uv=False) ** 2
    assert found["participation_ratio"] == pytest.approx(spectrum.sum() ** 2 / (spectrum**2).sum())
    assert found["components_90"] == np.searchsorted(np.cumsum(spectrum) / spectrum.sum(), 0.9) + 1
    assert found["pooled_norm"] == pytest.approx(np.linalg.norm(x.mean(0)))
