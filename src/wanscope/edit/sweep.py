"""Sweeps: `{edits.0.blocks: [early, mid, late], edits.0.strength: [0.2, 0.5, 1.0]}` gives every combination.

The first key varies slowest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

from wanscope.edit.canonical_fields import as_value_error, number_text
from wanscope.edit.edits import Edit
from wanscope.edit.shorthand import edit_from, shorthand
from wanscope.errors import RecipeError, RequestError

Sweep = dict[str, tuple[Any, ...]]

BASELINE = "baseline"
MAX_COMBINATIONS = 100_000


@dataclass(frozen=True)
class Swept:
    """One combination: the edits, and the value of each key as text."""

    edits: tuple[Edit, ...]
    values: dict[str, str]

    @property
    def label(self) -> str:
        """What distinguishes it from the others of its sweep: `late, strength 0.4`."""
        parts = []
        for key, text in self.values.items():
            number = text[:1].isdigit() or text[:1] in "-.[{" or text in ("true", "false", "null")
            parts.append(f"{key.rpartition('.')[2]} {text}" if number else text)
        return ", ".join(parts)


def edit_labels(lists: Sequence[Sequence[Edit]]) -> list[str]:
    """Return a label for each of several lists of edits that distinguishes it from the others; `baseline` for no edits.

    Lists of the same kinds of edits are labeled by the fields that differ, others by their shorthand.
    """
    edited = {tuple(map(shorthand, edits)): edits for edits in lists if edits}
    kinds = {tuple(edit.kind for edit in edits) for edits in edited.values()}
    if len(edited) < 2 or len(kinds) > 1:
        return [_edits_text(edits) for edits in lists]
    fields = {key: _fields(edits) for key, edits in edited.items()}
    names = dict.fromkeys(name for found in fields.values() for name in found)
    varying = [name for name in names if len({found.get(name) for found in fields.values()}) > 1]
    labels = {
        key: Swept(tuple(edited[key]), {name: found[name] for name in varying if name in found}).label
        for key, found in fields.items()
    }
    return [labels[tuple(map(shorthand, edits))] if edits else BASELINE for edits in lists]


def _edits_text(edits: Sequence[Edit]) -> str:
    return "; ".join(map(shorthand, edits)) or BASELINE


def _fields(edits: Sequence[Edit]) -> dict[str, str]:
    """Return every field of a list of edits that has a value, as text."""
    return {
        f"edits.{i}.{name}": _value_text(value)
        for i, edit in enumerate(edits)
        for name, value in edit.model_dump(mode="json").items()
        if value is not None and name != "sha256"
    }


def sweep_values(sweep: Any) -> Any:
    """Return a sweep with every value as a tuple. Raises ValueError, for pydantic, if it is not a sweep."""
    if sweep is None:
        return {}
    if not isinstance(sweep, Mapping):
        raise ValueError(f"it maps fields of edits to lists of values{_FIX}")
    out: dict[str, tuple[Any, ...]] = {}
    for key, values in sweep.items():
        parts = str(key).split(".")
        if len(parts) < 3 or parts[0] != "edits" or not parts[1].isdigit():
            raise ValueError(f"{key!r} is not a field of an edit{_FIX}")
        if not isinstance(values, list | tuple) or not values:
            raise ValueError(f"{key} should be a list of values{_FIX}")
        out[str(key)] = tuple(values)
    if prod(map(len, out.values())) > MAX_COMBINATIONS:
        raise ValueError(
            f"it makes {prod(map(len, out.values())):,} combinations, and the limit is {MAX_COMBINATIONS:,}"
        )
    return out


_FIX = "; for example sweep: {edits.0.blocks: [early, mid, late], edits.0.strength: [0.2, 0.5]}"


def swept_edits(edits: Sequence[Edit], sweep: Mapping[str, Sequence[Any]]) -> list[Swept]:
    """Return every combination, in order.

    Without a sweep, the result is one combination without values, or none if there are no edits. Raises ValueError,
    with the key, for a field that does not exist or a value that it does not accept.
    """
    if not sweep:
        return [Swept(tuple(edits), {})] if edits else []
    plain = [edit.model_dump(mode="json", exclude_defaults=True) for edit in edits]
    out = []
    for combination in product(*sweep.values()):
        changed = plain
        for key, value in zip(sweep, combination, strict=True):
            changed = _with(changed, key, value)
        values = {key: _value_text(value) for key, value in zip(sweep, combination, strict=True)}
        out.append(Swept(_edits_from(changed, values), values))
    seen: dict[tuple[str, ...], Swept] = {}
    for swept in out:
        same = seen.setdefault(tuple(map(shorthand, swept.edits)), swept)
        if same is not swept:
            raise ValueError(f"{swept.label!r} and {same.label!r} are the same edit")
    return out


def _edits_from(data: list[Any], values: Mapping[str, str]) -> tuple[Edit, ...]:
    with as_value_error():
        try:
            return tuple(edit_from(item) for item in data)
        except RequestError as error:
            shown = ", ".join(f"{key} = {value}" for key, value in values.items())
            raise RecipeError(f"with {shown}: {error.what}", error.why) from None


def _with(edits: list[Any], key: str, value: Any) -> list[Any]:
    """Return the edits as plain data with one value set."""
    _, place, *path = key.split(".")
    if int(place) >= len(edits):
        have = f"0 to {len(edits) - 1}" if edits else "none"
        raise ValueError(f"{key}: there is no edit {place}; the edits are {have}")
    return [_set(edit, path, value, key) if i == int(place) else edit for i, edit in enumerate(edits)]


def _set(data: Any, path: Sequence[str], value: Any, key: str) -> Any:
    head, rest = path[0], path[1:]
    if isinstance(data, list):
        if not head.isdigit() or int(head) >= len(data):
            raise ValueError(f"{key}: there is no item {head!r} in a list of {len(data)}")
        place = int(head)
        return [*data[:place], _set(data[place], rest, value, key) if rest else value, *data[place + 1 :]]
    if isinstance(data, str) and key.split(".")[2:] in (["donor", "prompt"], ["donor", "after_block"]):
        data = {"prompt": data}  # a donor's short form
    if data is not None and not isinstance(data, dict):
        raise ValueError(f"{key}: there is nothing below {data!r}")
    inner = dict(data or {})
    inner[head] = _set(inner.get(head), rest, value, key) if rest else value
    return inner


def _value_text(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return number_text(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_value_text(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value_text, value)) + "]"
    return str(value)
