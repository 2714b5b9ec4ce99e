"""Block patterns and strengths as they are passed between nodes, drawn for 40 blocks and converted to any depth.

A pattern is a STRING of 40 zeros and ones, because saved workflows use that. If our builder made it, it also carries
the preset or the list of blocks it was made from, so that a model with 30 blocks gets the pattern for its own depth. A
string typed by hand must have the model's length, except forty zeros (the inputs' default) and forty ones, which saved
workflows use for models of any depth and which mean none and all. BLOCK_STRENGTHS likewise carry their shape and its
parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from wanscope.edit.blocks import Blocks, parse_blocks
from wanscope.edit.strengths import Strengths, parse_strengths
from wanscope.errors import RecipeError

UI_BLOCKS = 40  # blocks that the nodes have toggles and sliders for
NONE, ALL = "0" * UI_BLOCKS, "1" * UI_BLOCKS
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
    """The bits of a pattern on 40 blocks. source: the preset or the list of blocks it was made from."""

    source: str | list[int]

    def __new__(cls, source: str | list[int]) -> BlockPattern:
        pattern = super().__new__(cls, parse_blocks(source, UI_BLOCKS).bits)
        pattern.source = source
        return pattern


def parse_block_input(value: Any, count: int) -> Blocks:
    """Return the blocks that a node's `block_activations` or `blocks` input selects in a model with `count` blocks.

    Raises RecipeError for a pattern that does not fit the model.
    """
    if isinstance(value, BlockPattern):
        return parse_blocks(value.source, count)
    plain = value.strip() if isinstance(value, str) else value
    return parse_blocks({NONE: "none", ALL: "all"}.get(plain, plain) if isinstance(plain, str) else plain, count)


def pattern_from_toggles(preset: str, toggles: Mapping[str, Any]) -> BlockPattern:
    """Return the pattern of a preset; for `custom`, of the inputs `block_0`, `block_1`, ... that are on."""
    if preset != "custom":
        return BlockPattern(preset)
    return BlockPattern([i for i in range(UI_BLOCKS) if toggles.get(f"block_{i}")])


def parse_strength_input(value: Any, count: int) -> Strengths:
    """Return the strengths that BLOCK_STRENGTHS give to each of `count` blocks.

    A shape is evaluated at this depth. Raises RecipeError for numbers that do not fit the model.
    """
    if not isinstance(value, Mapping) or not isinstance(value.get("strengths"), Sequence):
        raise RecipeError(
            "block_strengths holds no strengths", "it is the output of a strength builder", "connect Block Strengths"
        )
    given = [float(v) for v in value["strengths"]]
    shape = (value.get("metadata") or {}).get("shape")
    if shape is not None:
        return parse_strengths(scale_shape(shape, count), count)
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


def scale_shape(shape: Mapping[str, Any], count: int) -> dict[str, Any]:
    """Return a shape whose positions and widths are given for 40 blocks, scaled to `count` blocks."""
    out = dict(shape)
    if count != UI_BLOCKS:
        if "peak" in out:
            out["peak"] = round(out["peak"] * (count - 1) / (UI_BLOCKS - 1))
        if "spread" in out:
            out["spread"] = out["spread"] * count / UI_BLOCKS
        if "size" in out:
            out["size"] = max(1, round(out["size"] * count / UI_BLOCKS))
    return out


def build_strengths(
    pattern: str, base: float, peak: int, spread: float, size: int, sliders: Mapping[str, Any]
) -> dict[str, Any]:
    """Return BLOCK_STRENGTHS of a shape; for `custom`, of the inputs `block_0_strength`, ..., missing ones being 0."""
    metadata: dict[str, Any] = {"blocks": UI_BLOCKS, "base_strength": base}
    if pattern == "custom":
        values = [float(sliders.get(f"block_{i}_strength") or 0.0) for i in range(UI_BLOCKS)]
    else:
        shape: dict[str, Any] = {"shape": pattern, "base": base}
        if pattern in ("gaussian_peak", "inverse_gaussian"):
            shape |= {"peak": peak, "spread": spread}
        elif pattern == "stepped":
            shape |= {"size": size}
        metadata["shape"] = shape
        values = list(parse_strengths(shape, UI_BLOCKS).values)
    return {"strengths": values, "pattern": pattern, "metadata": metadata}
