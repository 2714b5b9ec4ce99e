"""Tests of differences against exact enumeration, scipy and statsmodels, and their level in simulations."""

from __future__ import annotations

import gc
from itertools import product
from unittest import mock

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

from wanscope.analysis import confidence_intervals, stats


def enumerated(d: np.ndarray) -> float:
    observed = abs(d.mean())
    means = [abs(np.mean(d * np.array(signs))) for signs in product((1, -1), repeat=len(d))]
    return float(np.mean([mean >= observed - 1e-12 for mean in means]))


@pytest.mark.parametrize("pairs", [1, 2, 4, 6, 8, 11])
def test_exact_p_is_that_of_every_sign_pattern(pairs: int) -> None:
    d = np.random.default_rng(pairs).normal(0.4, 1, (pairs, 5))
    d[:, 4] = np.round(d[:, 4])  # ties and zeros
    assert stats.paired_permutation(d) == pytest.approx([enumerated(column) for column in d.T])


def test_exact_p_is_scipys() -> None:
    d = np.random.default_rng(3).normal(0.5, 1, 9)
    theirs = scipy.stats.permutation_test(
        (d,), np.mean, permutation_type="samples", n_resamples=np.inf, alternative="two-sided"
    )
    assert stats.paired_permutation(d[:, None])[0] == pytest.approx(theirs.pvalue)


def test_many_pairs_are_drawn_and_close_to_exact() -> None:
    d = np.random.default_rng(5).normal(0.35, 1, 16)
    signs = np.array(list(product((1, -1), repeat=16)))
    exact = float((np.abs(signs @ d) >= abs(d.sum()) - 1e-12).mean())
    drawn = stats.paired_permutation(d[:, None])[0]
    assert drawn != exact
    assert drawn == pytest.approx(exact, abs=4 * np.sqrt(exact / stats.DRAWS))
    assert drawn == stats.paired_permutation(d[:, None])[0]


def test_missing_pairs_are_left_out() -> None:
    d = np.random.default_rng(1).normal(1, 1, (8, 2))
    d[[1, 5], 1] = np.nan
    p = stats.paired_permutation(d)
    assert p[1] == pytest.approx(enumerated(d[[0, 2, 3, 4, 6, 7], 1]))
    assert np.isnan(stats.paired_permutation(np.full((3, 1), np.nan))[0])


@pytest.mark.parametrize(("pairs", "least"), [(4, 0.125), (5, 0.0625), (6, 0.03125), (12, 2 / 4096)])
def test_smallest_p_is_reached_by_differences_of_one_sign(pairs: int, least: float) -> None:
    assert stats.smallest_p(pairs) == least
    assert stats.paired_permutation(np.ones((pairs, 1)))[0] == least


def test_definitions_of_how_many_pairs_are_needed() -> None:
    assert stats.pairs_needed(0.05) == 6
    assert stats.pairs_needed(0.05 / 100) == 12
    assert stats.pairs_needed(0.05 / 600) is None  # 1 of 10,000 patterns is the smallest share that draws can find
    assert stats.power_sentence(20, 600).endswith("No number of pairs helps, but fewer tests.")
    assert "no test can reach 5%" in stats.power_sentence(4, 20)
    assert "none can reach 5% after correction" in stats.power_sentence(8, 100)
    assert "nothing can be tested" in stats.power_sentence(1, 10)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
@settings(max_examples=20, deadline=None)
def test_corrections_are_those_of_statsmodels(p: list[float]) -> None:
    # multipletests ends with a full garbage collection, which beside torch's objects takes nearly all of the time
    with mock.patch.object(gc, "collect"):
        assert stats.holm(np.array(p)) == pytest.approx(multipletests(p, method="holm")[1])
        assert stats.benjamini_hochberg(np.array(p)) == pytest.approx(multipletests(p, method="fdr_bh")[1])


def test_corrections_leave_out_what_was_not_tested() -> None:
    adjusted = stats.holm(np.array([0.01, np.nan, 0.04]))
    assert adjusted[[0, 2]] == pytest.approx([0.02, 0.04]) and np.isnan(adjusted[1])


def test_effect_interval_inverts_the_noncentral_t() -> None:
    d = np.random.default_rng(2).normal([0.0, 0.8, -2.0], 1, (9, 3))
    effect = stats.paired_effect(d)
    z = d.mean(axis=0) / d.std(axis=0, ddof=1)
    factor = 0.902703  # Hedges' exact correction at 8 degrees of freedom
    assert effect.size == pytest.approx(z * factor, rel=1e-5)
    for i in range(3):
        low, high = (end[i] / factor * 3 for end in (effect.low, effect.high))
        assert scipy.stats.nct.sf(3 * z[i], 8, low) == pytest.approx(0.025, abs=1e-4)
        assert scipy.stats.nct.cdf(3 * z[i], 8, high) == pytest.approx(0.025, abs=1e-4)


def test_the_interval_goes_on_smoothly_where_t_is_very_large() -> None:
    base = np.array([-1.2, -0.4, 0.1, 0.5, 1.0])
    t_of = np.sqrt(5) / base.std(ddof=1)
    near, far = (stats.paired_effect(base[:, None] + (t + 0.0) / t_of) for t in (29.99, 30.01))
    assert (near.low[0], near.high[0]) == pytest.approx((far.low[0], far.high[0]), rel=0.02)
    huge = stats.paired_effect(np.array([[1000.0], [1000.1], [999.9], [1000.05]]))
    assert huge.low[0] < huge.size[0] < huge.high[0]
    negative = stats.paired_effect(-np.array([[1000.0], [1000.1], [999.9], [1000.05]]))
    assert (negative.low[0], negative.high[0]) == pytest.approx((-huge.high[0], -huge.low[0]))


def test_effect_interval_covers_the_true_size() -> None:
    d = np.random.default_rng(7).normal(0.7, 1, (8, 1500))
    effect = stats.paired_effect(d)
    factor = (effect.size * d.std(axis=0, ddof=1) / d.mean(axis=0))[0]
    covered = (effect.low / factor <= 0.7) & (effect.high / factor >= 0.7)
    assert 0.93 < covered.mean() < 0.97


def test_equal_differences_have_no_effect_size() -> None:
    effect = stats.paired_effect(np.full((6, 1), 0.3))
    assert np.isnan(effect.size[0]) and np.isnan(effect.low[0])


@pytest.mark.parametrize(("pairs", "tests"), [(8, 1), (12, 10), (30, 50)])
def test_smallest_effect_is_that_of_statsmodels(pairs: int, tests: int) -> None:
    theirs = TTestPower().solve_power(nobs=pairs, alpha=0.05 / tests, power=0.8, alternative="two-sided")
    assert stats.smallest_effect(pairs, tests) == pytest.approx(theirs, rel=1e-3)


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


def test_intervals_that_cannot_be_had_say_why() -> None:
    assert "equal" in confidence_intervals.mean_interval(np.full(15, 2.0)).note
    assert "one pair" in confidence_intervals.mean_interval(np.array([1.0])).note
    assert "skew +2" in confidence_intervals.mean_interval(np.array([0.0, 0.1, 0.05, 0.02, 0.08, 9.0])).note
    assert confidence_intervals.skewness(np.arange(5.0) ** 3) == pytest.approx(
        scipy.stats.skew(np.arange(5.0) ** 3, bias=False)
    )


# ---- level


@pytest.mark.parametrize("pairs", [8, 12, 20])
@pytest.mark.parametrize("kind", ["normal", "heavy tails"])
def test_a_true_null_is_rejected_in_one_of_twenty(pairs: int, kind: str) -> None:
    rng = np.random.default_rng([pairs, len(kind)])
    shape = (pairs, 2_000)
    d = rng.standard_normal(shape) if kind == "normal" else rng.standard_t(3, shape)
    rejected = (stats.paired_permutation(d, draws=999) <= 0.05).mean()
    assert 0.035 <= rejected <= 0.065


@pytest.mark.parametrize("pairs", [12, 16])
def test_a_family_of_true_nulls_has_a_false_rejection_in_one_of_twenty(pairs: int) -> None:
    """20 correlated metrics on the same pairs, as an analysis has them."""
    trials, metrics = 2_000, 20
    rng = np.random.default_rng(pairs)
    shared = rng.standard_normal((pairs, trials, 1))
    d = (0.6 * shared + 0.8 * rng.standard_normal((pairs, trials, metrics))).reshape(pairs, -1)
    p = stats.paired_permutation(d, draws=1999).reshape(trials, metrics)
    any_false = np.mean([(stats.holm(row) <= 0.05).any() for row in p])
    assert any_false <= 0.065
