"""The canonical form of the fields of edits: blocks and schedules as text; strengths as number, text, list or mapping.

Edits that mean the same but are written differently then have the same id, and recipes stay readable.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from numbers import Integral
from typing import Any

from wanscope.edit.blocks import EMPTY, FULL, Blocks, check_blocks
from wanscope.edit.call_syntax import number
from wanscope.edit.schedule import CONSTANT, parse_schedule
from wanscope.edit.strengths import Strengths, check_strengths, shape_call
from wanscope.errors import RequestError


@contextlib.contextmanager
def as_value_error() -> Iterator[None]:
    """Convert a RequestError to the ValueError that pydantic expects; pydantic then names the field."""
    try:
        yield
    except RequestError as error:
        # pydantic's error already has the field and its value, so "strength is 'a lot'" is left out
        named = error.what.partition(" is ")[0] in ("blocks", "strength", "schedule")
        text = error.why if named and error.why else f"{error.what}: {error.why}" if error.why else error.what
        raise ValueError(f"{text}; for example {error.fix}" if error.fix and "\n" not in text else text) from None


def blocks_text(value: Any) -> str:
    """Return blocks as text: `late`, `0-9,20` or a bit string. Pictures become bit strings, lists become ranges."""
    with as_value_error():
        check_blocks(value)
    if isinstance(value, Blocks):
        return value.bits
    if isinstance(value, str):
        text = value.strip()
        return text.replace(FULL, "1").replace(EMPTY, "0") if set(text) <= {FULL, EMPTY} else text
    numbers = [value] if isinstance(value, Integral) else sorted({int(item) for item in value})
    text = ",".join(_ranges([int(item) for item in numbers])) or "none"
    # on a model with two blocks, "10" would be read as a bit string, but block ten was meant
    return f"{text}-{text}" if len(text) > 1 and set(text) <= {"0", "1"} else text


def _ranges(numbers: list[int]) -> Iterator[str]:
    start = 0
    for i in range(1, len(numbers) + 1):
        if i == len(numbers) or numbers[i] != numbers[i - 1] + 1:
            first, last = numbers[start], numbers[i - 1]
            yield f"{first}" if first == last else f"{first}-{last}"
            start = i


def strength_value(value: Any) -> float | str | tuple[float, ...] | dict[str, float]:
    """Return a strength: a number, a shape as text (`gaussian_peak(0.8, peak=20)`), one number per block, or a mapping
    of blocks to numbers."""
    with as_value_error():
        check_strengths(value, low=None, high=None)
        if isinstance(value, Strengths):
            return value.values
        if isinstance(value, Mapping) and "shape" not in value:
            return _by_blocks(value)
        call = shape_call(value)
        if call is not None:
            return _shape_text(*call)
        if isinstance(value, list | tuple):
            return tuple(number(item, "a strength") for item in value)
        return number(value, "strength")


def _shape_text(name: str, base: float, rest: dict[str, Any]) -> Any:
    if name == "custom":
        values = rest["values"]
        if isinstance(values, Mapping):
            return {key: base * item for key, item in _by_blocks(values).items()}
        return tuple(base * number(item, "a strength") for item in values)
    arguments = [] if base == 1 else [number_text(base)]
    arguments += [f"{key}={number_text(item)}" for key, item in sorted(rest.items())]
    return f"{name}({', '.join(arguments)})" if arguments else name


def _by_blocks(values: Mapping[Any, Any]) -> dict[str, float]:
    out = {blocks_text(key): number(item, f"the strength of blocks {key!r}") for key, item in values.items()}
    if len(out) != len(values):
        raise ValueError("two of its keys name the same blocks")
    return out


def schedule_text(value: Any) -> str | None:
    """Return a schedule in one line; None if it is 1 at every step."""
    with as_value_error():
        schedule = parse_schedule(value)
    return None if schedule.is_constant and schedule.keys[0][1] == CONSTANT.keys[0][1] else schedule.text


def tuple_of_texts(value: Any) -> Any:
    """Return one word or a list of words as a tuple without duplicates, with whitespace normalized."""
    items = (value,) if isinstance(value, str) else value
    if not isinstance(items, list | tuple) or not all(isinstance(item, str) for item in items):
        raise ValueError("it should be a word of the prompt, or a list of them")
    words = tuple(" ".join(item.split()) for item in items)
    if not all(words):
        raise ValueError("a word is empty")
    return tuple(dict.fromkeys(words))


def number_text(value: float) -> str:
    """Return the shortest text that is read back as the same number."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)
