"""Exports can be read, imported and merged by others, and nothing is imported twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from helpers.takes import recipe, write_take
from wanscope.catalog.catalog import Catalog, New
from wanscope.catalog.exchange import SHARED, columns
from wanscope.errors import CatalogDamaged, CatalogNewer, RecipeError, TakeNotFound


def matrix(seed: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(5 + seed, 24, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    space = tmp_path / "mine"
    write_take(space / "takes", recipe(1, prompt="a secret circle"))
    (space / "studies" / "secret study").mkdir(parents=True)
    header = "name,take,variation,seed,status,current,seconds,prompt,error,slot:who"
    line = f"secret_seed01,{recipe(1, prompt='a secret circle').id},0,1,complete,yes,1.0,a secret circle,,secret"
    (space / "studies" / "secret study" / "index.csv").write_text(f"{header}\n{line}\n")
    catalog = Catalog(space)
    assert catalog.index().studies == 1
    about = {"encoder": "e", "environment": "cpu", "model": "marbles"}
    catalog.put_many(
        New(matrix(i), prompt=f"secret {name}", label=name, tags=("secret tag",), **about)
        for i, name in enumerate(["beach", "gothic"])
    )
    catalog.compute(
        "expression", {"beach": "beach", "g": "gothic"}, expression="beach - 0.5*norm(g)", label="secret mix"
    )
    catalog.analyze("beach")
    catalog.add_atlas(
        [
            {
                "model": "marbles",
                "block": 1,
                "site": "context",
                "strength": 1.0,
                "metric": "color",
                "value": 0.2,
                "pairs": 8,
                "source": "t",
            }
        ]
    )
    return catalog


def shared(catalog: Catalog) -> dict[str, list]:
    out = {name: catalog.sql(f"SELECT * FROM {name} ORDER BY ALL").to_pylist() for name in SHARED}
    for name in ("takes", "variations"):
        out[name] = [{k: v for k, v in row.items() if k != "origin"} for row in out[name]]
    return out


def test_an_import_into_an_empty_workspace_has_everything(catalog: Catalog, tmp_path: Path) -> None:
    done = catalog.export(tmp_path / "out")
    theirs = Catalog(tmp_path / "theirs")
    taken = theirs.import_(tmp_path / "out", origin="a friend")
    assert taken.rows == done.rows and taken.there == {}
    assert shared(theirs) == shared(catalog)
    assert theirs.check(deep=True).problems == ()
    for name in ("beach", "gothic", "secret mix"):
        assert theirs.get(name).tokens == catalog.get(name, count=False).tokens
    assert all(same for _, same in theirs.recompute("secret mix"))
    assert torch.equal(theirs.stored(["secret beach"], "e", ["cpu"])["secret beach"].tensor(), matrix(0))
    assert theirs.sql("SELECT DISTINCT origin FROM takes").to_pylist() == [{"origin": "a friend"}]
    assert set(catalog.merge(theirs).rows.values()) == {0}  # they are our own rows
    again = theirs.import_(tmp_path / "out")
    assert set(again.rows.values()) == {0} and again.there == {k: n for k, n in done.rows.items() if n}
    assert theirs.index(rebuild=True).takes == 0 and theirs.count("takes") == 1  # it has no folder here


def test_merging_imports_what_is_new_and_nothing_twice(catalog: Catalog, tmp_path: Path) -> None:
    theirs = Catalog(tmp_path / "theirs")
    same = theirs.put(matrix(0), prompt="secret beach", encoder="e", environment="cpu", model="marbles", label="mine")
    new = theirs.put(matrix(7), prompt="new", label="new")
    write_take(tmp_path / "theirs" / "takes", recipe(1, prompt="a secret circle"))  # the same take
    write_take(tmp_path / "theirs" / "takes", recipe(2))
    theirs.index()
    before = catalog.count("embeddings")
    done = catalog.merge(theirs)
    assert (done.rows["embeddings"], done.there["embeddings"]) == (1, 1)
    assert (done.rows["takes"], done.there["takes"]) == (1, 1)
    assert catalog.count("embeddings") == before + 1
    assert catalog.get(same).row["label"] == "beach"  # our own label is kept
    assert (catalog.get("new").key, catalog.get("new").row["origin"]) == (new, "theirs")
    assert set(catalog.merge(tmp_path / "theirs").rows.values()) == {0}
    assert catalog.check(deep=True).problems == ()
    with pytest.raises(RecipeError, match="is this catalog"):
        catalog.merge(catalog)
    with pytest.raises(TakeNotFound):
        catalog.merge(tmp_path / "nobody")


def test_other_tools_read_it_and_every_column_is_documented(catalog: Catalog, tmp_path: Path) -> None:
    catalog.export(tmp_path / "out")
    with duckdb.connect() as con:
        found = con.execute(
            'SELECT label, dtype, tokens, dim, "values", mean_token '
            f"FROM '{tmp_path}/out/embeddings.parquet' ORDER BY key"
        ).fetchall()
    by_label = {label: rest for label, *rest in found}
    dtype, tokens, dim, values, mean = by_label["beach"]
    bits = np.frombuffer(values, "<u2").reshape(tokens, dim)
    assert dtype == "bfloat16"
    assert np.array_equal((bits.astype(np.uint32) << 16).view(np.float32), matrix(0).float().numpy())
    assert np.allclose(mean, matrix(0).double().mean(0), rtol=1e-5, atol=1e-7)
    readme = (tmp_path / "out" / "README.md").read_text()
    documented = columns()
    for path in (tmp_path / "out").glob("*.parquet"):
        assert f"### {path.stem}" in readme
        names = set(pq.read_schema(path).names) - {"values", "mean_token"}
        assert names == {name for name, _, _ in documented[path.stem]}
        assert all(f"| {name} |" in readme for name in names)
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert card["rows"]["embeddings"] == 3 and card["models"] == ["marbles", "tiny"] and not card["anonymous"]


def test_an_anonymous_export_has_no_text_of_ours_and_can_still_be_recomputed(catalog: Catalog, tmp_path: Path) -> None:
    catalog.export(tmp_path / "out", anonymous=True)
    words = ("secret", "beach", "gothic", str(tmp_path), "tiny")
    for path in (tmp_path / "out").iterdir():
        text = (
            json.dumps(pq.read_table(path).to_pylist(), default=str) if path.suffix == ".parquet" else path.read_text()
        )
        assert [word for word in words if word in text] == [], path.name
    theirs = Catalog(tmp_path / "theirs")
    theirs.import_(tmp_path / "out")
    made = theirs.sql("SELECT result FROM vector_operations")["result"][0].as_py()
    assert theirs.lineage(made).operations[0][0].parameters == {"expression": "x1 - 0.5*norm(x2)"}
    assert all(same for _, same in theirs.recompute(made))
    for place in (tmp_path / "theirs").rglob("*.emb"):
        assert b"secret" not in place.read_bytes()


def test_fp16_values_are_numbers_that_any_tool_reads(catalog: Catalog, tmp_path: Path) -> None:
    catalog.export(tmp_path / "out", half=True)
    rows = pq.read_table(tmp_path / "out" / "embeddings.parquet").to_pylist()
    beach = next(row for row in rows if row["label"] == "beach")
    assert np.allclose(np.array(beach["values"]).reshape(5, 24), matrix(0).float(), atol=1e-3)
    theirs = Catalog(tmp_path / "theirs")
    done = theirs.import_(tmp_path / "out")
    assert done.rows["embeddings"] == 3 and "fp16" in done.notes[0]
    assert theirs.stored(["secret beach"], "e", ["cpu"]) == {}  # it would not reproduce a take bit for bit
    assert theirs.check(deep=True).problems == ()


def test_a_folder_in_use_and_a_damaged_export_are_refused(catalog: Catalog, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="not an empty folder"):
        catalog.export(tmp_path)
    with pytest.raises(TakeNotFound, match="is not an export"):
        catalog.import_(tmp_path)
    out = tmp_path / "out"
    catalog.export(out)
    table = pq.read_table(out / "embeddings.parquet")
    values = [bytes([data[0] ^ 1]) + data[1:] for data in table["values"].to_pylist()]
    place = table.schema.get_field_index("values")
    pq.write_table(table.set_column(place, "values", [values]), out / "embeddings.parquet")
    theirs = Catalog(tmp_path / "theirs")
    with pytest.raises(CatalogDamaged, match="does not match its checksum"):
        theirs.import_(out)
    card = without_sums(out)
    (out / "card.json").write_text(json.dumps(card))
    with pytest.raises(CatalogDamaged, match="does not match its key"):
        theirs.import_(out)
    assert theirs.count("embeddings") == 0
    (out / "takes.parquet").write_bytes(b"PAR1")
    with pytest.raises(CatalogDamaged, match="is damaged"):
        theirs.import_(out)
    (out / "card.json").write_text(json.dumps({**card, "schema": 99}))
    with pytest.raises(CatalogNewer):
        theirs.import_(out)


def test_the_same_export_may_be_there_already_and_another_is_not_replaced(catalog: Catalog, tmp_path: Path) -> None:
    """A process that is killed after its last rename leaves an export that it did not report."""
    out = tmp_path / "out"
    first = catalog.export(out)
    (out / "mine.txt").write_text("a file of the user's own")
    again = catalog.export(out)
    assert (again.rows, sorted(p.name for p in tmp_path.iterdir())) == (first.rows, ["mine", "out"])
    assert (out / "mine.txt").exists()
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    catalog.put(np.ones((1, 4), np.float32), prompt="new since")
    with pytest.raises(RecipeError, match="has another export"):
        catalog.export(out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


@pytest.mark.parametrize("schema", [True, False], ids=["as a dictionary", "as text"])
@pytest.mark.parametrize("rows", [20_000_000, 1_000])
def test_a_small_table_that_claims_gigabytes_is_refused(
    catalog: Catalog, tmp_path: Path, rows: int, schema: bool
) -> None:
    out = tmp_path / "out"
    catalog.export(out)
    (out / "card.json").write_text(json.dumps(without_sums(out)))
    text = "x" if rows > 1_000_000 else "x" * 1_000_000
    keys = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array([text]))
    table = pa.table({"key": keys, "tag": keys})
    pq.write_table(table, out / "embedding_tags.parquet", compression="zstd", store_schema=schema)
    assert (out / "embedding_tags.parquet").stat().st_size < 300_000
    before = pa.total_allocated_bytes()
    with pytest.raises(CatalogDamaged, match="claims"):
        Catalog(tmp_path / "theirs").import_(out)
    assert pa.total_allocated_bytes() - before < 100_000_000


@pytest.mark.parametrize("harm", ["no column", "another type", "a card that is a list", "no rows of parquet"])
def test_an_export_of_another_form_is_one_plain_error(catalog: Catalog, tmp_path: Path, harm: str) -> None:
    out = tmp_path / "out"
    catalog.export(out)
    (out / "card.json").write_text(json.dumps([] if harm == "a card that is a list" else without_sums(out)))
    table = pq.read_table(out / "takes.parquet")
    if harm == "no column":
        pq.write_table(table.drop_columns(["seed", "id"]), out / "takes.parquet")
    elif harm == "another type":
        at = table.column_names.index("seed")
        pq.write_table(table.set_column(at, "seed", pa.array(["x"] * table.num_rows)), out / "takes.parquet")
    elif harm == "no rows of parquet":
        (out / "takes.parquet").write_bytes(b"PAR1" + bytes(100) + b"PAR1")
    with pytest.raises(CatalogDamaged, match="is damaged"):
        Catalog(tmp_path / "theirs").import_(out)


def without_sums(folder: Path) -> dict[str, Any]:
    """Return the card of an export as version 0.1 wrote it."""
    return {k: v for k, v in json.loads((folder / "card.json").read_text()).items() if "sha256" not in k}
