"""Blocks: what every notation selects at any depth, and that everything else is refused."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wanscope.edit.blocks import ALIASES, PRESETS, Blocks, check_blocks, parse_blocks, preset_table
from wanscope.errors import RecipeError

counts = st.integers(1, 130)
masks = st.lists(st.booleans(), min_size=1, max_size=130).map(tuple)


# the presets of the earlier nodes on 40 blocks, written out
SEEDS = {
    "all": "1" * 40,
    "none": "0" * 40,
    "first_half": "1" * 20 + "0" * 20,
    "second_half": "0" * 20 + "1" * 20,
    "early_blocks": "1" * 10 + "0" * 30,
    "mid_blocks": "0" * 10 + "1" * 20 + "0" * 10,
    "late_blocks": "0" * 30 + "1" * 10,
    "alternating": "10" * 20,
    "sparse": "1000" * 10,
}


@pytest.mark.parametrize("name", SEEDS)
def test_on_40_blocks_presets_equal_those_of_the_earlier_nodes(name):
    assert parse_blocks(name, 40).bits == SEEDS[name]
    assert parse_blocks(name.removesuffix("_blocks"), 40).bits == SEEDS[name]


def test_on_30_blocks_presets_are_7_16_7():
    assert parse_blocks("early", 30).ranges == "0-6"
    assert parse_blocks("mid", 30).ranges == "7-22"
    assert parse_blocks("late", 30).ranges == "23-29"
    assert parse_blocks("first_half", 30).ranges == "0-14"


@settings(deadline=None)
@given(counts)
def test_early_mid_late_and_the_halves_divide_every_depth(count):
    table = {name: set(blocks.indices) for name, blocks in preset_table(count).items()}
    for parts in (("early", "mid", "late"), ("first_half", "second_half"), ("all", "none")):
        assert sum(len(table[part]) for part in parts) == count
        assert set().union(*(table[part] for part in parts)) == set(range(count))
    assert len(table["early"]) == len(table["late"]) == count // 4
    assert all(a < b for a in table["early"] for b in table["mid"] | table["late"])
    assert all(a < b for a in table["mid"] for b in table["late"])


@settings(deadline=None)
@given(masks)
def test_every_notation_reads_back_as_written(mask):
    blocks = Blocks(mask)
    for written in (blocks.bits, blocks.picture, blocks.ranges, str(blocks), list(blocks.indices), blocks):
        assert parse_blocks(written, len(mask)) == blocks
        check_blocks(written)


@settings(deadline=None)
@given(counts, st.sampled_from([*PRESETS, *ALIASES]))
def test_a_known_pattern_is_recognized(count, name):
    blocks = parse_blocks(name, count)
    assert blocks.name is not None
    assert parse_blocks(blocks.name, count) == blocks
    if count >= 20:
        assert blocks.name == ALIASES.get(name, name)


def test_an_unknown_pattern_has_no_name():
    blocks = parse_blocks("0-9,20", 40)
    assert blocks.name is None
    assert blocks.describe() == "0-9,20 (11 of 40 blocks)"
    assert blocks.picture == "█" * 10 + "░" * 10 + "█" + "░" * 19


@pytest.mark.parametrize(
    ("value", "indices"),
    [
        (3, [3]),
        ("3", [3]),
        ("10", [10]),
        ("11", [11]),
        ([7, 3, 3], [3, 7]),
        (range(2, 5), [2, 3, 4]),
        (" 0 - 2 , 5 ", [0, 1, 2, 5]),
        ("0-3,2-5", [0, 1, 2, 3, 4, 5]),
        ("Early-Blocks, 39", [*range(10), 39]),
        ("0" * 40, []),
        ("1" * 40, list(range(40))),
        ("", None),
        ([], []),
    ],
)
def test_notations(value, indices):
    if indices is None:
        with pytest.raises(RecipeError):
            parse_blocks(value, 40)
        return
    assert parse_blocks(value, 40).indices == tuple(indices)


def test_selecting_nothing_is_allowed_and_described():
    for value in ("none", [], "0" * 40, "░" * 40):
        blocks = parse_blocks(value, 40)
        assert not blocks.chosen
        assert "none of the 40 blocks" in blocks.describe()
    # a quarter of three blocks is none
    assert parse_blocks("early", 3).describe().startswith("none: selects none of the 3 blocks")


@pytest.mark.parametrize(
    ("value", "count", "says"),
    [
        ("laet", 40, "did you mean 'late'?"),
        ("early_bloks", 40, "did you mean 'early_blocks'?"),
        ("10" * 20, 30, "this model has 30 blocks, so a pattern needs 30"),
        ("█░" * 20, 30, "has 40 characters"),
        ("101", 40, "so a pattern needs 40"),
        ("111", 40, "so a pattern needs 40"),
        # all ones and all zeros are ordinary patterns: their length shows that another model was meant
        ("1" * 40, 30, "has 40 characters: this model has 30 blocks, so a pattern needs 30.\nTry: blocks: all"),
        ("0" * 30, 40, "has 30 characters: this model has 40 blocks, so a pattern needs 40.\nTry: blocks: none"),
        (
            "████",
            40,
            "has 4 characters: this model has 40 blocks, so a pattern needs 40; for the same block numbers, write "
            "blocks: 0-3.\nTry: blocks: all",
        ),
        ("1111", 40, "has 4 characters"),
        # the fix is the preset that the pattern equals, if this model has it
        ("0" * 30 + "1" * 10, 30, "Try: blocks: late"),
        ("1101" + "0" * 36, 30, "Try: blocks: 0-1,3"),
        ("0" * 38 + "10", 30, "Try: blocks: late"),
        ("0-40", 40, "numbered from 0 to 39"),
        (40, 40, "there is no block 40"),
        ([0, 40], 40, "there is no block 40"),
        (-1, 40, "there is no block -1"),
        (1111000, 40, "in quotes"),
        ("9-0", 40, "Try: blocks: 0-9"),
        ("0-9,,20", 40, "nothing is written before or after a comma"),
        ("007", 40, "no leading zeros"),
        ("9" * 5000, 40, "at most nine digits"),
        ("1" * 5000 + "0", 40, "so a pattern needs 40"),
        (True, 40, "does not name a block"),
        (None, 40, "does not name a block"),
        ([True, False], 40, "numbers per block are a strength"),
        ([0.5, 1.0], 40, "numbers per block are a strength"),
        (0.5, 40, "it should be a name"),
        ({"a": 1}, 40, "it should be a name"),
        ("0–9", 40, "not a preset"),
        ("٣", 40, "not a preset"),
    ],
)
def test_invalid_values_are_refused(value, count, says):
    with pytest.raises(RecipeError, match=re.escape(says)):
        parse_blocks(value, count)


@pytest.mark.parametrize("value", ["laet", "9-0", [0.5], True, None, -1, "1,,2", "007"])
def test_many_errors_are_found_before_the_model_is_known(value):
    with pytest.raises(RecipeError):
        check_blocks(value)


@pytest.mark.parametrize("value", ["late", "0-999", "10" * 20, "███░", [99], 7, "mid,55"])
def test_values_that_depend_on_the_model_are_accepted_before_it_is_known(value):
    check_blocks(value)


@pytest.mark.parametrize("count", [0, -1, True, 2.0])
def test_a_model_has_blocks(count):
    with pytest.raises(RecipeError):
        parse_blocks("all", count)


@settings(deadline=None)
@given(st.text(max_size=12) | st.text("01,- █░", max_size=12), counts)
def test_any_text_is_read_or_refused(text, count):
    try:
        blocks = parse_blocks(text, count)
    except RecipeError:
        return
    assert blocks.count == count


def test_no_torch_is_imported():
    code = "import sys, wanscope.edit; sys.exit('torch' in sys.modules or 'pydantic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("wrong", ["lat", "3 5", "3,,5", [0.5]], ids=str)
def test_the_fix_in_an_error_works_on_a_model_with_ten_blocks(wrong):
    with pytest.raises(RecipeError) as caught:
        parse_blocks(wrong, 10)
    for fix in caught.value.fix.split(" or "):
        name, _, offered = fix.partition(": ")
        assert name == "strength" or parse_blocks([0, 1, 6] if offered == "[0, 1, 6]" else offered, 10).chosen
