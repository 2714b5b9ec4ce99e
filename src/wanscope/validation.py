"""Checking plain data against a pydantic model; errors name the key, the problem and the nearest name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from wanscope.errors import RecipeError, nearest

S = TypeVar("S", bound=BaseModel)


def validated(kind: type[S], data: Any, where: str = "") -> S:
    """`kind` from plain data, or a RecipeError that names the key, what is wrong and the nearest right name."""
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise RecipeError(*_explained(kind, error, where)) from None


def _explained(kind: type[BaseModel], error: ValidationError, where: str) -> tuple[str, str, str]:
    problems = _distinct(error)
    # A misspelled key is also a missing one; the spelling is what can be mended.
    first = min(problems, key=lambda problem: problem["type"] != "extra_forbidden")
    path = _path(first)
    name = ".".join([*([where] if where else []), *path])
    others = len(problems) - 1
    more = f" ({others} more problem{'s' if others > 1 else ''} beside this one)" if others else ""
    if first["type"] == "extra_forbidden":
        owner = _model_at(kind, path[:-1])
        known = list((owner or kind).model_fields)
        return f"{name!r} is not a known key", nearest(path[-1], known) + more, ""
    if first["type"] == "missing":
        owner = (_model_at(kind, path[:-1]) or kind).__name__.removesuffix("Spec").lower()
        return f"{name!r} is missing", f"every {owner} needs it{more}", ""
    shown = f" is {first['input']!r}" if isinstance(first["input"], str | int | float | bool) else ""
    return f"{name or kind.__name__.lower()}{shown}", _plain(kind, first, path) + more, ""


def _distinct(error: ValidationError) -> list[Any]:
    """The problems as a person counts them: of a union only the branch that the value was meant for."""
    out: dict[tuple[str, ...], Any] = {}
    for problem in error.errors():
        branches = [str(part) for part in problem["loc"] if _is_branch(part)]
        value = problem["input"]
        if "Keyframes" in branches and problem["type"] in _SHAPE and not isinstance(value, Mapping):
            continue  # the branch of a plain number says it better
        if branches and "Keyframes" not in branches and isinstance(value, Mapping):
            continue
        out.setdefault(tuple(_path(problem)), problem)
    return list(out.values()) or error.errors()


_SHAPE = ("model_type", "model_attributes_type", "dict_type")
_BRANCHES = ("Keyframes", "LatentsCapture", "AttentionCapture")


def _is_branch(part: str | int) -> bool:
    """Pydantic names the branch of a union in its location; people do not write those."""
    return isinstance(part, str) and (part in _BRANCHES or part.startswith(("constrained-", "float", "function-")))


def _path(problem: Any) -> list[str]:
    """The keys as they are written in the file."""
    parts = list(problem["loc"])
    if "Keyframes" in parts and "keys" in parts:
        parts = parts[: parts.index("keys")]  # {0: 6.5} has no such key of its own
    return [str(part) for part in parts if not _is_branch(part)]


def _plain(kind: type[BaseModel], problem: Any, path: list[str]) -> str:
    """Pydantic's message in words that fit a YAML file."""
    if problem["type"] in _SHAPE:
        owner = _model_at(kind, path)
        keys = f" with the keys {', '.join(owner.model_fields)}" if owner else ""
        return f"it should be a mapping{keys}"
    if problem["type"] in ("tuple_type", "list_type"):
        return "it should be a list"
    message = str(problem["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ")
    message = re.sub(r"^Input should be (a valid )?", lambda m: f"it should be {'a ' if m[1] else ''}", message)
    message = message.replace("a integer", "a whole number").partition(", unable to parse")[0]
    message = message.replace("greater than or equal to", "at least").replace("less than or equal to", "at most")
    return message[:1].lower() + message[1:]


def _model_at(kind: type[BaseModel], path: list[str]) -> type[BaseModel] | None:
    """The model that stands at `path` inside `kind`, None where something plain does."""
    current: type[BaseModel] | None = kind
    for part in path:
        if current is None:
            return None
        if part.isdigit():
            continue  # a place in a list of what was found last
        field = current.model_fields.get(part)
        current = _model_in(field.annotation) if field else None
    return current


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for part in get_args(annotation) if (model := _model_in(part))), None)
