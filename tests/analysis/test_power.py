"""Detectable effects for a number of pairs, against statsmodels, and their descriptions."""

from __future__ import annotations

import pytest
from statsmodels.stats.power import TTestPower

from wanscope.analysis.power import minimum_detectable_effect, pairs_needed, power_sentence


def test_definitions_of_how_many_pairs_are_needed() -> None:
    assert pairs_needed(0.05) == 6
    assert pairs_needed(0.05 / 100) == 12
    assert pairs_needed(0.05 / 600) is None  # 1 of 10,000 patterns is the smallest share that draws can find
    assert power_sentence(20, 600, correction="holm").endswith("No number of pairs is enough: use fewer tests.")
    assert "no test can reach 5%" in power_sentence(4, 20)
    assert "none can reach 5% after correction" in power_sentence(8, 100, correction="holm")
    # with max-T, the number of tests does not limit the smallest p
    assert "four times in five after correction for 600 tests" in power_sentence(20, 600)
    assert "four times in five after correction for 100 tests" in power_sentence(8, 100)
    assert "nothing can be tested" in power_sentence(1, 10)


@pytest.mark.parametrize(("pairs", "tests"), [(8, 1), (12, 10), (30, 50)])
def test_smallest_effect_is_that_of_statsmodels(pairs: int, tests: int) -> None:
    theirs = TTestPower().solve_power(nobs=pairs, alpha=0.05 / tests, power=0.8, alternative="two-sided")
    assert minimum_detectable_effect(pairs, tests) == pytest.approx(theirs, rel=1e-3)
