"""Effect sizes of paired differences: their intervals against scipy's noncentral t, and their coverage."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from wanscope.analysis.effect_size import paired_effect


def test_effect_interval_inverts_the_noncentral_t() -> None:
    d = np.random.default_rng(2).normal([0.0, 0.8, -2.0], 1, (9, 3))
    effect = paired_effect(d)
    z = d.mean(axis=0) / d.std(axis=0, ddof=1)
    factor = 0.902703  # Hedges' exact correction at 8 degrees of freedom
    assert effect.size == pytest.approx(z * factor, rel=1e-5)
    for i in range(3):
        low, high = (end[i] / factor * 3 for end in (effect.low, effect.high))
        assert scipy.stats.nct.sf(3 * z[i], 8, low) == pytest.approx(0.025, abs=1e-4)
        assert scipy.stats.nct.cdf(3 * z[i], 8, high) == pytest.approx(0.025, abs=1e-4)


def test_the_interval_is_smooth_where_t_is_very_large() -> None:
    base = np.array([-1.2, -0.4, 0.1, 0.5, 1.0])
    t_of = np.sqrt(5) / base.std(ddof=1)
    near, far = (paired_effect(base[:, None] + (t + 0.0) / t_of) for t in (29.99, 30.01))
    assert (near.low[0], near.high[0]) == pytest.approx((far.low[0], far.high[0]), rel=0.02)
    huge = paired_effect(np.array([[1000.0], [1000.1], [999.9], [1000.05]]))
    assert huge.low[0] < huge.size[0] < huge.high[0]
    negative = paired_effect(-np.array([[1000.0], [1000.1], [999.9], [1000.05]]))
    assert (negative.low[0], negative.high[0]) == pytest.approx((-huge.high[0], -huge.low[0]))


def test_effect_interval_covers_the_true_size() -> None:
    d = np.random.default_rng(7).normal(0.7, 1, (8, 1500))
    effect = paired_effect(d)
    factor = (effect.size * d.std(axis=0, ddof=1) / d.mean(axis=0))[0]
    covered = (effect.low / factor <= 0.7) & (effect.high / factor >= 0.7)
    assert 0.93 < covered.mean() < 0.97


def test_equal_differences_have_no_effect_size() -> None:
    effect = paired_effect(np.full((6, 1), 0.3))
    assert np.isnan(effect.size[0]) and np.isnan(effect.low[0])
