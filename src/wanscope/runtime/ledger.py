"""The interface of every runtime, and the ledger that proves that the edits acted.

    with attach(model, plan) as session:
        denoise(..., around_call=session.around_call)
    session.verify()      # raises EditNotApplied unless every planned site acted as often as planned
    session.counts()      # (edit, block, branch, step) -> how often

A `Ledger` records both sides: what is planned for a call, from the plan and the call that is actually made, and what
was applied, from counters in the code that applies it. They are compared after each call, so an edit that does not act
ends the run at the first call that it misses. They are compared again at the end, which detects missing calls.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

from wanscope.capture.moments import Moment
from wanscope.edit.blocks import parse_blocks
from wanscope.edit.plan import EditPlan
from wanscope.edit.planned import PlannedEdit
from wanscope.edit.sites import Part, Site
from wanscope.errors import EditNotApplied

# (index of the edit, part of the block, block, branch)
Fired = tuple[int, Part, int, str]


class Session(Protocol):
    """An attached plan."""

    def around_call(self, moment: Moment) -> AbstractContextManager[Any]:
        """Return the context manager in which each model call of the run must be made."""
        ...

    def planned(self) -> dict[Site, int]:
        """Return how often each site was planned to act in the calls that were made."""
        ...

    def counts(self) -> dict[Site, int]:
        """Return how often each site acted."""
        ...

    def verify(self) -> None:
        """Raise EditNotApplied unless the whole run was made and every planned site acted."""
        ...


class Ledger:
    """Counts the planned and the applied edits, call by call.

    An injection `on: both` acts on two parts of a block; its count is that of the part that acted less often.
    """

    def __init__(self, plan: EditPlan) -> None:
        self.plan = plan
        self.calls: Counter[tuple[int, str]] = Counter()
        self._due: Counter[tuple[int, str]] = Counter()
        self._planned: Counter[Site] = Counter()
        self._applied: dict[Site, Counter[Part]] = defaultdict(Counter)

    def close_call(self, moment: Moment, fired: Mapping[Fired, int]) -> None:
        """Record a finished call. Raises EditNotApplied if other edits acted than planned, or not as often."""
        expected: dict[Fired, int] = {}
        if "cond" in moment.branches and self.plan.passes.has("uncond", moment.step, moment.expert):
            self._due[moment.step, "uncond"] += 1
        for branch in moment.branches:
            self.calls[moment.step, branch] += 1
            for edit, block in self.plan.sites(branch, moment.step):
                site = (edit.index, block, branch, moment.step)
                self._planned[site] += 1
                expected |= {(edit.index, part, block, branch): 1 for part in edit.parts}
        for (index, part, block, branch), count in fired.items():
            self._applied[index, block, branch, moment.step][part] += count
        wrong = {key for key in {*expected, *fired} if expected.get(key, 0) != fired.get(key, 0)}
        if wrong:
            raise self._not_applied(moment.step, wrong, expected, fired)

    def planned(self) -> dict[Site, int]:
        """Return how often each site was planned to act in the calls so far."""
        return dict(self._planned)

    def applied(self) -> dict[Site, int]:
        """Return how often each site acted in the calls so far."""
        edits = {edit.index: edit for edit in self.plan.edits}
        return {
            site: min(parts[part] for part in edits[site[0]].parts) for site, parts in self._applied.items() if parts
        }

    def verify(self) -> None:
        """Raise EditNotApplied unless every step made its calls and every site acted as often as planned."""
        passes = self.plan.passes
        for step in range(passes.first, passes.steps):
            due = {"cond": passes.evaluations[step], "uncond": self._due[step, "uncond"]}
            for branch, expected in due.items():
                made = self.calls[step, branch]
                if made != expected and any(True for _ in self.plan.sites(branch, step)):
                    raise EditNotApplied(
                        f"the edits saw {made} of the {expected} {branch} calls of step {step}",
                        "the run was not made inside `with attach(...)`, or was not finished",
                        "denoise(..., around_call=session.around_call)",
                    )
        applied = self.applied()
        for site, planned in self._planned.items():
            if applied.get(site, 0) != planned:
                index, block, branch, step = site
                raise EditNotApplied(
                    f"{self._name(index)} was applied {applied.get(site, 0)} of {planned} times "
                    f"in block {block} at step {step} on {branch}",
                    "something has replaced the block or its attention processor, or skips its calls",
                )

    def _name(self, index: int) -> str:
        edit = self._edit(index)
        return f"edits.{index} ({edit.edit.in_one_line()})"

    def _edit(self, index: int) -> PlannedEdit:
        return next(edit for edit in self.plan.edits if edit.index == index)

    def _not_applied(
        self, step: int, wrong: set[Fired], expected: Mapping[Fired, int], fired: Mapping[Fired, int]
    ) -> EditNotApplied:
        index, part, _, branch = min(wrong)
        blocks = sorted({key[2] for key in wrong if (key[0], key[1], key[3]) == (index, part, branch)})
        first = (index, part, blocks[0], branch)
        where = parse_blocks(blocks, self.plan.blocks).ranges
        return EditNotApplied(
            f"{self._name(index)} did not act as planned on {part} in blocks {where} at step {step} on {branch}",
            f"it was applied {fired.get(first, 0)} times instead of {expected.get(first, 0)}; something has replaced "
            "the block or its attention processor, or skips its calls, as step caches and hooks of other libraries do",
        )
