"""A short campaign of faults. A long one: `python tests/faults/campaign.py --kills 1000 --inputs 100000 --flips 3000`.

It runs in a process of its own, which forks: the processes of the tests have threads.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
CAMPAIGN = Path(__file__).with_name("campaign.py")


def campaign(folder: Path, *options: object) -> str:
    """Run a campaign, and return its table; a finding is a failure."""
    command = [sys.executable, str(CAMPAIGN), "--folder", str(folder), *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def total(table: str, part: str) -> int:
    return sum(int(number) for number in re.findall(rf"\*\*{part}\*\* \| all \| .* \| (\d+) \|", table))


def test_a_short_campaign_loses_nothing_and_finds_every_damage(tmp_path: Path) -> None:
    table = campaign(tmp_path, "--kills", 2, "--inputs", 1000, "--flips", 19)
    assert [total(table, part) for part in ("kill", "flip", "input")] == [2, 19, 1000]
    notes = (tmp_path / "campaign.jsonl").read_text()
    (tmp_path / "campaign.jsonl").write_text(notes + '{"part": "kill", "ne')  # as a campaign that was killed leaves it
    again = campaign(tmp_path, "--report")
    assert again.splitlines()[:-1] == table.splitlines()[:-1]  # the last line has the seconds
    assert json.loads(notes.splitlines()[-1])["part"] == "kill"


@pytest.mark.slow
def test_a_long_campaign(tmp_path: Path) -> None:
    table = campaign(tmp_path, "--kills", 110, "--inputs", 20_000, "--flips", 400)
    assert [total(table, part) for part in ("kill", "flip", "input")] == [110, 400, 20_000]
