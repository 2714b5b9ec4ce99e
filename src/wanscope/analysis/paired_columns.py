"""The numbers per take that are compared in pairs, in addition to the metrics of the whole path.

- attention: for each word its mass, concentration, travel and center, and the overlap of every two words; for the
  padding its mass. Mass, concentration and travel are means over all steps and blocks, centers are means over the
  frames of the mean map.
- courses: metrics at each state, and a word's mass and concentration at each step and at each block.

A word that is the value of a slot differs between the groups, so it is compared under the slot's name: with
`[red|blue]` as the slot `color`, the attention to "red" in one group is compared with that to "blue" in the other.

Shape suffixes: N takes, M columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from wanscope.analysis.collection import Member
from wanscope.analysis.contrast_tests import Column, Columns
from wanscope.analysis.table import Table

PAD = "pad"  # the row of the padding in the maps
PADDING = "padding"  # the name under which it is compared
MEASURES = {
    "mass": ("Share of attention", "1"),
    "concentration": ("Concentration of attention", "1"),
    "travel": ("Travel of the attention's center", "frame"),
    "center_x": ("Center of attention, x", "frame"),
    "center_y": ("Center of attention, y", "frame"),
    "overlap": ("Overlap of attention", "1"),
}
OF_PADDING = ("mass",)  # the padding's map has a share, but no place that could mean something
IN_COURSES = ("mass", "concentration")
PREFIX = "attention_"


def compared_names(members: Sequence[Member], rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """Return for each take (by id) the names under which its words are compared: the slot's in brackets, or their own.

    rows: of the table `attention`. A word that all takes have, or that is the value of several slots, keeps its own
    name.
    """
    words: dict[str, dict[str, None]] = {}
    for row in rows:
        words.setdefault(row["take"], {})[row["word"]] = None
    everywhere = set.intersection(*map(set, words.values())) if words else set()
    out: dict[str, dict[str, str]] = {}
    for member in members:
        slots: dict[str, list[str]] = {}
        for slot, value in member.labels.items():
            slots.setdefault(value, []).append(slot)
        out[member.id] = {word: word for word in words.get(member.id, ())} | {
            value: f"[{names[0]}]" for value, names in slots.items() if len(names) == 1 and value not in everywhere
        }
        out[member.id][PAD] = PADDING
    return out


def attention_columns(members: Sequence[Member], rows: Sequence[Mapping[str, Any]]) -> Columns:
    """Return the attention of each take as one number per word and measure. rows: of the table `attention`."""
    names = compared_names(members, rows)
    found: dict[tuple[str, str], dict[str, list[float]]] = {}
    for row in rows:
        measure, word = row["measure"], row["word"]
        if measure not in MEASURES or (word == PAD and measure not in OF_PADDING) or row.get("other") == PAD:
            continue
        own = names[row["take"]]
        part = own[word]
        if row.get("other"):
            part = " and ".join(sorted((part, own[row["other"]])))
        found.setdefault((measure, part), {}).setdefault(row["take"], []).append(float(row["value"]))
    columns = tuple(Column(PREFIX + measure, *MEASURES[measure], part) for measure, part in found)
    return Columns("attention", columns, _values(members, list(found.values())))


def course_columns(members: Sequence[Member], table: Table, rows: Sequence[Mapping[str, Any]]) -> Columns:
    """Return each metric at each state, and the attention of each word at each step and each block.

    Metrics of many parts (channels, bands) are left out.
    """
    columns: list[Column] = []
    values: list[dict[str, list[float]]] = []
    for metric in table.metrics:
        by_state: dict[int, dict[str, list[float]]] = {}
        for value in table.of(metric.name).values:
            if value.row.state is not None and not value.row.part:
                take = members[value.member].id
                by_state.setdefault(value.row.state, {}).setdefault(take, []).append(value.row.value)
        for state, found in sorted(by_state.items()):
            columns.append(Column(metric.name, metric.title, metric.unit, "", state))
            values.append(found)
    names = compared_names(members, rows)
    maps: dict[tuple[str, str, str, int], dict[str, list[float]]] = {}
    for row in rows:
        measure, word = row["measure"], row["word"]
        if measure not in IN_COURSES or (word == PAD and measure not in OF_PADDING):
            continue
        part = names[row["take"]][word]
        for axis in ("step", "block"):
            if row.get(axis) is not None:
                at = maps.setdefault((measure, part, axis, row[axis]), {})
                at.setdefault(row["take"], []).append(float(row["value"]))
    for (measure, part, axis, place), found in sorted(maps.items()):
        title, unit = MEASURES[measure]
        state, block = (place, None) if axis == "step" else (None, place)
        columns.append(Column(PREFIX + measure, title, unit, part, state, block))
        values.append(found)
    return Columns("courses", tuple(columns), _values(members, values))


def _values(members: Sequence[Member], columns: Sequence[Mapping[str, Sequence[float]]]) -> np.ndarray:
    """Return the mean of each take's finite values in each column, float64 [N, M]; NaN if it has none."""
    values_NM = np.full((len(members), len(columns)), np.nan)
    for m, found in enumerate(columns):
        for i, member in enumerate(members):
            known = [value for value in found.get(member.id, ()) if np.isfinite(value)]
            if known:
                values_NM[i, m] = np.mean(known)
    return values_NM
