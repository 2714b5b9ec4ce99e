"""The operations that edits are made of: all that a runtime has to be able to do.

For each part of a block that it touches, an edit names the operation that is done there (`EditBase.operation_at`).
Runtimes know operations and no kinds of edits, so a new kind made of these needs no change in any runtime.

    part        operations
    context     ReadInstead, MixIn, Append, BlendTokens, ShiftTokens    (carried out by runtime/compose.py)
    attention   BendMaps, SkipAttention                                 (runtime/text_attention.py)
    hidden      BlendState, ShiftState                                  (the session of each runtime)
    block       SkipBlock

An operation on the context also says which prompts each text read there then holds (`prompts_read`), so that words can
be checked before the run. Plain data; no torch is loaded here.

Shape suffixes: D model dim.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from wanscope.edit.planned_texts import PlannedText

if TYPE_CHECKING:
    from torch import Tensor

# The prompts in each text that a cross-attention reads.
Prompts = list[frozenset[str]]


class Direction(Protocol):
    """A concept direction, stored (`direction.Direction`) or learned for one call."""

    def at(self, expert: int, block: int) -> Tensor:
        """[D]: the direction in one block of one expert."""
        ...


class MapChange(Protocol):
    """What a bend does to attention maps; `runtime.bend.map_operation` reads it."""

    @property
    def operation(self) -> str: ...
    @property
    def factor(self) -> float | None: ...
    @property
    def x(self) -> float | None: ...
    @property
    def y(self) -> float | None: ...
    @property
    def angle(self) -> float | None: ...
    @property
    def axis(self) -> str | None: ...
    @property
    def sigma(self) -> float | None: ...
    @property
    def box(self) -> tuple[float, float, float, float] | None: ...
    @property
    def heads(self) -> tuple[int, ...]: ...
    @property
    def renormalize(self) -> bool: ...


@dataclass(frozen=True, eq=False)
class Operation:
    """What is done at one part of one site."""

    def prompts_read(self, read: Prompts) -> Prompts:
        """The prompts in each text that is read after it; `read`: before it."""
        return read


@dataclass(frozen=True, eq=False)
class ReadInstead(Operation):
    """The text is read in place of everything that would be read."""

    text: PlannedText

    def prompts_read(self, read: Prompts) -> Prompts:
        return [self.text.prompts]


@dataclass(frozen=True, eq=False)
class MixIn(Operation):
    """The text is read too: of the cross-attentions' outputs, (1 - share) of what was there and share of its own."""

    text: PlannedText
    share: float

    def prompts_read(self, read: Prompts) -> Prompts:
        return [*read, self.text.prompts]


@dataclass(frozen=True, eq=False)
class Append(Operation):
    """The text's tokens take the place of padding, each with log(weight) added to its attention logits."""

    text: PlannedText
    weight: float

    def prompts_read(self, read: Prompts) -> Prompts:
        return [before | self.text.prompts for before in read]


@dataclass(frozen=True, eq=False)
class BlendTokens(Operation):
    """The context is combined with the text's, token by token (`operation`: blend, replace, add).

    words_only: at the places of the edit's words alone.
    """

    text: PlannedText
    operation: str
    strength: float
    words_only: bool

    def prompts_read(self, read: Prompts) -> Prompts:
        return read if self.words_only else [before | self.text.prompts for before in read]


@dataclass(frozen=True, eq=False)
class ShiftTokens(Operation):
    """Every real token of the context moves along a direction (`operation`: add, ablate, rotate)."""

    direction: Direction
    operation: str
    strength: float


@dataclass(frozen=True, eq=False)
class BendMaps(Operation):
    """The attention maps of the edit's words are changed. key: the same for all sites of one edit."""

    change: MapChange
    strength: float
    key: int


@dataclass(frozen=True, eq=False)
class SkipAttention(Operation):
    """The block's cross-attention does not run."""


@dataclass(frozen=True, eq=False)
class BlendState(Operation):
    """The block's input is combined with that of a second pass, which reads `text` (`operation`: blend, replace, add).

    after_block: the state of that pass after so many blocks, instead of its state at each block's own place.
    """

    text: PlannedText
    after_block: int | None
    operation: str
    strength: float


@dataclass(frozen=True, eq=False)
class ShiftState(Operation):
    """The block's input moves along a direction (`operation`: add, ablate, rotate)."""

    direction: Direction
    operation: str
    strength: float


@dataclass(frozen=True, eq=False)
class SkipBlock(Operation):
    """The block does not run: its output is its input."""
