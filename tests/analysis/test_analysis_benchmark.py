"""The benchmark of the latent pass writes a table that states how it was measured."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "analysis.py"


def test_the_table_states_how_it_was_measured(tmp_path: Path) -> None:
    table = tmp_path / "table.md"
    sizes = ("--takes", "2", "--states", "3", "--size", "8x8x2", "--rounds", "2")
    words = ("--folder", tmp_path / "latents", *sizes, "--out", table, "--machine", "a desk", "--note", "Idle.")
    ran = subprocess.run([sys.executable, BENCHMARK, *words], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    text = table.read_text(encoding="utf-8")
    assert text in ran.stdout.replace("\r", "")
    for part in ("Machine: a desk. Idle.", "numpy ", "Rounds: 2", "asked to drop the files", "Peak memory"):
        assert part in text
    rows = {line.split(" | ")[0].strip("| "): line for line in text.splitlines() if line.startswith("| ")}
    assert set(rows) == {"what", "disk", "arithmetic", "pass", "pass without checksums"}
    assert not list((tmp_path / "latents").glob("take-*"))
