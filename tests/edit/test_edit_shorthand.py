"""Edits in one line: their meaning, that writing and reading agree for any edit, and errors for wrong lines."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.edits import ADAPTER, EACH, edits
from wanscope.edit.edits import Bend, Inject, Prompts, Skip, Steer
from wanscope.edit.shorthand import EXAMPLES, edit_from, parse, shorthand
from wanscope.errors import EditError, RecipeError, RequestError

MEANT: list[tuple[str, Any]] = [
    (
        "inject 'a green square moves left' into late at 0.4",
        Inject("a green square moves left", blocks="late", strength=0.4),
    ),
    ("bend circle translate x=0.25 in 4-9", Bend("circle", "translate", x=0.25, blocks="4-9")),
    ("skip 3", Skip(3)),
    ("  INJECT 'x'  ", Inject("x")),
    ('inject "it\'s" in 0-9, 20', Inject("it's", blocks="0-9, 20")),
    (r"inject 'it\'s a \"b\" \\' ", Inject('it\'s a "b" \\')),
    ("inject 'x' at linear_decay(0.8)", Inject("x", strength="linear_decay(0.8)")),
    ("inject 'x' at {early: 0.2, late: 0.8}", Inject("x", strength={"early": 0.2, "late": 0.8})),
    ("inject 'x' at [0.1, 0.2]", Inject("x", strength=[0.1, 0.2])),
    ("inject 'x' during linear(1, 0)", Inject("x", schedule="linear")),
    ("inject 'x' during 0:1, 10:0.2 into mid", Inject("x", schedule={0: 1, 10: 0.2}, blocks="mid")),
    ("inject 'x' during {0: 1, 10: 0.2}", Inject("x", schedule={0: 1, 10: 0.2})),
    ("inject 'x' on hidden after 5", Inject({"prompt": "x", "after_block": 5}, on="hidden")),
    ("inject 'x' branch=both donor_negative='in y'", Inject("x", branch="both", donor_negative="in y")),
    ("inject 'x' mode=tokens operation=add words=[red, 'blue ball']", None),
    ("inject hall.safetensors", Inject({"embedding": "hall.safetensors"})),
    ("inject file('my hall') in 2", Inject({"embedding": "my hall"}, blocks=2)),
    (
        "inject 'a + 0.5*b' where a='a beach', b=hall.safetensors mode=append",
        Inject(
            {"expression": "a + 0.5*b", "names": {"a": "a beach", "b": {"embedding": "hall.safetensors"}}},
            mode="append",
        ),
    ),
    ("bend 'red circle', square amplify 2", Bend(["red circle", "square"], "amplify", factor=2)),
    ("bend red square amplify factor=2", Bend(["red", "square"], "amplify", factor=2)),
    ("bend circle rotate -30 heads=[0, 3]", Bend("circle", "rotate", angle=-30, heads=(0, 3))),
    ("bend circle region 0,0,0.5,1 renormalize=false", Bend("circle", "region", box=(0, 0, 0.5, 1), renormalize=False)),
    ("bend circle flip", Bend("circle", "flip")),
    ("bend circle flip y", Bend("circle", "flip", axis="y")),
    ("bend 'flip' blur 1.5 during step(5)", Bend("flip", "blur", sigma=1.5, schedule="step(5)")),
    ("steer color.safetensors ablate in mid", Steer("color.safetensors", operation="ablate", blocks="mid")),
    ("steer 'my color.safetensors' at -2.5", Steer("my color.safetensors", strength=-2.5)),
    ("skip early,20 attention", Skip("early,20", part="cross_attention")),
    ("skip 0-3, 7 during step(5) branch=both", Skip("0-3, 7", schedule="step(5)", branch="both")),
    ("prompts 0 'a', 10 'b' linear", Prompts({0: "a", 10: "b"}, interpolate="linear")),
    ("prompts 0:'a' 10:'b'", Prompts({0: "a", 10: "b"})),
]


@pytest.mark.parametrize(("line", "edit"), MEANT, ids=[line for line, _ in MEANT])
def test_a_line_means_an_edit(line: str, edit: Any) -> None:
    edit = edit or Inject("x", mode="tokens", operation="add", words=("red", "blue ball"))
    assert parse(line) == edit
    assert parse(shorthand(edit)) == edit


@pytest.mark.parametrize("edit", EACH, ids=lambda edit: edit.kind)
def test_json_is_taken_too(edit: Any) -> None:
    data = edit.model_dump(mode="json", exclude_defaults=True)
    assert parse(json.dumps(data)) == edit == edit_from(data) == edit_from(shorthand(edit))


def test_the_examples_are_written_as_they_are_read() -> None:
    for kind, line in EXAMPLES.items():
        assert parse(line).kind == kind and shorthand(parse(line)) == line


@settings(max_examples=300, deadline=None)
@given(edits)
def test_any_edit_is_written_so_that_it_reads_back(edit: Any) -> None:
    assert parse(shorthand(edit)) == edit
    data = edit.model_dump(mode="json", exclude_defaults=True)
    assert ADAPTER.validate_json(json.dumps(data)) == edit


WRONG = [
    ("", "the edit is empty"),
    ("injct 'x'", r"character 1: an edit begins with inject, bend.*did you mean 'inject'"),
    ("inject", "'donor' is missing"),
    ("inject a green square", r"character 8: a donor is a text in quotes"),
    ("inject 'x", r"character 8: this quote is never closed"),
    ("inject 'x' at {early: 0.2", r"character 15: this '{' is never closed"),
    ("inject 'x' int late", r"character 12: 'int' is not expected here .*did you mean 'into'"),
    ("inject 'x' into", r"character 16: something is missing after 'into'"),
    ("inject 'x' into lat", "blocks: 'lat' is not a preset.*did you mean 'late'"),
    ("inject 'x' at a lot", "strength is 'a lot': it is neither a number nor a shape"),
    ("inject 'x' at 2", "strength 2 is out of range: it must be from 0 to 1"),
    ("inject 'x' at 0.5 at 0.6", "strength is given twice"),
    ("inject 'x' mod=mix", r"inject has no 'mod'; did you mean 'mode'"),
    ("inject 'a + b' where a='x'", "'b' is not bound to an embedding"),
    ("inject x.safetensors where a='x'", "'where' follows an expression"),
    ("inject 'x' where", "'where' is followed by the names"),
    ("inject 'x' operation=add", "operation add needs mode: tokens or on: hidden"),
    ("inject 'x' mode=append on hidden", "mode append applies to the context"),
    ("inject 'x' mode=append on both operation=add at -1", "strength -1 is out of range: it must be from 0 to 1"),
    ("inject 'x' on both operation=add at 2", "strength 2 is out of range: it must be from 0 to 1"),
    ("inject 'x' donor_negative='y'", "branch: both"),
    ("inject 'x' during stp(3)", "did you mean 'step'"),
    ("bend", "the words to bend are missing"),
    ("bend circle", "the operation is missing after the words"),
    ("bend circle transalte x=1", "did you mean 'translate'"),
    ("bend circle translate", "translate needs x, y or both"),
    ("bend circle translate 0.3", r"translate takes x=... and y=..."),
    ("bend circle translate x=0.3 factor=2", "translate has no factor; it has x and y"),
    ("bend circle amplify", "amplify needs factor"),
    ("bend circle amplify 0.5", "the factor of amplify must be from 1 to"),
    ("bend circle rotate round", "angle is 'round': it should be a number"),
    ("bend circle region 0,0,2,1", "a box is"),
    ("skip", "'blocks' is missing"),
    ("skip 3 in 4", "blocks is given twice"),
    ("skip 3 nothing", "'3 nothing' is not a preset"),
    ("steer", "'direction' is missing"),
    ("prompts 'a'", "the first step and its prompt are missing"),
    ("prompts 0 a", "each step needs to be followed by its prompt in quotes"),
    ("prompts 0 'a' 0 'b'", "step 0 is given twice"),
    ("{kind: skp, blocks: 3}", "did you mean 'skip'"),
    ("{blocks: 3}", "its kind is one of"),
    ("{kind: skip, blocks: 3, blocks: 4}", "'blocks' is written twice"),
    ("{kind: skip", "cannot be read as YAML"),
]


@pytest.mark.parametrize(("line", "says"), WRONG, ids=[line or "(empty)" for line, _ in WRONG])
def test_a_wrong_line_is_refused_with_a_reason(line: str, says: str) -> None:
    with pytest.raises(RequestError, match=f"(?s){says}") as caught:
        parse(line)
    if isinstance(caught.value, EditError):
        assert str(caught.value).count("^") == 1


PIECES = [*"'\"{}[](),=: \\", "inject", "bend", "skip", "at", "into", "x", "3", "where", "scale"]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(PIECES)))
def test_any_text_is_an_edit_or_a_request_error(pieces: list[str]) -> None:
    for line in ("".join(pieces), " ".join(pieces), "inject " + " ".join(pieces), "bend x " + " ".join(pieces)):
        try:
            edit = parse(line)
        except RequestError:
            continue
        assert parse(shorthand(edit)) == edit


def test_edit_from_names_the_kinds() -> None:
    with pytest.raises(RecipeError, match="its kind is one of inject, bend, steer, skip, prompts"):
        edit_from({"donor": "x"})
