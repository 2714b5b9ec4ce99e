"""Embeddings are restored bit for bit, stored once, and found by prompt and encoder."""

from __future__ import annotations

from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis.extra.numpy import arrays
from safetensors import safe_open

from wanscope.catalog.catalog import Catalog, New
from wanscope.catalog.content import Tokens
from wanscope.catalog.embedding_file import Header, pack, unpack
from wanscope.edit.edits import Donor, Inject, with_hashes
from wanscope.edit.named_files import read_stored
from wanscope.errors import CatalogDamaged, EmbeddingNotFound, RecipeError
from wanscope.take.disk import file_sha256

DTYPES = ["float16", "bfloat16", "float32", "float64"]


def matrix(seed: int = 0, tokens: int = 5, dim: int = 32) -> torch.Tensor:
    return torch.randn(tokens, dim, generator=torch.Generator().manual_seed(seed))


@st.composite
def matrices(draw: st.DrawFn) -> torch.Tensor:
    """Any shape, any finite bits, with rows of zeros at the end and in between."""
    name = draw(st.sampled_from(DTYPES))
    width = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}[name]
    shape = draw(st.tuples(st.integers(0, 7), st.integers(1, 9)))
    raw = draw(arrays(f"<i{width}", shape, elements=st.integers(-(2 ** (8 * width - 1)), 2 ** (8 * width - 1) - 1)))
    for row in draw(st.sets(st.integers(0, 6))):
        raw[row : row + 1] = 0
    values = torch.from_numpy(raw).view(getattr(torch, name))
    return torch.where(torch.isfinite(values), values, torch.zeros_like(values))


def bits(values: torch.Tensor) -> bytes:
    return values.contiguous().view(torch.uint8).numpy().tobytes() if values.numel() else b""


@settings(max_examples=150, deadline=None)
@given(matrices())
def test_a_matrix_is_restored_bit_for_bit_without_trailing_zeros(values: torch.Tensor) -> None:
    tokens = Tokens.of(values)
    rows = [i for i, row in enumerate(values) if bool((row != 0).any())]
    real = rows[-1] + 1 if rows else 0
    assert (tokens.tokens, tokens.dim) == (real, values.shape[1])
    again, head = unpack(pack(tokens, Header("m", "e", "text", "p")), "file", tokens.key("m", "e"))
    assert again == tokens and head.header.prompt == "p"
    assert bits(again.tensor()) == bits(values[:real])
    assert again.tensor().dtype == values.dtype
    padded = again.tensor(12)
    assert padded.shape == (12, values.shape[1]) and not padded[real:].any()
    assert np.array_equal(
        again.array(), values[:real].float().numpy() if values.dtype == torch.bfloat16 else values[:real].numpy()
    )


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(matrices())
def test_the_catalog_returns_what_was_stored(tmp_path: Path, values: torch.Tensor) -> None:
    catalog = Catalog(tmp_path)
    key = catalog.put(values, prompt="x")
    assert catalog.get(key).tokens == Tokens.of(values)
    assert catalog.put(values) == key


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_values_that_are_not_finite_are_refused(tmp_path: Path, bad: float, dtype: torch.dtype) -> None:
    values = matrix().to(dtype)
    values[2, 3] = bad
    with pytest.raises(RecipeError, match="not finite"):
        Catalog(tmp_path).put(values)
    assert not (tmp_path / "catalog.duckdb").exists()


@pytest.mark.parametrize(
    "values", [torch.zeros(3), torch.zeros(2, 3, 4), torch.zeros(2, 0), torch.zeros(2, 2, dtype=torch.int64)]
)
def test_arrays_that_are_not_token_matrices_are_refused(tmp_path: Path, values: torch.Tensor) -> None:
    with pytest.raises(RecipeError, match="cannot be stored"):
        Catalog(tmp_path).put(values)


def test_equal_content_is_stored_once_whatever_its_padding_and_prompt(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path)
    values = matrix()
    about = {"model": "m", "encoder": "e"}
    keys = {
        catalog.put(values, prompt="a", **about),
        catalog.put(torch.cat([values, torch.zeros(507, 32)]), prompt="b", **about),
        catalog.put(values[None].numpy(), prompt="c", **about),
    }
    assert len(keys) == 1 == catalog.count("embeddings")
    assert len(list((tmp_path / "embeddings").rglob("*.emb"))) == 1
    assert [row["prompt"] for row in catalog.sql("SELECT prompt FROM embedding_prompts ORDER BY 1").to_pylist()] == [
        "a",
        "b",
        "c",
    ]


def test_equal_values_for_another_prompt_keep_the_file_and_a_damaged_file_is_rewritten(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path)
    key = catalog.put(matrix(), prompt="a cat", seconds=0.1)
    place = catalog.files.path(key)
    before = place.read_bytes()
    assert catalog.put(matrix(), prompt="a cat with a much longer name") == key
    assert place.read_bytes() == before and catalog.check().problems == ()
    place.write_bytes(before[:-9])
    assert catalog.check().problems
    catalog.put(matrix(), prompt="a cat with a much longer name")
    assert catalog.check(deep=True).problems == () and catalog.check().problems == ()


def test_another_shape_dtype_model_encoder_or_value_is_another_embedding(tmp_path: Path) -> None:
    values = matrix()
    nudged = values.clone()
    nudged[0, 0] = torch.nextafter(nudged[0, 0], torch.tensor(9.0))
    news = [
        New(values),
        New(values.double()),
        New(values, model="m"),
        New(values, encoder="e"),
        New(values, space="context"),
        New(nudged),
        New(values.reshape(10, 16)),
    ]
    assert len(set(Catalog(tmp_path).put_many(news))) == len(news)


def test_one_prompt_may_have_several_embeddings_and_is_found_by_encoder_and_environment(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path)
    for seed, (encoder, environment) in enumerate([("e", "cpu"), ("e", "cuda"), ("f", "cpu")]):
        catalog.put(matrix(seed), prompt="p", encoder=encoder, environment=environment)
    found = catalog.stored(["p", "q"], "e", ["cuda", "cpu"])
    assert list(found) == ["p"] and torch.equal(found["p"].tensor(), matrix(1))
    assert torch.equal(catalog.stored(["p"], "f", ["cpu"])["p"].tensor(), matrix(2))
    assert catalog.stored(["p"], "f", ["cuda"]) == {}
    uses = {
        row["encoder"]: row["n"]
        for row in catalog.sql("SELECT encoder, sum(uses) AS n FROM embeddings GROUP BY 1").to_pylist()
    }
    assert uses == {"e": 1, "f": 1}


def test_names_labels_and_tags(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path)
    a = catalog.put(matrix(1), prompt="a red circle", label="red", tags=["style", "warm"])
    b = catalog.put(matrix(2), prompt="a blue circle", tags=["style"])
    for name in (a, a[:6], "red", "a red circle"):
        assert catalog.get(name).key == a
    assert catalog.list(tags=["style", "warm"])["key"].to_pylist() == [a]
    assert set(catalog.list(tags=["style"])["key"].to_pylist()) == {a, b}
    catalog.annotate(b, label="red", add=["cold"], remove=["style"])
    assert catalog.tags(b) == ["cold"]
    with pytest.raises(EmbeddingNotFound, match="2 embeddings have the label"):
        catalog.get("red")
    with pytest.raises(EmbeddingNotFound, match="there is no embedding 'nobody'"):
        catalog.get("nobody")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_embedding_is_written_as_a_file_that_edits_read(tmp_path: Path, dtype: torch.dtype) -> None:
    catalog = Catalog(tmp_path / "space")
    values = matrix().to(dtype)
    key = catalog.put(torch.cat([values, torch.zeros(2, 32, dtype=dtype)]), prompt="a beach", label="beach")
    file = catalog.save("beach", tmp_path / "new" / "beach.safetensors")
    read = read_stored(Donor(embedding=str(file)))
    assert read.dtype == dtype and bits(read) == bits(values)
    (edit,) = with_hashes([Inject(donor=Donor(embedding=str(file)))], 32, file_sha256)
    assert isinstance(edit, Inject) and edit.donor.sha256 == file_sha256(file)
    with safe_open(file, framework="np") as opened:
        assert opened.metadata()["key"] == key and opened.metadata()["prompt"] == "a beach"
    assert catalog.get(key, count=False).row["uses"] == 1
    for place, said in ((file, "already exists"), (tmp_path / "beach.bin", "not a .safetensors file")):
        with pytest.raises(RecipeError, match=said):
            catalog.save("beach", place)
    assert sorted(p.name for p in file.parent.iterdir()) == ["beach.safetensors"]


def test_a_changed_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path)
    key = catalog.put(matrix())
    place = catalog.files.path(key)
    whole = place.read_bytes()
    for at in (3, 20, len(whole) // 2, len(whole) - 3):
        broken = bytearray(whole)
        broken[at] ^= 0x40
        place.write_bytes(bytes(broken))
        with pytest.raises(CatalogDamaged):
            catalog.get(key)
        assert catalog.check(deep=True).problems
    place.write_bytes(whole[:-5])
    assert "instead of" in catalog.check().problems[0]
    place.unlink()
    with pytest.raises(CatalogDamaged, match="missing"):
        catalog.get(key)
    assert "missing" in catalog.check().problems[0]
    assert catalog.put(matrix()) == key
    assert catalog.check(deep=True).problems == ()


def test_pooled_vectors_of_files_are_the_mean_tokens(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path)
    values = [matrix(i, tokens=i + 1, dim=300) for i in range(3)]
    keys = catalog.put_many(New(v, prompt="x" * 3000 * i) for i, v in enumerate(values))
    units, norms = catalog.files.pooled_many(keys)
    for unit, norm, value in zip(units, norms, values, strict=True):
        mean = value.double().mean(0)
        assert norm == pytest.approx(float(mean.norm()), rel=1e-6)
        assert np.abs(unit - (mean / mean.norm()).numpy()).max() < 1e-3
