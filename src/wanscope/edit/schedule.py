"""Schedules: when an edit acts, as a multiplier of its strength over the steps of a run or over sigma.

    constant    `value` (1) throughout
    linear      from `start` (1) to `end` (0), linearly
    cosine      the same with ease-in and ease-out: the fraction s becomes (1 - cos(pi s)) / 2
    step        `start` (1) before `at`, `end` (0) from there on
    keyframes   `{0: 1.0, 10: 0.2}`: values at places, constant before the first and after the last, and in between as
                `interpolate` says: linear, step (a value holds until the next place) or cosine

A place is a step of the whole schedule (0 to steps - 1, counted over both experts of Wan 2.2), or with `over: sigma` a
noise level, which falls from 1 to 0. `linear` and `cosine` go from `first` to `last`, by default the first and the last
step, or sigma 1 and 0. This module does not need torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from wanscope.edit.call_syntax import number, split_call
from wanscope.errors import RecipeError, nearest
from wanscope.spec.interpolation import INTERPOLATIONS, value_at

_FIX = "schedule: linear, schedule: step(10) or schedule: {0: 1.0, 10: 0.2}"

# The parameters of each kind, with their defaults, in the order of positional arguments.
KINDS: dict[str, dict[str, float | None]] = {
    "constant": {"value": 1.0},
    "linear": {"start": 1.0, "end": 0.0, "first": None, "last": None},
    "cosine": {"start": 1.0, "end": 0.0, "first": None, "last": None},
    "step": {"at": None, "start": 1.0, "end": 0.0},
}


@dataclass(frozen=True)
class Schedule:
    """A multiplier over steps or sigma, given as values at places in the order of the run.

    keys: (place, value). A place of None is the beginning of the run (first key) or its end (last key).
    """

    keys: tuple[tuple[float | None, float], ...] = ((None, 1.0),)
    interpolate: Literal["linear", "step", "cosine"] = "linear"
    over: Literal["steps", "sigma"] = "steps"

    def at(self, step: int, steps: int, sigma: float) -> float:
        """Return the multiplier at a model evaluation of step `step` (from 0) of `steps`, at noise level `sigma`."""
        if not 0 <= step < steps:
            raise ValueError(f"step {step} of {steps}")
        keys = self._placed(steps)
        place = _forward(sigma) if self.over == "sigma" else float(step)
        return value_at(keys, place, self.interpolate)

    def values(self, sigmas: Sequence[float]) -> tuple[float, ...]:
        """Return the multiplier of every step of a run. sigmas: those of the steps, without the final 0.

        Raises RecipeError; see `check`.
        """
        self.check(len(sigmas))
        return tuple(self.at(step, len(sigmas), sigma) for step, sigma in enumerate(sigmas))

    def check(self, steps: int) -> None:
        """Raise RecipeError if a place is after the end of a run of `steps` steps."""
        for place, _ in self.keys:
            if self.over == "steps" and place is not None and place > steps:
                raise RecipeError(
                    f"the schedule names step {place:g}",
                    f"the run has {steps} steps, 0 to {steps - 1}",
                    "use steps of the run, or noise levels with over: sigma",
                )

    @property
    def is_constant(self) -> bool:
        """Whether the multiplier is the same at every step."""
        return len({value for _, value in self.keys}) == 1

    def as_data(self) -> dict[str, Any]:
        """Return plain data that `parse_schedule` turns into an equal schedule."""
        return {"kind": "keyframes", "keys": [list(key) for key in self.keys]} | {
            "interpolate": self.interpolate,
            "over": self.over,
        }

    @property
    def text(self) -> str:
        """The schedule in one line, which `parse_schedule` reads as a schedule with the same values."""
        if self.is_constant:
            return _text(self.keys[0][1])
        sigma = ["over=sigma"] if self.over == "sigma" else []
        if len(self.keys) == 2:
            (a, start), (b, end) = self.keys
            if self.interpolate == "step" and a is None and b is not None:
                rest = [] if (start, end) == (1, 0) else [_text(start), _text(end)]
                return f"step({', '.join([_text(b), *rest, *sigma])})"
            if self.interpolate != "step" and (a is None or b is None):
                ends = [_text(start), _text(end)]
                ends += [f"{name}={_text(at)}" for name, at in (("first", a), ("last", b)) if at is not None]
                plain = (start, end) == (1, 0) and len(ends) == 2 and not sigma
                return self.interpolate if plain else f"{self.interpolate}({', '.join([*ends, *sigma])})"
        places = [
            _text(place) if place is not None else "first" if i == 0 else "last"
            for i, (place, _) in enumerate(self.keys)
        ]
        parts = [f"{place}:{_text(value)}" for place, (_, value) in zip(places, self.keys, strict=True)]
        parts += [] if self.interpolate == "linear" else [f"interpolate:{self.interpolate}"]
        return ", ".join([*parts, *(["over:sigma"] if sigma else [])])

    def describe(self) -> str:
        """Return a description in words, in one line."""
        if self.is_constant:
            return f"{self.keys[0][1]:g} throughout"
        unit = "sigma" if self.over == "sigma" else "step"
        ends = {0: "the beginning", len(self.keys) - 1: "the end"}
        parts = [
            f"{value:g} at {ends[i] if place is None else f'{unit} {place:g}'}"
            for i, (place, value) in enumerate(self.keys)
        ]
        return f"{', '.join(parts)} ({self.interpolate} between)"

    def _placed(self, steps: int) -> list[tuple[float, float]]:
        """Return the keys with every place filled in, as numbers that increase along the run."""
        sigma = self.over == "sigma"
        first, last = (_forward(1.0), _forward(0.0)) if sigma else (0.0, float(steps - 1))
        out = []
        for i, (place, value) in enumerate(self.keys):
            if place is None:
                out.append((first if i == 0 else last, value))
            else:
                out.append((_forward(place) if sigma else place, value))
        if len(out) > 1 and self.keys[-1][0] is None and out[-1][0] <= out[-2][0]:
            out.pop()  # the run is too short to reach the end of the slope
        return out


CONSTANT = Schedule()


def parse_schedule(value: Any) -> Schedule:
    """Return the schedule that `value` denotes.

    value: None or 1 (always 1), a number, a kind's name (`linear`), `cosine(0.2, 1)`, `step(10)`, `linear(1, 0,
    over=sigma)`, keyframes `{0: 1.0, 10: 0.2, interpolate: cosine, over: steps}` or their text `0:1, 10:0.2`,
    `{kind: linear, start: 1, end: 0, first: 5, last: 15}`, or a Schedule. The first and the last place of keyframes may
    be the words `first` and `last`, for the beginning and the end of the run.

    Raises RecipeError for anything else.
    """
    if value is None:
        return CONSTANT
    if isinstance(value, Schedule):
        return value
    if isinstance(value, str) and ":" in value:
        return _keyframes(_pairs(value))
    if isinstance(value, str) and not _is_number(value):
        name = value.partition("(")[0].strip()
        call = split_call(value, tuple(KINDS[name])) if name in KINDS else None
        if call is None:
            raise RecipeError(f"schedule is {value!r}", nearest(name, KINDS), _FIX)
        return _kind(call[0], call[1])
    if isinstance(value, Mapping):
        data = {str(key): item for key, item in value.items()}
        if len(data) != len(value):
            raise RecipeError("two keyframes name the same place", "each place has one value", _FIX)
        if data.get("kind") in (None, "keyframes"):
            return _keyframes({k: v for k, v in data.items() if k != "kind"})
        kind = data.pop("kind")
        if kind not in KINDS:
            raise RecipeError(f"schedule.kind is {kind!r}", nearest(str(kind), [*KINDS, "keyframes"]), _FIX)
        return _kind(kind, data)
    return Schedule(((None, number(value, "schedule", _FIX)),))


def _text(value: float) -> str:
    """Return the shortest text that is read back as the same number."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _forward(sigma: float) -> float:
    """Map a noise level, which falls along the run, to a number that increases."""
    return -sigma


def _kind(name: str, data: Mapping[str, Any]) -> Schedule:
    known = KINDS[name]
    over = _over(data.get("over", "steps"))
    for key in data:
        if key not in known and key != "over":
            raise RecipeError(f"the schedule {name} has no {key!r}", nearest(key, [*known, "over"]), _FIX)
    p = known | {k: number(v, f"{k} of the schedule {name}", _FIX) for k, v in data.items() if k in known}
    for key in ("first", "last", "at"):
        place = p.get(key)
        if place is not None:
            _check_place(place, over)
    if name == "constant":
        return Schedule(((None, p["value"] or 0.0),), over=over)
    start, end = p["start"] or 0.0, p["end"] or 0.0
    if name == "step":
        if p["at"] is None:
            why = "it needs the step or sigma at which the value changes"
            raise RecipeError("the schedule step has no place", why, "schedule: step(10)")
        return Schedule(((None, start), (p["at"], end)), "step", over)
    first, last = p["first"], p["last"]
    if first is not None and last is not None and not _before(first, last, over):
        raise RecipeError(
            f"the schedule {name} runs from {first:g} to {last:g}",
            "its end is before its beginning" + ("; sigma falls along a run" if over == "sigma" else ""),
            f"first: {last:g}, last: {first:g}",
        )
    return Schedule(((first, start), (last, end)), "cosine" if name == "cosine" else "linear", over)


def _keyframes(data: Mapping[str, Any]) -> Schedule:
    rest = dict(data)
    over = _over(rest.pop("over", "steps"))
    interpolate = rest.pop("interpolate", "linear")
    if interpolate not in INTERPOLATIONS:
        raise RecipeError(f"interpolate is {interpolate!r}", nearest(str(interpolate), INTERPOLATIONS), _FIX)
    pairs: list[tuple[Any, Any]] = list(rest.items())
    if "keys" in rest:
        keys = rest.pop("keys")
        if rest or not isinstance(keys, list | tuple) or any(not _is_pair(key) for key in keys):
            raise RecipeError("the keyframes cannot be read", "keys must be a list of pairs [place, value]", _FIX)
        pairs = [(key[0], key[1]) for key in keys]
    if not pairs:
        raise RecipeError("the schedule has no keyframe", "it needs at least one place with a value", _FIX)
    out: list[tuple[float | None, float]] = []
    for i, (place, value) in enumerate(pairs):
        if place == ("first" if i == 0 else "last"):
            place = None
        if place is None and i not in (0, len(pairs) - 1):
            raise RecipeError("a keyframe has no place", "only the first and the last keyframe may omit it", _FIX)
        if place is not None:
            place = number(place, "the place of a keyframe", _FIX)
            _check_place(place, over)
        out.append((place, number(value, f"the value at {place}", _FIX)))
    middle = [key for key in out if key[0] is not None]
    middle.sort(key=lambda key: _forward(key[0] or 0.0) if over == "sigma" else key[0] or 0.0)
    if len({key[0] for key in middle}) != len(middle):
        raise RecipeError("two keyframes name the same place", "each place has one value", _FIX)
    head = out[:1] if out[0][0] is None else []
    tail = out[-1:] if len(out) > 1 and out[-1][0] is None else []
    return replace(Schedule(interpolate=interpolate, over=over), keys=(*head, *middle, *tail))


def _is_pair(key: Any) -> bool:
    return isinstance(key, list | tuple) and len(key) == 2


def _pairs(text: str) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for part in text.strip().removeprefix("{").removesuffix("}").split(","):
        place, colon, value = (piece.strip() for piece in part.partition(":"))
        if not colon or not place or not value:
            raise RecipeError(f"the keyframes {text!r} cannot be read", "each is place:value", _FIX)
        if place in out:
            raise RecipeError("two keyframes name the same place", "each place has one value", _FIX)
        out[place] = value
    return out


def _over(value: Any) -> Literal["steps", "sigma"]:
    if value not in ("steps", "sigma"):
        raise RecipeError(f"over is {value!r}", nearest(str(value), ("steps", "sigma")), "over: sigma")
    return value


def _check_place(place: float, over: str) -> None:
    if over == "steps" and (place < 0 or place != int(place)):
        raise RecipeError(f"a schedule names step {place:g}", "steps are whole numbers from 0", "over: sigma")
    if over == "sigma" and not 0 <= place <= 1:
        raise RecipeError(f"a schedule names sigma {place:g}", "sigma is from 1 (noise) to 0", "over: steps")


def _before(first: float, last: float, over: str) -> bool:
    return first > last if over == "sigma" else first < last
