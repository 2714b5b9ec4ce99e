"""Write what an analysis measured of takes to the catalog of their workspace.

SELECT t.prompt, m.value FROM metrics m JOIN takes t ON m.take = t.id WHERE m.name = 'path_length'
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from wanscope import events
from wanscope.analysis.table import Table
from wanscope.catalog.catalog import Catalog
from wanscope.errors import WanscopeError

SOURCE = "analyze"
OF_THE_WHOLE = -1


def store_metrics(table: Table, on_event: events.Listener = events.ignore) -> int:
    """Write the metrics of takes to the catalogs of their workspaces, where those exist; return the number of rows.

    A catalog that cannot be written does not fail the analysis: a note reports why, and the tables are the result.
    """
    written = 0
    for space, rows in _rows(table).items():
        try:
            catalog = Catalog(space)
            written += catalog.add_metrics(rows) if catalog.exists else 0
        except WanscopeError as error:
            said = f"{error.what}: {error.why}".rstrip(": ")
            on_event(events.Note(f"the metrics are in the tables and not in the catalog: {said}"))
    return written


def _rows(table: Table) -> dict[Path, list[dict[str, Any]]]:
    """Return the rows of the table `metrics` by workspace, without values that are not finite."""
    out: dict[Path, list[dict[str, Any]]] = {}
    for value in table.values:
        take = table.members[value.member].take
        if not math.isfinite(value.row.value):
            continue
        row = {
            "take": take.id,
            "name": value.metric.name + (f" ({value.row.part})" if value.row.part else ""),
            "step": OF_THE_WHOLE if value.row.state is None else int(value.row.state),
            "value": float(value.row.value),
            "unit": value.metric.unit,
            "source": SOURCE,
        }
        out.setdefault(take.folder.parent.parent, []).append(row)
    return out
