"""Tests of all values of a factor at once, before its values are compared two by two.

A factor that takes k > 2 values has k (k - 1) / 2 contrasts, and each is corrected for all the others. The omnibus test
asks one question of all of them: whether the values differ at all. Takes are cells of units (seeds, or scenes) by
values, and only units with every value count. If the values are interchangeable, so are a unit's k numbers: shuffling
them within every unit gives the distribution of F.

- of a metric: F of the two-way analysis of variance without interaction, units as blocks, k - 1 and (n - 1)(k - 1)
  degrees of freedom; for k = 2 the square of the paired t. Permutation within blocks: Fisher 1935; Anderson and
  ter Braak 2003, doi 10.1080/00949650215733.
- of the results' latents: the same sums of squares over all their dimensions, from inner products alone (PERMANOVA
  within units, Anderson 2001).

With n units (k!)^(n - 1) patterns differ: shuffling all units alike changes nothing. Where there are at most EXACT of
them all are counted; else `draws` are drawn and the observed one is counted among them.

Shape suffixes: N takes, M metrics, n units, k values, B patterns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations, product

import numpy as np

from wanscope.analysis.collection import PROMPT, Member
from wanscope.analysis.pairing import Comparison, Unit, others, value_of
from wanscope.analysis.permutation_tests import DRAWS, TIES

EXACT = 10_000


@dataclass(frozen=True)
class Blocks:
    """Takes of one factor in units. members: a unit's cells, the takes of each value in one order: [cells, k] each."""

    factor: str
    values: tuple[str, ...]
    units: tuple[str, ...]
    members: tuple[np.ndarray, ...]

    @property
    def count(self) -> int:
        return len(self.units)

    def of(self, values_NM: np.ndarray) -> np.ndarray:
        """Each unit's mean for each value, [n, k, M]."""
        return np.stack([values_NM[cells].mean(axis=0) for cells in self.members])

    def gram(self, gram_NN: np.ndarray) -> np.ndarray:
        """Inner products of the units' means, [n, k, n, k]."""
        weights = np.zeros((self.count, len(self.values), len(gram_NN)))
        for unit, cells in enumerate(self.members):
            for row in cells:
                weights[unit, np.arange(len(self.values)), row] += 1 / len(cells)
        flat = weights.reshape(-1, len(gram_NN))
        shape = weights.shape[:2]
        return (flat @ gram_NN @ flat.T).reshape(*shape, *shape)


def factors_of(comparison: Comparison) -> dict[str, tuple[str, ...]]:
    """Factors of which the contrasts compare three values or more, with those values."""
    found: dict[str, dict[str, None]] = {}
    for contrast in comparison.contrasts:
        found.setdefault(contrast.factor, {}).update({contrast.a: None, contrast.b: None})
    return {factor: tuple(values) for factor, values in found.items() if len(values) > 2}


def blocks_of(
    members: Sequence[Member], factor: str, values: Sequence[str], unit: Unit, scenes: Sequence[str] = ()
) -> Blocks:
    """The takes of a factor's values in units; what shares a seed and all other labels is a cell, as for pairs."""
    rest = others(members, factor) if factor != PROMPT else []
    places = [rest.index(name) for name in scenes if name in rest] if scenes else range(len(rest))
    cells: dict[tuple[tuple[str | None, ...], int], dict[str, int]] = {}
    for i, member in enumerate(members):
        value = value_of(member, factor)
        if value in values:
            key = (tuple(member.labels.get(name) for name in rest), member.seed)
            cells.setdefault(key, {})[str(value)] = i
    units: dict[str, list[list[int]]] = {}
    for (labels, seed), found in cells.items():
        if len(found) == len(values):
            scene = ", ".join(str(labels[p]) for p in places if labels[p] is not None)
            name = str(seed) if unit == "seed" else scene
            units.setdefault(name, []).append([found[value] for value in values])
    return Blocks(factor, tuple(values), tuple(units), tuple(np.array(rows) for rows in units.values()))


@lru_cache(maxsize=16)
def patterns(units: int, values: int, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """Which value each of a unit's numbers is taken for, int8 [B, n, k], the observed one first."""
    orders = np.array(list(permutations(range(values))), dtype=np.int8)
    if counted(units, values):
        chosen = list(product(range(len(orders)), repeat=max(units - 1, 0)))
        return np.stack([orders[[0, *row]] for row in chosen])
    rng = np.random.default_rng([seed, units, values])
    drawn = rng.permuted(np.broadcast_to(orders[0], (draws, units, values)), axis=-1)
    return np.concatenate([np.broadcast_to(orders[0], (1, units, values)), drawn]).astype(np.int8)


def counted(units: int, values: int) -> bool:
    """Whether all patterns are counted."""
    return math.factorial(values) ** max(units - 1, 0) <= EXACT


def smallest_p(units: int, values: int, draws: int = DRAWS) -> float:
    """The smallest p that a test of so many units and values can give."""
    if units < 2:
        return 1.0
    return 1 / math.factorial(values) ** (units - 1) if counted(units, values) else 1 / (draws + 1)


def _f(between: np.ndarray, within: np.ndarray, units: int, values: int) -> np.ndarray:
    """F from the sums of squares between values and within units (which holds the former)."""
    rest = within - between
    freedom = (units - 1) * (values - 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        f = (between / (values - 1)) / (rest / freedom)
        return np.where(within <= 0, np.nan, np.where(rest <= 1e-12 * within, np.inf, f))


def permuted_f(values_nkM: np.ndarray, draws: int = DRAWS, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """F of each metric and its p by shuffling values within units, both [M].

    NaN where a number is missing, or nothing varies within units. Needs two units.
    """
    n, k, M = values_nkM.shape
    inside = values_nkM - values_nkM.mean(axis=1, keepdims=True)
    within_M = (inside**2).sum((0, 1))
    found = patterns(n, k, draws, seed)
    between_BM = np.zeros((len(found), M))
    for value in range(k):
        sums_BM = np.zeros((len(found), M))
        for unit in range(n):
            sums_BM += inside[unit, found[:, unit, value]]
        between_BM += sums_BM**2 / n
    usable_M = np.isfinite(within_M) & (within_M > 0)
    # F rises with what lies between, of a sum that shuffling leaves as it is
    p_M = (between_BM >= between_BM[0] - TIES * within_M).mean(axis=0)
    f_M = _f(between_BM[0], within_M, n, k)
    return np.where(usable_M, f_M, np.nan), np.where(usable_M, p_M, np.nan)


def permanova(gram_nknk: np.ndarray, draws: int = DRAWS, seed: int = 0) -> tuple[float, float, float]:
    """F of all values within units, R^2 (the share of what varies within units that lies between values), and p."""
    n, k = gram_nknk.shape[:2]
    inside = gram_nknk - gram_nknk.mean(axis=1, keepdims=True)
    inside = inside - inside.mean(axis=3, keepdims=True)
    within = float(np.einsum("ukuk->", inside))
    if within <= 0:
        return math.nan, math.nan, math.nan
    found = patterns(n, k, draws, seed).astype(np.intp)
    flat = inside.reshape(n * k, n * k)
    between_B = np.zeros(len(found))
    for value in range(k):
        at_Bn = np.arange(n) * k + found[:, :, value]
        for unit in range(n):
            between_B += flat[at_Bn[:, unit][:, None], at_Bn].sum(axis=1) / n
    p = float((between_B >= between_B[0] - TIES * within).mean())
    f = float(_f(between_B[:1], np.array([within]), n, k)[0])
    return f, float(between_B[0]) / within, p
