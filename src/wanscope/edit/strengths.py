"""Strengths: how strongly an edit acts in each block, as one number, a shape over the depth, or a number per block.

A shape gives each of L blocks a weight from 0 to 1, which is multiplied by its `base` (i is the block, from 0):

    uniform             1
    linear_decay        1 - i / (L - 1)
    linear_rise         i / (L - 1)
    gaussian_peak       exp(-(i - peak)^2 / (2 spread^2)); peak = floor(L / 2), spread = L / 8
    inverse_gaussian    1 - gaussian_peak
    sine_wave           (1 + sin(2 pi cycles i / L)) / 2; cycles = 1
    stepped             1 in the first `size` blocks, 0 in the next `size`, and so on; size = max(1, floor(L / 8))
    random              uniform in [0, 1) from `seed` (0), the same on every machine
    focus_early, focus_mid, focus_late    1 in that preset, `rest` (0.1) elsewhere
    custom              `values`: a number for each block, or a mapping of blocks to numbers

On 40 blocks the defaults are those of the earlier ComfyUI nodes (peak 20, spread 5, steps of 5).
This module does not need torch. To add a shape, decorate a function with `@strength_shape`.
"""

from __future__ import annotations

import inspect
import math
import random as _random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, TypeGuard

from wanscope.edit.blocks import EMPTY, FULL, Blocks, check_blocks, parse_blocks
from wanscope.edit.call_syntax import number, split_call
from wanscope.errors import RecipeError, nearest

Weights = list[float]
SHAPES: dict[str, Callable[..., Weights]] = {}

_whole = re.compile(r"[0-9]{1,30}")
_bar = re.compile(rf"\s*(?:block\s*)?([0-9]+)\s+[{FULL}{EMPTY}▒-]*\s*([+-]?[0-9.]+(?:e[+-]?[0-9]+)?)\s*", re.IGNORECASE)


def strength_shape(function: Callable[..., Weights]) -> Callable[..., Weights]:
    """Register `function(count, *, parameter=default, ...) -> [count weights]` as a shape under its own name.

    Parameters are numbers; a default of None means that it depends on the depth.
    """
    for parameter in list(inspect.signature(function).parameters.values())[1:]:
        if parameter.default is parameter.empty:
            raise TypeError(f"{parameter.name} of the shape {function.__name__} has no default")
    SHAPES[function.__name__] = function
    return function


@strength_shape
def uniform(count: int) -> Weights:
    return [1.0] * count


@strength_shape
def linear_decay(count: int) -> Weights:
    return [1.0 - w for w in linear_rise(count)]


@strength_shape
def linear_rise(count: int) -> Weights:
    return [i / max(1, count - 1) for i in range(count)]


@strength_shape
def gaussian_peak(count: int, *, peak: float | None = None, spread: float | None = None) -> Weights:
    peak = count // 2 if peak is None else peak
    spread = count / 8 if spread is None else spread
    if not 0 <= peak <= count - 1:
        raise RecipeError(f"the peak is at block {peak:g}", f"blocks are numbered from 0 to {count - 1}", "peak: 0")
    if spread <= 0:
        raise RecipeError(f"spread is {spread:g}", "it is a number of blocks above 0", f"spread: {count / 8:g}")
    return [math.exp(-(((i - peak) / spread) ** 2) / 2) for i in range(count)]


@strength_shape
def inverse_gaussian(count: int, *, peak: float | None = None, spread: float | None = None) -> Weights:
    return [1.0 - w for w in gaussian_peak(count, peak=peak, spread=spread)]


@strength_shape
def sine_wave(count: int, *, cycles: float = 1.0) -> Weights:
    return [(1 + math.sin(2 * math.pi * cycles * i / count)) / 2 for i in range(count)]


@strength_shape
def stepped(count: int, *, size: float | None = None) -> Weights:
    size = max(1, count // 8) if size is None else size
    if size < 1 or size != int(size):
        raise RecipeError(f"size is {size:g}", "a step is a whole number of blocks, at least 1", "size: 5")
    return [1.0 if i // int(size) % 2 == 0 else 0.0 for i in range(count)]


@strength_shape
def random(count: int, *, seed: float = 0) -> Weights:
    if seed != int(seed) or seed < 0:
        raise RecipeError(f"seed is {seed:g}", "a seed is a whole number from 0", "seed: 0")
    draw = _random.Random(int(seed))  # Python guarantees the same sequence for a seed in every version
    return [draw.random() for _ in range(count)]


@strength_shape
def focus_early(count: int, *, rest: float = 0.1) -> Weights:
    return _focus("early", count, rest)


@strength_shape
def focus_mid(count: int, *, rest: float = 0.1) -> Weights:
    return _focus("mid", count, rest)


@strength_shape
def focus_late(count: int, *, rest: float = 0.1) -> Weights:
    return _focus("late", count, rest)


def _focus(preset: str, count: int, rest: float) -> Weights:
    return [1.0 if chosen else rest for chosen in parse_blocks(preset, count).mask]


@dataclass(frozen=True)
class Strengths:
    """One number for each block of a model."""

    values: tuple[float, ...]

    @property
    def count(self) -> int:
        """The number of blocks of the model."""
        return len(self.values)

    @property
    def blocks(self) -> Blocks:
        """The blocks whose strength is not zero, in which the edit acts."""
        return Blocks(tuple(value != 0 for value in self.values))

    @property
    def name(self) -> str | None:
        """The shape that gives these numbers with its default parameters and some base; None if there is none."""
        if not any(self.values):
            return None
        for name, shape in SHAPES.items():
            weights = shape(self.count)
            top = max(range(self.count), key=weights.__getitem__)
            if weights[top] and all(
                math.isclose(value, self.values[top] / weights[top] * weight, rel_tol=1e-9, abs_tol=1e-12)
                for value, weight in zip(self.values, weights, strict=True)
            ):
                return name
        return None

    def within(self, blocks: Blocks) -> Strengths:
        """Return these strengths in the selected blocks and 0 elsewhere."""
        if blocks.count != self.count:
            raise ValueError(f"{self.count} strengths and {blocks.count} blocks")
        return Strengths(tuple(v if chosen else 0.0 for v, chosen in zip(self.values, blocks.mask, strict=True)))

    def describe(self) -> str:
        """Return one line: how strong, and in which blocks."""
        acting = {value for value in self.values if value}
        if len(acting) <= 1:
            at = f"{acting.pop():g} in " if acting else ""
            return at + self.blocks.describe()
        top = max(range(self.count), key=lambda i: abs(self.values[i]))
        shape = f"{self.name}, " if self.name else ""
        return f"{shape}at most {self.values[top]:g} in block {top}; {self.blocks.describe()}"

    def bars(self, width: int = 20, digits: int | None = 3) -> str:
        """Return one line per block: its number, a bar, and its strength. A full bar is 1, or the maximum if larger.

        width: characters of a full bar. digits: decimal places; None writes all digits, so that `parse_bars` returns
        exactly the same numbers.
        """
        full = max(1.0, *(abs(value) for value in self.values))
        places = len(str(self.count - 1))
        lines = []
        for i, value in enumerate(self.values):
            filled = round(abs(value) / full * width)
            text = repr(value) if digits is None else f"{value:.{digits}f}"
            lines.append(f"{i:>{places}} {FULL * filled}{EMPTY * (width - filled)} {text}")
        return "\n".join(lines)


def parse_strengths(value: Any, count: int, *, low: float | None = 0.0, high: float | None = 1.0) -> Strengths:
    """Return the strengths that `value` denotes on a model of `count` blocks.

    value: a number (or its text); a shape's name, `gaussian_peak(0.8, peak=20)` or `{shape: gaussian_peak, base: 0.8,
    peak: 20}` (the default base is 1); a list with one number per block; a mapping of blocks to numbers
    (`{early: 0.2, 10-29: 0.8}`, 0 elsewhere); or Strengths.
    low, high: bounds of every strength; None for no bound.

    Raises RecipeError for a value that cannot be read, a wrong number of strengths, a block that the model does not
    have or that is named twice, or a strength out of bounds.
    """
    return Strengths(tuple(_bounded(_values(value, count), low, high)))


def check_strengths(value: Any, *, low: float | None = 0.0, high: float | None = 1.0) -> None:
    """Check everything about `value` that does not depend on the model. Raises RecipeError."""
    if isinstance(value, Strengths):
        _bounded(value.values, low, high)
    elif isinstance(value, Mapping) and "shape" not in value:
        for key, item in value.items():
            check_blocks(key)
            _bounded([number(item, f"the strength of blocks {key!r}", "0.5")], low, high)
    elif _is_list(value):
        _bounded(_numbers(value), low, high)
    else:
        call = shape_call(value)
        if call is None:
            _bounded([number(value, "strength", _FIX)], low, high)
            return
        name, base, rest = call
        if name == "custom":
            values = rest["values"]
            if isinstance(values, Mapping):
                check_strengths(values, low=None, high=None)
                values = list(values.values())
            _bounded([base * value for value in _numbers(values)], low, high)
        else:
            _bounded([base], low, high)


def parse_bars(text: str) -> Strengths:
    """Read the strengths from the output of `Strengths.bars`. Raises RecipeError for lines that are not such bars."""
    values = []
    for line in filter(str.strip, text.splitlines()):
        match = _bar.fullmatch(line)
        if not match or int(match[1]) != len(values):
            raise RecipeError(
                f"the line {line.strip()!r} is not the bar of block {len(values)}",
                "a line has a block's number, its bar and its strength",
                f"{len(values)} {FULL * 10}{EMPTY * 10} 0.5",
            )
        values.append(number(match[2], f"the strength of block {match[1]}"))
    if not values:
        raise RecipeError("the picture of strengths is empty", "it needs one line per block", "")
    return Strengths(tuple(values))


_FIX = "strength: 0.4"


def _values(value: Any, count: int) -> Sequence[float]:
    if isinstance(value, Strengths):
        value = value.values
    if isinstance(value, Mapping) and "shape" not in value:
        return _mapped(value, count)
    if _is_list(value):
        numbers = _numbers(value)
        if len(numbers) != count:
            raise RecipeError(
                f"{len(numbers)} strengths are given", f"this model has {count} blocks and needs one for each", _FIX
            )
        return numbers
    call = shape_call(value)
    if call is None:
        return [number(value, "strength", _FIX)] * count
    name, base, rest = call
    if name == "custom":
        return [base * v for v in _values(rest["values"], count)]
    return [base * weight for weight in SHAPES[name](count, **rest)]


def _mapped(value: Mapping[Any, Any], count: int) -> list[float]:
    out: list[float | None] = [None] * count
    for key, item in value.items():
        strength = number(item, f"the strength of blocks {key!r}", "0.5")
        for i in parse_blocks(key, count).indices:
            if out[i] is not None:
                fix = "strength: {early: 0.2, late: 0.8}"
                raise RecipeError(f"block {i} is given two strengths", f"{key!r} names it again", fix)
            out[i] = strength
    return [0.0 if v is None else v for v in out]


def shape_call(value: Any) -> tuple[str, float, dict[str, Any]] | None:
    """Return a shape's name, base and other parameters, checked against its signature; None if `value` is not a shape.

    Raises RecipeError for an unknown shape or parameter.
    """
    if isinstance(value, str):
        try:
            float(value)
        except ValueError:
            pass
        else:
            return None
        call = split_call(value, ("base",))
        if call is None:
            raise RecipeError(f"strength is {value!r}", "it is neither a number nor a shape", "strength: linear_decay")
        name, arguments = call[0], dict[str, Any](call[1])
        if name not in SHAPES:
            raise RecipeError(f"strength is {value!r}", f"no shape has that name; {nearest(name, SHAPES)}", _FIX)
    elif isinstance(value, Mapping):
        arguments = {str(key): item for key, item in value.items()}
        name = arguments.pop("shape")
        if name != "custom" and (not isinstance(name, str) or name not in SHAPES):
            raise RecipeError(
                f"strength.shape is {name!r}",
                f"no shape has that name; {nearest(str(name), [*SHAPES, 'custom'])}",
                _FIX,
            )
    else:
        return None
    base = number(arguments.pop("base", 1.0), f"base of {name}", "base: 0.5")
    known = ["values"] if name == "custom" else _parameters(name)
    for key in arguments:
        if key not in known:
            takes = nearest(key, known) if known else "its only parameter is base"
            raise RecipeError(f"the shape {name} has no parameter {key!r}", takes, _FIX)
    if name == "custom":
        values = arguments.get("values")
        if not (_is_list(values) or (isinstance(values, Mapping) and "shape" not in values)):
            raise RecipeError("the shape custom has no values", "it needs one number per block", _FIX)
        return name, base, arguments
    return name, base, {key: _parameter(v, f"{key} of {name}") for key, v in arguments.items() if v is not None}


def _parameters(name: str) -> list[str]:
    return list(inspect.signature(SHAPES[name]).parameters)[1:]


def _is_list(value: Any) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, list | tuple)


def _numbers(values: Sequence[Any]) -> list[float]:
    return [number(value, f"the strength of block {i}", "0.5") for i, value in enumerate(values)]


def _parameter(item: Any, what: str) -> float:
    """Return a number. Integers stay integers, because a seed may be too large for an exact float."""
    if isinstance(item, Integral) and not isinstance(item, bool):
        return int(item)
    return int(item) if isinstance(item, str) and _whole.fullmatch(item) else number(item, what)


def _bounded(values: Sequence[float], low: float | None, high: float | None) -> Sequence[float]:
    for i, value in enumerate(values):
        below, above = low is not None and value < low, high is not None and value > high
        if below or above:
            where = f" in block {i}" if len(set(values)) > 1 else ""
            why = f"from {low:g} to {high:g}" if low is not None and high is not None else ""
            why = why or (f"at least {low:g}" if below else f"at most {high:g}")
            raise RecipeError(
                f"strength {value:g}{where} is out of range",
                f"it must be {why}",
                f"strength: {low if below else high:g}",
            )
    return values
