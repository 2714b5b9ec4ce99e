"""Strengths against the formulas of the shapes, in numpy where the earlier nodes used it."""

from __future__ import annotations

import random
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wanscope.edit.blocks import Blocks, parse_blocks
from wanscope.edit.strengths import SHAPES, Strengths, check_strengths, parse_bars, parse_strengths, strength_shape
from wanscope.errors import RecipeError

counts = st.integers(1, 60)
i40 = np.arange(40)
gauss = np.exp(-((i40 - 20) ** 2) / (2 * 5.0**2))
ON_40 = {
    "uniform": np.ones(40),
    "linear_decay": np.linspace(1, 0, 40),
    "linear_rise": np.linspace(0, 1, 40),
    "gaussian_peak": gauss,
    "inverse_gaussian": 1 - gauss,
    "sine_wave": 0.5 + 0.5 * np.sin(2 * np.pi * i40 / 40),
    "stepped": np.where(i40 // 5 % 2 == 0, 1.0, 0.0),
    "focus_early": np.where(i40 < 10, 1.0, 0.1),
    "focus_mid": np.where((i40 >= 10) & (i40 < 30), 1.0, 0.1),
    "focus_late": np.where(i40 >= 30, 1.0, 0.1),
}


@pytest.mark.parametrize("name", ON_40)
def test_on_40_blocks_shapes_equal_those_of_the_earlier_nodes(name):
    np.testing.assert_allclose(parse_strengths(f"{name}(0.5)", 40).values, 0.5 * ON_40[name], atol=1e-15)
    np.testing.assert_allclose(parse_strengths({"shape": name, "base": 0.8}, 40).values, 0.8 * ON_40[name], atol=1e-15)


def test_every_shape_is_tested_above_or_below():
    assert set(SHAPES) == {*ON_40, "random"}


def test_shapes_on_30_blocks():
    i = np.arange(30)
    np.testing.assert_allclose(
        parse_strengths("gaussian_peak", 30).values, np.exp(-((i - 15) ** 2) / (2 * 3.75**2)), atol=1e-15
    )
    assert parse_strengths("focus_mid(1, rest=0)", 30).blocks.ranges == "7-22"
    assert parse_strengths("stepped", 30).blocks.ranges == "0-2,6-8,12-14,18-20,24-26"
    np.testing.assert_allclose(
        parse_strengths("sine_wave(cycles=2)", 30).values, 0.5 + 0.5 * np.sin(4 * np.pi * i / 30), atol=1e-15
    )


def test_random_is_reproducible_and_depends_on_its_seed():
    draw = random.Random(7)
    expected = [0.5 * draw.random() for _ in range(40)]
    assert list(parse_strengths({"shape": "random", "seed": 7, "base": 0.5}, 40).values) == expected
    assert parse_strengths("random(0.5, seed=7)", 40).values == tuple(expected)
    assert parse_strengths("random(seed=8)", 40) != parse_strengths("random(seed=7)", 40)
    big = 2**62 + 1  # not a float
    assert parse_strengths({"shape": "random", "seed": big}, 2).values[0] == random.Random(big).random()


@settings(deadline=None)
@given(counts, st.sampled_from(sorted(SHAPES)), st.floats(0, 1))
def test_every_shape_works_on_every_depth_and_stays_within_its_base(count, name, base):
    values = parse_strengths({"shape": name, "base": base}, count).values
    assert len(values) == count
    assert all(0 <= value <= base for value in values)


@settings(deadline=None)
@given(counts, st.sampled_from(sorted(SHAPES)), st.floats(0.01, 1))
def test_a_shape_is_recognized(count, name, base):
    found = parse_strengths({"shape": name, "base": base}, count).name
    if count >= 20:
        assert found == name
    else:  # on few blocks shapes may coincide
        assert found is None or parse_strengths({"shape": found}, count).blocks is not None


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=50))
def test_numbers_per_block_and_their_bars_read_back(values):
    strengths = parse_strengths(values, len(values))
    assert strengths.values == tuple(values)
    assert parse_bars(strengths.bars(digits=None)) == strengths
    np.testing.assert_allclose(parse_bars(strengths.bars()).values, values, atol=5.01e-4)
    assert parse_strengths(strengths, len(values)) == strengths


def test_bars():
    assert parse_strengths({"0": 0.5, "2": 1, "3": 0.26}, 4).bars(width=4) == (
        "0 ██░░ 0.500\n1 ░░░░ 0.000\n2 ████ 1.000\n3 █░░░ 0.260"
    )
    # if one is above 1, bars are relative to the largest
    assert Strengths((-2.0, 1.0)).bars(width=4, digits=0) == "0 ████ -2\n1 ██░░ 1"
    for text in ("", "0 ██ a", "1 ██ 0.5", "0 ██ 0.5\n2 ██ 0.5", "hello"):
        with pytest.raises(RecipeError):
            parse_bars(text)


def test_a_mapping_gives_numbers_to_blocks_and_zero_elsewhere():
    values = parse_strengths({"early": 0.2, "10-11": 0.8, 39: 1}, 40).values
    assert values == (0.2,) * 10 + (0.8,) * 2 + (0.0,) * 27 + (1.0,)
    assert parse_strengths({"shape": "custom", "base": 0.5, "values": {"all": 0.5}}, 3).values == (0.25,) * 3
    assert parse_strengths({"shape": "custom", "values": [0.1, 0.2]}, 2).values == (0.1, 0.2)


def test_uniform_strength_keeps_every_bit():
    assert parse_strengths(0.4, 3).values == (0.4,) * 3
    assert parse_strengths("0.4", 3).values == (0.4,) * 3
    assert parse_strengths("uniform(0.4)", 3).values == (0.4,) * 3


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=40))
def test_within_blocks_strengths_are_kept_and_zero_elsewhere(pairs):
    strengths, mask = Strengths(tuple(v for v, _ in pairs)), tuple(b for _, b in pairs)
    inside = strengths.within(Blocks(mask))
    assert inside.values == tuple(v if b else 0.0 for v, b in pairs)
    assert inside.blocks.mask == tuple(bool(v) and b for v, b in pairs)


def test_descriptions():
    late = parse_blocks("late", 40)
    assert parse_strengths(0.4, 40).within(late).describe() == "0.4 in late: 30-39 (10 of 40 blocks)"
    assert "selects none" in parse_strengths(0, 40).describe()
    assert (
        parse_strengths("gaussian_peak(0.8)", 40).describe().startswith("gaussian_peak, at most 0.8 in block 20; all")
    )


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("a lot", "neither a number nor a shape"),
        ("lots", "no shape has that name"),
        ("linear_deca", "did you mean 'linear_decay'?"),
        ({"shape": "gausian_peak"}, "did you mean 'gaussian_peak'?"),
        ({"shape": "gaussian_peak", "spred": 3}, "did you mean 'spread'?"),
        ("uniform(0.5, peak=3)", "has no parameter 'peak'"),
        ("gaussian_peak(0.5, 20)", "has '20' without a name"),
        ("gaussian_peak(0.5, peak=1, peak=2)", "gives 'peak' twice"),
        ("gaussian_peak(0.5, peak=)", "empty argument"),
        ("gaussian_peak(peak=40)", "numbered from 0 to 39"),
        ("gaussian_peak(spread=0)", "above 0"),
        ("stepped(size=0)", "at least 1"),
        ("random(seed=0.5)", "whole number"),
        (1.5, "strength 1.5 is out of range: it must be from 0 to 1"),
        (-0.1, "Try: strength: 0"),
        ([0.5] * 39, "this model has 40 blocks"),
        ([0.5] * 39 + [2], "strength 2 in block 39 is out of range"),
        ([0.5] * 39 + ["x"], "the strength of block 39 is 'x'"),
        ({"early": 0.1, "9-12": 0.2}, "block 9 is given two strengths"),
        ({"50": 0.1}, "there is no block 50"),
        (float("nan"), "finite number"),
        ("inf", "finite number"),
        (True, "finite number"),
        (None, "finite number"),
        ({"shape": "custom"}, "has no values"),
        (Strengths((0.5,)), "this model has 40 blocks"),
    ],
)
def test_invalid_values_are_refused(value, says):
    with pytest.raises(RecipeError, match=re.escape(says)):
        parse_strengths(value, 40)


@pytest.mark.parametrize(
    "value", ["a lot", "linear_deca", 1.5, "uniform(2)", {"erly": 0.1}, {"early": 3}, [0.1, 7], {"shape": "x"}, None]
)
def test_many_errors_are_found_before_the_model_is_known(value):
    with pytest.raises(RecipeError):
        check_strengths(value)


@pytest.mark.parametrize("value", [0.4, "linear_rise(0.3)", {"30-39": 1}, [0.1] * 7, "gaussian_peak(peak=39)"])
def test_values_that_depend_on_the_model_are_accepted_before_it_is_known(value):
    check_strengths(value)


def test_custom_values_are_checked_with_their_base():
    check_strengths({"shape": "custom", "base": 0.5, "values": [2.0]})
    with pytest.raises(RecipeError, match="out of range"):
        check_strengths({"shape": "custom", "values": {"all": 2.0}})


def test_bounds_can_be_opened():
    assert parse_strengths(-3, 2, low=None, high=None).values == (-3.0, -3.0)
    with pytest.raises(RecipeError, match="at most 1"):
        parse_strengths(3, 2, low=None)
    with pytest.raises(RecipeError, match="at least 0"):
        parse_strengths(-3, 2, high=None)


def test_a_further_shape_is_one_function():
    try:

        @strength_shape
        def ends_only(count, *, width=1):
            return [1.0 if min(i, count - 1 - i) < width else 0.0 for i in range(count)]

        assert parse_strengths("ends_only(0.5, width=2)", 6).values == (0.5, 0.5, 0, 0, 0.5, 0.5)
        with pytest.raises(TypeError, match="no default"):
            strength_shape(lambda count, needed: [])
    finally:
        SHAPES.pop("ends_only", None)
