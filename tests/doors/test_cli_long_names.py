"""A name that no disk takes is one plain error in every command that takes a name, and is named in it."""

from __future__ import annotations

from pathlib import Path

import pytest

import wanscope
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


HOMELESS = {what: [word.replace(LONG, "~nobody-of-that-name/x") for word in words] for what, words in COMMANDS.items()}


@pytest.mark.parametrize("words", HOMELESS.values(), ids=HOMELESS)
def test_the_home_of_a_user_who_does_not_exist_is_a_name_like_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    if words[0] == "generate" and "--dry-run" not in words:
        words = [*words, "--dry-run"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WANSCOPE_HOME", raising=False)
    main(words)
    said = capsys.readouterr()
    assert "did not foresee" not in said.err and "Traceback" not in said.err


NO_TEXT = {what: [word.replace(LONG, "caf\udce9") for word in words] for what, words in COMMANDS.items()}
NO_TEXT |= {"search": ["db", "search", "caf\udce9"], "expand": ["expand", "a caf\udce9 [a|b]"]}
NO_TEXT |= {"prompt": ["generate", "--template", "a caf\udce9", "--dry-run"]}


@pytest.mark.parametrize("words", NO_TEXT.values(), ids=NO_TEXT)
def test_an_argument_that_is_not_text_is_one_plain_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    """A word in Latin-1, as the system passes it on: its byte becomes half a character."""
    if words[0] == "generate" and "--dry-run" not in words:
        words = [*words, "--dry-run"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WANSCOPE_HOME", raising=False)
    main(words)
    said = capsys.readouterr()
    assert "did not foresee" not in said.err and "Traceback" not in said.err


def test_names_of_users_are_expanded_and_looked_for_by_functions_that_take_any_text() -> None:
    """Path.expanduser raises RuntimeError for an unknown user; os.path.expanduser leaves the text as it is."""
    source = Path(wanscope.__file__).parent
    assert [str(path) for path in sorted(source.rglob("*.py")) if ".expanduser()" in path.read_text("utf-8")] == []


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
