"""The edit counts in take.json: how often each edit was planned and applied, at every block, branch and step.

A site is (block, branch, step); at each one an edit acts once per model evaluation. Sites with equal counts are written
together: `{branch: cond, steps: "0-19", blocks: "23-29", planned: 1, applied: 1}` describes 20 x 7 sites.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated

from pydantic import Field

from wanscope.edit.edits import Edit
from wanscope.edit.shorthand import shorthand
from wanscope.spec.settings import Spec

Count = Annotated[int, Field(ge=0)]
# (place in the recipe's list of edits, block, branch, step) -> how often
Counts = Mapping[tuple[int, int, str, int], int]


class AppliedSites(Spec):
    """Sites with equal counts. planned, applied: the counts at each one; steps, blocks: ranges such as `0-9,20`."""

    branch: str
    steps: str
    blocks: str
    planned: Count
    applied: Count


class AppliedEdit(Spec):
    """How often an edit was planned and applied, in total and by site. `edit` is its shorthand.

    notes: from its plan: how far a donor was moved, why the edit acts nowhere, a direction learned on other weights.
    """

    edit: str
    planned: Count
    applied: Count
    sites: tuple[AppliedSites, ...] = ()
    notes: tuple[str, ...] = ()

    def counts(self) -> dict[tuple[int, str, int], tuple[int, int]]:
        """Return (planned, applied) for every (block, branch, step)."""
        return {
            (block, site.branch, step): (site.planned, site.applied)
            for site in self.sites
            for step in numbers(site.steps)
            for block in numbers(site.blocks)
        }

    def describe(self) -> str:
        """Return one line: how often the edit was applied, on which branches and in which blocks and steps."""
        if not self.planned and not self.applied:
            return "planned nowhere: its strength is 0, its pass is not run, or another edit overrides it completely"
        acting = [site for site in self.sites if site.applied]
        blocks = ranges({block for site in acting for block in numbers(site.blocks)})
        steps = ranges({step for site in acting for step in numbers(site.steps)})
        branches = " and ".join(dict.fromkeys(site.branch for site in acting))
        where = f": blocks {blocks}, steps {steps}, {branches}" if acting else ""
        return f"applied {self.applied} of {self.planned}{where}"


def applied_edits(
    edits: Sequence[Edit],
    planned: Counts,
    applied: Counts,
    notes: Callable[[int], tuple[str, ...]] = lambda index: (),
) -> tuple[AppliedEdit, ...]:
    """Return what the manifest records about a recipe's edits. Sites that are in neither mapping are left out.

    notes: returns the notes of the edit at a position in `edits`.
    """
    out = []
    for i, edit in enumerate(edits):
        sites = {key[1:]: (planned.get(key, 0), applied.get(key, 0)) for key in {*planned, *applied} if key[0] == i}
        sites = {site: numbers for site, numbers in sites.items() if any(numbers)}
        totals = (sum(n for n, _ in sites.values()), sum(n for _, n in sites.values()))
        made = {"planned": totals[0], "applied": totals[1], "sites": _grouped(sites), "notes": notes(i)}
        out.append(AppliedEdit(edit=shorthand(edit), **made))
    return tuple(out)


def _grouped(sites: Mapping[tuple[int, str, int], tuple[int, int]]) -> tuple[AppliedSites, ...]:
    """Group the blocks that have equal counts at a step, then the steps that have the same groups of blocks."""
    by_step: dict[tuple[str, tuple[int, int], int], set[int]] = {}
    for (block, branch, step), counts in sites.items():
        by_step.setdefault((branch, counts, step), set()).add(block)
    rectangles: dict[tuple[str, tuple[int, int], str], set[int]] = {}
    for (branch, counts, step), blocks in by_step.items():
        rectangles.setdefault((branch, counts, ranges(blocks)), set()).add(step)
    made = [
        AppliedSites(branch=branch, steps=ranges(steps), blocks=blocks, planned=counts[0], applied=counts[1])
        for (branch, counts, blocks), steps in rectangles.items()
    ]
    return tuple(sorted(made, key=lambda site: (site.branch, numbers(site.steps), numbers(site.blocks))))


def ranges(values: Iterable[int]) -> str:
    """Return whole numbers from 0 as text such as `0-9,20`."""
    runs: list[list[int]] = []
    for value in sorted(set(values)):
        if runs and runs[-1][1] == value - 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return ",".join(f"{a}-{b}" if a != b else f"{a}" for a, b in runs)


def numbers(text: str) -> list[int]:
    """Return the numbers in a text that `ranges` wrote."""
    out: list[int] = []
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        out += range(int(first), int(last or first) + 1)
    return out
