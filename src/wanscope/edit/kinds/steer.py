"""Steer: moves activations along a concept direction that was learned from pairs of prompts and stored in a file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field

from wanscope.edit.base import EditWithStrength
from wanscope.edit.line import Line
from wanscope.edit.line_tokens import bare, is_plain_file, quoted
from wanscope.edit.operations import Operation, ShiftState, ShiftTokens
from wanscope.edit.planned import PlannedEdit, Resolved, ResolveInputs
from wanscope.edit.sites import Branch, Part
from wanscope.errors import RecipeError

if TYPE_CHECKING:
    from wanscope.edit.named_files import NamedFiles


class Steer(EditWithStrength):
    """Moves activations along a concept direction learned from pairs of prompts (activation steering).

    add: add the direction times `strength`, in units of the learned mean difference. ablate: project the direction out
    (strength 1: completely). rotate: rotate toward the direction (strength 1: all the way).
    """

    kind: Literal["steer"] = "steer"
    direction: Annotated[str, Field(min_length=1)]
    sha256: str | None = None
    operation: Literal["add", "ablate", "rotate"] = "add"
    on: Literal["context", "hidden"] = "context"

    example: ClassVar[str] = "steer color.safetensors ablate in mid"

    def __init__(self, direction: Any = None, /, **data: Any) -> None:
        super().__init__(**(data if direction is None else {"direction": str(direction), **data}))

    @property
    def strength_range(self) -> tuple[float, float]:
        return (-100.0, 100.0) if self.operation == "add" else (0.0, 1.0)

    @property
    def parts(self) -> tuple[Part, ...]:
        return (self.on,)

    def operation_at(self, planned: PlannedEdit, part: Part, branch: Branch, step: int, strength: float) -> Operation:
        assert planned.direction is not None
        shift = ShiftState if part == "hidden" else ShiftTokens
        return shift(planned.direction, self.operation, strength)

    def stored_direction(self) -> str | None:
        return self.direction

    def with_hashes(self, files: NamedFiles) -> Self:
        return self.model_copy(update={"sha256": files.direction(self.direction, self.sha256)})

    def resolve(self, inputs: ResolveInputs) -> Resolved:
        """Return the stored direction. Raises RecipeError if it was learned at another site or not in all blocks."""
        found = inputs.directions.get(self.sha256 or "")
        if found is None:
            what = f"{inputs.where}: the direction {self.direction} was not read"
            raise RecipeError(what, "it has no recorded hash", "")
        acting = (block for block in range(inputs.blocks) if inputs.table_SL[:, block].any())
        found.require(self.on, tuple(acting), inputs.where)
        return Resolved(direction=found)

    # ---- the one-line form

    @classmethod
    def read_beginning(cls, line: Line) -> None:
        token = line.here()
        if token and not line.begins_a_part(token):
            line.data["direction"] = bare(line.take().text)
        token = line.here()
        if token and token.text in ("add", "ablate", "rotate"):
            line.data["operation"] = line.take().text

    def write_beginning(self, data: dict[str, Any]) -> list[str]:
        del data["direction"]
        data.pop("operation", None)
        return [self.direction if is_plain_file(self.direction) else quoted(self.direction), self.operation]
