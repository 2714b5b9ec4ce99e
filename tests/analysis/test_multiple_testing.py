"""Corrections for many tests against statsmodels, and the level of a whole family in simulations."""

from __future__ import annotations

import gc
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.multitest import multipletests

from wanscope.analysis.multiple_testing import benjamini_hochberg, holm
from wanscope.analysis.permutation_tests import paired_permutation


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
@settings(max_examples=20, deadline=None)
def test_corrections_are_those_of_statsmodels(p: list[float]) -> None:
    # multipletests ends with a full garbage collection, which with torch loaded takes nearly all of the time
    with mock.patch.object(gc, "collect"):
        assert holm(np.array(p)) == pytest.approx(multipletests(p, method="holm")[1])
        assert benjamini_hochberg(np.array(p)) == pytest.approx(multipletests(p, method="fdr_bh")[1])


def test_corrections_leave_out_what_was_not_tested() -> None:
    adjusted = holm(np.array([0.01, np.nan, 0.04]))
    assert adjusted[[0, 2]] == pytest.approx([0.02, 0.04]) and np.isnan(adjusted[1])


@pytest.mark.parametrize("pairs", [12, 16])
def test_a_family_of_true_nulls_has_a_false_rejection_in_one_of_twenty(pairs: int) -> None:
    """20 correlated metrics on the same pairs, as in an analysis."""
    trials, metrics = 2_000, 20
    rng = np.random.default_rng(pairs)
    shared = rng.standard_normal((pairs, trials, 1))
    d = (0.6 * shared + 0.8 * rng.standard_normal((pairs, trials, metrics))).reshape(pairs, -1)
    p = paired_permutation(d, draws=1999).reshape(trials, metrics)
    any_false = np.mean([(holm(row) <= 0.05).any() for row in p])
    assert any_false <= 0.065
