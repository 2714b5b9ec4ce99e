"""Dispersion and separation of groups of takes at every step, from the inner products between takes.

The statistics and their sources are in group_statistics.py. Spread, the distance to the centroid of the take's group,
is compared in pairs: Anderson 2006, doi 10.1111/j.1541-0420.2005.00440.x.

Distances are divided by sqrt(D), which makes them root mean squares per latent value.

Shape suffixes: N takes, K states, A axes, P pairs, U units, B permutation patterns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from wanscope.analysis import omnibus
from wanscope.analysis.collection import Member
from wanscope.analysis.confidence_intervals import mean_interval
from wanscope.analysis.effect_size import paired_effect
from wanscope.analysis.group_statistics import (
    energy_distance,
    expected_r2,
    pair_form,
    permanova,
    separability,
    sign_flip_p,
    squared_distances,
    summed,
    to_centroid,
)
from wanscope.analysis.latent_pass import OnePass
from wanscope.analysis.latent_path import FLOOR_FACTOR, centered, rounding_floor
from wanscope.analysis.pairing import Comparison, Contrast, Pairs, factor_value, find_pairs, shared_labels
from wanscope.analysis.path_volume import log_volume
from wanscope.analysis.permutation_tests import paired_permutation, smallest_p
from wanscope.analysis.test_result import Draft, Test
from wanscope.analysis.trajectory import coordinates


@dataclass(frozen=True)
class GroupRow:
    """One value of a group (or of a contrast, `a - b`) at a state."""

    factor: str
    group: str
    quantity: str
    unit: str
    state: int
    sigma: float
    value: float


@dataclass(frozen=True)
class GroupResult:
    """The analysis of groups. rows: at every state. drafts: the tests at the last state.

    places_KNA: exact principal coordinates of all takes at each state, / sqrt(D). rank: the number of eigenvalues in
    every dispersion volume.
    """

    COLUMNS = ("factor", "group", "quantity", "unit", "state", "sigma", "value")

    rows: tuple[GroupRow, ...] = ()
    drafts: tuple[Draft, ...] = ()
    places_KNA: np.ndarray | None = None
    rank: int = 0

    def records(self) -> list[dict[str, Any]]:
        """Return the rows of the table `groups`."""
        return [{name: getattr(row, name) for name in self.COLUMNS} for row in self.rows]

    def course(self, factor: str, group: str, quantity: str) -> tuple[list[int], list[float]]:
        """Return the states and the values of one quantity."""
        found = [(r.state, r.value) for r in self.rows if (r.factor, r.group, r.quantity) == (factor, group, quantity)]
        return [state for state, _ in found], [value for _, value in found]


def analyze_groups(
    members: Sequence[Member],
    comparison: Comparison,
    between: OnePass | None,
    compared: Sequence[int],
    states: Sequence[int],
) -> GroupResult:
    """Compute the rows and tests of all groups. compared: indices of the members in `between`, in its order."""
    if between is None or not compared:
        return GroupResult()
    kept = [members[i] for i in compared]
    sigmas = kept[0].take.sigmas
    dimension = between.dimension
    places = np.stack([coordinates(g, min(3, len(kept)), dimension) for g in between.gram_KNN])
    factors = list(dict.fromkeys(contrast.factor for contrast in comparison.contrasts))
    cells = {factor: _cells(kept, factor) for factor in factors}
    rank = _rank(between, [takes for groups in cells.values() for scenes in groups.values() for takes in scenes], kept)
    rows: list[GroupRow] = []
    for k, state in enumerate(states):
        at = (int(state), float(sigmas[state]))
        for factor in factors:
            for group, scenes in cells[factor].items():
                rows += _spread(between.gram_KNN[k], factor, group, scenes, rank, dimension, at)
    drafts = _of_all(between.gram_KNN[-1], kept, comparison)
    for contrast in comparison.contrasts:
        pairs = find_pairs(kept, contrast, comparison.scenes)
        if not len(pairs.a):
            continue
        for k, state in enumerate(states):
            at = (int(state), float(sigmas[state]))
            rows += _apart(between.gram_KNN[k], contrast, pairs, pairs.units(comparison.unit), dimension, at)
        drafts += _tests(between.gram_KNN[-1], contrast, pairs, comparison, cells[contrast.factor], dimension)
    return GroupResult(tuple(rows), tuple(drafts), places, rank)


def _of_all(gram_NN: np.ndarray, members: Sequence[Member], comparison: Comparison) -> list[Draft]:
    """Test the last latents for all values of a factor at once."""
    out = []
    for factor, values in omnibus.factors_of(comparison).items():
        blocks = omnibus.blocks_of(members, factor, values, comparison.unit, comparison.scenes)
        if blocks.count > 1:
            f, p, r2_B = omnibus.permanova(blocks.gram(gram_NN))
            title = "Latents of the result (PERMANOVA)"
            numbers = {"difference": float(r2_B[0]), "expected": _known(r2_B.mean())}
            test = omnibus.omnibus_test(blocks, comparison, "permanova", title, "", "R2", f, p, **numbers)
            out.append(Draft(test, blocks.units, r2_B))
    return out


def _cells(members: Sequence[Member], factor: str) -> dict[str, list[np.ndarray]]:
    """Return for each value of the factor the takes of each scene, which differ only in their seed."""
    rest = shared_labels(members, factor)
    found: dict[str, dict[tuple[str | None, ...], list[int]]] = {}
    for i, member in enumerate(members):
        value = factor_value(member, factor)
        if value is not None:
            key = tuple(member.labels.get(name) for name in rest)
            found.setdefault(value, {}).setdefault(key, []).append(i)
    return {value: [np.array(takes) for takes in scenes.values()] for value, scenes in found.items()}


def _rank(between: OnePass, groups: Sequence[np.ndarray], members: Sequence[Member]) -> int:
    """Return the rank used for the volumes of all groups at all states."""
    stored = members[0].take.manifest.latents
    dtype = stored.dtype if stored is not None else "fp32"
    ranks = []
    for takes in groups:
        if len(takes) < 2:
            continue
        for gram_NN in between.gram_KNN:
            part = gram_NN[np.ix_(takes, takes)]
            floor = rounding_floor(np.diag(part), dtype)
            values = np.linalg.eigvalsh(centered(part))[::-1][: len(takes) - 1]
            ranks.append(int((values >= FLOOR_FACTOR * floor).sum()))
    return min(ranks, default=0)


def _spread(
    gram_NN: np.ndarray,
    factor: str,
    group: str,
    scenes: Sequence[np.ndarray],
    rank: int,
    dimension: int,
    at: tuple[int, float],
) -> list[GroupRow]:
    """Return the dispersion of a group over seeds and its log-volume, as means over its scenes."""
    variances, volumes = [], []
    for takes in scenes:
        if len(takes) < 2:
            continue
        inner = centered(gram_NN[np.ix_(takes, takes)])
        variances.append(np.trace(inner) / (len(takes) - 1) / dimension)
        volumes.append(log_volume(np.linalg.eigvalsh(inner)[::-1].clip(min=0), rank, dimension))
    if not variances:
        return []
    rows = [GroupRow(factor, group, "dispersion", "rms", *at, float(np.sqrt(np.mean(variances))))]
    if rank:
        rows.append(GroupRow(factor, group, "dispersion_log_volume", "nats", *at, float(np.mean(volumes))))
    return rows


def _apart(
    gram_NN: np.ndarray, contrast: Contrast, pairs: Pairs, units: Sequence[str], dimension: int, at: tuple[int, float]
) -> list[GroupRow]:
    """Return distances and separability of a contrast's two groups."""
    distance_NN = np.sqrt(squared_distances(gram_NN) / dimension)
    seeds = np.array([seed for _, seed in pairs.cells])
    scenes = np.array([scene for scene, _ in pairs.cells])
    other_seed = (seeds[:, None] != seeds[None, :]) & (scenes[:, None] == scenes[None, :])
    f, r2 = permanova(gram_NN, pairs)
    nearest, ordered = separability(gram_NN, pairs)
    numbers = {
        "distance_in_pairs": ("rms", float(distance_NN[pairs.a, pairs.b].mean())),
        "permanova_f": ("1", f),
        "permanova_r2": ("1", r2),
        "permanova_r2_expected": ("1", expected_r2(pair_form(gram_NN, pairs.a, pairs.b), units)),
        "energy_distance": ("rms", energy_distance(distance_NN, pairs.a, pairs.b, units)),
        "nearest_centroid": ("1", nearest),
        "pairs_in_order": ("1", ordered),
    }
    if other_seed.any():
        within = [distance_NN[np.ix_(side, side)][other_seed].mean() for side in (pairs.a, pairs.b)]
        across = distance_NN[np.ix_(pairs.a, pairs.b)][other_seed].mean()
        numbers["distance_within"] = ("rms", float(np.mean(within)))
        numbers["distance_between"] = ("rms", float(across))
    return [GroupRow(contrast.factor, contrast.text, name, unit, *at, value) for name, (unit, value) in numbers.items()]


def _tests(
    gram_NN: np.ndarray,
    contrast: Contrast,
    pairs: Pairs,
    comparison: Comparison,
    cells: dict[str, list[np.ndarray]],
    dimension: int,
) -> list[Draft]:
    units = pairs.units(comparison.unit)
    names = tuple(dict.fromkeys(units))
    distance_NN = np.sqrt(squared_distances(gram_NN) / dimension)
    inner_PP = pair_form(gram_NN, pairs.a, pairs.b)
    inner_UU = summed(inner_PP, units)
    apart_UU = summed(-pair_form(distance_NN, pairs.a, pairs.b), units)
    _, r2 = permanova(gram_NN, pairs)
    energy = energy_distance(distance_NN, pairs.a, pairs.b, units)
    out = []
    for name, title, measure, value, expected, form_UU in (
        ("permanova", "PERMANOVA", "R2", r2, expected_r2(inner_PP, units), inner_UU),
        ("energy", "energy distance", "rms", energy, 0.0, apart_UU),
    ):
        p = sign_flip_p(form_UU) if len(names) > 1 else None
        numbers = {"difference": value, "expected": _known(expected), "family_name": "latents"}
        title = f"Latents of the result ({title})"
        test = _test(contrast, comparison, name, title, measure, "group", len(names), p, **numbers)
        out.append(Draft(test, names, form_UU))
    spread_N = np.full(len(gram_NN), np.nan)
    for value in (contrast.a, contrast.b):
        for takes in cells[value]:
            if len(takes) > 2:
                spread_N[takes] = to_centroid(gram_NN, takes) / np.sqrt(dimension)
    if np.isfinite(spread_N[pairs.a]).all() and np.isfinite(spread_N[pairs.b]).all():
        d_U = pairs.differences(spread_N[:, None], comparison.unit)[:, 0]
        out.append(Draft(_spread_test(contrast, comparison, pairs, spread_N, d_U), names, d_U))
    return out


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _spread_test(
    contrast: Contrast, comparison: Comparison, pairs: Pairs, spread_N: np.ndarray, d_U: np.ndarray
) -> Test:
    """Return the test of the distance to the centroid of the own group, [N], by its differences in units, [U]."""
    effect, interval = paired_effect(d_U[:, None]), mean_interval(d_U)
    return _test(
        contrast,
        comparison,
        "spread",
        "Spread of the results over seeds",
        "rms",
        "paired",
        len(d_U),
        float(paired_permutation(d_U[:, None])[0]) if len(d_U) > 1 else None,
        mean_a=float(spread_N[pairs.a].mean()),
        mean_b=float(spread_N[pairs.b].mean()),
        difference=float(d_U.mean()),
        low=_known(interval.low),
        high=_known(interval.high),
        interval=interval.method,
        coverage=interval.coverage,
        effect=_known(effect.size[0]),
        effect_low=_known(effect.low[0]),
        effect_high=_known(effect.high[0]),
        note=interval.note,
    )


def _test(
    contrast: Contrast,
    comparison: Comparison,
    name: str,
    title: str,
    measure: str,
    kind: str,
    units: int,
    p: float | None,
    **numbers: Any,
) -> Test:
    blank = dict.fromkeys(
        ("mean_a", "mean_b", "difference", "low", "high", "coverage", "effect", "effect_low", "effect_high")
    )
    return Test(
        factor=contrast.factor,
        a=contrast.a,
        b=contrast.b,
        metric=name,
        title=title,
        part="",
        measure=measure,
        kind=kind,
        unit=comparison.unit,
        units=units,
        p=p,
        smallest_p=smallest_p(units),
        **{"interval": "none", **blank, **numbers},
    )
