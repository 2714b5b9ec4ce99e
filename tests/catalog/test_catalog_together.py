"""Several processes on one catalog: all rows are written, no process fails, and kill -9 loses nothing committed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HELPER = Path(__file__).parents[1] / "helpers" / "catalog_writers.py"
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the helper forks")


def run_writers(*arguments: object) -> dict[str, Any]:
    command = [sys.executable, str(HELPER), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("each", "batch"),
    [(30, 10), pytest.param(500, 10, marks=pytest.mark.slow), pytest.param(500, 1, marks=pytest.mark.slow)],
)
def test_four_write_while_two_read(tmp_path: Path, each: int, batch: int) -> None:
    found = run_writers("together", tmp_path, 4, each, batch, 2)
    print({key: found[key] for key in ("seconds", "longest_write", "longest_read", "reads")})
    assert found["errors"] == [] and set(found["statuses"]) == {0}
    assert found["count"] == 4 * each == len(set(found["committed"]))
    assert set(found["keys"]) == set(found["committed"])
    assert found["problems"] == [] and not found["fell"] and found["reads"] > 0


@pytest.mark.parametrize("kills", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_writers_lose_nothing_that_was_committed(tmp_path: Path, kills: int) -> None:
    found = run_writers("killed", tmp_path, kills, kills)
    assert found["opened"] == kills
    assert found["lost"] == [] and found["errors"] == [] and found["problems"] == []
    assert len(found["committed"]) > 0
    assert set(found["committed"]) <= set(found["keys"])
