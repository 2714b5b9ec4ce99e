"""docs/takes.md and docs/studies.md: their examples run, and no key of a study is left out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import wanscope as ws
from helpers.studies import model
from wanscope.recipe import CaptureSpec, Components, DesignSpec, InitSpec, SamplerSpec, Spec, Study, VideoSpec
from wanscope.spec.strict_yaml import read_yaml
from wanscope.spec.validation import validated
from wanscope.study.expand import expand

DOCS = Path(__file__).parents[1] / "docs"


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (DOCS / page).read_text(encoding="utf-8"), re.M | re.S)


@pytest.mark.parametrize("page", ["takes.md", "studies.md"])
def test_the_python_examples_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = ws.run
    monkeypatch.setattr(ws, "load", lambda name: model())
    monkeypatch.setattr(ws, "run", lambda study, on_event: run(study, model=model()), raising=False)
    small = {"width": 32, "height": 32, "frames": 5, "fps": 8}
    monkeypatch.setattr(type(model().variant.defaults), "values", lambda self: {**DEFAULTS, **small})
    found = blocks(page, "python")
    assert found
    exec("\n".join(found), {})


DEFAULTS = {"steps": 2, "solver": "unipc", "shift": 5.0, "guidance": 5.0, "negative": ""}


def test_the_study_example_is_valid() -> None:
    (text,) = blocks("studies.md", "yaml")
    assert len(expand(validated(Study, read_yaml(text)))) == 4 * 12


@pytest.mark.parametrize("kind", [Study, SamplerSpec, VideoSpec, InitSpec, CaptureSpec, DesignSpec, Components])
def test_every_key_is_documented(kind: type[Spec]) -> None:
    text = (DOCS / "studies.md").read_text(encoding="utf-8")
    missing = [name for name in kind.model_fields if f"`{name}`" not in text and name != "sha256"]
    assert missing == []


@pytest.mark.parametrize("page", ["takes.md", "studies.md"])
def test_every_link_has_a_target(page: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", (DOCS / page).read_text(encoding="utf-8")):
        assert (DOCS / target).exists(), target
