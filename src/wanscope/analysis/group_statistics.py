"""Statistics of groups of takes that are paired, from the inner products or distances between takes.

A pair p is two takes that differ only in the factor (pairing.py), and d_p is its difference. For paired takes the test
statistics are quadratic forms in the pairs' signs, so they follow from one small matrix and the sign patterns:

- PERMANOVA within seeds: SS_between = |sum_p d_p|^2 / 2P, out of SS_total = sum_p |d_p|^2 / 2 within pairs; F has 1
  and P - 1 degrees of freedom. Anderson 2001, doi 10.1111/j.1442-9993.2001.01070.pp.x.
- Energy distance: 2 E|A - B| - E|A - A'| - E|B - B'|, Szekely and Rizzo 2013, doi 10.1016/j.jspi.2013.03.018, as an
  unbiased estimate: the means are over takes of different units, so that its expectation is 0 if a and b are
  exchangeable within units. Means over all pairs of takes, each with itself included, are positive without any
  difference.
- Separability: the share of the takes of a left-out seed that are nearer to the centroid of their own group, computed
  from the other seeds; and the share of its pairs that those centroids put in the right order.

Shape suffixes: N takes, P pairs, U units, B sign patterns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from wanscope.analysis.latent_path import centered
from wanscope.analysis.pairing import Pairs
from wanscope.analysis.permutation_tests import DRAWS, TIE_TOLERANCE, sign_patterns


def squared_distances(gram_NN: np.ndarray) -> np.ndarray:
    """Return |x_i - x_j|^2, [N, N], from a Gram matrix [N, N]."""
    norms_N = np.diag(gram_NN)
    squared_NN = (norms_N[:, None] + norms_N[None, :] - 2 * gram_NN).clip(min=0)
    np.fill_diagonal(squared_NN, 0)
    return squared_NN


def pair_form(matrix_NN: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return M[a_p, a_q] - M[a_p, b_q] - M[b_p, a_q] + M[b_p, b_q], [P, P], for pairs of indices a, b [P].

    For a Gram matrix this is the Gram matrix of the pairs' differences.
    """
    return matrix_NN[np.ix_(a, a)] - matrix_NN[np.ix_(a, b)] - matrix_NN[np.ix_(b, a)] + matrix_NN[np.ix_(b, b)]


def summed(form_PP: np.ndarray, units: Sequence[Any]) -> np.ndarray:
    """Sum a form [P, P] over the pairs of each unit, [U, U]."""
    names = list(dict.fromkeys(units))
    member_UP = np.array([[float(unit == name) for unit in units] for name in names])
    return member_UP @ form_PP @ member_UP.T


def sign_flip_p(form_UU: np.ndarray, draws: int = DRAWS, seed: int = 0) -> float:
    """Return p of a one-sided sign-flip test: the share of sign patterns s with s' M s at least as large as observed.

    form_UU: M, [U, U].
    """
    signs_BU = sign_patterns(len(form_UU), draws, seed).astype(np.float64)
    found_B = np.einsum("bu,uv,bv->b", signs_BU, form_UU, signs_BU, optimize=True)
    scale = np.abs(form_UU).sum()
    return float((found_B >= found_B[0] - TIE_TOLERANCE * scale).mean())


def permanova(gram_NN: np.ndarray, pairs: Pairs) -> tuple[float, float]:
    """Return pseudo-F within pairs, and R^2: the share of the squared distance in pairs that is between the groups.

    gram_NN: inner products of the takes. Both are NaN if the takes of every pair are equal.
    """
    form_PP = pair_form(gram_NN, pairs.a, pairs.b)
    count = len(form_PP)
    between, total = form_PP.sum() / (2 * count), np.trace(form_PP) / 2
    if total <= 0:
        return float("nan"), float("nan")
    rest = total - between
    f = (
        between / (rest / (count - 1))
        if count > 1 and rest > 1e-12 * total
        else float("inf")
        if count > 1
        else float("nan")
    )
    return float(f), float(between / total)


def expected_r2(form_PP: np.ndarray, units: Sequence[Any]) -> float:
    """Return the mean of PERMANOVA's R^2 over all signs of the units: its expectation without any difference.

    form_PP: the Gram matrix of the pairs' differences; units: the unit of each pair. 1 / P if every pair is a unit.
    NaN if the takes of every pair are equal.
    """
    total = np.trace(form_PP)
    return float(np.trace(summed(form_PP, units)) / (len(form_PP) * total)) if total > 0 else float("nan")


def energy_distance(distance_NN: np.ndarray, pairs_a: np.ndarray, pairs_b: np.ndarray, units: Sequence[Any]) -> float:
    """Return the unbiased estimate of 2 E|A - B| - E|A - A'| - E|B - B'|: means over takes of different units.

    distance_NN: distances between all takes. pairs_a, pairs_b: the indices of the takes of each pair, [P]; units: the
    unit of each pair. Its expectation is 0 if a and b are exchangeable within units, and its value may be negative. NaN
    with a single unit.
    """
    names = np.array([str(unit) for unit in units])
    other_PP = names[:, None] != names[None, :]
    if not other_PP.any():
        return float("nan")
    return float(-pair_form(distance_NN, pairs_a, pairs_b)[other_PP].mean())


def separability(gram_NN: np.ndarray, pairs: Pairs) -> tuple[float, float]:
    """Return the shares of left-out takes nearest to their group's centroid, and of left-out pairs in the right order.

    gram_NN: inner products of the takes. One seed at a time is left out, with all its scenes. Ties count half. NaN for
    a single seed.
    """
    seeds = np.array([seed for _, seed in pairs.cells])
    form_PP = pair_form(gram_NN, pairs.a, pairs.b)
    right, ordered = [], []
    for seed in np.unique(seeds):
        held, rest = np.flatnonzero(seeds == seed), np.flatnonzero(seeds != seed)
        if not len(rest):
            return float("nan"), float("nan")
        scores = form_PP[np.ix_(held, rest)].sum(axis=1)
        ordered += [float(score > 0) + 0.5 * (score == 0) for score in scores]
        own, other = pairs.a[rest], pairs.b[rest]
        # |x - c_a|^2 - |x - c_b|^2, in which |x|^2 cancels
        shift = gram_NN[np.ix_(own, own)].mean() - gram_NN[np.ix_(other, other)].mean()
        for takes, sign in ((pairs.a[held], 1), (pairs.b[held], -1)):
            gap = shift - 2 * (gram_NN[np.ix_(takes, own)].mean(axis=1) - gram_NN[np.ix_(takes, other)].mean(axis=1))
            right += [float(sign * g < 0) + 0.5 * (g == 0) for g in gap]
    return float(np.mean(right)), float(np.mean(ordered))


def to_centroid(gram_NN: np.ndarray, takes: np.ndarray) -> np.ndarray:
    """Return the distance of each of some takes (indices) to their centroid, from inner products [N, N]."""
    return np.sqrt(np.diag(centered(gram_NN[np.ix_(takes, takes)])).clip(min=0))
