"""The result of an analysis: what was measured, compared and tested."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from wanscope import __version__
from wanscope.analysis.collection import Collection, LeftOut, Member
from wanscope.analysis.groups import GroupResult
from wanscope.analysis.latent_pass import OnePass
from wanscope.analysis.latent_path import LatentPath
from wanscope.analysis.pairing import Comparison
from wanscope.analysis.remove_outdated import REPORT
from wanscope.analysis.table import Table
from wanscope.analysis.test_result import TestResults


@dataclass(frozen=True)
class Analysis:
    """What an analysis found.

    rank: the number of eigenvalues in every log-volume. paths: by index of the member, for takes that have one.
    between: inner products of the takes at each state and their joint coordinates, or None if no take has stored
    latents. compared: indices of the members in `between`. states: indices in the loop of the stored states. attention:
    rows of the table `attention`. folder: where the analysis was written, or None. page: whether a report was written.
    """

    collection: Collection
    comparison: Comparison
    table: Table
    tests: TestResults
    groups: GroupResult
    rank: int
    paths: dict[int, LatentPath]
    between: OnePass | None
    compared: tuple[int, ...]
    states: tuple[int, ...]
    notes: tuple[str, ...]
    summary: str
    attention: tuple[Mapping[str, Any], ...] = ()
    folder: Path | None = None
    page: bool = False

    @property
    def name(self) -> str:
        """The name of the study or collection."""
        return self.collection.name

    @property
    def members(self) -> tuple[Member, ...]:
        """The takes that were analyzed."""
        return self.collection.members

    @property
    def left_out(self) -> tuple[LeftOut, ...]:
        """The takes that were not analyzed, with reasons."""
        return self.collection.left_out

    @property
    def report(self) -> Path | None:
        """The report's page, or None if none was written."""
        return self.folder / REPORT if self.folder is not None and self.page else None

    def facts(self) -> dict[str, Any]:
        """Return what was analyzed and found, as the JSON object that is written to analysis.json."""
        return {
            "study": self.name,
            "wanscope": __version__,
            "made": datetime.now(UTC).isoformat(timespec="seconds"),
            "takes": [{"take": m.id, "name": m.name, "seed": m.seed, "labels": dict(m.labels)} for m in self.members],
            "left_out": [{"name": left.name, "why": left.why} for left in self.left_out],
            "contrasts": [{"factor": c.factor, "a": c.a, "b": c.b} for c in self.comparison.contrasts],
            "unit": self.comparison.unit,
            "rank": self.rank,
            "tests": self.tests.size,
            "smallest_p": self.tests.smallest_p,
            "correction": self.tests.correction,
            "families": {name: len(tests) for name, tests in self.tests.families.items()},
            "found": [t.record() for t in self.tests.tests if t.found],
            "notes": list(self.notes),
            "summary": self.summary,
            "folder": None if self.folder is None else str(self.folder),
            "report": None if self.report is None else str(self.report),
        }
