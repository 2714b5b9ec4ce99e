"""Texts that spreadsheets would run are made harmless in every CSV, numbers stay numbers, and our reader undoes it."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.paths import write_study
from wanscope.analysis.analyze import analyze
from wanscope.analysis.bundle import export_bundle
from wanscope.study.study_folder import IndexRow, StudyFolder, one_line
from wanscope.take.csv_cells import harmless, original
from wanscope.workspace import Workspace

FORMULAS = ("=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1", '=HYPERLINK("x")', "-", "'=1", "''@x")


@pytest.mark.parametrize("text", FORMULAS)
def test_formulas_get_an_apostrophe(text: str) -> None:
    assert harmless(text) == f"'{text}" and original(harmless(text)) == text


@pytest.mark.parametrize("text", ["-1", "+2.5", "-1e-05", "-inf", "nan", "a = b", "", "it's", "'quoted'", "red"])
def test_numbers_and_other_texts_stay(text: str) -> None:
    assert harmless(text) == text


@given(st.text(max_size=12) | st.text("=+-@'\t\r1a", max_size=6))
def test_every_text_comes_back(text: str) -> None:
    assert original(harmless(text)) == text
    assert not harmless(text).startswith(("=", "@", "\t", "\r"))


def test_every_table_is_harmless_and_the_index_reads_back(tmp_path: Path) -> None:
    takes = write_study(tmp_path, {"=slot": ("=red", "@blue")}, 2)
    folder = StudyFolder(Workspace(tmp_path), "made")
    rows = folder.rows()
    assert [row.slots["=slot"] for row in rows] == ["=red", "=red", "@blue", "@blue"]
    failed = IndexRow("x", takes[0].id, 0, 0, "failed", "=prompt", {"=slot": "=red"}, error="one\ntwo\r\n  three")
    folder.record([failed])
    (row,) = [row for row in folder.rows() if row.name == "x"]
    assert row.prompt == "=prompt" and row.error == "one two three"
    analysis = analyze("made", workspace=tmp_path, report=False)
    bundle = export_bundle("made", workspace=tmp_path)
    assert analysis.folder is not None
    files = [*analysis.folder.glob("*.csv"), *bundle.rglob("*.csv"), tmp_path / "studies" / "made" / "index.csv"]
    assert len(files) >= 8
    for path in files:
        with path.open(newline="", encoding="utf-8") as file:
            for line in csv.reader(file):
                for cell in line:
                    assert harmless(cell) == cell or cell.startswith("'"), (path.name, cell)
                    assert not cell.startswith(("=", "@")), (path.name, cell)


def test_one_line() -> None:
    assert one_line("a\n\n b\tc ") == "a b c"
