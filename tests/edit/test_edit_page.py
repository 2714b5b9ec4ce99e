"""docs/editing.md is up to date: lines and YAML agree, the study has the stated size, every field is documented."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from wanscope.edit.edits import KINDS
from wanscope.edit.kinds.bend import BENDS
from wanscope.edit.shorthand import edit_from, parse
from wanscope.recipe import Study
from wanscope.spec.strict_yaml import read_yaml
from wanscope.spec.validation import validated
from wanscope.study.expand import expand

PAGE = (Path(__file__).parents[2] / "docs" / "editing.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `([^`]+)` \| `(\{kind: .*\})` \|$", PAGE, re.MULTILINE)
DONORS = re.findall(r"^\| [^|]* \| `([^`]+)` \| `(donor: [^`]+)` \|$", PAGE, re.MULTILINE)


@pytest.mark.parametrize(("line", "text"), ROWS, ids=[line for line, _ in ROWS])
def test_a_line_and_its_yaml_are_the_same_edit(line: str, text: str) -> None:
    assert parse(line) == edit_from(read_yaml(text))


@pytest.mark.parametrize(("line", "text"), DONORS, ids=[line for line, _ in DONORS])
def test_a_donor_in_a_line_and_in_yaml_is_the_same(line: str, text: str) -> None:
    on = {"on": "hidden"} if "hidden" in line else {}
    assert parse(f"inject {line}") == edit_from({"kind": "inject", **read_yaml(text), **on})


def test_the_tables_are_there() -> None:
    assert len(ROWS) >= 8 and len(DONORS) == 5
    assert {edit_from(read_yaml(text)).kind for _, text in ROWS} == set(KINDS)


def test_every_field_and_operation_is_named() -> None:
    fields = {name for kind in KINDS.values() for name in kind.model_fields} - {"kind", "sha256"}
    for name in (*fields, *BENDS):
        assert re.search(rf"`[^`\n]*\b{name}\b[^`\n]*`", PAGE), f"{name} is not documented"


def test_the_study_has_as_many_takes_as_the_page_says() -> None:
    (text,) = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    expansion = expand(validated(Study, read_yaml(text)))
    assert len(expansion) == 2 * (1 + 9) * 12
    names = {item.name for item in expansion.items({})}
    shown = set(re.findall(r"`(\w[\w.-]*)\.mp4`", PAGE))
    assert len(shown) == 2 and shown <= names


def test_the_python_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    for example in re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL):
        exec(compile(example, "docs/editing.md", "exec"), namespace)
    said = capsys.readouterr().out
    assert "into late at 0.4 applied" in said and "difference is" in said
    for name in ("take", "without"):  # what the examples made was edited
        (done,) = namespace[name].manifest.applied_edits  # type: ignore[attr-defined]
        assert done.applied == done.planned > 0
