"""Checking plain data against a pydantic model; errors name the key, the problem and the nearest name."""

from __future__ import annotations

from typing import Any, TypeVar

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
    first = error.errors()[0]
    path = [str(part) for part in first["loc"] if not _is_branch(part)]
    name = ".".join([*([where] if where else []), *path])
    others = error.error_count() - 1
    more = f" ({others} more problem{'s' if others > 1 else ''} after this one)" if others else ""
    if first["type"] == "extra_forbidden":
        known = _fields_at(kind, path[:-1])
        return f"{name!r} is not a known key", nearest(path[-1], known) + more, ""
    if first["type"] == "missing":
        return f"{name!r} is missing", f"every {kind.__name__.lower()} needs it{more}", ""
    message = first["msg"].removeprefix("Value error, ")
    shown = f" is {first['input']!r}" if isinstance(first["input"], str | int | float | bool) else ""
    return f"{name or kind.__name__.lower()}{shown}", message[:1].lower() + message[1:] + more, ""


def _is_branch(part: str | int) -> bool:
    """Pydantic names the branch of a union in its location; people do not write those."""
    return isinstance(part, str) and (
        part in ("Keyframes", "LatentsCapture") or part.startswith(("constrained-", "float"))
    )


def _fields_at(kind: type[BaseModel], path: list[str]) -> list[str]:
    for part in path:
        field = kind.model_fields.get(part)
        if field is None:
            continue
        for candidate in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                kind = candidate
                break
    return list(kind.model_fields)
