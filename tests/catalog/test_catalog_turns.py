"""Changes that are lost with the catalog's file or the end of its log are noticed; nothing else is taken for that."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from wanscope.catalog.catalog import Catalog
from wanscope.doors.cli import main
from wanscope.errors import CatalogDamaged


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    catalog = Catalog(tmp_path / "space")
    for i in range(4):
        catalog.annotate(catalog.put(np.full((2, 8), i + 1.0, np.float32), prompt=str(i)), label=f"label {i}")
    return catalog


def problems(catalog: Catalog) -> tuple[str, ...]:
    return Catalog(catalog.path.parent).check().problems


def test_a_whole_catalog_lacks_nothing(catalog: Catalog) -> None:
    assert problems(catalog) == ()
    catalog.db.checkpoint()
    assert problems(catalog) == ()
    with pytest.raises(KeyError), catalog.db.writing():
        raise KeyError
    assert problems(catalog) == ()


def test_a_log_that_was_cut_anywhere_or_removed_is_noticed(catalog: Catalog, tmp_path: Path) -> None:
    size = catalog.db.log.stat().st_size
    for length in (*range(0, size, max(1, size // 12)), size - 1, None):
        space = tmp_path / "cut"
        shutil.rmtree(space, ignore_errors=True)
        shutil.copytree(catalog.path.parent, space)
        cut = Catalog(space)
        if length is None:
            cut.db.log.unlink()
        else:
            os.truncate(cut.db.log, length)
        try:
            assert cut.check().problems, length
        except CatalogDamaged:
            continue


def test_a_removed_catalog_is_noticed_until_it_is_rebuilt(catalog: Catalog, capsys: pytest.CaptureFixture[str]) -> None:
    catalog.path.unlink()
    catalog.db.log.unlink()
    space = str(catalog.path.parent)
    assert main(["db", "check", "-o", space]) == 1
    assert "lacks 8 of the changes" in capsys.readouterr().out
    again = Catalog(catalog.path.parent)
    again.put(np.ones((1, 8), np.float32))
    assert "lacks 8 of the changes" in problems(catalog)[0]  # also when it has gone on since
    assert again.index(rebuild=True).adopted == 4
    assert problems(catalog) == () == Catalog(catalog.path.parent).check(deep=True).problems


def test_an_older_copy_is_noticed(catalog: Catalog, tmp_path: Path) -> None:
    catalog.db.checkpoint()
    shutil.copyfile(catalog.path, tmp_path / "older")
    catalog.annotate("1", label="changed since")
    catalog.db.checkpoint()
    shutil.copyfile(tmp_path / "older", catalog.path)
    assert "lacks 1 of the changes" in problems(catalog)[0]


@pytest.mark.parametrize("text", ["", "x", "-3", "9" * 30, "3", None])
def test_a_number_beside_it_that_is_lost_or_damaged_or_behind_says_nothing(catalog: Catalog, text: str | None) -> None:
    beside = catalog.path.with_name(".catalog.duckdb.turns")
    beside.unlink() if text is None else beside.write_text(text)
    assert problems(catalog) == ()
    catalog.annotate("1", label="changed since")
    assert problems(catalog) == ()
