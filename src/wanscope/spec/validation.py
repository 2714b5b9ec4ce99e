"""Checking plain data against a pydantic model; errors name the key, the problem and the nearest name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from wanscope.errors import RecipeError, nearest

S = TypeVar("S", bound=BaseModel)


def validated(kind: type[S], data: Any, where: str = "") -> S:
    """Return `kind` made from plain data.

    where: the path of the data in its file, for errors. Raises RecipeError, which names the key, the problem and the
    nearest valid name.
    """
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise RecipeError(*_explain(kind, error, where)) from None


FIX = "; for example "  # in a validator's message, the text after this is the fix


def _explain(kind: type[BaseModel], error: ValidationError, where: str) -> tuple[str, str, str]:
    problems = _distinct_problems(error)
    # A misspelled required key is reported as missing too; report the misspelling.
    first = min(problems, key=lambda problem: problem["type"] != "extra_forbidden")
    path = _path(first)
    name = ".".join([*([where] if where else []), *path])
    others = len(problems) - 1
    more = f" ({others} more problem{'s' if others > 1 else ''} after this one)" if others else ""
    if first["type"] == "extra_forbidden":
        owner = _model_at(kind, first["loc"][:-1])
        known = list((owner or kind).model_fields)
        return f"{name!r} is not a known key", nearest(path[-1], known) + more, ""
    if first["type"] == "missing":
        owner = (_model_at(kind, first["loc"][:-1]) or kind).__name__.removesuffix("Spec").lower()
        return f"{name!r} is missing", f"every {owner} needs it{more}", ""
    if first["type"] in ("union_tag_invalid", "union_tag_not_found"):
        return _explain_kind(name, first, more)
    why, _, fix = _plain_message(kind, first).partition(FIX)
    value = first["input"]
    repeated = re.match(rf"{re.escape(repr(value))}(?!\w)", why)  # the message begins with the value
    shown = f" is {value!r}" if isinstance(value, str | int | float | bool) and not repeated else ""
    return f"{name or kind.__name__.lower()}{shown}", why + more, fix


def _explain_kind(name: str, problem: Any, more: str) -> tuple[str, str, str]:
    """Explain an item of a list with several kinds of items whose kind is wrong or missing."""
    if problem["type"] == "union_tag_not_found":
        return f"{name} has no kind", f"it is a mapping with a key 'kind'{more}", ""
    tag, known = problem["ctx"]["tag"], re.findall(r"'(\w+)'", problem["ctx"]["expected_tags"])
    return f"{name}.kind is {tag!r}", nearest(str(tag), known) + more, ""


def _distinct_problems(error: ValidationError) -> list[Any]:
    """Return the problems as a person counts them: for a union, only the branch that the value was meant for."""
    out: dict[tuple[str, ...], Any] = {}
    for problem in error.errors():
        branches = [str(part) for part in problem["loc"] if _is_branch(part)]
        value = problem["input"]
        keyframes = any("Keyframes" in branch for branch in branches)
        if keyframes and problem["type"] in _SHAPE and not isinstance(value, Mapping):
            continue  # the message of the plain-number branch is clearer
        if branches and not keyframes and isinstance(value, Mapping):
            continue
        out.setdefault(tuple(_path(problem)), problem)
    return list(out.values()) or error.errors()


_SHAPE = ("model_type", "model_attributes_type", "dict_type")
_BRANCHES = ("Keyframes", "LatentsCapture", "AttentionCapture", "SelfAttentionCapture")
_TAGGED = "edits"  # the items of this list are of several kinds, and pydantic puts the kind after their number


def _is_branch(part: str | int) -> bool:
    """Return whether a part of pydantic's location names a branch of a union, which is not written in the file."""
    return isinstance(part, str) and (part in _BRANCHES or part.startswith(("constrained-", "float", "function-")))


def _is_tag(loc: Sequence[str | int], place: int) -> bool:
    return place >= 2 and isinstance(loc[place - 1], int) and loc[place - 2] == _TAGGED


def _path(problem: Any) -> list[str]:
    """Return the keys as they are written in the file."""
    parts = list(problem["loc"])
    if "keys" in parts and any("Keyframes" in str(part) for part in parts):
        parts = parts[: parts.index("keys")]  # in the file, {0: 6.5} has no key "keys"
    return [str(part) for i, part in enumerate(parts) if not _is_branch(part) and not _is_tag(parts, i)]


def _plain_message(kind: type[BaseModel], problem: Any) -> str:
    """Return pydantic's message in terms of a YAML file."""
    if problem["type"] in _SHAPE:
        owner = _model_at(kind, problem["loc"])
        keys = f" with the keys {', '.join(owner.model_fields)}" if owner else ""
        return f"it should be a mapping{keys}"
    if problem["type"] in ("tuple_type", "list_type"):
        return "it should be a list"
    message = str(problem["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ")
    message = re.sub(r"^Input should be (a valid )?", lambda m: f"it should be {'a ' if m[1] else ''}", message)
    message = message.replace("a integer", "a whole number").partition(", unable to parse")[0]
    message = message.replace("greater than or equal to", "at least").replace("less than or equal to", "at most")
    return message[:1].lower() + message[1:]


def _model_at(kind: type[BaseModel], loc: Sequence[str | int]) -> type[BaseModel] | None:
    """Return the model at pydantic's location `loc` inside `kind`, or None where the value there is not a model."""
    current: list[type[BaseModel]] = [kind]
    for i, part in enumerate(loc):
        if not current:
            return None
        if _is_tag(loc, i):
            current = [model for model in current if model.model_fields["kind"].default == part]
        elif isinstance(part, str) and not _is_branch(part):
            field = current[0].model_fields.get(part)
            current = list(_models_in(field.annotation)) if field else []
        # otherwise an index into a list of the current models, or a branch of a union
    return current[0] if current else None


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models_in(part)
