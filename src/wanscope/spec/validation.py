"""Checking plain data against a pydantic model; errors name the key, the problem and the nearest name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, Tag, ValidationError

from wanscope.errors import RecipeError, nearest
from wanscope.spec.other_names import our_setting

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
    problems = _distinct_problems(kind, error)
    # A misspelled required key is reported as missing too; report the misspelling.
    first = min(problems, key=lambda problem: problem["type"] != "extra_forbidden")
    path = _place(kind, first["loc"]).path
    name = ".".join([*([where] if where else []), *path])
    others = len(problems) - 1
    more = f" ({others} more problem{'s' if others > 1 else ''} after this one)" if others else ""
    if first["type"] == "extra_forbidden":
        owner = _place(kind, first["loc"][:-1]).model
        known = list((owner or kind).model_fields)
        ours = our_setting(path)
        if ours is not None:
            return f"{name!r} is not a known key", f"here it is called {ours}{more}", ours
        return f"{name!r} is not a known key", nearest(path[-1], known) + more, ""
    if first["type"] == "missing":
        owner = (_place(kind, first["loc"][:-1]).model or kind).__name__.removesuffix("Spec").lower()
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


def _distinct_problems(kind: type[BaseModel], error: ValidationError) -> list[Any]:
    """Return the problems as a person counts them: for a union, only the branch that the value was meant for."""
    out: dict[tuple[str, ...], Any] = {}
    for problem in error.errors():
        place = _place(kind, problem["loc"])
        mapping = isinstance(problem["input"], Mapping)
        if place.branch == "model" and problem["type"] in _SHAPE and not mapping:
            continue  # the message of the plain-value branch is clearer
        if place.branch == "plain" and mapping:
            continue
        out.setdefault(place.path, problem)
    return list(out.values()) or error.errors()


_SHAPE = ("model_type", "model_attributes_type", "dict_type")


@dataclass(frozen=True)
class _Place:
    """Where a problem is.

    path: the keys as they are written in the file. model: the model there, or None where the value is not a model.
    branch: for a union of models and plain values, "plain" in the branch of a plain value, and "model" where a model
    as a whole was refused; otherwise "".
    """

    path: tuple[str, ...]
    model: type[BaseModel] | None
    branch: Literal["", "model", "plain"]


def _place(kind: type[BaseModel], loc: Sequence[str | int]) -> _Place:
    """Return the place that pydantic's location `loc` means inside `kind`.

    After a union, the location names the branch, which is not written in the file: a model's class or tag, or the type
    of a plain value.
    """
    here: Any = kind
    path: list[str] = []
    branch: Literal["", "model", "plain"] = ""
    inline = False
    for part in loc:
        members = _members(here)
        if len(members) > 1:
            here = next((member for member, tag in members if _is_named(member, tag, str(part))), None)
            tagged = any(tag is not None for _, tag in members)
            branch = "" if tagged else "plain" if here is None else "model"
            continue
        here = members[0][0] if members else None
        branch = "plain" if branch == "plain" else ""  # inside a model, the model was meant
        inline = inline or (_is_model(here) and part == getattr(here, "written_as", None))
        if not inline:
            path.append(str(part))
        here = _inside(here, part)
    members = _members(here)
    model = members[0][0] if len(members) == 1 and _is_model(members[0][0]) else None
    return _Place(tuple(path), model, branch)


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _members(annotation: Any, tag: str | None = None) -> list[tuple[Any, str | None]]:
    """Return the branches of a union except None, each with its tag; anything else is its own only branch."""
    if get_origin(annotation) is Annotated:
        inner, *extras = get_args(annotation)
        return _members(inner, next((extra.tag for extra in extras if isinstance(extra, Tag)), tag))
    if get_origin(annotation) in (Union, UnionType):
        return [found for member in get_args(annotation) for found in _members(member, tag)]
    return [] if annotation in (None, NoneType) else [(annotation, tag)]


def _is_named(member: Any, tag: str | None, label: str) -> bool:
    """Return whether pydantic's label of a branch means that model: it is its tag, or contains its class name."""
    named = _is_model(member) and re.search(rf"\b{member.__name__}\b", label) is not None
    return named if tag is None else label == tag


def _inside(annotation: Any, part: str | int) -> Any:
    """Return the annotation of a model's field, a list's item or a mapping's value, or None if it is not known."""
    if _is_model(annotation):
        field = annotation.model_fields.get(part)
        return field.annotation if field is not None else None
    parts = get_args(annotation)
    if get_origin(annotation) is tuple and isinstance(part, int):
        return parts[0] if len(parts) == 2 and parts[1] is ... else parts[part] if part < len(parts) else None
    return parts[-1] if parts else None


def _plain_message(kind: type[BaseModel], problem: Any) -> str:
    """Return pydantic's message in terms of a YAML file."""
    if problem["type"] in _SHAPE:
        owner = _place(kind, problem["loc"]).model
        keys = f" with the keys {', '.join(owner.model_fields)}" if owner else ""
        return f"it should be a mapping{keys}"
    if problem["type"] in ("tuple_type", "list_type"):
        return "it should be a list"
    message = str(problem["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ")
    message = re.sub(r"^Input should be (a valid )?", lambda m: f"it should be {'a ' if m[1] else ''}", message)
    message = message.replace("a integer", "a whole number").partition(", unable to parse")[0]
    message = message.replace("greater than or equal to", "at least").replace("less than or equal to", "at most")
    return message[:1].lower() + message[1:]
