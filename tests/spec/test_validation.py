"""Errors of plain data name the keys as they are written, whatever models and unions they are checked against."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import pytest
from pydantic import Discriminator, Field, Tag, model_validator

from wanscope.errors import RecipeError
from wanscope.recipe import Study
from wanscope.spec.settings import Spec
from wanscope.spec.validation import validated


class Curve(Spec):
    """Written as a bare mapping: {low: 0.1, high: 0.9}."""

    written_as: ClassVar[str | None] = "points"

    points: dict[str, Annotated[float, Field(ge=0)]]

    @model_validator(mode="before")
    @classmethod
    def _bare(cls, value: Any) -> Any:
        return {"points": value} if isinstance(value, dict) and "points" not in value else value


class Circle(Spec):
    kind: Literal["circle"] = "circle"
    radius: Annotated[float, Field(gt=0)]


class Square(Spec):
    kind: Literal["square"] = "square"
    side: Annotated[float, Field(gt=0)]


Shape = Annotated[
    Annotated[Circle, Tag("circle")] | Annotated[Square, Tag("square")],
    Discriminator(lambda value: value.get("kind") if isinstance(value, dict) else value.kind),
]


class Drawing(Spec):
    height: Annotated[float, Field(ge=0)] | Curve = 1.0
    shapes: tuple[Shape, ...] = ()
    colors: Literal["all", "none"] | tuple[int, ...] = "all"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"heigth": 1}, "'heigth' is not a known key"),
        ({"height": -1}, "height is -1"),
        ({"height": "tall"}, "height is 'tall'"),
        ({"height": {"low": -1}}, "height is -1"),  # the curve was meant, because `points` was not written
        ({"shapes": [{"kind": "circle", "radius": 1}, {"kind": "square", "side": 0}]}, "shapes.1.side is 0"),
        ({"shapes": [{"kind": "circle", "side": 1}]}, "'shapes.0.side' is not a known key"),
        ({"shapes": [{"kind": "circle"}]}, "'shapes.0.radius' is missing"),
        ({"shapes": [{"kind": "sqare"}]}, "shapes.0.kind is 'sqare'"),
        ({"colors": [1, "x"]}, "colors"),
    ],
)
def test_keys_are_named_as_they_are_written(data: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError) as refused:
        validated(Drawing, data)
    what = refused.value.what
    assert what.startswith(says)
    assert not any(
        word in str(refused.value) for word in ("Curve", "Circle", "literal[", "tuple[", "constrained", "points")
    )


def test_the_nearest_key_is_of_the_model_that_was_meant() -> None:
    with pytest.raises(RecipeError, match="did you mean 'side'"):
        validated(Drawing, {"shapes": [{"kind": "square", "sied": 1}]})


def test_a_captures_heads_are_named_without_the_types_of_the_union() -> None:
    with pytest.raises(RecipeError) as refused:
        validated(Study, {"prompt": "a (red) circle", "capture": {"attention": {"heads": [-1]}}})
    assert refused.value.what.startswith("capture.attention.heads") and "literal" not in str(refused.value)


@pytest.mark.parametrize("measures", [[{}], [["probability"]], [1]])
def test_unknown_measures_are_refused(measures: Any) -> None:
    with pytest.raises(RecipeError, match=r"capture\.attention\.measures"):
        validated(Study, {"prompt": "a (red) circle", "capture": {"attention": {"measures": measures}}})
