"""`wanscope analyze` and `wanscope export`: what they print and write, and what they refuse."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.figures import draw_few
from helpers.paths import write_study
from wanscope.recipe import Recipe


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli-analyze")

    def shift(labels: Any, states: np.ndarray) -> np.ndarray:
        return states[:1] + (1.3 if labels["who"] == "two men" else 1.0) * (states - states[:1])

    write_study(folder, {"who": ("two men", "two women", "two people")}, 12, shift, "people")
    return folder


def test_analyze_reports_its_findings(place: Path, cli: Callable[..., Any]) -> None:
    ran = cli("analyze", "people", "-o", place, "--no-report", "--contrast", "two men", "two women")
    assert ran.status == 0, ran.err
    assert "Path length is higher for two men than for two women" in ran.out
    assert "tables" in ran.out and "report " not in ran.out
    assert (place / "studies" / "people" / "analysis" / "tests.csv").is_file()


def test_json_is_one_document(place: Path, cli: Callable[..., Any], tmp_path: Path) -> None:
    words = ("--by", "who", "--contrast", "two men", "two women", "--baseline", "two people")
    ran = cli(
        "analyze", "--batch-dir", place / "studies" / "people", *words, "--out", tmp_path, "--no-report", "--json"
    )
    data = json.loads(ran.out)
    assert [(c["a"], c["b"]) for c in data["contrasts"]] == [
        ("two men", "two women"),
        ("two men", "two people"),
        ("two women", "two people"),
    ]
    assert data["folder"] == str(tmp_path) and data["found"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "no study is given"),
        (("people", "--batch-dir", "x"), "both name the study"),
        (("peeple",), "did you mean 'people'"),
        (("people", "--by", "whom"), "did you mean 'who'"),
        (("people", "--contrast", "two men", "two womn"), "did you mean 'two women'"),
        (("people", "--unit", "day"), "seed or scene"),
    ],
)
def test_requests_that_cannot_be_met(place: Path, cli: Callable[..., Any], words: tuple[str, ...], says: str) -> None:
    ran = cli("analyze", *words, "-o", place)
    assert ran.status == 2
    assert says in ran.err and "Traceback" not in ran.err


def test_a_bundle_is_complete_and_its_checksums_are_right(
    cli: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_few(monkeypatch)
    write_study(tmp_path, {"who": ("two men", "two women")}, 2, None, "few")
    target = tmp_path / "supplement"
    ran = cli("export", "few", "--bundle", "-o", tmp_path, "--out", target, "--contrast", "two men", "two women")
    assert ran.status == 0, ran.err
    sums = dict(reversed(line.split("  ", 1)) for line in (target / "SHA256SUMS").read_text().splitlines())
    files = {p.relative_to(target).as_posix() for p in target.rglob("*") if p.is_file()} - {"SHA256SUMS"}
    assert set(sums) == files
    assert all(hashlib.sha256((target / name).read_bytes()).hexdigest() == value for name, value in sums.items())
    assert {"README.md", "METHODS.md", "report.html", "tests.csv", "versions.json", "analysis.json"} <= files
    recipes = [Recipe.model_validate_json(path.read_text()) for path in (target / "recipes").iterdir()]
    assert len(recipes) == 4
    text = (target / "METHODS.md").read_text()
    assert "2 seeds as units" in text and "two men against two women" in text and "2 seeds, 4 videos" in text
    assert str(tmp_path) not in (target / "analysis.json").read_text()

    (target / "old").write_text("x")
    assert cli("export", "few", "--bundle", "-o", tmp_path, "--out", target).status == 0  # replaced whole
    assert not (target / "old").exists()


def test_a_bundle_replaces_nothing_else(place: Path, cli: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    ran = cli("export", "people", "--bundle", "-o", place, "--out", tmp_path)
    assert ran.status == 2 and "contains other files" in ran.err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    ran = cli("export", "people", "-o", place)
    assert ran.status == 2 and "--bundle" in ran.err


def test_a_bundle_uses_the_unit_of_its_analysis(place: Path, cli: Callable[..., Any], tmp_path: Path) -> None:
    words = ("export", "people", "--bundle", "-o", place, "--out", tmp_path / "bundle", "--unit")
    ran = cli(*words, "day")
    assert ran.status == 2 and "units are seed or scene" in ran.err
    ran = cli(*words, "scene")
    assert ran.status == 2 and "names no slots that are scenes" in ran.err


def test_the_summary_counts_the_contrasts_that_have_a_test(cli: Callable[..., Any], tmp_path: Path) -> None:
    """One take is gone, which leaves one pair of its variation: nothing can be tested with that."""
    write_study(tmp_path, {"who": ("two men", "two women", "two people")}, 2, None, "few")
    gone = next(
        path for path in sorted((tmp_path / "takes").iterdir()) if "two people" in (path / "take.json").read_text()
    )
    shutil.rmtree(gone)
    ran = cli("analyze", "few", "-o", tmp_path, "--no-report")
    assert ran.status == 0 and "(1 contrast of the 3)" in ran.out
