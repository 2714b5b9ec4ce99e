"""The operations that edits are made of, which is all that a runtime has to implement.

For each part of a block that it touches, an edit returns the operation to perform (`EditBase.operation_at`). Runtimes
know operations and not kinds of edits, so a new kind made of these operations needs no change in any runtime.

    part        operations
    context     ReadInstead, MixIn, Append, BlendTokens, ShiftTokens    (carried out by runtime/compose.py)
    attention   BendMaps, SkipAttention                                 (runtime/text_attention.py)
    hidden      BlendState, ShiftState                                  (the session of each runtime)
    block       SkipBlock

An operation on the context also says which prompts the texts read after it contain (`prompts_read`), so that words can
be checked before the run. Operations are plain data; this module does not import torch.

Shape suffixes: D model dim.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from wanscope.edit.planned_texts import PlannedText

if TYPE_CHECKING:
    from torch import Tensor

# The prompts contained in each text that a cross-attention reads.
Prompts = list[frozenset[str]]


class Direction(Protocol):
    """A concept direction, stored (`direction.Direction`) or made for one call."""

    def at(self, expert: int, block: int) -> Tensor:
        """Return the direction in one block of one expert, [D]."""
        ...


class MapChange(Protocol):
    """The parameters of a bend of attention maps, which `runtime.bend.map_operation` reads. See `kinds.bend.Bend`."""

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
    """Base class: an operation on one part of a block, at one site."""

    def prompts_read(self, read: Prompts) -> Prompts:
        """Return the prompts in each text that is read after the operation. read: those before it."""
        return read


@dataclass(frozen=True, eq=False)
class ReadInstead(Operation):
    """Read the text instead of everything that would be read."""

    text: PlannedText

    def prompts_read(self, read: Prompts) -> Prompts:
        return [self.text.prompts]


@dataclass(frozen=True, eq=False)
class MixIn(Operation):
    """Also attend to the text: the output is (1 - share) times the previous output plus share times the text's."""

    text: PlannedText
    share: float

    def prompts_read(self, read: Prompts) -> Prompts:
        return [*read, self.text.prompts]


@dataclass(frozen=True, eq=False)
class Append(Operation):
    """Write the text's tokens over padding, with log(weight) added to their attention logits."""

    text: PlannedText
    weight: float

    def prompts_read(self, read: Prompts) -> Prompts:
        return [before | self.text.prompts for before in read]


@dataclass(frozen=True, eq=False)
class BlendTokens(Operation):
    """Combine the context with the text's, token by token (`operation`: blend, replace, add).

    words_only: only at the positions of the edit's words.
    """

    text: PlannedText
    operation: str
    strength: float
    words_only: bool

    def prompts_read(self, read: Prompts) -> Prompts:
        return read if self.words_only else [before | self.text.prompts for before in read]


@dataclass(frozen=True, eq=False)
class ShiftTokens(Operation):
    """Move every real token of the context along a direction (`operation`: add, ablate, rotate)."""

    direction: Direction
    operation: str
    strength: float


@dataclass(frozen=True, eq=False)
class BendMaps(Operation):
    """Change the attention maps of the edit's words. key: the same for all sites of one edit, for caching."""

    change: MapChange
    strength: float
    key: int


@dataclass(frozen=True, eq=False)
class SkipAttention(Operation):
    """Do not run the block's cross-attention."""


@dataclass(frozen=True, eq=False)
class BlendState(Operation):
    """Combine the block's input with that of a second pass that reads `text` (`operation`: blend, replace, add).

    after_block: use the state of that pass after this many blocks, instead of its input of the same block.
    """

    text: PlannedText
    after_block: int | None
    operation: str
    strength: float


@dataclass(frozen=True, eq=False)
class ShiftState(Operation):
    """Move the block's input along a direction (`operation`: add, ablate, rotate)."""

    direction: Direction
    operation: str
    strength: float


@dataclass(frozen=True, eq=False)
class SkipBlock(Operation):
    """Do not run the block: its output is its input."""
