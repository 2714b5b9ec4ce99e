"""Group comparisons against direct computation, enumeration and scipy; the level of their tests."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import scipy.stats

from wanscope.analysis import group_statistics as groups
from wanscope.analysis.pairing import Pairs
from wanscope.analysis.permutation_tests import paired_permutation, smallest_p


def made(pairs: int, dimension: int = 30, effect: float = 0.0, seed: int = 0) -> tuple[np.ndarray, Pairs]:
    """Return a and b for every seed: shared noise, individual noise, and a shift of b."""
    rng = np.random.default_rng(seed)
    shared = 3 * rng.standard_normal((pairs, dimension))
    shift = np.zeros(dimension)
    shift[0] = effect
    x = np.concatenate([shared + rng.standard_normal((pairs, dimension)) + sign * shift for sign in (1, 0)])
    cells = tuple(("", seed) for seed in range(pairs))
    return x, Pairs(cells, np.arange(pairs), np.arange(pairs, 2 * pairs))


def test_distances() -> None:
    x, _ = made(5)
    direct = ((x[:, None] - x[None]) ** 2).sum(axis=-1)
    assert np.allclose(groups.squared_distances(x @ x.T), direct, atol=1e-9)


def test_permanova_equals_its_sums_of_squares() -> None:
    x, pairs = made(6, effect=1.0)
    f, r2 = groups.permanova(x @ x.T, pairs)
    # A two-way analysis without interaction: seeds as blocks, in every dimension, summed.
    a, b = x[:6], x[6:]
    grand, blocks = x.mean(axis=0), (a + b) / 2
    between = 6 * (((a.mean(axis=0) - grand) ** 2).sum() + ((b.mean(axis=0) - grand) ** 2).sum())
    within_blocks = ((a - blocks) ** 2).sum() + ((b - blocks) ** 2).sum()
    assert r2 == pytest.approx(between / within_blocks)
    assert f == pytest.approx(between / ((within_blocks - between) / 5))


def test_permanova_in_one_dimension_is_the_paired_t_squared() -> None:
    x, pairs = made(9, dimension=1, effect=1.0)
    f, _ = groups.permanova(x @ x.T, pairs)
    assert f == pytest.approx(scipy.stats.ttest_rel(x[:9, 0], x[9:, 0]).statistic ** 2)


@pytest.mark.parametrize("distance", [False, True])
def test_p_values_equal_those_of_all_swaps(distance: bool) -> None:
    """Labels are swapped within every seed, and the statistic is computed again each time."""
    x, pairs = made(6, dimension=5, effect=1.5)
    gram = x @ x.T
    far = np.sqrt(groups.squared_distances(gram))

    def statistic(signs: tuple[int, ...]) -> float:
        a = np.array([i if s > 0 else i + 6 for i, s in enumerate(signs)])
        b = np.array([i + 6 if s > 0 else i for i, s in enumerate(signs)])
        if distance:
            return groups.energy_distance(far, a, b, range(6))
        return groups.permanova(gram, Pairs(pairs.cells, a, b))[0]

    observed = statistic((1,) * 6)
    wanted = np.mean([statistic(signs) >= observed - 1e-9 for signs in product((1, -1), repeat=6)])
    form = groups.pair_form(-far if distance else gram, pairs.a, pairs.b)
    assert groups.sign_flip_p(form) == pytest.approx(wanted)


def test_energy_distance_is_the_mean_over_takes_of_different_units() -> None:
    """Against loops over the definition, in one dimension also against scipy with its biased part taken out."""
    x, pairs = made(8, dimension=1, effect=1.0)
    far = np.abs(x - x.T)
    found = groups.energy_distance(far, pairs.a, pairs.b, range(8))
    a, b = x[:8, 0], x[8:, 0]
    other = [(i, j) for i in range(8) for j in range(8) if i != j]
    direct = np.mean([2 * abs(a[i] - b[j]) - abs(a[i] - a[j]) - abs(b[i] - b[j]) for i, j in other])
    assert found == pytest.approx(direct)
    scipys = scipy.stats.energy_distance(a, b) ** 2  # over all i and j: i = j adds the distance in pairs
    assert found == pytest.approx((64 * scipys - 2 * np.abs(a - b).sum()) / 56)
    units = ["p", "p", "q", "q", "r", "r", "s", "s"]
    other = [(i, j) for i in range(8) for j in range(8) if units[i] != units[j]]
    direct = np.mean([2 * abs(a[i] - b[j]) - abs(a[i] - a[j]) - abs(b[i] - b[j]) for i, j in other])
    assert groups.energy_distance(far, pairs.a, pairs.b, units) == pytest.approx(direct)
    assert np.isnan(groups.energy_distance(far, pairs.a, pairs.b, ["one"] * 8))


def test_without_a_difference_energy_distance_is_zero_on_average_and_r2_is_as_expected() -> None:
    """600 simulations of 8 pairs that share their seed's noise; the mean over all takes is far from 0."""
    energies, biased, r2s, expected = [], [], [], []
    for trial in range(600):
        x, pairs = made(8, dimension=12, seed=trial)
        gram = x @ x.T
        far = np.sqrt(groups.squared_distances(gram))
        energies.append(groups.energy_distance(far, pairs.a, pairs.b, range(8)))
        ab, aa, bb = far[:8, 8:], far[:8, :8], far[8:, 8:]
        biased.append(2 * ab.mean() - aa.mean() - bb.mean())
        r2s.append(groups.permanova(gram, pairs)[1])
        expected.append(groups.expected_r2(groups.pair_form(gram, pairs.a, pairs.b), range(8)))
    error = np.std(energies) / np.sqrt(600)
    assert abs(np.mean(energies)) < 4 * error and np.mean(biased) > 40 * error
    assert expected == pytest.approx([1 / 8] * 600)
    assert np.mean(r2s) == pytest.approx(1 / 8, abs=4 * np.std(r2s) / np.sqrt(600))


def test_the_expected_r2_is_the_mean_over_all_signs_of_the_units() -> None:
    x, pairs = made(6, dimension=4, effect=1.0)
    form = groups.pair_form(x @ x.T, pairs.a, pairs.b)
    units = ["p", "p", "q", "q", "r", "s"]
    found = []
    for signs in product((1, -1), repeat=4):
        by_pair = np.array([signs["pqrs".index(unit)] for unit in units])
        found.append(by_pair @ form @ by_pair / (6 * np.trace(form)))
    assert groups.expected_r2(form, units) == pytest.approx(np.mean(found))


def test_separability_is_nearest_centroid_with_a_seed_left_out() -> None:
    x, pairs = made(7, effect=1.2, seed=3)
    right, ordered = [], []
    for s in range(7):
        rest = [i for i in range(7) if i != s]
        a, b = x[rest].mean(axis=0), x[[i + 7 for i in rest]].mean(axis=0)
        right += [np.linalg.norm(x[s] - a) < np.linalg.norm(x[s] - b)]
        right += [np.linalg.norm(x[s + 7] - b) < np.linalg.norm(x[s + 7] - a)]
        ordered += [(x[s] - x[s + 7]) @ (a - b) > 0]
    assert groups.separability(x @ x.T, pairs) == pytest.approx((np.mean(right), np.mean(ordered)))


def test_different_groups_are_separated_and_equal_ones_are_not() -> None:
    x, pairs = made(12, effect=8.0)
    assert groups.separability(x @ x.T, pairs)[1] == 1
    assert groups.sign_flip_p(groups.pair_form(x @ x.T, pairs.a, pairs.b)) == smallest_p(12)
    found = [groups.separability(z @ z.T, pairs)[1] for z, _ in (made(12, seed=s) for s in range(60))]
    assert np.mean(found) == pytest.approx(0.5, abs=0.08)


def test_one_seed_cannot_be_left_out() -> None:
    x, pairs = made(1)
    assert np.isnan(groups.separability(x @ x.T, pairs)).all()


def test_units_sum_their_pairs() -> None:
    x, _ = made(6)
    a, b = np.arange(6), np.arange(6, 12)
    form = groups.pair_form(x @ x.T, a, b)
    d = x[:6] - x[6:]
    by_unit = np.stack([d[:2].sum(axis=0), d[2:4].sum(axis=0), d[4:].sum(axis=0)])
    assert np.allclose(groups.summed(form, ["a", "a", "b", "b", "c", "c"]), by_unit @ by_unit.T)


@pytest.mark.parametrize("kind", ["permanova", "energy", "spread"])
def test_the_tests_have_their_nominal_level(kind: str) -> None:
    """2,000 simulations without an effect, 8 pairs that share their seed's noise."""
    rejected = 0
    trials = 2_000
    for trial in range(trials):
        x, pairs = made(8, dimension=12, seed=trial)
        gram = x @ x.T
        if kind == "spread":
            far = np.concatenate([groups.to_centroid(gram, side) for side in (pairs.a, pairs.b)])
            p = paired_permutation((far[:8] - far[8:])[:, None])[0]
        else:
            matrix = gram if kind == "permanova" else -np.sqrt(groups.squared_distances(gram))
            p = groups.sign_flip_p(groups.pair_form(matrix, pairs.a, pairs.b))
        rejected += p <= 0.05
    assert 0.035 <= rejected / trials <= 0.065


def test_wider_groups_have_the_larger_spread() -> None:
    rng = np.random.default_rng(1)
    x = np.concatenate([2 * rng.standard_normal((10, 40)), rng.standard_normal((10, 40))])
    gram = x @ x.T
    wide, narrow = (groups.to_centroid(gram, np.arange(i, i + 10)).mean() for i in (0, 10))
    assert wide > 1.7 * narrow
    assert groups.to_centroid(gram, np.arange(10)) == pytest.approx(
        np.linalg.norm(x[:10] - x[:10].mean(axis=0), axis=1)
    )
