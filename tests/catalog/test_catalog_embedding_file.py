"""The file of an embedding: every flipped bit is found, absurd headers are damage, and claims take no memory."""

from __future__ import annotations

import json
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard

from wanscope.catalog.catalog import Catalog, New
from wanscope.catalog.content import Tokens
from wanscope.catalog.embedding_file import MAGIC, OLD_MAGIC, PREFIX, Header, pack, sealed
from wanscope.doors.cli import main
from wanscope.errors import CatalogDamaged, RecipeError

FACTS = {"dtype": "float32", "tokens": 3, "dim": 5, "norm": 1.0, "model": "m", "encoder": "e", "prompt": "a cat"}


def matrix(seed: int = 0, tokens: int = 3, dim: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((tokens, dim)).astype(np.float32)


def parts(data: bytes) -> tuple[bytes, bytes, bytes]:
    """Return header, mean token and stored values."""
    _, _, header, mean, _ = PREFIX.unpack_from(data)
    start = PREFIX.size + header
    return data[PREFIX.size : start], data[start : start + mean], data[start + mean :]


def old_file(data: bytes) -> bytes:
    """Return the same embedding as version 0.1 wrote it."""
    header, mean, values = parts(data)
    return OLD_MAGIC + struct.pack("<I", len(header)) + header + mean + values


def crafted(facts: Any, mean: bytes, values: bytes, present: bool = True) -> bytes:
    """Return a file whose checksums are right and whose content is somebody's own."""
    text = facts if isinstance(facts, bytes) else json.dumps(facts).encode()
    return sealed(text, mean, values) if present else OLD_MAGIC + struct.pack("<I", len(text)) + text + mean + values


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return Catalog(tmp_path)


@pytest.fixture
def key(catalog: Catalog) -> str:
    return catalog.put(matrix(), prompt="a cat", model="m", encoder="e")


def test_every_flipped_bit_is_found_by_reading_searching_and_a_deep_check(catalog: Catalog, key: str) -> None:
    place = catalog.files.path(key)
    whole = place.read_bytes()
    values = len(whole) - len(parts(whole)[2])
    for bit in range(8 * len(whole)):
        broken = bytearray(whole)
        broken[bit // 8] ^= 1 << bit % 8
        place.write_bytes(bytes(broken))
        with pytest.raises(CatalogDamaged):
            catalog.files.read(key)
        if bit // 8 < values:
            with pytest.raises(CatalogDamaged):
                catalog.files.pooled(key)
        if bit % 97 == 0:
            assert catalog.check(deep=True).problems, f"bit {bit}"


def test_files_of_version_0_1_are_read_and_a_wrong_mean_token_in_them_is_found(catalog: Catalog, key: str) -> None:
    place = catalog.files.path(key)
    unit_D, norm = catalog.files.pooled(key)
    old = old_file(place.read_bytes())
    place.write_bytes(old)
    assert np.array_equal(catalog.files.read(key)[0].array(), matrix())
    again_D, again = catalog.files.pooled(key)
    assert np.array_equal(unit_D, again_D) and norm == again
    start = 12 + struct.unpack_from("<I", old, 8)[0]
    for bit in range(8 * start, 8 * (start + 10)):
        broken = bytearray(old)
        broken[bit // 8] ^= 1 << bit % 8
        place.write_bytes(bytes(broken))
        for use in (catalog.files.read, catalog.files.pooled):
            with pytest.raises(CatalogDamaged, match="mean token"):
                use(key)
    place.write_bytes(old.replace(b'"norm": ', b'"norm": 1'))
    with pytest.raises(CatalogDamaged):
        catalog.files.pooled(key)


def test_a_deep_check_seals_files_of_version_0_1_and_takes_their_text_from_the_catalog(catalog: Catalog) -> None:
    keys = catalog.put_many(New(matrix(i), prompt=f"cat {i}", model="m", encoder="e") for i in range(3))
    places = [catalog.files.path(key) for key in keys]
    for place in places:
        place.write_bytes(old_file(place.read_bytes()))
    places[1].write_bytes(places[1].read_bytes().replace(b"cat 1", b"rat 1"))
    found = catalog.check(deep=True)
    assert found.problems == () and "3 files of version 0.1" in found.notes[0] and "1 of these" in found.notes[1]
    again = catalog.check(deep=True)
    assert (again.problems, again.notes) == ((), ()) == (catalog.check().problems, catalog.check().notes)
    for i, (key, place) in enumerate(zip(keys, places, strict=True)):
        tokens, head = catalog.files.read_all(key)
        assert head.sealed and head.header.prompt == f"cat {i}" and place.read_bytes()[:8] == MAGIC
        assert np.array_equal(tokens.array(), matrix(i))


ABSURD = {
    "no dtype": {"dtype": None},
    "a dtype that is a list": {"dtype": ["float32"]},
    "another dtype": {"dtype": "int8"},
    "tokens as text": {"tokens": "3"},
    "tokens as a fraction": {"tokens": 3.0},
    "tokens true": {"tokens": True},
    "negative tokens": {"tokens": -1},
    "a dimension of zero": {"dim": 0},
    "a huge dimension": {"dim": 10**30},
    "huge tokens": {"tokens": 10**30},
    "norm as text": {"norm": "1"},
    "a norm that is not a number": {"norm": float("nan")},
    "an infinite norm": {"norm": float("inf")},
    "a negative norm": {"norm": -1.0},
    "a model that is a number": {"model": 3},
    "a prompt that is a mapping": {"prompt": {}},
    "another space": {"space": "elsewhere"},
}


@pytest.mark.parametrize("present", [True, False], ids=["present", "0.1"])
def test_missing_and_absurd_fields_are_damage(catalog: Catalog, key: str, present: bool) -> None:
    place = catalog.files.path(key)
    whole = place.read_bytes()
    _, mean, values = parts(whole)
    bad: dict[str, Any] = {what: {**FACTS, **change} for what, change in ABSURD.items()}
    bad |= {f"no {gone}": {n: v for n, v in FACTS.items() if n != gone} for gone in ("dtype", "tokens", "dim", "norm")}
    bad |= {"a list": [1], "a number": 7, "no JSON": b"{", "deep": b"[" * 100_000, "digits": b'{"dim": ' + b"9" * 9999}
    for what, facts in bad.items():
        place.write_bytes(crafted(facts, mean, values, present))
        for use in (catalog.files.read, catalog.files.pooled):
            with pytest.raises(CatalogDamaged):
                pytest.fail(f"{what}: {use(key)}")
        assert any(str(place) in problem for problem in catalog.check(deep=True).problems), what
    for data in (b"", whole[:5], whole[:20], whole[:40], MAGIC + b"\xff" * 60, OLD_MAGIC + b"\xff" * 4):
        place.write_bytes(data)
        for use in (catalog.files.read, catalog.files.pooled):
            with pytest.raises(CatalogDamaged):
                use(key)


@pytest.mark.parametrize("present", [True, False], ids=["present", "0.1"])
def test_a_small_file_that_claims_gigabytes_takes_no_memory(catalog: Catalog, key: str, present: bool) -> None:
    rows, dim = 1 << 21, 256  # 2 GiB as float32
    block = zstandard.ZstdCompressor().compress(bytes(1 << 26))
    frame = struct.pack("<IBQ", 0xFD2FB528, 0b11100000, rows * dim * 4) + block[6:]  # a frame that claims them
    mean = bytes(2 * dim)
    place = catalog.files.path(key)
    for facts, values in (
        ({**FACTS, "tokens": rows, "dim": dim}, frame),
        ({**FACTS, "tokens": 3, "dim": dim}, frame),
        ({**FACTS, "tokens": rows, "dim": dim}, block),
    ):
        place.write_bytes(crafted(facts, mean, values, present))
        assert place.stat().st_size < 65_000
        tracemalloc.start()
        with pytest.raises(CatalogDamaged):
            catalog.files.read(key)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 10_000_000
    with place.open("ab") as file:
        file.truncate(1 << 36)  # a sparse file: 64 GiB long, some kilobytes on the disk
    with pytest.raises(CatalogDamaged):
        catalog.files.read(key)


def test_a_matrix_whose_file_could_not_be_read_again_is_refused() -> None:
    with pytest.raises(RecipeError, match="shrinks"):
        pack(Tokens.of(np.ones((1 << 14, 1 << 11), np.float32)), Header())
    with pytest.raises(RecipeError, match="bytes of text"):
        pack(Tokens.of(matrix()), Header(prompt="x" * (1 << 24)))


def test_the_command_reports_what_a_deep_check_sealed(
    catalog: Catalog, key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    place = catalog.files.path(key)
    place.write_bytes(old_file(place.read_bytes()))
    assert main(["db", "check", "--deep", "--output-dir", str(catalog.path.parent)]) == 0
    assert "1 file of version 0.1 had no checksum" in capsys.readouterr().out
