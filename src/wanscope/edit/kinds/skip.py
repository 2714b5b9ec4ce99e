"""Skip: does not run a block, or only its cross-attention."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from wanscope.edit.base import EditInBlocks
from wanscope.edit.field_types import BlocksText
from wanscope.edit.line import Line
from wanscope.edit.operations import Operation, SkipAttention, SkipBlock
from wanscope.edit.planned import Passes, PlannedEdit
from wanscope.edit.sites import Branch, Part

if TYPE_CHECKING:
    import numpy as np

_PARTS = ("block", "cross_attention", "attention")


class Skip(EditInBlocks):
    """Skips a block, or only its cross-attention.

    schedule: the block is skipped at the steps where it is not zero.
    """

    kind: Literal["skip"] = "skip"
    blocks: BlocksText  # type: ignore[reportGeneralTypeIssues]  # no default: skipping all blocks must be explicit
    part: Literal["block", "cross_attention"] = "block"

    example: ClassVar[str] = "skip 3"
    skips: ClassVar[bool] = True

    def __init__(self, blocks: Any = None, /, **data: Any) -> None:
        super().__init__(**(data if blocks is None else {"blocks": blocks, **data}))

    @property
    def parts(self) -> tuple[Part, ...]:
        return ("block",) if self.part == "block" else ("attention",)

    def table(self, passes: Passes, blocks: int, where: str) -> np.ndarray:
        return (super().table(passes, blocks, where) != 0).astype("float64")

    def operation_at(self, planned: PlannedEdit, part: Part, branch: Branch, step: int, strength: float) -> Operation:
        return SkipBlock() if part == "block" else SkipAttention()

    # ---- the one-line form

    @classmethod
    def read_beginning(cls, line: Line) -> None:
        blocks = line.until(_PARTS)
        if blocks:
            line.data["blocks"] = blocks
        token = line.here()
        if token and token.text in _PARTS:
            line.data["part"] = "block" if line.take().text == "block" else "cross_attention"

    def write_beginning(self, data: dict[str, Any]) -> list[str]:
        del data["blocks"]
        return [self.blocks, *([self.part] if data.pop("part", None) else [])]
