"""A metric of another package: one file, and an entry point that names it."""

from __future__ import annotations

from typing import Any

from wanscope.analysis.metric import Row, Subject, metric, one


def bars(table: Any) -> Any:
    import plotly.graph_objects as go

    names = [table.members[value.member].name for value in table.values]
    return go.Figure(go.Bar(x=names, y=[value.row.value for value in table.values]))


@metric(
    "example_last_step",
    title="Share of the last step",
    unit="1",
    needs=("path",),
    about="Length of the last step over the path's length.",
    tested=True,
    figure=bars,
)
def last_step(subject: Subject) -> list[Row]:
    lengths = subject.path.increments.diagonal() ** 0.5
    return one(lengths[-1] / lengths.sum())
