"""Tests of all values at once against enumeration, scipy and statsmodels; their level; their place in an analysis."""

from __future__ import annotations

import math
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from helpers.paths import write_study
from wanscope.analysis import omnibus
from wanscope.analysis.analyze import analyze
from wanscope.analysis.charts import charts
from wanscope.analysis.preview import Preview
from wanscope.analysis.report import render_page


def made(units: int, values: int, metrics: int = 3, effect: float = 0.0, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((units, values, metrics)) + 4 * rng.standard_normal((units, 1, metrics))
    return noise + effect * np.arange(values)[:, None]


def anova_f(x_nk: np.ndarray) -> float:
    """Return F computed directly: units as blocks, no interaction."""
    n, k = x_nk.shape
    grand = x_nk.mean()
    between = n * ((x_nk.mean(axis=0) - grand) ** 2).sum()
    blocks = k * ((x_nk.mean(axis=1) - grand) ** 2).sum()
    rest = ((x_nk - grand) ** 2).sum() - between - blocks
    return (between / (k - 1)) / (rest / ((n - 1) * (k - 1)))


@pytest.mark.parametrize(("units", "values"), [(4, 3), (3, 4), (5, 3)])
def test_f_and_p_are_those_of_every_shuffle_within_units(units: int, values: int) -> None:
    x = made(units, values, effect=0.6)
    f, p, _ = omnibus.permuted_f(x)
    assert omnibus.counted(units, values)
    for m in range(3):
        assert f[m] == pytest.approx(anova_f(x[..., m]))
        orders = list(permutations(range(values)))
        every = [
            anova_f(np.stack([x[u, list(order), m] for u, order in enumerate(chosen)]))
            for chosen in product(orders, repeat=units)
        ]
        assert p[m] == pytest.approx(np.mean(np.array(every) >= f[m] * (1 - 1e-9)))
    assert omnibus.smallest_p(units, values) == pytest.approx(math.factorial(values) / math.factorial(values) ** units)


def test_two_values_are_the_squared_paired_t_and_ranks_are_friedmans() -> None:
    x = made(9, 2)
    f, _, _ = omnibus.permuted_f(x)
    assert f[0] == pytest.approx(scipy.stats.ttest_rel(x[:, 0, 0], x[:, 1, 0]).statistic ** 2)
    x = made(12, 4, metrics=1, effect=0.3, seed=4)
    ranks = scipy.stats.rankdata(x[..., 0], axis=1)
    f, p, _ = omnibus.permuted_f(ranks[..., None])
    friedman = scipy.stats.friedmanchisquare(*x[..., 0].T)
    n, k = 12, 4  # Friedman's chi squared is this function of F
    assert n * (k - 1) * f[0] / (n - 1 + f[0]) == pytest.approx(friedman.statistic)
    assert p[0] == pytest.approx(friedman.pvalue, abs=0.02)  # asymptotic


def test_drawn_shuffles_come_near_the_f_distribution() -> None:
    x = made(20, 3, metrics=4, effect=0.35, seed=2)
    assert not omnibus.counted(20, 3)
    f, p, _ = omnibus.permuted_f(x)
    assert p == pytest.approx(scipy.stats.f.sf(f, 2, 38), abs=0.015)
    assert omnibus.smallest_p(20, 3) == 1 / 10_000


def test_permanova_is_the_sum_over_dimensions_with_the_same_shuffles() -> None:
    x = made(4, 3, metrics=7, effect=0.5, seed=1)
    flat = x.reshape(12, 7)
    f, p, r2_B = omnibus.permanova((flat @ flat.T).reshape(4, 3, 4, 3))

    def parts(y: np.ndarray) -> tuple[float, float]:
        inside = y - y.mean(axis=1, keepdims=True)
        return 4 * (inside.mean(axis=0) ** 2).sum(), (inside**2).sum()

    between, within = parts(x)
    assert (f, r2_B[0]) == pytest.approx(((between / 2) / ((within - between) / 6), between / within))
    orders = [list(order) for order in permutations(range(3))]
    every = [parts(np.stack([x[u, o] for u, o in enumerate(chosen)]))[0] for chosen in product(orders, repeat=4)]
    assert p == pytest.approx(np.mean(np.array(every) >= between * (1 - 1e-9)))
    one, one_p, one_r2 = omnibus.permuted_f(x[..., :1])
    line = x[..., 0].reshape(12, 1)
    f, p, r2_B = omnibus.permanova((line @ line.T).reshape(4, 3, 4, 3))
    assert (f, p) == pytest.approx((one[0], one_p[0]))
    assert r2_B == pytest.approx(one_r2[:, 0])


def test_constant_or_missing_values_are_not_tested() -> None:
    x = made(4, 3)
    x[..., 0] = np.arange(4)[:, None]
    x[1, 2, 1] = np.nan
    f, p, _ = omnibus.permuted_f(x)
    assert np.isnan(f[:2]).all() and np.isnan(p[:2]).all() and np.isfinite([f[2], p[2]]).all()
    same = np.broadcast_to(np.arange(3.0)[None, :, None], (4, 3, 1))
    f, p, _ = omnibus.permuted_f(same)
    assert f[0] == np.inf and p[0] == omnibus.smallest_p(4, 3)


@pytest.mark.parametrize(("units", "values"), [(8, 3), (4, 4)])
def test_the_tests_have_their_nominal_level(units: int, values: int) -> None:
    """2,000 simulated metrics without an effect; latents of 6 dimensions likewise."""
    _, p, _ = omnibus.permuted_f(made(units, values, metrics=2_000, seed=9))
    assert 0.035 <= (p <= 0.05).mean() <= 0.065


# ---- in an analysis

THREE = {"who": ("men", "women", "people")}


def longer_men(labels, states):
    factor = 1.5 if labels["who"] == "men" else 1.0
    return states[:1] + factor * (states - states[:1])


def test_an_analysis_of_three_values_runs_the_omnibus_test_first(tmp_path: Path) -> None:
    write_study(tmp_path, THREE, 4, longer_men)
    found = analyze("made", workspace=tmp_path, out=tmp_path / "out", report=False)
    whole = [test for test in found.tests.tests if test.kind == "omnibus"]
    names = [test.metric for test in whole]
    assert "path_length" in names and "permanova" in names and len(names) == len(set(names))
    (length,) = [test for test in whole if test.metric == "path_length"]
    values = {v.member: v.row.value for v in found.table.of("path_length").values}
    grid = np.array(
        [
            [
                next(values[i] for i, m in enumerate(found.members) if m.seed == s and m.labels["who"] == who)
                for who in THREE["who"]
            ]
            for s in range(4)
        ]
    )
    assert length.statistic == pytest.approx(anova_f(grid), rel=1e-6)
    assert (length.units, length.smallest_p) == (4, pytest.approx(1 / 216))
    assert length.p == omnibus.permuted_f(grid[..., None])[1][0] and length.p_holm is not None
    assert length.a == "men, women, people" and length.difference == pytest.approx(np.ptp(grid.mean(axis=0)))
    assert found.tests.size == sum(test.p is not None for test in found.tests.tests)
    # with four seeds no pair of values can be significant, which is reported
    assert "no test of two values" in found.summary and "all values of a factor" in found.summary
    page = render_page(found, charts(found)[:1], [Preview("", b"", 0, 0, "none")] * 12)
    assert "all of men, women, people" in page and length.note in page
    assert "with 2 and 6 degrees of freedom" in length.note


def test_two_values_have_no_omnibus_test_and_one_seed_none_with_a_p(tmp_path: Path) -> None:
    write_study(tmp_path, THREE, 1, longer_men)
    one = analyze("made", workspace=tmp_path, write=False)
    assert all(test.p is None for test in one.tests.tests if test.kind == "omnibus")
    two = analyze("made", workspace=tmp_path, write=False, contrast=("men", "women"))
    assert not [test for test in two.tests.tests if test.kind == "omnibus"]
