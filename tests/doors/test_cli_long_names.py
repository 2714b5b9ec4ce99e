"""A name that no disk takes is one plain error in every command that takes a name, and is named in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from wanscope.doors.cli import main

LONG = "x" * 300
COMMANDS = {
    "study": ["generate", LONG, "--dry-run"],
    "study file": ["generate", f"{LONG}.yaml", "--dry-run"],
    "video": ["generate", f"{LONG}.mp4", "--dry-run"],
    "take file": ["generate", f"{LONG}.json", "--dry-run"],
    "config": ["generate", "--config", LONG, "--dry-run"],
    "model": ["generate", "--template", "a cat", "--model", LONG, "--dry-run"],
    "model file": ["generate", "--template", "a cat", "--model", f"{LONG}.safetensors", "--dry-run"],
    "workspace": ["generate", "--template", "a circle", "--model", "marbles", "--output-dir", LONG],
    "study's name": ["generate", "--template", "a circle", "--model", "marbles", "--name", LONG],
    "LoRA": ["generate", "--template", "a circle", "--model", "marbles", "--set", f"loras=[{LONG}]", "--dry-run"],
    "init": ["generate", "--template", "a circle", "--model", "marbles", "--set", f"init.video={LONG}", "--dry-run"],
    "direction": ["generate", "--template", "a circle", "--edit", f"steer '{LONG}' in late", "--dry-run"],
    "donor": ["generate", "--template", "a circle", "--edit", f"inject embedding '{LONG}' in late", "--dry-run"],
    "show": ["show", LONG],
    "compare": ["compare", LONG],
    "compare to": ["compare", "abc", "--out", f"{LONG}.mp4"],
    "analyze": ["analyze", LONG],
    "analyze to": ["analyze", "abc", "--out", LONG],
    "bundle": ["export", LONG, "--bundle"],
    "takes": ["takes", "--output-dir", LONG],
    "db": ["db", "list", "--output-dir", LONG],
    "db import": ["db", "import", LONG],
    "db merge": ["db", "merge", LONG],
    "db export": ["db", "export", LONG],
    "pairs": ["direction", "learn", "--pairs", LONG, "--out", "x.safetensors"],
}


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_a_name_that_is_too_long_is_one_plain_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WANSCOPE_HOME", raising=False)
    status = main(words)
    said = capsys.readouterr()
    assert status == 2 or words[0] in ("takes", "db"), said  # an empty workspace of any name has nothing to list
    assert "did not foresee" not in said.err and "Errno" not in said.err
    assert list(tmp_path.iterdir()) == []
