"""Sign-flip tests of paired differences against exact enumeration and scipy, and their level in simulations."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import scipy.stats

from wanscope.analysis.permutation_tests import DRAWS, paired_permutation, smallest_p


def enumerated(d: np.ndarray) -> float:
    observed = abs(d.mean())
    means = [abs(np.mean(d * np.array(signs))) for signs in product((1, -1), repeat=len(d))]
    return float(np.mean([mean >= observed - 1e-12 for mean in means]))


@pytest.mark.parametrize("pairs", [1, 2, 4, 6, 8, 11])
def test_exact_p_is_that_of_every_sign_pattern(pairs: int) -> None:
    d = np.random.default_rng(pairs).normal(0.4, 1, (pairs, 5))
    d[:, 4] = np.round(d[:, 4])  # ties and zeros
    assert paired_permutation(d) == pytest.approx([enumerated(column) for column in d.T])


def test_exact_p_is_scipys() -> None:
    d = np.random.default_rng(3).normal(0.5, 1, 9)
    theirs = scipy.stats.permutation_test(
        (d,), np.mean, permutation_type="samples", n_resamples=np.inf, alternative="two-sided"
    )
    assert paired_permutation(d[:, None])[0] == pytest.approx(theirs.pvalue)


def test_many_pairs_are_drawn_and_close_to_exact() -> None:
    d = np.random.default_rng(5).normal(0.35, 1, 16)
    signs = np.array(list(product((1, -1), repeat=16)))
    exact = float((np.abs(signs @ d) >= abs(d.sum()) - 1e-12).mean())
    drawn = paired_permutation(d[:, None])[0]
    assert drawn != exact
    assert drawn == pytest.approx(exact, abs=4 * np.sqrt(exact / DRAWS))
    assert drawn == paired_permutation(d[:, None])[0]


def test_missing_pairs_are_left_out() -> None:
    d = np.random.default_rng(1).normal(1, 1, (8, 2))
    d[[1, 5], 1] = np.nan
    p = paired_permutation(d)
    assert p[1] == pytest.approx(enumerated(d[[0, 2, 3, 4, 6, 7], 1]))
    assert np.isnan(paired_permutation(np.full((3, 1), np.nan))[0])


@pytest.mark.parametrize(("pairs", "least"), [(4, 0.125), (5, 0.0625), (6, 0.03125), (12, 2 / 4096)])
def test_smallest_p_is_reached_by_differences_of_one_sign(pairs: int, least: float) -> None:
    assert smallest_p(pairs) == least
    assert paired_permutation(np.ones((pairs, 1)))[0] == least


@pytest.mark.parametrize("pairs", [8, 12, 20])
@pytest.mark.parametrize("kind", ["normal", "heavy tails"])
def test_a_true_null_is_rejected_in_one_of_twenty(pairs: int, kind: str) -> None:
    rng = np.random.default_rng([pairs, len(kind)])
    shape = (pairs, 2_000)
    d = rng.standard_normal(shape) if kind == "normal" else rng.standard_t(3, shape)
    rejected = (paired_permutation(d, draws=999) <= 0.05).mean()
    assert 0.035 <= rejected <= 0.065
