"""Kinds of edits that only ComfyUI's runtimes know: attention maps to keep, and guidance toward a second prompt."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from wanscope.edit.blocks import parse_blocks
from wanscope.edit.sites import BRANCHES, Branch, Part


@dataclass(frozen=True)
class LiveKind:
    """What ComfyUI's own kinds share with the edits of a recipe (`edit.base.EditBase`)."""

    schedule: ClassVar[None] = None
    skips: ClassVar[bool] = False
    sets_prompt: ClassVar[bool] = False
    takes_donor: ClassVar[bool] = False
    branch: Branch = field(default="cond", kw_only=True)

    @property
    def branches(self) -> tuple[Branch, ...]:
        """The passes that it acts on."""
        return tuple(branch for branch in BRANCHES if branch == self.branch)

    def check(self, blocks: int, steps: int, heads: int) -> None:
        """Nothing that a model could lack."""

    def replaces(self, table: Any) -> Any:
        """Nowhere: it changes no text that is read."""
        return table < float("-inf")


@dataclass(frozen=True)
class Watch(LiveKind):
    """Attention maps to keep: the mean over the chosen blocks, and over the steps while it is due."""

    blocks: str = "all"
    title: ClassVar[str] = "attention maps"
    observes: ClassVar[bool] = True

    @property
    def parts(self) -> tuple[Part, ...]:
        """What of a block it looks at."""
        return ("attention",)

    def acting_strengths(self, count: int) -> tuple[float, ...]:
        """1 in the chosen ones of `count` blocks, 0 in the others."""
        return tuple(float(chosen) for chosen in parse_blocks(self.blocks, count).mask)


@dataclass(frozen=True)
class Guide(LiveKind):
    """Guidance toward a second prompt: the pass's prediction plus `weight` times (the donor's minus its own)."""

    weight: float
    title: ClassVar[str] = "second guidance"
    observes: ClassVar[bool] = False

    @property
    def parts(self) -> tuple[Part, ...]:
        """None: it acts on the whole call, not inside blocks."""
        return ()

    def acting_strengths(self, count: int) -> tuple[float, ...]:
        """Its weight at block 0, which counts for the whole call."""
        return (self.weight,) + (0.0,) * (count - 1)
