"""Sweeps over the fields of edits, and labels that distinguish lists of edits."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from wanscope.edit.edits import Bend, Inject, Skip
from wanscope.edit.sweep import BASELINE, edit_labels, sweep_values, swept_edits

SQUARE = Inject("a green square", blocks="late", strength=0.4)


def test_every_combination_comes_in_order_the_first_key_slowest() -> None:
    sweep = {"edits.0.blocks": ("early", "late"), "edits.1.factor": (2, 3.5)}
    found = swept_edits([SQUARE, Bend("circle", "amplify", factor=1)], sweep)
    expected = list(itertools.product(("early", "late"), (2, 3.5)))
    assert [(each.edits[0].blocks, each.edits[1].factor) for each in found] == expected
    assert found[1].values == {"edits.0.blocks": "early", "edits.1.factor": "3.5"}
    assert [each.label for each in found][:2] == ["early, factor 2", "early, factor 3.5"]
    assert all(each.edits[0].strength == 0.4 for each in found)


def test_without_a_sweep_there_are_the_edits_themselves_or_none() -> None:
    (only,) = swept_edits([SQUARE], {})
    assert (only.edits, only.values, only.label) == ((SQUARE,), {}, "")
    assert swept_edits([], {}) == []


def test_inner_fields_and_whole_values_are_swept() -> None:
    nested = Inject({"expression": "a + b", "names": {"a": "x", "b": "y"}})
    found = swept_edits(
        [nested], {"edits.0.donor.names.a": ("red", "blue"), "edits.0.schedule": ({0: 1, 5: 0}, "linear")}
    )
    assert [each.edits[0].donor.names["a"].prompt for each in found] == ["red", "red", "blue", "blue"]
    assert [each.edits[0].schedule for each in found][:2] == ["0:1, 5:0", "linear"]
    fields = swept_edits(
        [nested], {"edits.0.donor": ("red", {"prompt": "x", "after_block": 2}), "edits.0.on": ("hidden",)}
    )
    assert fields[1].edits[0].donor.after_block == 2
    captured = swept_edits([SQUARE], {"edits.0.donor.after_block": (1, 2), "edits.0.donor.prompt": ("x",)})
    assert [each.edits[0].donor.after_block for each in captured] == [1, 2]
    heads = swept_edits([Bend("x", "flip", heads=(0, 1))], {"edits.0.heads.1": (2, 3)})
    assert [each.edits[0].heads for each in heads] == [(0, 2), (0, 3)]


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"edits.2.blocks": (1,)}, "there is no edit 2; the edits are 0 to 1"),
    ({"edits.0.blcks": (1,)}, r"with edits\.0\.blcks = 1: 'blcks' is not a known key: did you mean 'blocks'"),
    (
        {"edits.0.blocks": (1, "lat")},
        r"with edits\.0\.blocks = lat: blocks: 'lat' is not a preset.*did you mean 'late'",
    ),
    ({"edits.0.blocks": (1, "1")}, "are the same edit"),
    ({"edits.0.blocks.x": (1,)}, "there is nothing below 'late'"),
    ({"edits.1.heads.5": (1,)}, "there is no item '5' in a list of 1"),
]


@pytest.mark.parametrize(("sweep", "says"), WRONG, ids=[str(sweep) for sweep, _ in WRONG])
def test_a_missing_field_or_value_is_refused(sweep: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        swept_edits([SQUARE, Bend("circle", "flip", heads=(0,))], sweep)


@pytest.mark.parametrize(
    ("sweep", "says"),
    [
        ([], "maps fields of edits to lists"),
        ({"steps": [1]}, "'steps' is not a field of an edit"),
        ({"edits.x.blocks": [1]}, "is not a field of an edit"),
        ({"edits.0": [1]}, "is not a field of an edit"),
        ({"edits.0.blocks": []}, "a list of values"),
        ({"edits.0.blocks": "late"}, "a list of values"),
        ({f"edits.{i}.blocks": list(range(100)) for i in range(3)}, "it makes 1,000,000 combinations"),
    ],
    ids=lambda x: str(x)[:40],
)
def test_a_sweep_is_lists_of_values(sweep: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        sweep_values(sweep)


def test_a_field_that_is_left_out_in_one_combination_is_named() -> None:
    found = swept_edits([SQUARE], {"edits.0.schedule": (None, "linear")})
    assert [each.label for each in found] == ["schedule null", "linear"]
    assert [each.edits[0].schedule for each in found] == [None, "linear"]


def test_labels_show_what_differs() -> None:
    weak, early = (SQUARE.model_copy(update=change) for change in ({"strength": 0.2}, {"blocks": "early"}))
    assert edit_labels([(), (SQUARE,)]) == [BASELINE, "inject 'a green square' into late at 0.4"]
    assert edit_labels([(), (SQUARE,), (weak,)]) == [BASELINE, "strength 0.4", "strength 0.2"]
    assert edit_labels([(early,), (), (weak,)]) == ["early, strength 0.4", BASELINE, "late, strength 0.2"]
    assert edit_labels([(SQUARE,), (Skip(3),), (Skip(3), SQUARE)]) == [
        "inject 'a green square' into late at 0.4",
        "skip 3",
        "skip 3; inject 'a green square' into late at 0.4",
    ]
    assert edit_labels([(), ()]) == [BASELINE, BASELINE]


def test_labels_of_different_edits_differ() -> None:
    lists = [(Skip(3),), (Skip(3, part="cross_attention"),), (Skip(4),), ()]
    assert len(set(edit_labels(lists))) == 4
