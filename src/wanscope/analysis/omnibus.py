"""Omnibus tests: all values of a factor at once, before its values are compared in pairs.

A factor that takes k > 2 values has k (k - 1) / 2 contrasts, and each is corrected for all the others. The omnibus test
asks whether the values differ at all. Takes are cells of units (seeds, or scenes) by values, and only units with every
value are used. Under the null hypothesis a unit's k numbers are exchangeable: permuting them within every unit gives
the distribution of F.

- for a metric: F of the two-way analysis of variance without interaction, units as blocks, k - 1 and (n - 1)(k - 1)
  degrees of freedom; for k = 2 the square of the paired t. Permutation within blocks: Fisher 1935; Anderson and
  ter Braak 2003, doi 10.1080/00949650215733.
- for the last latents: the same sums of squares over all their dimensions, from inner products only (PERMANOVA within
  units, Anderson 2001).

With n units there are (k!)^(n - 1) distinct patterns, because permuting all units alike changes nothing. Up to EXACT
patterns, all are enumerated; otherwise `draws` random ones are drawn and the observed one is added.

Shape suffixes: N takes, M metrics, n units, k values, B patterns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations, product
from typing import Any

import numpy as np

from wanscope.analysis.collection import PROMPT, Member
from wanscope.analysis.pairing import Comparison, Unit, factor_value, shared_labels
from wanscope.analysis.permutation_tests import DRAWS, TIE_TOLERANCE
from wanscope.analysis.test_result import Test

EXACT = 10_000


@dataclass(frozen=True)
class Blocks:
    """Takes of one factor in units. members: for each unit the takes' indices, [cells, k], in order of values."""

    factor: str
    values: tuple[str, ...]
    units: tuple[str, ...]
    members: tuple[np.ndarray, ...]

    @property
    def count(self) -> int:
        """The number of units."""
        return len(self.units)

    def of(self, values_NM: np.ndarray) -> np.ndarray:
        """Return each unit's mean for each value, [n, k, M]."""
        return np.stack([values_NM[cells].mean(axis=0) for cells in self.members])

    def gram(self, gram_NN: np.ndarray) -> np.ndarray:
        """Return the inner products of the units' means, [n, k, n, k], from those of the takes."""
        weights = np.zeros((self.count, len(self.values), len(gram_NN)))
        for unit, cells in enumerate(self.members):
            for row in cells:
                weights[unit, np.arange(len(self.values)), row] += 1 / len(cells)
        flat = weights.reshape(-1, len(gram_NN))
        shape = weights.shape[:2]
        return (flat @ gram_NN @ flat.T).reshape(*shape, *shape)


def factors_of(comparison: Comparison) -> dict[str, tuple[str, ...]]:
    """Return the factors whose contrasts compare three or more values, with those values."""
    found: dict[str, dict[str, None]] = {}
    for contrast in comparison.contrasts:
        found.setdefault(contrast.factor, {}).update({contrast.a: None, contrast.b: None})
    return {factor: tuple(values) for factor, values in found.items() if len(values) > 2}


def blocks_of(
    members: Sequence[Member], factor: str, values: Sequence[str], unit: Unit, scenes: Sequence[str] = ()
) -> Blocks:
    """Group a factor's takes into units. Takes with equal seed and other labels form a cell, as in pairs."""
    rest = shared_labels(members, factor) if factor != PROMPT else []
    places = [rest.index(name) for name in scenes if name in rest] if scenes else range(len(rest))
    cells: dict[tuple[tuple[str | None, ...], int], dict[str, int]] = {}
    for i, member in enumerate(members):
        value = factor_value(member, factor)
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
    """Return permutation patterns, int8 [B, n, k], the observed one first: the value assigned to each number."""
    orders = np.array(list(permutations(range(values))), dtype=np.int8)
    if counted(units, values):
        chosen = list(product(range(len(orders)), repeat=max(units - 1, 0)))
        return np.stack([orders[[0, *row]] for row in chosen])
    rng = np.random.default_rng([seed, units, values])
    drawn = rng.permuted(np.broadcast_to(orders[0], (draws, units, values)), axis=-1)
    return np.concatenate([np.broadcast_to(orders[0], (1, units, values)), drawn]).astype(np.int8)


def counted(units: int, values: int) -> bool:
    """Return whether all patterns are enumerated."""
    return math.factorial(values) ** max(units - 1, 0) <= EXACT


def smallest_p(units: int, values: int, draws: int = DRAWS) -> float:
    """Return the smallest p that a test with this many units and values can give."""
    if units < 2:
        return 1.0
    return 1 / math.factorial(values) ** (units - 1) if counted(units, values) else 1 / (draws + 1)


def _f(between: np.ndarray, within: np.ndarray, units: int, values: int) -> np.ndarray:
    """Return F from the sums of squares between values and within units (which includes the former)."""
    rest = within - between
    freedom = (units - 1) * (values - 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        f = (between / (values - 1)) / (rest / freedom)
        return np.where(within <= 0, np.nan, np.where(rest <= 1e-12 * within, np.inf, f))


def permuted_f(values_nkM: np.ndarray, draws: int = DRAWS, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return F of each metric and its p by permuting values within units, both [M], and R^2 under all patterns, [B, M].

    R^2 is the share of the sum of squares within units that is between values; F increases with it. The observed
    pattern is the first. NaN if a value is missing or nothing varies within units. Needs at least two units.
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
    # F increases with the sum of squares between values, because permuting keeps the sum within units
    p_M = (between_BM >= between_BM[0] - TIE_TOLERANCE * within_M).mean(axis=0)
    f_M = _f(between_BM[0], within_M, n, k)
    r2_BM = np.where(usable_M, between_BM / np.where(usable_M, within_M, 1.0), np.nan)
    return np.where(usable_M, f_M, np.nan), np.where(usable_M, p_M, np.nan), r2_BM


def permanova(gram_nknk: np.ndarray, draws: int = DRAWS, seed: int = 0) -> tuple[float, float, np.ndarray]:
    """Return F of all values within units, p, and R^2 under all patterns, [B], from inner products [n, k, n, k].

    R^2 is the share of the squared distances within units that is between values; the observed pattern is the first.
    All are NaN if nothing varies.
    """
    n, k = gram_nknk.shape[:2]
    inside = gram_nknk - gram_nknk.mean(axis=1, keepdims=True)
    inside = inside - inside.mean(axis=3, keepdims=True)
    within = float(np.einsum("ukuk->", inside))
    if within <= 0:
        return math.nan, math.nan, np.full(1, math.nan)
    found = patterns(n, k, draws, seed).astype(np.intp)
    flat = inside.reshape(n * k, n * k)
    between_B = np.zeros(len(found))
    for value in range(k):
        at_Bn = np.arange(n) * k + found[:, :, value]
        for unit in range(n):
            between_B += flat[at_Bn[:, unit][:, None], at_Bn].sum(axis=1) / n
    p = float((between_B >= between_B[0] - TIE_TOLERANCE * within).mean())
    f = float(_f(between_B[:1], np.array([within]), n, k)[0])
    return f, p, between_B / within


def omnibus_test(
    blocks: Blocks,
    comparison: Comparison,
    name: str,
    title: str,
    part: str,
    measure: str,
    f: float,
    p: float,
    **numbers: Any,
) -> Test:
    """Return an uncorrected test of all values of a factor."""
    n, k = blocks.count, len(blocks.values)
    blank = dict.fromkeys(
        ("mean_a", "mean_b", "low", "high", "coverage", "effect", "effect_low", "effect_high", "difference")
    )
    freedom = (k - 1, (n - 1) * (k - 1))
    note = f"F = {f:.3g} with {freedom[0]} and {freedom[1]} degrees of freedom" if np.isfinite(f) else ""
    return Test(
        factor=blocks.factor,
        a=", ".join(blocks.values),
        b="",
        metric=name,
        title=title,
        part=part,
        measure=measure,
        kind="omnibus",
        unit=comparison.unit,
        units=n,
        p=float(p) if np.isfinite(p) else None,
        smallest_p=smallest_p(n, k),
        interval="none",
        note=note,
        family_name="values",
        statistic=float(f) if np.isfinite(f) else None,
        **{**blank, **numbers},
    )
