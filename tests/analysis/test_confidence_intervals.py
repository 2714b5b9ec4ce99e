"""Intervals of a mean against scipy's."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from wanscope.analysis import confidence_intervals


def test_t_interval_is_scipys() -> None:
    d = np.random.default_rng(4).normal(1, 2, 7)
    theirs = scipy.stats.ttest_1samp(d, 0).confidence_interval(0.95)
    mine = confidence_intervals.mean_interval(d)
    assert (mine.low, mine.high) == pytest.approx((theirs.low, theirs.high))
    assert mine.method == "t" and mine.coverage is None


def test_bca_interval_is_scipys_up_to_resampling() -> None:
    d = np.random.default_rng(6).gamma(1.5, 1, 20)
    theirs = scipy.stats.bootstrap((d,), np.mean, n_resamples=20_000, method="BCa", rng=1).confidence_interval
    low, high = confidence_intervals.bca_interval(d[:, None], resamples=20_000)
    width = theirs.high - theirs.low
    assert (low[0], high[0]) == pytest.approx((theirs.low, theirs.high), abs=0.02 * width)


def test_from_twelve_pairs_on_it_is_bca_with_its_simulated_coverage() -> None:
    found = confidence_intervals.mean_interval(np.random.default_rng(0).normal(size=12))
    assert found.method == "BCa"
    assert found.coverage is not None and 0.88 < found.coverage < 0.95
    assert confidence_intervals.mean_interval(np.random.default_rng(0).normal(size=11)).method == "t"


def test_missing_intervals_have_a_reason() -> None:
    assert "equal" in confidence_intervals.mean_interval(np.full(15, 2.0)).note
    assert "one pair" in confidence_intervals.mean_interval(np.array([1.0])).note
    assert "skew +2" in confidence_intervals.mean_interval(np.array([0.0, 0.1, 0.05, 0.02, 0.08, 9.0])).note
    assert confidence_intervals.skewness(np.arange(5.0) ** 3) == pytest.approx(
        scipy.stats.skew(np.arange(5.0) ** 3, bias=False)
    )
