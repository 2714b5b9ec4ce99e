"""Every command and option has help and is in docs/cli.md, and the examples on the page are valid."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from wanscope.doors.cli.app import command

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"
ROOT: Any = command()
# typer adds these to the program with their own help.
OWN = {"--help", "--install-completion", "--show-completion"}


def sections() -> dict[str, str]:
    """Return {heading: its text} for the page's `## wanscope ...` headings."""
    parts = re.split(r"^## (.+)$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def commands() -> list[tuple[str, Any]]:
    return [("wanscope", ROOT), *_below("wanscope", ROOT)]


def _below(path: str, group: Any) -> Iterator[tuple[str, Any]]:
    for name, one in group.commands.items():
        yield f"{path} {name}", one
        if hasattr(one, "commands"):
            yield from _below(f"{path} {name}", one)


def parameters() -> list[Any]:
    return [
        pytest.param(heading, parameter, id=f"{heading} {parameter.name}")
        for heading, one in commands()
        for parameter in one.params
        if not OWN & set(parameter.opts)
    ]


@pytest.mark.parametrize(("heading", "one"), commands(), ids=[heading for heading, _ in commands()])
def test_every_command_has_help_and_a_section(heading: str, one: Any) -> None:
    assert len((one.help or "").strip()) > 15
    assert heading in sections()


@pytest.mark.parametrize(("heading", "parameter"), parameters())
def test_every_parameter_has_help_and_a_line(heading: str, parameter: Any) -> None:
    assert len((parameter.help or "").strip()) > 10, f"{parameter.name} has no help text"
    text = sections()[heading]
    if parameter.param_type_name == "argument":
        assert f"`{parameter.metavar.removesuffix('...')}" in text
        return
    for option in (*parameter.opts, *parameter.secondary_opts):
        assert re.search(rf"`[^`\n]*(?<![\w-]){re.escape(option)}(?![\w-])[^`\n]*`", text), f"{option} is undocumented"


def test_the_page_has_no_section_for_a_removed_command() -> None:
    known = {heading for heading, _ in commands()}
    assert {heading for heading in sections() if heading.startswith("wanscope")} == known


def test_the_page_names_no_removed_option() -> None:
    known = {option for _, one in commands() for p in one.params for option in (*p.opts, *p.secondary_opts)}
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", PAGE.read_text(encoding="utf-8")))
    assert named - known - OWN == set()


def examples() -> Iterator[str]:
    for block in re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("wanscope "):
                yield line


@pytest.mark.parametrize("line", list(examples()))
def test_every_example_can_be_typed(line: str) -> None:
    """Its arguments parse; nothing is run."""
    name, *words = shlex.split(line, comments=True)[1:]
    one = ROOT.commands[name]
    while hasattr(one, "commands") and words:
        name, *words = words
        one = one.commands[name]
    one.make_context(name, words)


def test_there_are_examples() -> None:
    assert len(list(examples())) > 15
