"""docs/attention.md: its examples run in order, its YAML is a capture, and every measure is explained."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from wanscope.spec.capture import MEASURES, AttentionCapture
from wanscope.spec.strict_yaml import read_yaml

PAGE = (Path(__file__).parents[1] / "docs" / "attention.md").read_text(encoding="utf-8")


def blocks_of(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def test_python_examples_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANSCOPE_HOME", str(tmp_path))
    namespace: dict[str, Any] = {}
    for example in blocks_of("python"):
        exec(compile(example, "attention.md", "exec"), namespace)
    maps = namespace["maps"]
    assert maps.words == ("circle",) and maps.dims == ("step", "block", "row", "T", "Y", "X")
    assert namespace["profile"](maps).by_block("mass").shape == (namespace["model"].blocks, 2)


def test_the_study_block_names_every_field_with_its_default() -> None:
    shown = read_yaml(blocks_of("yaml")[0])["capture"]["attention"]
    assert set(shown) == set(AttentionCapture.model_fields)
    assert AttentionCapture.model_validate(shown) == AttentionCapture()


def test_every_measure_is_explained() -> None:
    assert re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE) == list(MEASURES)
