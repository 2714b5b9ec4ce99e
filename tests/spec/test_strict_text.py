"""Texts that somebody else may have written, YAML and JSON: one plain error or a result, and never an endless one.

How long a text takes is measured in calls of Python functions, which do not depend on the machine.
"""

from __future__ import annotations

import contextlib
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import wanscope
from wanscope.errors import RecipeError
from wanscope.spec.strict_json import read_json
from wanscope.spec.strict_yaml import read_yaml

SOURCE = Path(wanscope.__file__).parent


def calls(work: Any, most: int) -> int:
    """Return how many Python functions `work` calls; stop it when they are more than `most`."""
    count = 0

    def counted(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event == "call"
        if count > most:
            sys.setprofile(None)
            raise AssertionError(f"more than {most} calls")

    sys.setprofile(counted)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def mapping(count: int) -> str:
    return "".join(f"k{i}: {i}\n" for i in range(count))


class Key(str):
    """A text that counts how often it is compared."""

    compared = 0

    def __eq__(self, other: object) -> bool:
        Key.compared += 1
        return str(self) == other

    __hash__ = str.__hash__


def test_the_time_for_a_mapping_grows_with_its_length(monkeypatch: pytest.MonkeyPatch) -> None:
    import yaml

    monkeypatch.setattr(
        yaml.SafeLoader, "yaml_constructors", {**yaml.SafeLoader.yaml_constructors, "tag:yaml.org,2002:str": _key}
    )
    found = []
    for count in (100, 200):
        Key.compared = 0
        assert len(read_yaml(mapping(count))) == count
        found.append(Key.compared)
    assert found[1] <= 2.5 * found[0] + 10, found


def _key(loader: Any, node: Any) -> Key:
    return Key(loader.construct_scalar(node))


def test_twenty_thousand_keys_are_read() -> None:
    assert read_yaml(mapping(20_000)) == {f"k{i}": i for i in range(20_000)}
    with pytest.raises(RecipeError, match="'k7' is written twice"):
        read_yaml(mapping(20_000) + "k7: 8\n")


DEEP = {
    "braces": "{" * 2000,
    "many braces": "{" * 200_000,
    "brackets": "a: " + "[" * 2000 + "]" * 2000,
    "dashes": "- " * 2000 + "a",
    "blocks": "\n".join(" " * i + "a:" for i in range(2000)),
    "complex keys": "? " * 2000,
    "mappings of mappings": "{a: " * 2000 + "1" + "}" * 2000,
}


@pytest.mark.parametrize("text", DEEP.values(), ids=DEEP)
def test_deep_nesting_is_one_plain_error(text: str) -> None:
    def refused() -> None:
        with pytest.raises(RecipeError, match="nested more than 64 deep"):
            read_yaml(text)

    calls(refused, 60_000)


def test_a_study_may_be_as_deep_as_any_real_one() -> None:
    value: Any = read_yaml("{a: " * 60 + "1" + "}" * 60)
    for _ in range(60):
        value = value["a"]
    assert value == 1


ALIASES = {
    "itself": "a: &a [*a]",
    "itself as a mapping": "&a a: &b {c: *b}",
    "a billion": "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40)),
}


@pytest.mark.parametrize("text", ALIASES.values(), ids=ALIASES)
def test_aliases_that_multiply_are_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="aliases"):
        read_yaml(text)


def test_plain_aliases_are_read() -> None:
    assert read_yaml("a: &a {b: 1}\nc: [*a, *a]") == {"a": {"b": 1}, "c": [{"b": 1}, {"b": 1}]}


BAD = [
    "a: 2020-99-99",
    "a: !!int x",
    "a: !!float x",
    "a: !!bool x",
    "a: !!timestamp x",
    "a: !!binary x",
    "a: " + "9" * 5000,
    "!!map 3",
    "!!set 3",
    "a: !!omap [x]",
    "a: !!pairs 3",
    "a: !!python/object:os.system x",
    "a: *b",
    "<<: 3",
    "a: \x00",
    "\ud800",
    "? [a]\n: b",
    "%YAML 9.9\n---\na: 1",
    "3",
    "",
    "- a",
]


@pytest.mark.parametrize("text", BAD)
def test_what_yaml_cannot_read_is_a_recipe_error(text: str) -> None:
    with pytest.raises(RecipeError):
        read_yaml(text)


# the characters and words of YAML's own grammar, so that many texts get past its scanner
PIECES = [*"{}[]:,-?&*!|>'\"#%@`\n \tab1", "a: ", "- ", "&a ", "*a", "!!int ", "!!set ", "<<", "---\n", "...\n", "~"]


@settings(max_examples=300)
@given(st.lists(st.sampled_from(PIECES), max_size=30).map("".join) | st.text(max_size=30))
def test_any_text_is_a_mapping_or_a_recipe_error(text: str) -> None:
    with contextlib.suppress(RecipeError):
        assert isinstance(read_yaml(text), dict)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, "[" * 65 + "]" * 65, "9" * 9999, "nan", "", b"\xff"]
)
def test_json_that_cannot_be_used_is_a_value_error(text: str | bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - whatever json says
        read_json(text)


@pytest.mark.parametrize("text", ['{"a": "\\ud800"}', '"\\uDFff"', '{"\\ud83d": 1}', '"\ud800"'])
def test_half_a_character_in_json_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match="surrogates"):
        read_json(text)
    assert read_json('"\\ud83c\\udf88"') == "\N{BALLOON}"


@pytest.mark.parametrize("text", ["NaN", '{"a": [Infinity]}', "-Infinity"])
def test_what_is_no_number_is_refused_on_request(text: str) -> None:
    with pytest.raises(ValueError, match="not a number"):
        read_json(text, finite=True)
    read_json(text)


def test_json_is_read() -> None:
    assert read_json('{"a": [1, 2.5, null, "x"]}') == {"a": [1, 2.5, None, "x"]}
    assert read_json("[" * 64 + "]" * 64)


def test_files_of_others_are_read_by_the_strict_reader_alone() -> None:
    loose = [
        f"{path.relative_to(SOURCE)}: {line.strip()}"
        for layer in ("take", "study", "catalog", "analysis", "edit", "spec", "doors")
        for path in sorted((SOURCE / layer).rglob("*.py"))
        if path.name not in ("strict_json.py", "strict_yaml.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.search(r"json\.loads?\(|yaml\.(safe_)?load\(", line)
    ]
    assert loose == [
        "analysis/report.py: (metric, json.loads(metric.figure(analysis.table.of(metric.name)).to_json()))"
    ]
