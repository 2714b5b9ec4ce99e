"""index.csv is read as it was written, or not at all: no flipped bit and no missing row goes unnoticed."""

from __future__ import annotations

from pathlib import Path

import pytest

from wanscope.errors import RecipeError
from wanscope.take.study_table import read_table, table_text

HEAD = ["name", "take", "variation", "seed", "status", "current", "prompt", "slot:who"]
ROWS = [
    ["red_seed00", "a" * 16, 0, 0, "complete", "yes", "a red, circle", "red"],
    ["blue_seed00", "b" * 16, 1, 0, "failed", "no", 'a "blue"\ncircle', ""],
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "index.csv"
    path.write_bytes(table_text([HEAD, *ROWS]).encode())
    return path


def cells(path: Path) -> list[list[str]]:
    return [list(row.values()) for row in read_table(path)]


def test_a_table_reads_back(path: Path) -> None:
    assert cells(path) == [[str(cell) for cell in row] for row in ROWS]
    assert list(read_table(path)[0]) == HEAD


def test_every_flipped_bit_is_refused_or_changes_nothing(path: Path) -> None:
    whole, rows = path.read_bytes(), cells(path)
    refused = 0
    for bit in range(8 * len(whole)):
        broken = bytearray(whole)
        broken[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bytes(broken))
        try:
            found = [row[: len(HEAD)] for row in cells(path)]
        except RecipeError:
            refused += 1
            continue
        assert found == rows, f"bit {bit}"  # a name of the last column, or one that quotes what needs no quotes
    assert refused > 0.9 * 8 * len(whole)


def test_every_cut_is_refused_or_changes_nothing(path: Path) -> None:
    whole, rows = path.read_bytes(), cells(path)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        try:
            assert cells(path) == rows
        except RecipeError:
            continue
        assert length >= len(whole) - 1  # the last line break


def test_a_row_that_is_missing_or_repeated_is_found(path: Path) -> None:
    head, *rows = table_text([HEAD, *[[f"x{i}", *ROWS[0][1:]] for i in range(3)]]).splitlines(keepends=True)
    for kept in (rows[:2], rows[1:], [*rows, rows[0]], rows[::-1], []):
        path.write_text(head + "".join(kept))
        with pytest.raises(RecipeError):
            read_table(path)


def test_tables_of_version_0_1_have_no_checksum(path: Path) -> None:
    path.write_text("name,take,variation,seed,status,current,seconds,prompt,error\nx,y,0,1,complete,yes,1.0,a,\n")
    assert [row["name"] for row in read_table(path)] == ["x"]
    for bad in ("name,take\nx,y\n", "", path.read_text() + "z\n", path.read_text().replace("yes", "xes"), "\x00"):
        path.write_text(bad)
        with pytest.raises(RecipeError, match="has been changed"):
            read_table(path)
