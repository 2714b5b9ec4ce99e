"""What take.json says of edits: how often each was planned and how often it acted, at every block, branch and step.

A site is (block, branch, step); at each an edit acts once per model evaluation. Sites with the same numbers are written
together: `{branch: cond, steps: "0-19", blocks: "23-29", planned: 1, applied: 1}` stands for 20 x 7 sites.
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
    """Sites with equal numbers. planned, applied: at each of them; steps and blocks: ranges such as `0-9,20`."""

    branch: str
    steps: str
    blocks: str
    planned: Count
    applied: Count


class AppliedEdit(Spec):
    """How often an edit was planned and done, in all and by site. `edit` is its shorthand.

    notes: what its plan told: how far a donor was moved, why it acts nowhere, a direction of other weights.
    """

    edit: str
    planned: Count
    applied: Count
    sites: tuple[AppliedSites, ...] = ()
    notes: tuple[str, ...] = ()

    def counts(self) -> dict[tuple[int, str, int], tuple[int, int]]:
        """(planned, applied) of every (block, branch, step)."""
        return {
            (block, site.branch, step): (site.planned, site.applied)
            for site in self.sites
            for step in numbers(site.steps)
            for block in numbers(site.blocks)
        }

    def describe(self) -> str:
        """In one line: how often, on which branches, in which blocks and steps."""
        if not self.planned and not self.applied:
            return "planned nowhere: its strength is 0, its pass is not run, or another edit leaves nothing of it"
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
    """What the manifest records of a recipe's edits. Sites that are in neither mapping are left out.

    notes: of the edit at a place in the list.
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
    """Blocks with equal numbers at a step together, then steps whose blocks are the same."""
    by_step: dict[tuple[str, tuple[int, int], int], set[int]] = {}
    for (block, branch, step), found in sites.items():
        by_step.setdefault((branch, found, step), set()).add(block)
    rectangles: dict[tuple[str, tuple[int, int], str], set[int]] = {}
    for (branch, found, step), blocks in by_step.items():
        rectangles.setdefault((branch, found, ranges(blocks)), set()).add(step)
    made = [
        AppliedSites(branch=branch, steps=ranges(steps), blocks=blocks, planned=found[0], applied=found[1])
        for (branch, found, blocks), steps in rectangles.items()
    ]
    return tuple(sorted(made, key=lambda site: (site.branch, numbers(site.steps), numbers(site.blocks))))


def ranges(values: Iterable[int]) -> str:
    """`0-9,20` of whole numbers from 0."""
    runs: list[list[int]] = []
    for value in sorted(set(values)):
        if runs and runs[-1][1] == value - 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return ",".join(f"{a}-{b}" if a != b else f"{a}" for a, b in runs)


def numbers(text: str) -> list[int]:
    """The numbers that `ranges` wrote."""
    out: list[int] = []
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        out += range(int(first), int(last or first) + 1)
    return out
