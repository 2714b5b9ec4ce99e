"""The edit kinds that exist only in ComfyUI: recording attention maps, and guidance toward a second prompt.

They have the attributes and methods of a recipe's edits (`edit.base.EditBase`) that the ComfyUI runtimes use.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from wanscope.edit.blocks import parse_blocks
from wanscope.edit.sites import BRANCHES, Branch, Part


@dataclass(frozen=True)
class LiveKind:
    """Base class of these kinds."""

    schedule: ClassVar[None] = None
    skips: ClassVar[bool] = False
    sets_prompt: ClassVar[bool] = False
    takes_donor: ClassVar[bool] = False
    branch: Branch = field(default="cond", kw_only=True)

    @property
    def branches(self) -> tuple[Branch, ...]:
        """The passes that it acts in."""
        return tuple(branch for branch in BRANCHES if branch == self.branch)

    def check(self, blocks: int, steps: int, heads: int) -> None:
        """Check nothing: these kinds work on every model."""

    def replaces(self, table: Any) -> Any:
        """Return an array of False, of the table's shape: it replaces no text."""
        return table < float("-inf")


@dataclass(frozen=True)
class Watch(LiveKind):
    """Records attention maps, averaged over the chosen blocks and the steps in which it is due."""

    blocks: str = "all"
    title: ClassVar[str] = "attention maps"
    observes: ClassVar[bool] = True

    @property
    def parts(self) -> tuple[Part, ...]:
        """The part of a block that it observes."""
        return ("attention",)

    def acting_strengths(self, count: int) -> tuple[float, ...]:
        """Return 1 for the chosen ones of `count` blocks and 0 for the others."""
        return tuple(float(chosen) for chosen in parse_blocks(self.blocks, count).mask)


@dataclass(frozen=True)
class Guide(LiveKind):
    """Guidance toward a second prompt: `weight` times (the donor's prediction minus the pass's own) is added."""

    weight: float
    title: ClassVar[str] = "second guidance"
    observes: ClassVar[bool] = False

    @property
    def parts(self) -> tuple[Part, ...]:
        """No part: it acts on the whole call, not inside blocks."""
        return ()

    def acting_strengths(self, count: int) -> tuple[float, ...]:
        """Return its weight at block 0, which represents the whole call, and 0 elsewhere."""
        return (self.weight,) + (0.0,) * (count - 1)
