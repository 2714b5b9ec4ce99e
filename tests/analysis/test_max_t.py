"""Max-T against an independent implementation, its level and power in simulations, and its use in families of tests."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from wanscope.analysis.correct_tests import correct_tests
from wanscope.analysis.max_t import form_max_t, paired_max_t, statistics_max_t
from wanscope.analysis.multiple_testing import benjamini_hochberg, holm
from wanscope.analysis.permutation_tests import paired_permutation
from wanscope.analysis.power import minimum_detectable_effect
from wanscope.analysis.test_result import Draft, Test


def westfall_young(statistic: Callable[[tuple[int, ...]], list[float]], units: int) -> np.ndarray:
    """Return step-down adjusted p by the book: all sign patterns, successive maxima over the tests not rejected yet."""
    table = [statistic(signs) for signs in product((1, -1), repeat=units)]
    observed = table[0]
    order = sorted(range(len(observed)), key=lambda m: -observed[m])
    adjusted, so_far = np.empty(len(observed)), 0.0
    for rank, m in enumerate(order):
        left = order[rank:]
        reached = [max(row[k] for k in left) >= observed[m] - 1e-7 * abs(observed[m]) for row in table]
        so_far = max(so_far, sum(reached) / len(reached))
        adjusted[m] = so_far
    return adjusted


@given(st.integers(0, 2**32 - 1), st.integers(2, 7), st.integers(1, 6))
@settings(max_examples=25, deadline=None)
def test_adjusted_p_are_those_of_the_definition(seed: int, units: int, tests: int) -> None:
    rng = np.random.default_rng(seed)
    d = rng.standard_normal((units, tests)) * 10.0 ** rng.integers(-9, 9, tests) + rng.integers(0, 2, tests)

    def t(signs: tuple[int, ...]) -> list[float]:
        return [abs(float(scipy.stats.ttest_1samp(np.array(signs) * column, 0).statistic)) for column in d.T]

    assert paired_max_t(d) == pytest.approx(westfall_young(t, units))


@given(st.integers(0, 2**32 - 1), st.integers(3, 6))
@settings(max_examples=15, deadline=None)
def test_missing_units_leave_a_test_those_it_has(seed: int, units: int) -> None:
    """Tests of different numbers of units are compared by the p of their t."""
    rng = np.random.default_rng(seed)
    d = rng.standard_normal((units, 4)) + 1
    d[0, 1] = d[:2, 2] = np.nan
    d[1:, 3] = np.nan  # a single unit is not tested

    def minus_log_p(signs: tuple[int, ...]) -> list[float]:
        out = []
        for column in d.T[:3]:
            kept = (np.array(signs) * column)[np.isfinite(column)]
            p = float(scipy.stats.ttest_1samp(kept, 0).pvalue) if len(kept) > 1 else 1.0
            out.append(-np.log(p) if len(kept) > 1 else -1.0)
        return out

    found, wanted = paired_max_t(d), westfall_young(minus_log_p, units)
    tested = np.isfinite(d).sum(axis=0)[:3] > 1
    assert np.isnan(found[3]) and found[:3][tested] == pytest.approx(wanted[tested])


def test_forms_and_given_statistics_are_adjusted_by_the_same_definition() -> None:
    rng = np.random.default_rng(5)
    vectors = rng.standard_normal((5, 3, 7)) + 0.5  # units, tests, dimensions
    forms = [vectors[:, m] @ vectors[:, m].T for m in range(3)]

    def z(signs: tuple[int, ...]) -> list[float]:
        every = [[float(np.array(s) @ form @ np.array(s)) for s in product((1, -1), repeat=5)] for form in forms]
        now = [float(np.array(signs) @ form @ np.array(signs)) for form in forms]
        return [(value - np.mean(all_)) / np.std(all_) for value, all_ in zip(now, every, strict=True)]

    wanted = westfall_young(z, 5)
    assert form_max_t(forms) == pytest.approx(wanted)
    table = np.array([z(signs) for signs in product((1, -1), repeat=5)])
    assert statistics_max_t(3 + 7 * table) == pytest.approx(wanted)


def test_a_single_test_keeps_its_p_and_zeros_are_no_evidence() -> None:
    d = np.random.default_rng(1).standard_normal((9, 1)) + 0.4
    assert paired_max_t(d) == pytest.approx(paired_permutation(d))
    both = np.concatenate([d, np.zeros((9, 1))], axis=1)
    assert paired_max_t(both)[1] == 1.0 and paired_max_t(both)[0] == pytest.approx(paired_permutation(d)[0])
    assert np.isnan(paired_max_t(np.full((3, 2), np.nan))).all()
    assert paired_max_t(np.ones((6, 3))) == pytest.approx(np.full(3, 2 / 2**6))  # equal differences: t is infinite


@pytest.mark.parametrize("units", [6, 8, 12])
@pytest.mark.parametrize("noise", ["normal", "exponential", "lognormal"])
@pytest.mark.parametrize("values", [2, 3])
def test_a_family_of_true_nulls_has_a_false_rejection_in_one_of_twenty_at_most(
    units: int, noise: str, values: int
) -> None:
    """12 correlated metrics; with 3 values of a factor, all 3 contrasts in one family. 800 simulations."""
    rng = np.random.default_rng([1, units, values, len(noise)])
    draw: dict[str, Callable[[Any], np.ndarray]] = {
        "normal": lambda size: rng.standard_normal(size),
        "exponential": lambda size: rng.exponential(size=size),
        "lognormal": lambda size: rng.lognormal(sigma=1.5, size=size),
    }
    false = 0
    for _ in range(800):
        x = draw[noise]((units, values, 12)) + 0.5 * draw[noise]((units, values, 1))
        pairs = [(a, b) for a in range(values) for b in range(a)]
        d = np.concatenate([x[:, a] - x[:, b] for a, b in pairs], axis=1)
        false += bool(np.min(paired_max_t(d)) <= 0.05)
    assert false / 800 <= 0.05 + 3.5 * np.sqrt(0.05 * 0.95 / 800)


def test_six_units_find_a_strong_effect_among_forty_tests_where_holm_cannot() -> None:
    rng = np.random.default_rng(2)
    found = 0
    for _ in range(200):
        d = rng.standard_normal((6, 40))
        d[:, 0] += 8
        found += bool(paired_max_t(d)[0] <= 0.05)
        assert holm(paired_permutation(d)).min() > 0.05
    assert found >= 190


@pytest.mark.parametrize(("units", "tests"), [(6, 10), (7, 20), (8, 20), (12, 20)])
def test_the_detectable_effect_is_detected_four_times_in_five(units: int, tests: int) -> None:
    rng = np.random.default_rng([units, tests])
    effect = minimum_detectable_effect(units, tests)
    found = 0
    for _ in range(400):
        d = rng.standard_normal((units, tests))
        d[:, 0] += effect
        found += bool(paired_max_t(d)[0] <= 0.05)
    assert 0.72 <= found / 400 <= 0.90


# ---- families


def draft(metric: str, data: np.ndarray | None, p: float | None, **numbers: Any) -> Draft:
    blank: dict[str, Any] = dict.fromkeys(list(Test.__annotations__)[:22])
    texts = {"factor": "color", "a": "red", "b": "blue", "metric": metric, "kind": "paired", "smallest_p": 0.0}
    units = tuple(str(i) for i in range(0 if data is None else len(data)))
    return Draft(Test(**{**blank, **texts, "p": p, **numbers}), units, data)


def test_families_are_corrected_separately_and_confirmatory_tests_among_themselves() -> None:
    rng = np.random.default_rng(3)
    d = rng.standard_normal((8, 5)) + np.array([2, 0, 0, 1.5, 0])
    p = paired_permutation(d)
    names = ["metrics", "metrics", "metrics", "attention", "attention"]
    drafts = [
        draft(f"m{i}", d[:, i], float(p[i]), family_name=names[i], confirmatory=i in (0, 3)) for i in range(5)
    ] + [draft("none", None, None)]
    tests = correct_tests(drafts)
    corrected = [test.p_corrected for test in tests[:5]]
    assert corrected == pytest.approx([*paired_max_t(d[:, :3]), *paired_max_t(d[:, 3:])])
    assert [test.p_holm for test in tests[:5]] == pytest.approx([*holm(p[:3]), *holm(p[3:])])
    assert [test.q_bh for test in tests[:5]] == pytest.approx([*benjamini_hochberg(p[:3]), *benjamini_hochberg(p[3:])])
    assert [test.p_confirmatory for test in tests if test.confirmatory] == pytest.approx(paired_max_t(d[:, [0, 3]]))
    assert [test.family for test in tests] == [3, 3, 3, 2, 2, 3] and tests[5].p_corrected is None
    assert tests[0].decisive_p == tests[0].p_confirmatory and tests[1].decisive_p == tests[1].p_corrected


@pytest.mark.parametrize(("correction", "function"), [("holm", holm), ("bh", benjamini_hochberg)])
def test_holm_and_bh_decide_where_they_are_chosen(correction: Any, function: Callable[..., np.ndarray]) -> None:
    rng = np.random.default_rng(4)
    d = rng.standard_normal((10, 6)) + 0.8
    p = paired_permutation(d)
    tests = correct_tests([draft(f"m{i}", d[:, i], float(p[i]), confirmatory=i < 2) for i in range(6)], correction)
    assert [test.p_corrected for test in tests] == pytest.approx(function(p))
    assert [test.p_confirmatory for test in tests[:2]] == pytest.approx(function(p[:2]))
    assert all(test.correction == correction for test in tests)


def test_a_paired_and_a_group_test_are_corrected_together_as_forms() -> None:
    """Only confirmatory tests of both kinds share a family."""
    rng = np.random.default_rng(6)
    d, v = rng.standard_normal(7) + 1, rng.standard_normal((7, 4)) + 0.5
    drafts = [
        draft("length", d, 0.1, confirmatory=True),
        draft("permanova", v @ v.T, 0.1, kind="group", family_name="latents", confirmatory=True),
    ]
    tests = correct_tests(drafts)
    assert [test.p_confirmatory for test in tests] == pytest.approx(form_max_t([np.outer(d, d), v @ v.T]))
    assert tests[0].p_corrected == pytest.approx(paired_permutation(d[:, None])[0])


def test_omnibus_tests_of_several_factors_are_corrected_for_their_number() -> None:
    rng = np.random.default_rng(7)
    table = rng.standard_normal((100, 4))
    table[0] += [3, 0, 4, 0]
    drafts = [
        draft(f"m{i}", table[:, i], 0.1, kind="omnibus", family_name="values", factor="color" if i < 2 else "shape")
        for i in range(4)
    ]
    wanted = np.minimum(2 * np.concatenate([statistics_max_t(table[:, :2]), statistics_max_t(table[:, 2:])]), 1)
    assert [test.p_corrected for test in correct_tests(drafts)] == pytest.approx(wanted)
