"""docs/blocks.md and docs/embeddings.md are up to date: examples run, and pictures and errors are the real ones."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from wanscope.edit import parse_blocks, parse_expression
from wanscope.edit.blocks import PRESETS
from wanscope.edit.strengths import SHAPES
from wanscope.errors import ExpressionError

DOCS = Path(__file__).parents[2] / "docs"
PAGES = {name: (DOCS / name).read_text(encoding="utf-8") for name in ("blocks.md", "embeddings.md")}


def blocks_of(page: str, language: str) -> list[str]:
    """Return the fenced blocks of a page in one language, in order."""
    fences = re.findall(r"^```(\w*)\n(.*?)^```$", PAGES[page], re.DOTALL | re.MULTILINE)
    return [text for found, text in fences if found == language]


@pytest.mark.parametrize("page", PAGES)
def test_python_examples_run_in_order(page, capsys):
    namespace: dict[str, object] = {}
    try:
        for example in blocks_of(page, "python"):
            exec(compile(example, page, "exec"), namespace)
    finally:
        SHAPES.pop("ends", None)
    if page == "blocks.md":
        assert blocks_of(page, "")[0] in capsys.readouterr().out


def test_the_table_of_presets_is_right():
    rows = re.findall(r"^\| `(\w+)`[^|]*\|[^|]*\| ([^|]+) \| ([^|]+) \|$", PAGES["blocks.md"], re.MULTILINE)
    assert {"all", *(name for name in PRESETS if name not in ("all", "none"))} == {name for name, *_ in rows}
    for name, *shown in rows:
        for count, text in zip((40, 30), shown, strict=True):
            found = parse_blocks(name, count)
            if "..." in text:
                first, second, _, last = text.split(",")
                expected = tuple(range(int(first), int(last) + 1, int(second) - int(first)))
                assert found.indices == expected, name
            else:
                assert found.ranges == text, name


def test_every_shape_and_preset_is_documented():
    for name in [*SHAPES, *PRESETS, "custom"]:
        assert f"`{name}`" in PAGES["blocks.md"]


def test_the_error_on_the_page_is_the_real_one():
    shown = blocks_of("embeddings.md", "")[0]
    with pytest.raises(ExpressionError) as caught:
        parse_expression(shown.splitlines()[1].strip())
    assert str(caught.value) == shown.rstrip()
