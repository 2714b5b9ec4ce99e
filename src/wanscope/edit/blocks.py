"""Which blocks of a transformer an edit acts on: `late`, `0-9,20`, `"1100..."`, `[3, 7]`, `██░░`.

Presets are fractions of the depth, so they apply to any model. On L blocks:

    all, none       every block; no block
    first_half      the first floor(L/2)
    second_half     the others
    early           the first floor(L/4)
    late            the last floor(L/4)
    mid             the blocks between early and late: 40 -> 10/20/10, 30 -> 7/16/7
    alternating     0, 2, 4, ...
    sparse          0, 4, 8, ...

The longer names early_blocks, mid_blocks and late_blocks are also accepted. This module does not need torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from numbers import Integral
from typing import Any, NoReturn

from wanscope.errors import RecipeError, nearest

FULL, EMPTY = "█", "░"

# `Blocks.name` is the first preset that matches; on models with few blocks several presets are equal.
PRESETS: dict[str, Callable[[int], Iterable[int]]] = {
    "all": range,
    "none": lambda count: range(0),
    "first_half": lambda count: range(count // 2),
    "second_half": lambda count: range(count // 2, count),
    "early": lambda count: range(count // 4),
    "mid": lambda count: range(count // 4, count - count // 4),
    "late": lambda count: range(count - count // 4, count),
    "alternating": lambda count: range(0, count, 2),
    "sparse": lambda count: range(0, count, 4),
}
ALIASES = {"early_blocks": "early", "mid_blocks": "mid", "late_blocks": "late"}

_number = re.compile(r"0|[1-9][0-9]{0,8}")
_range = re.compile(r"([0-9]{1,9})\s*-\s*([0-9]{1,9})")
_SHORTEST_BITS = 3  # "10" is block ten, "101" is a bit string


@dataclass(frozen=True)
class Blocks:
    """A selection of the `count` blocks of a model: `mask[i]` is whether block i is selected."""

    mask: tuple[bool, ...]

    @property
    def count(self) -> int:
        """The number of blocks of the model."""
        return len(self.mask)

    @property
    def indices(self) -> tuple[int, ...]:
        """The numbers of the selected blocks, in ascending order."""
        return tuple(i for i, chosen in enumerate(self.mask) if chosen)

    @property
    def chosen(self) -> int:
        """The number of selected blocks."""
        return sum(self.mask)

    @property
    def name(self) -> str | None:
        """The preset that gives this selection on a model of this depth; None if there is none."""
        return next((name for name, preset in PRESETS.items() if tuple(preset(self.count)) == self.indices), None)

    @property
    def bits(self) -> str:
        """A bit string with one character per block: `1100...`."""
        return "".join("1" if chosen else "0" for chosen in self.mask)

    @property
    def picture(self) -> str:
        """A picture with one character per block: `██░░...`."""
        return "".join(FULL if chosen else EMPTY for chosen in self.mask)

    @property
    def ranges(self) -> str:
        """Ranges such as `0-9,20`; `none` if no block is selected."""
        runs: list[list[int]] = []
        for i in self.indices:
            if runs and runs[-1][1] == i - 1:
                runs[-1][1] = i
            else:
                runs.append([i, i])
        # On a model with one block, "0" would be read as a bit string.
        parts = (f"{a}-{b}" if a != b or self.count == 1 else f"{a}" for a, b in runs)
        return ",".join(parts) or "none"

    def __str__(self) -> str:
        return self.name or self.ranges

    def describe(self) -> str:
        """Return a description in words: the preset, which blocks, how many of how many."""
        if not self.chosen:
            return f"{self}: selects none of the {self.count} blocks, so it changes nothing"
        share = f"{self.chosen} of {self.count} blocks"
        return f"{self.name}: {self.ranges} ({share})" if self.name else f"{self.ranges} ({share})"


def parse_blocks(value: Any, count: int) -> Blocks:
    """Return the blocks that `value` names on a model of `count` blocks.

    value: a preset, a block number, a comma-separated list of numbers, ranges and presets (`0-9,20`), a bit string or
    picture with one character per block of the model, a list of block numbers, or a Blocks. An empty list selects no
    block.

    Raises RecipeError for anything else: a misspelled name, a block that the model does not have, a wrong length.
    """
    if isinstance(count, bool) or not isinstance(count, Integral) or count < 1:
        raise RecipeError(f"a model of {count!r} blocks", "a model has at least one block", "40")
    return Blocks(_mask(_indices(value, int(count)), int(count)))


def check_blocks(value: Any) -> None:
    """Check everything about `value` that does not depend on the model. Raises RecipeError."""
    _indices(value, None)


def preset_table(count: int) -> dict[str, Blocks]:
    """Return every preset on a model of `count` blocks, for pictures and menus."""
    return {name: Blocks(_mask(preset(count), count)) for name, preset in PRESETS.items()}


def _mask(indices: Iterable[int], count: int) -> tuple[bool, ...]:
    chosen = set(indices)
    return tuple(i in chosen for i in range(count))


def _indices(value: Any, count: int | None) -> list[int]:
    """Return the blocks that `value` names. Without `count`, only check that it can be read."""
    if isinstance(value, Blocks):
        if count is not None and value.count != count:
            _refuse_length(value.picture, value.mask, count)
        return list(value.indices)
    if isinstance(value, str):
        return _from_text(value, count)
    if isinstance(value, bool) or value is None:
        raise RecipeError(f"blocks is {value!r}", "it does not name a block", "blocks: all")
    if isinstance(value, Integral):
        return [_block(int(value), count)]
    if isinstance(value, list | tuple | range | set | frozenset):
        for item in value:
            if isinstance(item, bool) or not isinstance(item, Integral):
                raise RecipeError(
                    f"blocks contains {item!r}",
                    "a list of blocks contains whole numbers; numbers per block are a strength",
                    "blocks: [0, 1, 6]",
                )
        return [_block(int(item), count) for item in value]
    raise RecipeError(f"blocks is {value!r}", "it should be a name, a range, a bit string or a list", "blocks: late")


def _from_text(text: str, count: int | None) -> list[int]:
    text = text.strip()
    if not text:
        raise RecipeError("blocks is empty", "for no block, write none", "blocks: all")
    if set(text) <= {FULL, EMPTY}:
        text = text.replace(FULL, "1").replace(EMPTY, "0")
        return _from_bits(text, count)
    if _is_bits(text, count):
        return _from_bits(text, count)
    return [i for part in text.split(",") for i in _from_part(part.strip(), text, count)]


def _is_bits(text: str, count: int | None) -> bool:
    """Return whether a text of zeros and ones is a bit string rather than the number of one block."""
    if not set(text) <= {"0", "1"}:
        return False
    if count is None or len(text) == count:
        return True
    if _number.fullmatch(text) and int(text) < count:
        return False
    return len(text) >= _SHORTEST_BITS


def _from_bits(bits: str, count: int | None) -> list[int]:
    if count is None:
        return []
    if len(bits) != count:
        _refuse_length(bits, tuple(bit == "1" for bit in bits), count)
    return [i for i, bit in enumerate(bits) if bit == "1"]


def _from_part(part: str, text: str, count: int | None) -> Iterable[int]:
    name = part.lower().replace("-", "_").replace(" ", "_")
    preset = PRESETS.get(ALIASES.get(name, name))
    if preset:
        return preset(count or 1)
    span = _range.fullmatch(part)
    if span:
        first, last = int(span[1]), int(span[2])
        if first > last:
            raise RecipeError(
                f"the range {part!r} runs backward", "the lower block comes first", f"blocks: {last}-{first}"
            )
        _block(last, count)
        return range(first, last + 1) if count is not None else ()
    if _number.fullmatch(part):
        return [_block(int(part), count)]
    if part.isascii() and part.isdigit():
        plain = part.lstrip("0")[:9] or "0"
        why = "a block number has no leading zeros and at most nine digits"
        raise RecipeError(f"blocks contains {part!r}", why, f"blocks: {plain}")
    if not part:
        raise RecipeError(f"blocks is {text!r}", "nothing is written before or after a comma", "blocks: 0-3,6")
    hint = nearest(name, [*PRESETS, *ALIASES])
    raise RecipeError(f"{part!r} is not a preset, a block or a range of blocks", hint, "blocks: late")


def _block(index: int, count: int | None) -> int:
    if index < 0 or (count is not None and index >= count):
        digits = str(abs(index))
        why = f"blocks are numbered from 0 {f'to {count - 1}' if count is not None else 'upward'}"
        fix = f"blocks: 0-{count - 1 if count is not None else 9}"
        if set(digits) <= {"0", "1"} and len(digits) >= _SHORTEST_BITS:  # YAML reads 1100 without quotes as a number
            why, fix = f"{why}; a bit string is written in quotes", f'blocks: "{index}"'
        raise RecipeError(f"there is no block {index}", why, fix)
    return index


def _refuse_length(shown: str, mask: tuple[bool, ...], count: int) -> NoReturn:
    shown = shown if len(shown) <= 50 else shown[:47] + "..."
    named = Blocks(mask)
    own = [named.name, named.ranges if named.indices and named.indices[-1] < count else None]
    fits = [f"blocks: {text}" for text in own if text and len(text) <= 50] or ["blocks: late"]
    why = f"this model has {count} blocks, so a pattern needs {count}"
    if len(fits) > 1:  # a preset of the other model's depth, or these very blocks
        why += f"; for the same block numbers, write {fits[1]}"
    raise RecipeError(f"the block pattern {shown!r} has {len(mask)} characters", why, fits[0])
