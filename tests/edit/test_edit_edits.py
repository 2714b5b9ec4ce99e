"""Declared edits: their canonical form, what is refused, and which models they fit."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from pydantic import ValidationError

import wanscope as ws
from helpers.edits import ADAPTER, EACH, edits
from wanscope.edit.edits import KINDS, Bend, Donor, Inject, Prompts, Skip, Steer
from wanscope.edit.kinds.bend import BENDS
from wanscope.edit.strengths import Strengths, parse_strengths
from wanscope.errors import RecipeError


def read(**data: Any) -> Any:
    return ADAPTER.validate_python(data)


def test_the_public_names_are_the_edits() -> None:
    assert [getattr(ws, kind.__name__) for kind in KINDS.values()] == list(KINDS.values())
    assert ws.Inject("x", blocks="late") == Inject(donor=Donor(prompt="x"), blocks="late")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"blocks": [0, 1, 2, 9]}, {"blocks": "0-2,9"}),
        ({"blocks": "█░█"}, {"blocks": "101"}),
        ({"blocks": [10]}, {"blocks": "10-10"}),  # "10" alone is a bit string on a model with two blocks
        ({"blocks": []}, {"blocks": "none"}),
        ({"strength": "0.5"}, {"strength": 0.5}),
        (
            {"strength": {"shape": "gaussian_peak", "peak": 20, "base": 0.8}},
            {"strength": "gaussian_peak(0.8, peak=20)"},
        ),
        ({"strength": {"shape": "linear_decay"}}, {"strength": "linear_decay(1.0)"}),
        ({"strength": {"shape": "custom", "base": 0.5, "values": [1, 0.5]}}, {"strength": (0.5, 0.25)}),
        ({"strength": {10: 0.5, "late": 1}}, {"strength": {"10-10": 0.5, "late": 1.0}}),
        ({"schedule": {0: 1, "10": 0.2}}, {"schedule": "0:1, 10:0.2"}),
        ({"schedule": "linear(1, 0)"}, {"schedule": {"kind": "linear"}}),
        ({"schedule": 1}, {"schedule": None}),
        ({"schedule": "constant"}, {}),
        ({"donor": {"prompt": "x"}}, {}),
    ],
    ids=str,
)
def test_equivalent_declarations_are_the_same_edit(one: dict[str, Any], other: dict[str, Any]) -> None:
    a, b = (read(**{"kind": "inject", "donor": "x", **data}) for data in (one, other))
    assert a == b
    assert a.model_dump(mode="json", exclude_defaults=True) == b.model_dump(mode="json", exclude_defaults=True)


@settings(max_examples=200, deadline=None)
@given(edits)
def test_the_canonical_form_is_stable(edit: Any) -> None:
    data = edit.model_dump(mode="json", exclude_defaults=True)
    again = ADAPTER.validate_python(json.loads(json.dumps(data)))
    assert again == edit and again.model_dump(mode="json", exclude_defaults=True) == data
    assert data["kind"] == edit.kind  # otherwise two kinds could have the same id


def test_a_bare_on_in_yaml_is_the_key() -> None:
    assert ADAPTER.validate_python({"kind": "inject", "donor": "x", True: "hidden"}) == Inject("x", on="hidden")


SAID: list[tuple[dict[str, Any], str]] = [
    ({"donor": {}}, "exactly one of a prompt, an expression and an embedding"),
    ({"donor": {"prompt": "x", "embedding": "y"}}, "exactly one of"),
    ({"donor": {"prompt": "x", "names": {"a": "b"}}}, "names are only used with an expression"),
    ({"donor": {"expression": "a + ", "names": {"a": "b"}}}, "missing at the end"),
    ({"donor": {"expression": "a", "names": {"a": "b", "c": "d"}}}, "does not use 'c'"),
    ({"donor": {"expression": "a + gothic", "names": {"a": "b"}}}, "'gothic' is not bound"),
    ({"donor": {"expression": "a", "names": {"a": {"expression": "b", "names": {"b": "c"}}}}}, "can only refer to"),
    ({"strength": {"lat": 0.5}}, "did you mean 'late'"),
    ({"strength": {"3": 0.5, 3: 0.6}}, "name the same blocks"),
    ({"strength": 1.5}, "strength 1.5 is out of range: it must be from 0 to 1"),
    ({"strength": -0.1}, "from 0 to 1"),
    ({"strength": float("nan")}, "finite"),
    ({"difference": 60}, "less than or equal to 10"),
    ({"boost": 2, "on": "hidden"}, "boost multiplies a difference of contexts"),
    ({"keep_norm": True}, "keep_norm needs difference or boost"),
    ({"amplify": "orthogonalize"}, "needs a difference to reach"),
    ({"words": "red"}, "mode: tokens"),
    ({"words": ["red", ""], "mode": "tokens"}, "a word is empty"),
    ({"schedule": {3: 1, "3.0": 2}}, "name the same place"),
]


@pytest.mark.parametrize(("data", "says"), SAID, ids=[str(data) for data, _ in SAID])
def test_an_invalid_injection_is_refused(data: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        read(**{"kind": "inject", "donor": "x", **data})


def test_the_range_of_a_strength_depends_on_the_operation() -> None:
    assert Inject("x", strength=-3, operation="add", mode="tokens").strength == -3
    assert Steer("d.safetensors", strength=40).strength == 40
    for wrong in ({"operation": "ablate"}, {"operation": "rotate"}):
        with pytest.raises(ValidationError, match="out of range"):
            Steer("d.safetensors", strength=2, **wrong)


@pytest.mark.parametrize("operation", BENDS)
def test_a_bend_has_the_parameters_of_its_operation_and_no_others(operation: str) -> None:
    needed, allowed = BENDS[operation]
    good = {"factor": 2, "x": 0.1, "y": 0.1, "angle": 5, "axis": "x", "sigma": 1, "box": (0, 0, 0.5, 0.5)}
    mine = {name: good[name] for name in (*needed, *allowed)}
    assert not Bend("circle", operation, **mine).changes_nothing
    for name in good.keys() - mine.keys():
        with pytest.raises(ValidationError, match=f"{operation} has no {name}"):
            Bend("circle", operation, **mine, **{name: good[name]})
    for name in needed:
        with pytest.raises(ValidationError, match=f"{operation} needs {name}"):
            Bend("circle", operation, **{key: value for key, value in mine.items() if key != name})


@pytest.mark.parametrize(
    ("operation", "same"),
    [
        ("amplify", {"factor": 1}),
        ("suppress", {"factor": 1}),
        ("scale", {"factor": 1}),
        ("rotate", {"angle": 0}),
        ("rotate", {"angle": -360}),
        ("translate", {"x": 0}),
        ("blur", {"sigma": 0}),
        ("region", {"box": (0, 0, 1, 1)}),
    ],
)
def test_a_bend_at_its_identity_changes_nothing(operation: str, same: dict[str, Any]) -> None:
    assert Bend("circle", operation, **same).changes_nothing


def test_a_bend_needs_a_word_and_each_head_once() -> None:
    with pytest.raises(ValidationError, match="at least one word"):
        Bend([], "flip")
    with pytest.raises(ValidationError, match="a head is named twice"):
        Bend("circle", "flip", heads=(1, 1))


def test_strengths_are_those_of_the_chosen_blocks() -> None:
    edit = Inject("x", blocks="mid", strength="linear_rise(0.9)")
    expected = parse_strengths("linear_rise(0.9)", 10).values
    assert edit.strengths(10) == Strengths(tuple(v if 2 <= i < 8 else 0.0 for i, v in enumerate(expected)))
    assert Skip("0,3").strengths(4).values == (1, 0, 0, 1)
    assert Inject("x", strength=(0.1, 0.2)).strengths(2).values == (0.1, 0.2)


CANNOT: list[tuple[Any, str]] = [
    (Inject("x", blocks="8-12"), "there is no block 12: blocks are numbered from 0 to 9"),
    (Inject("x", blocks="110"), "the block pattern '110' has 3 characters: this model has 10 blocks"),
    (Inject("x", strength=(0.1, 0.2)), "2 strengths are given: this model has 10 blocks"),
    (Inject("x", strength={"12": 0.2}), "there is no block 12"),
    (Inject("x", strength={"early": 0.2, "0": 0.1}), "block 0 is given two strengths"),
    (Inject("x", strength="gaussian_peak(peak=20)"), "the peak is at block 20"),
    (Inject("x", schedule="step(30)"), "the schedule names step 30: the run has 20 steps"),
    (Inject(Donor(prompt="x", after_block=11), on="hidden"), "the donor is captured after block 11"),
    (Bend("x", "flip", heads=(4,)), "there is no head 4: heads are numbered from 0 to 3"),
    (Prompts({20: "x"}), "a prompt is given for step 20: the run has steps 0 to 19"),
    (Skip("20"), "there is no block 20"),
    (Steer("d.safetensors", blocks="10"), "there is no block 10"),
]


@pytest.mark.parametrize(("edit", "says"), CANNOT, ids=[says for _, says in CANNOT])
def test_blocks_and_heads_that_the_model_lacks_are_refused(edit: Any, says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        edit.check(blocks=10, steps=20, heads=4)


def test_edits_that_do_nothing_are_accepted() -> None:
    for edit in (Inject("x", blocks="none"), Inject("x", strength=0), Skip([])):
        edit.check(10, 20, 4)
        assert not any(edit.strengths(10).values)


def test_every_text_is_named() -> None:
    donor = {"expression": "a - b", "names": {"a": "one", "b": {"embedding": "f.safetensors"}}}
    assert Inject(donor, branch="both", donor_negative="two").texts() == {
        "one": "donor",
        "two": "donor's negative prompt",
    }
    assert Prompts({5: "x", 0: "y"}).texts() == {"y": "prompt at step 0", "x": "prompt at step 5"}
    assert [edit.texts() for edit in EACH[1:4]] == [{}, {}, {}]
