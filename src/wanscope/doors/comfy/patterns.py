"""Block patterns and strengths as the nodes pass them on: text and numbers for 40 blocks that fit any other depth.

A toggled pattern is a STRING of 40 zeros and ones, because that is what old workflows read. Made by our builder it also
knows what was meant (a preset, or which blocks), so that a model of 30 blocks gets the pattern of its own depth; typed
by hand it has to have the model's length, but for forty zeros (the inputs' default) and forty ones, which stand in old
workflows for any model and mean none and all. BLOCK_STRENGTHS likewise keep their shape and its parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from wanscope.edit.blocks import Blocks, parse_blocks
from wanscope.edit.strengths import Strengths, parse_strengths
from wanscope.errors import RecipeError

DRAWN_FOR = 40  # blocks that the nodes have toggles and sliders for
NONE, ALL = "0" * DRAWN_FOR, "1" * DRAWN_FOR
PRESETS = (
    "custom",
    "all",
    "none",
    "first_half",
    "second_half",
    "early_blocks",
    "mid_blocks",
    "late_blocks",
    "alternating",
    "sparse",
)
SHAPES = (
    "custom",
    "uniform",
    "linear_decay",
    "linear_rise",
    "gaussian_peak",
    "inverse_gaussian",
    "sine_wave",
    "stepped",
    "random",
    "focus_early",
    "focus_mid",
    "focus_late",
)


class BlockPattern(str):
    """The bits of a pattern on 40 blocks, which remember their preset or the blocks that were toggled."""

    meant: str | list[int]

    def __new__(cls, meant: str | list[int]) -> BlockPattern:
        pattern = super().__new__(cls, parse_blocks(meant, DRAWN_FOR).bits)
        pattern.meant = meant
        return pattern


def blocks_of(value: Any, count: int) -> Blocks:
    """The blocks that a node's `block_activations` name on a model of `count` blocks. Raises RecipeError."""
    if isinstance(value, BlockPattern):
        return parse_blocks(value.meant, count)
    plain = value.strip() if isinstance(value, str) else value
    return parse_blocks({NONE: "none", ALL: "all"}.get(plain, plain) if isinstance(plain, str) else plain, count)


def toggled(preset: str, toggles: Mapping[str, Any]) -> BlockPattern:
    """The pattern of a preset, or with `custom` of the inputs `block_0`, `block_1`, ... that are on."""
    if preset != "custom":
        return BlockPattern(preset)
    return BlockPattern([i for i in range(DRAWN_FOR) if toggles.get(f"block_{i}")])


def strengths_of(value: Any, count: int) -> Strengths:
    """The strength of each of `count` blocks that BLOCK_STRENGTHS name. Raises RecipeError."""
    if not isinstance(value, Mapping) or not isinstance(value.get("strengths"), Sequence):
        raise RecipeError("block_strengths holds no strengths", "it is what a strength builder makes", "")
    given = [float(v) for v in value["strengths"]]
    shape = (value.get("metadata") or {}).get("shape")
    if shape is not None:
        return parse_strengths(shape_for(shape, count), count)
    if len(given) == count:
        return parse_strengths(given, count)
    if len(given) > count and not any(given[count:]):
        return parse_strengths(given[:count], count)
    where = f"block {max(i for i, v in enumerate(given) if v)}" if any(given) else "no block"
    raise RecipeError(
        f"block_strengths holds {len(given)} numbers, the last of them above 0 for {where}",
        f"this model has {count} blocks",
        f"{count} numbers, or a shape, which fits any model",
    )


def shape_for(shape: Mapping[str, Any], count: int) -> dict[str, Any]:
    """A shape whose places are given for 40 blocks, for `count` blocks."""
    out = dict(shape)
    if count != DRAWN_FOR:
        if "peak" in out:
            out["peak"] = round(out["peak"] * (count - 1) / (DRAWN_FOR - 1))
        if "spread" in out:
            out["spread"] = out["spread"] * count / DRAWN_FOR
        if "size" in out:
            out["size"] = max(1, round(out["size"] * count / DRAWN_FOR))
    return out


def built_strengths(
    pattern: str, base: float, peak: int, spread: float, size: int, sliders: Mapping[str, Any]
) -> dict[str, Any]:
    """BLOCK_STRENGTHS of a shape, or with `custom` of the inputs `block_0_strength`, ...; those not given are 0."""
    metadata: dict[str, Any] = {"blocks": DRAWN_FOR, "base_strength": base}
    if pattern == "custom":
        values = [float(sliders.get(f"block_{i}_strength") or 0.0) for i in range(DRAWN_FOR)]
    else:
        shape: dict[str, Any] = {"shape": pattern, "base": base}
        if pattern in ("gaussian_peak", "inverse_gaussian"):
            shape |= {"peak": peak, "spread": spread}
        elif pattern == "stepped":
            shape |= {"size": size}
        metadata["shape"] = shape
        values = list(parse_strengths(shape, DRAWN_FOR).values)
    return {"strengths": values, "pattern": pattern, "metadata": metadata}
