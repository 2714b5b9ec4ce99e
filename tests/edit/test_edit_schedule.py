"""Schedules against closed forms, over steps and over sigma."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wanscope.edit.schedule import CONSTANT, Schedule, parse_schedule
from wanscope.errors import RecipeError

SIGMAS = [1.0, 0.9, 0.75, 0.5, 0.2]  # five steps


def values(text, sigmas=SIGMAS):
    return list(parse_schedule(text).values(sigmas))


def test_constant():
    assert values(None) == values(1) == values("constant") == [1.0] * 5
    assert (
        values(0.5)
        == values("0.5")
        == values("constant(0.5)")
        == values({"kind": "constant", "value": 0.5})
        == [0.5] * 5
    )
    assert parse_schedule(None) == CONSTANT
    assert CONSTANT.is_constant and not parse_schedule("linear").is_constant


def test_linear_and_cosine_run_from_the_first_step_to_the_last():
    assert values("linear") == [1.0, 0.75, 0.5, 0.25, 0.0]
    np.testing.assert_allclose(values("linear(0.2, 1)"), np.linspace(0.2, 1, 5))
    share = np.arange(5) / 4
    np.testing.assert_allclose(values("cosine"), (1 + np.cos(np.pi * share)) / 2, atol=1e-15)
    np.testing.assert_allclose(values({"kind": "cosine", "start": 0, "end": 2}), 1 - np.cos(np.pi * share), atol=1e-15)


def test_linear_between_given_steps_is_constant_outside():
    assert values({"kind": "linear", "first": 1, "last": 3}) == [1.0, 1.0, 0.5, 0.0, 0.0]
    assert values("linear(1, 0, 1, 3)") == [1.0, 1.0, 0.5, 0.0, 0.0]
    assert values({"kind": "linear", "first": 2}) == [1.0, 1.0, 1.0, 0.5, 0.0]
    assert values({"kind": "linear", "last": 2}) == [1.0, 0.5, 0.0, 0.0, 0.0]


def test_over_sigma():
    np.testing.assert_allclose(values("linear(over=sigma)"), SIGMAS)
    np.testing.assert_allclose(values("linear(0, 1, over=sigma)"), 1 - np.array(SIGMAS))
    np.testing.assert_allclose(
        values({"kind": "linear", "over": "sigma", "first": 0.9, "last": 0.5}), [1, 1, 0.625, 0, 0]
    )
    assert values("step(0.75, over=sigma)") == [1.0, 1.0, 0.0, 0.0, 0.0]
    keys = {0.5: 0.0, 1.0: 1.0, 0.2: 3.0, "over": "sigma"}
    np.testing.assert_allclose(values(keys), np.interp(SIGMAS, [0.2, 0.5, 1.0], [3, 0, 1]))


def test_step():
    assert values("step(2)") == [1.0, 1.0, 0.0, 0.0, 0.0]
    assert values("step(2, 0, 1)") == [0.0, 0.0, 1.0, 1.0, 1.0]
    assert values("step(0)") == [0.0] * 5
    assert values("step(5)") == [1.0] * 5


def test_keyframes():
    np.testing.assert_allclose(values({0: 1.0, 4: 0.2}), np.interp(range(5), [0, 4], [1, 0.2]))
    np.testing.assert_allclose(values({3: 0.5, 1: 1.0}), np.interp(range(5), [1, 3], [1, 0.5]))
    assert values({0: 1.0, 2: 0.2, "interpolate": "step"}) == [1, 1, 0.2, 0.2, 0.2]
    eased = values("0:0, 4:1, interpolate:cosine")
    np.testing.assert_allclose(eased, [(1 - math.cos(math.pi * i / 4)) / 2 for i in range(5)], atol=1e-15)
    assert values("{1: 0.5}") == [0.5] * 5
    # a window: only steps 1 and 2
    assert values({0: 0, 1: 1, 3: 0, "interpolate": "step"}) == [0, 1, 1, 0, 0]


def test_a_run_of_one_step():
    assert values("linear", [1.0]) == [1.0]
    assert values("cosine(0.3, 1)", [1.0]) == [0.3]
    assert values("step(1)", [1.0]) == [1.0]


def test_evaluations_within_a_step_follow_their_own_sigma():
    schedule = parse_schedule("linear(over=sigma)")
    assert schedule.at(3, 20, 0.4) == pytest.approx(0.4)
    assert parse_schedule("linear").at(3, 20, 0.4) == pytest.approx(1 - 3 / 19)
    with pytest.raises(ValueError, match="step 20 of 20"):
        schedule.at(20, 20, 0.4)


schedules = st.one_of(
    st.floats(-2, 2).map(str),
    st.tuples(st.sampled_from(["linear", "cosine"]), st.floats(0, 2), st.floats(0, 2)).map(
        lambda t: {"kind": t[0], "start": t[1], "end": t[2]}
    ),
    st.dictionaries(st.integers(0, 30).map(str), st.floats(0, 2), min_size=1, max_size=6),
    st.dictionaries(st.floats(0, 1), st.floats(0, 2), min_size=1, max_size=6).map(lambda d: {**d, "over": "sigma"}),
    st.integers(0, 30).map(lambda at: f"step({at})"),
)


@settings(deadline=None)
@given(schedules, st.integers(0, 29), st.floats(0, 1))
def test_plain_data_reads_back_and_values_stay_between_the_keys(value, step, sigma):
    schedule = parse_schedule(value)
    again = parse_schedule(json.loads(json.dumps(schedule.as_data())))
    assert again == schedule
    keyed = [v for _, v in schedule.keys]
    assert min(keyed) - 1e-12 <= schedule.at(step, 30, sigma) <= max(keyed) + 1e-12
    assert schedule.describe()


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("linaer", "did you mean 'linear'?"),
        ("sometimes", "known: "),
        ({"kind": "xyz"}, "known: "),
        ({"kind": "linear", "strat": 1}, "did you mean 'start'?"),
        ("linear(1, 0, over=steps, over=sigma)", "gives 'over' twice"),
        ("linear(1, x)", "finite number"),
        ("step", "has no place"),
        ("step(1.5)", "whole numbers"),
        ("step(-1)", "whole numbers"),
        ("step(2, over=sigma)", "sigma is from 1 (noise) to 0"),
        ("step(2, over=time)", "over is 'time'"),
        ({"kind": "linear", "first": 5, "last": 2}, "its end is before its beginning"),
        ({"kind": "linear", "over": "sigma", "first": 0.2, "last": 0.8}, "sigma falls along a run"),
        ({}, "at least one place"),
        ({"a": 1}, "the place of a keyframe is 'a'"),
        ({0: "a"}, "finite number"),
        ({0: 1, "interpolate": "spline"}, "interpolate is 'spline'"),
        ("0:1, 0:2", "the same place"),
        ({0: 1, "0.0": 3}, "the same place"),
        ({0: 1, "0": 2}, "the same place"),
        ("0:1, 3", "each is place:value"),
        ({"keys": [[0, 1], [None, 2], [3, 1]]}, "only the first and the last"),
        ({"keys": [0, 1]}, "a list of pairs"),
        (float("inf"), "finite number"),
        (True, "finite number"),
        ([1, 0], "finite number"),
    ],
)
def test_invalid_values_are_refused(value, says):
    with pytest.raises(RecipeError, match=re.escape(says)):
        parse_schedule(value)


@pytest.mark.parametrize("value", ["step(6)", {0: 1, 10: 0}, {"kind": "linear", "first": 9}])
def test_steps_beyond_the_run_are_refused(value):
    with pytest.raises(RecipeError, match="the run has 5 steps, 0 to 4"):
        parse_schedule(value).values(SIGMAS)


@settings(deadline=None)
@given(st.text(max_size=15) | st.text("lineracostp(),=:0123.{} ", max_size=15))
def test_any_text_is_read_or_refused(text):
    try:
        assert isinstance(parse_schedule(text), Schedule)
    except RecipeError:
        return


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "1"),
        (0.5, "0.5"),
        ("linear", "linear"),
        ("cosine(0.2, 1)", "cosine(0.2, 1)"),
        ("linear(1, 0, last=5)", "linear(1, 0, last=5)"),
        ("linear(1, 0, over=sigma)", "linear(1, 0, over=sigma)"),
        ("linear(1, 0, 5, 15)", "5:1, 15:0"),
        ("step(10)", "step(10)"),
        ("step(0.5, 0, 1, over=sigma)", "step(0.5, 0, 1, over=sigma)"),
        ({0: 1, 10: 0.2, "interpolate": "cosine"}, "0:1, 10:0.2, interpolate:cosine"),
        ({"first": 1, 3: 0.5, "last": 0}, "first:1, 3:0.5, last:0"),
        ({1.0: 1.0, 0.6: 0.2, "over": "sigma"}, "1:1, 0.6:0.2, over:sigma"),
    ],
)
def test_a_schedule_is_written_in_one_line_that_reads_back(value, text):
    schedule, sigmas = parse_schedule(value), [1 - i / 20 for i in range(20)]
    assert schedule.text == text
    assert parse_schedule(text).values(sigmas) == schedule.values(sigmas)
    assert parse_schedule(schedule.as_data()).text == text
