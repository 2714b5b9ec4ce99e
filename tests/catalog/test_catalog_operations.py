"""Operations are recorded with their inputs, and repeating them gives the stored bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from wanscope.catalog.catalog import Catalog
from wanscope.edit import embedding_algebra
from wanscope.edit.amplify import amplify
from wanscope.edit.difference import relative_l2
from wanscope.errors import EmbeddingNotFound, ExpressionError, RecipeError


def matrix(seed: int, tokens: int = 6, dim: int = 48, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(tokens, dim, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    catalog = Catalog(tmp_path)
    for seed, name in enumerate(["beach", "gothic", "regular"]):
        catalog.put(matrix(seed, tokens=5 + seed), prompt=f"a {name} scene", model="m", encoder="e", label=name)
    return catalog


CASES = [
    ("difference", ["beach", "gothic"], {"normalize": True, "scale": 0.5}),
    ("weighted_sum", ["beach", "gothic", "regular"], {"weights": [1.0, -0.5, 0.25]}),
    ("product", ["beach", "gothic"], {}),
    ("normalize", ["beach"], {"length": 2.0}),
    ("interpolate", ["beach", "gothic"], {"steps": 5, "index": 2, "method": "spherical"}),
    (
        "interpolate",
        ["beach", "gothic", "regular"],
        {"steps": 4, "index": 1, "method": "cubic", "include_endpoints": False},
    ),
    ("expression", {"b": "beach", "g": "gothic", "r": "regular"}, {"expression": "b + 0.5*(g - r)"}),
    ("amplify", ["beach", "gothic"], {"target": 0.6, "mode": "push_apart"}),
    ("amplify", ["beach", "gothic"], {"target": 0.6, "mode": "orthogonalize"}),
    ("boost", ["beach", "gothic"], {"factor": 3.0}),
]


@pytest.mark.parametrize(("operation", "inputs", "parameters"), CASES, ids=[f"{c[0]}{i}" for i, c in enumerate(CASES)])
def test_every_operation_recomputes_to_the_stored_bytes(catalog: Catalog, operation, inputs, parameters) -> None:
    made = catalog.compute(operation, inputs, **parameters)
    (op,) = catalog.operations()
    assert (op.operation, op.result, op.parameters) == (operation, made.key, parameters)
    assert len(op.inputs) == len(inputs) and op.seconds > 0
    assert catalog.recompute(made.key) == [(op, True)]
    assert (made.row["model"], made.row["encoder"], made.row["source"]) == ("m", "e", "operation")


def test_results_are_those_of_the_edit_functions(catalog: Catalog) -> None:
    beach, gothic, regular = (catalog.get(name).tensor() for name in ("beach", "gothic", "regular"))
    made = catalog.compute("expression", {"b": "beach", "g": "gothic", "r": "regular"}, expression="b + 0.5*(g - r)")
    expected = embedding_algebra.weighted_sum([beach, gothic, regular], [1.0, 0.5, -0.5]).embedding
    assert torch.equal(made.tensor(len(expected)), expected)
    pushed = catalog.compute("amplify", ["beach", "gothic"], target=0.7)
    assert torch.equal(pushed.tensor(), amplify(beach, gothic, 0.7).embedding)
    assert relative_l2(beach, pushed.tensor()) == pytest.approx(0.7, abs=1e-3)


def test_lineage_goes_back_to_the_prompts(catalog: Catalog) -> None:
    style = catalog.compute("difference", ["gothic", "regular"], label="style")
    made = catalog.compute("expression", {"beach": "beach", "style": style.key}, expression="beach + 0.5*style")
    tree = catalog.lineage(made.key)
    (op, sources) = tree.operations[0]
    assert op.parameters == {"expression": "beach + 0.5*style"}
    assert [source.shown for source in sources] == ["beach", "style"]
    assert [s.shown for s in sources[1].operations[0][1]] == ["gothic", "regular"]
    assert [same for _, same in catalog.recompute(made.key)] == [True, True]


def test_an_altered_result_is_detected(catalog: Catalog) -> None:
    made = catalog.compute("product", ["beach", "gothic"])
    with catalog.db.writing() as con:
        con.execute(
            "UPDATE operation_inputs SET key = (SELECT key FROM embeddings WHERE label = 'regular') WHERE position = 0"
        )
    assert [same for _, same in catalog.recompute(made.key)] == [False]


def test_an_operation_that_changes_nothing_is_not_its_own_ancestor(catalog: Catalog) -> None:
    made = catalog.compute("weighted_sum", ["beach"], weights=[1.0])
    assert made.key == catalog.get("beach").key
    assert catalog.lineage("beach").operations == ()


def test_values_are_stored_before_they_are_used(catalog: Catalog) -> None:
    made = catalog.compute("difference", ["beach", matrix(9)])
    assert catalog.count("embeddings") == 5
    assert catalog.recompute(made.key)[0][1]


def test_mistakes_are_reported(catalog: Catalog) -> None:
    before = catalog.count("embeddings")
    with pytest.raises(RecipeError, match="not an operation"):
        catalog.compute("sum", ["beach"])
    with pytest.raises(RecipeError, match="cannot be called like this"):
        catalog.compute("difference", ["beach", "gothic"], size=3)
    with pytest.raises(RecipeError, match="1 embeddings are given"):
        catalog.compute("difference", ["beach"])
    with pytest.raises(ExpressionError):
        catalog.compute("expression", {"b": "beach"}, expression="b + c")
    with pytest.raises(EmbeddingNotFound):
        catalog.compute("normalize", ["nowhere"])
    with pytest.raises(EmbeddingNotFound, match="was not computed"):
        catalog.recompute("beach")
    assert (catalog.count("embeddings"), catalog.count("vector_operations")) == (before, 0)
