"""docs/prompts.md is up to date: its examples run, and the error it shows is the real one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from wanscope.errors import TemplateError
from wanscope.prompt import expand

PAGE = (Path(__file__).parents[2] / "docs" / "prompts.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("example", re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))
def test_python_examples_run(example: str):
    exec(compile(example, "docs/prompts.md", "exec"), {})


def test_the_first_template_expands_as_shown():
    blocks = re.findall(r"```\n(.*?)```", PAGE, re.DOTALL)
    assert [variation.text for variation in expand(blocks[0].strip())] == blocks[1].splitlines()


def test_the_error_on_the_page_is_the_real_one():
    shown = next(block for block in re.findall(r"```\n(.*?)```", PAGE, re.DOTALL) if "cannot be read" in block)
    with pytest.raises(TemplateError) as caught:
        expand(shown.splitlines()[1].strip())
    assert str(caught.value) == shown.strip()
