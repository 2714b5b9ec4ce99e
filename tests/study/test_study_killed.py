"""If a run is killed at any moment or started twice, a rerun completes the study and makes no complete take again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from wanscope.take.store import Take, unfinished

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
HELPERS = Path(__file__).parents[1] / "helpers"


def helper(name: str, *arguments: object) -> list[Any]:
    """Run a helper and return what it prints: one line of JSON per request."""
    command = [sys.executable, str(HELPERS / name), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line[:1] in "{["]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    """Return a workspace, and the results of runs that were killed in it and of two at once, from one process."""
    folder = tmp_path_factory.mktemp("killed")
    jobs = ("killed", folder / "killed", 4, 0, "--", "together", folder / "together", 2)
    killed, together = helper("fork_runs.py", *jobs)
    return folder, killed, together


@pytest.fixture(scope="module")
def crashes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    hows = ("new", "replace")
    return dict(zip(hows, helper("crash_points.py", tmp_path_factory.mktemp("crashes"), *hows), strict=True))


def check_killed(folder: Path, told: dict[str, Any]) -> None:
    assert told["status"] == 0
    assert told["changed"] == []  # complete takes are the same files, not written again
    reference = json.loads((folder / "reference.json").read_text())
    last = json.loads((folder / "last.json").read_text())
    assert last["failed"] == [] and last["takes"] == reference["takes"]
    assert len(last["made"]) == 4 - told["complete_before_last"]
    for take in last["takes"]:
        found, wanted = (Take.open(folder / space / "takes" / take) for space in ("out", "reference"))
        found.verify()
        assert found.manifest.latents_sha256 == wanted.manifest.latents_sha256
        assert found.latents[:].tobytes() == wanted.latents[:].tobytes()
        assert found.manifest.gram == wanted.manifest.gram
    assert unfinished(folder / "out" / "takes") == []
    links = sorted(path.name for path in (folder / "out" / "studies" / "small").glob("*.mp4"))
    assert len(links) == 4
    assert (folder / "out/studies/small/index.csv").read_text().count(",complete,yes,") == 4


def test_a_study_killed_at_random_moments_is_completed(ran: tuple[Path, Any, Any]) -> None:
    folder, killed, _ = ran
    check_killed(folder / "killed", killed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 7))
def test_a_study_killed_many_times_is_completed(tmp_path: Path, seed: int) -> None:
    (told,) = helper("fork_runs.py", "killed", tmp_path, 12, seed)
    check_killed(tmp_path, told)


def test_two_processes_on_one_study_do_not_make_a_take_twice(ran: tuple[Path, Any, Any]) -> None:
    folder, _, told = ran
    folder = folder / "together"
    assert told["statuses"] == [0, 0]
    made = [take for log in told["logs"] for take in log["made"]]
    assert len(made) == len(set(made)) == 4
    for log in told["logs"]:  # each process waited for the whole study
        assert sorted(log["takes"]) == sorted(made) and log["failed"] == []
        assert log["made"]  # and made some of its takes
    for take in made:
        Take.open(folder / "out" / "takes" / take).verify()
    assert (folder / "out/studies/small/index.csv").read_text().count(",complete,yes,") == 4


@pytest.mark.parametrize("how", ["new", "replace"])
def test_a_crash_before_any_file_operation_leaves_the_old_take_or_the_new(
    crashes: dict[str, list[dict[str, Any]]], how: str
) -> None:
    outcomes = crashes[how]
    assert len(outcomes) > 15  # enough operations were tested
    assert outcomes[-1] == {"code": 0, "found": "new", "rest": []}
    found = [outcome["found"] for outcome in outcomes]
    before = "nothing" if how == "new" else "old"
    assert set(found) == {before, "new"}
    assert found == sorted(found, key=lambda which: which == "new")  # old up to a point, new from there on
    assert all(outcome["rest"] == [] for outcome in outcomes)
