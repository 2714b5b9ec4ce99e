"""The table of metrics, with one row per take, metric, state and part, and the files it is written to.

    take  name  group  seed  slot:...  metric  title  unit  state  sigma  part  value

The Parquet and CSV files have the same columns and the same numbers.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wanscope.analysis.collection import Member
from wanscope.analysis.metric import Metric, Row, Subject
from wanscope.take.building import new_file
from wanscope.take.csv_cells import harmless
from wanscope.take.disk import guarded

SLOT = "slot:"


@dataclass(frozen=True)
class Value:
    """One row. member: the take's index in the analysis. sigma: the noise level of its state."""

    member: int
    metric: Metric
    row: Row
    sigma: float | None


@dataclass(frozen=True)
class MetricTable:
    """All rows of one metric, for a figure. members: all takes of the analysis, to which `Value.member` is an index."""

    metric: Metric
    members: Sequence[Member]
    values: Sequence[Value]

    @property
    def by_state(self) -> bool:
        return any(value.row.state is not None for value in self.values)


@dataclass(frozen=True)
class Table:
    """The values of all takes."""

    members: tuple[Member, ...]
    values: tuple[Value, ...]

    def of(self, metric: str) -> MetricTable:
        """Return the rows of one metric. Raises KeyError if there are none."""
        rows = [value for value in self.values if value.metric.name == metric]
        if not rows:
            raise KeyError(metric)
        return MetricTable(rows[0].metric, self.members, rows)

    @property
    def metrics(self) -> list[Metric]:
        return list({value.metric.name: value.metric for value in self.values}.values())

    def tested_columns(self) -> tuple[list[tuple[Metric, str]], np.ndarray]:
        """Return the columns that are compared, (metric, part), and their values, float64 [takes, columns]."""
        rows = [value for value in self.values if value.metric.tested and value.row.state is None]
        columns = list(dict.fromkeys((value.metric.name, value.row.part) for value in rows))
        metrics = {value.metric.name: value.metric for value in rows}
        values_NM = np.full((len(self.members), len(columns)), np.nan)
        place = {column: i for i, column in enumerate(columns)}
        for value in rows:
            values_NM[value.member, place[value.metric.name, value.row.part]] = value.row.value
        return [(metrics[name], part) for name, part in columns], values_NM

    def records(self) -> list[dict[str, Any]]:
        """Return the rows as dictionaries, as they are written."""
        slots = list(dict.fromkeys(slot for member in self.members for slot in member.labels))
        out = []
        for value in self.values:
            member = self.members[value.member]
            out.append(
                {
                    "take": member.id,
                    "name": member.name,
                    "group": member.group,
                    "seed": member.seed,
                    **{SLOT + slot: member.labels.get(slot) for slot in slots},
                    "metric": value.metric.name,
                    "title": value.metric.title,
                    "unit": value.metric.unit,
                    "state": value.row.state,
                    "sigma": value.sigma,
                    "part": value.row.part,
                    "value": value.row.value,
                }
            )
        return out


def compute_table(members: Sequence[Member], metrics: Sequence[Metric], subjects: Mapping[int, Subject]) -> Table:
    """Return every metric of every take. A metric whose needs no take meets has no rows.

    subjects: the input of the metrics, by the index of the member.
    """
    values = []
    for index, subject in sorted(subjects.items()):
        sigmas = subject.take.sigmas
        for metric in metrics:
            if "statistics" in metric.needs and not subject.statistics:
                continue
            for row in metric.of(subject):
                sigma = float(sigmas[row.state]) if row.state is not None and row.state < len(sigmas) else None
                values.append(Value(index, metric, row, sigma))
    return Table(tuple(members), tuple(values))


def write_rows(rows: Sequence[Mapping[str, Any]], base: Path, columns: Sequence[str] | None = None) -> list[Path]:
    """Write `base`.parquet and `base`.csv and return them. columns: their names, needed if there may be no rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = list(columns) if columns is not None else list(dict.fromkeys(key for row in rows for key in row))
    arrays = {name: pa.array([row.get(name) for row in rows], type=_type(rows, name)) for name in names}
    files = [base.with_suffix(".parquet"), base.with_suffix(".csv")]
    with guarded(base.parent):
        base.parent.mkdir(parents=True, exist_ok=True)
        with new_file(files[0], sync=False) as new:
            pq.write_table(pa.table(arrays), new, compression="zstd")
        with new_file(files[1], sync=False) as new, new.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow([harmless(name) for name in names])
            writer.writerows([_cell(row.get(name)) for name in names] for row in rows)
    return files


def _type(rows: Iterable[Mapping[str, Any]], name: str) -> Any:
    import pyarrow as pa

    kinds = {type(row[name]) for row in rows if row.get(name) is not None}
    if kinds <= {bool}:
        return pa.bool_() if kinds else pa.string()
    if kinds <= {int}:
        return pa.int64()
    return pa.float64() if kinds <= {int, float, np.float64} else pa.string()


def _cell(value: Any) -> Any:
    """Return a cell's text: floats with all their digits, and an empty text for None."""
    if isinstance(value, str):
        return harmless(value)
    return "" if value is None else repr(float(value)) if isinstance(value, float) else value
