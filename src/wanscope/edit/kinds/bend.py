"""Bend: changes the cross-attention maps of chosen words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from wanscope.edit.base import EditWithStrength
from wanscope.edit.field_types import Heads, Words
from wanscope.edit.line import Line, Reader, field_text, is_plain_word, items_of
from wanscope.edit.line_tokens import bare, quoted
from wanscope.edit.operations import BendMaps, Operation
from wanscope.edit.planned import PlannedEdit
from wanscope.edit.sites import Branch, Part
from wanscope.errors import RecipeError, nearest
from wanscope.spec.settings import Finite

# The required and the optional parameters of each operation.
BENDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "amplify": (("factor",), ()),
    "suppress": (("factor",), ()),
    "scale": (("factor",), ()),
    "rotate": (("angle",), ()),
    "translate": ((), ("x", "y")),
    "flip": ((), ("axis",)),
    "blur": (("sigma",), ()),
    "region": (("box",), ()),
}
FACTORS = {"amplify": (1.0, 1e6), "suppress": (1.0, 1e6), "scale": (0.01, 100.0)}
BEND_PARAMETERS = ("factor", "x", "y", "angle", "axis", "sigma", "box")


class Bend(EditWithStrength):
    """Changes the cross-attention maps of chosen words.

    amplify: multiply by `factor`, at least 1. suppress: divide by it. scale: about the frame's center, `factor` 2 is
    twice as large. rotate: by `angle` degrees about the center, counterclockwise on screen. translate: by `x` (to the
    right) and `y` (down), as fractions of the frame. flip: `axis` x swaps left and right, y top and bottom. blur:
    Gaussian, `sigma` in tokens. region: 0 outside `box` (left, top, right, bottom, as fractions of the frame).
    strength: interpolates from the unchanged map (0) to the changed one (1). heads: () for all. renormalize: whether
    each position's attention still sums to 1.
    """

    kind: Literal["bend"] = "bend"
    words: Words
    operation: Literal["amplify", "suppress", "scale", "rotate", "translate", "flip", "blur", "region"]
    factor: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    x: Annotated[float, Field(ge=-1, le=1, allow_inf_nan=False)] | None = None
    y: Annotated[float, Field(ge=-1, le=1, allow_inf_nan=False)] | None = None
    angle: Annotated[float, Field(ge=-360, le=360, allow_inf_nan=False)] | None = None
    axis: Literal["x", "y"] | None = None
    sigma: Annotated[float, Field(ge=0, le=64, allow_inf_nan=False)] | None = None
    box: tuple[Finite, Finite, Finite, Finite] | None = None
    heads: Heads = ()
    renormalize: bool = True

    example: ClassVar[str] = "bend circle translate x=0.25 in 4-9"

    def __init__(self, words: Any = None, operation: Any = None, /, **data: Any) -> None:
        given = {"words": words, "operation": operation}
        super().__init__(**{key: value for key, value in given.items() if value is not None}, **data)

    @model_validator(mode="before")
    @classmethod
    def _default_axis(cls, data: Any) -> Any:
        """A flip without an axis swaps left and right."""
        if isinstance(data, dict) and data.get("operation") == "flip" and data.get("axis") is None:
            return {**data, "axis": "x"}
        return data

    @field_validator("words")
    @classmethod
    def _some_word(cls, words: tuple[str, ...]) -> tuple[str, ...]:
        if not words:
            raise ValueError("it needs at least one word")
        return words

    @field_validator("heads")
    @classmethod
    def _distinct(cls, heads: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(heads)) != len(heads):
            raise ValueError("a head is named twice")
        return tuple(sorted(heads))

    @field_validator("box")
    @classmethod
    def _box(cls, box: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if box is not None and not (0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1):
            raise ValueError("a box is [left, top, right, bottom] as fractions of the frame, such as [0, 0, 0.5, 1]")
        return box

    @model_validator(mode="after")
    def _agree(self) -> Self:
        needed, allowed = BENDS[self.operation]
        for name in BEND_PARAMETERS:
            given = getattr(self, name) is not None
            if name in needed and not given:
                raise ValueError(f"{self.operation} needs {name}")
            if given and name not in (*needed, *allowed):
                has = " and ".join((*needed, *allowed))
                raise ValueError(f"{self.operation} has no {name}; it has {has}")
        if self.operation == "translate" and self.x is None and self.y is None:
            raise ValueError("translate needs x, y or both, as fractions of the frame")
        low, high = FACTORS.get(self.operation, (0.0, 0.0))
        if self.factor is not None and not low <= self.factor <= high:
            raise ValueError(f"the factor of {self.operation} must be from {low:g} to {high:g}, not {self.factor:g}")
        return self

    @property
    def changes_nothing(self) -> bool:
        """Whether the parameters leave every map as it is (factor 1, angle 0 and so on), so that it is not planned."""
        if self.operation in ("amplify", "suppress", "scale"):
            return self.factor == 1
        if self.operation == "rotate":
            return (self.angle or 0.0) % 360 == 0
        if self.operation == "translate":
            return not self.x and not self.y
        return self.sigma == 0 if self.operation == "blur" else self.box == (0, 0, 1, 1)

    @property
    def parts(self) -> tuple[Part, ...]:
        return ("attention",)

    def acting_strengths(self, count: int) -> tuple[float, ...]:
        return (0.0,) * count if self.changes_nothing else super().acting_strengths(count)

    def inactive_reason(self, count: int) -> str:
        unchanged = "its parameters leave the map as it is" if self.changes_nothing else ""
        return super().inactive_reason(count) or unchanged

    def operation_at(self, planned: PlannedEdit, part: Part, branch: Branch, step: int, strength: float) -> Operation:
        return BendMaps(self, strength, planned.index)

    def named_words(self) -> tuple[str, ...]:
        return self.words

    def check(self, blocks: int, steps: int, heads: int) -> None:
        super().check(blocks, steps, heads)
        for head in self.heads:
            if head >= heads:
                raise RecipeError(f"there is no head {head}", f"heads are numbered from 0 to {heads - 1}", "heads: []")

    # ---- the one-line form

    readers: ClassVar[Mapping[str, Reader]] = {
        "words": lambda line, token: items_of(token.text),
        "heads": lambda line, token: [int(item) if item.isdigit() else item for item in items_of(token.text)],
        "box": lambda line, token: items_of(token.text),
    }

    @classmethod
    def read_beginning(cls, line: Line) -> None:
        words: list[str] = []
        while (token := line.here()) and not (token.text in BENDS and words) and not line.begins_a_part(token):
            words.append(bare(line.take().text))
        if not words:
            line.fail(token or line.end(), "the words to bend are missing", cls.example)
        line.data["words"] = words
        if not (token and token.text in BENDS):
            hint = next((nearest(w, BENDS) for w in words[1:] if "mean" in nearest(w, BENDS)), f"{', '.join(BENDS)}")
            line.fail(token or line.end(), f"the operation is missing after the words: {hint}", cls.example)
        operation = line.data["operation"] = line.take().text
        needed, allowed = BENDS[operation]
        token = line.here()
        if token and not line.begins_a_part(token):
            names = needed or allowed
            if len(names) != 1:
                line.fail(token, f"{operation} takes {' and '.join(f'{n}=...' for n in names)}", cls.example)
            line.data[names[0]] = line.value(names[0], line.take(), cls.readers)

    def write_beginning(self, data: dict[str, Any]) -> list[str]:
        del data["words"], data["operation"]
        needed, allowed = BENDS[self.operation]
        parameters = [field_text(data.pop(name)) for name in needed]
        parameters += [f"{name}={field_text(data.pop(name))}" for name in allowed if name in data]
        return [", ".join(word_text(word) for word in self.words), self.operation, *parameters]


def word_text(word: str) -> str:
    """Return a word of a prompt as it is written in a line."""
    return word if word not in BENDS and is_plain_word(word) else quoted(word)
