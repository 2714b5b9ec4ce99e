"""Parsing of text such as `gaussian_peak(0.8, peak=20)`, the one-line form of strength shapes and schedules."""

from __future__ import annotations

import math
import re
from numbers import Real
from typing import Any

from wanscope.errors import RecipeError

_call = re.compile(r"([A-Za-z_]\w*)\s*(?:\((.*)\))?", re.ASCII | re.DOTALL)


def split_call(text: str, order: tuple[str, ...]) -> tuple[str, dict[str, str]] | None:
    """Return the name and the arguments by name, as text; None if `text` does not have the form of a call.

    order: the names of the arguments that may be positional. Raises RecipeError for an argument that is given twice,
    is empty, or is positional and not in `order`.
    """
    match = _call.fullmatch(text.strip())
    if not match:
        return None
    name, inside = match[1], match[2]
    arguments: dict[str, str] = {}
    parts = [part.strip() for part in inside.split(",")] if inside and inside.strip() else []
    for place, part in enumerate(parts):
        key, equals, argument = (piece.strip() for piece in part.partition("="))
        if not equals:
            if place >= len(order) or len(arguments) < place:
                raise RecipeError(f"{text!r} has {part!r} without a name", _order(name, order), f"{name}(name={part})")
            key, argument = order[place], part
        if not key or not argument:
            raise RecipeError(f"{text!r} has an empty argument", _order(name, order), f"{name}()")
        if key in arguments:
            raise RecipeError(f"{text!r} gives {key!r} twice", "each argument is given once", "")
        arguments[key] = argument
    return name, arguments


def _order(name: str, order: tuple[str, ...]) -> str:
    if not order:
        return f"{name} takes no positional arguments"
    return f"in {name}(...), {', '.join(order)} may be positional; all others are given by name"


def number(value: Any, what: str, fix: str = "") -> float:
    """Return a finite number from a number or its text. Raises RecipeError, which names `what`, for anything else."""
    out: float | None = None
    if isinstance(value, str):
        try:
            out = float(value)
        except ValueError:
            out = None
    elif isinstance(value, Real) and not isinstance(value, bool):
        out = float(value)
    if out is None or not math.isfinite(out):
        raise RecipeError(f"{what} is {value!r}", "it should be a finite number", fix)
    return out
