"""Nodes that create and show block patterns and block strengths. They do not need a model."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from wanscope.doors.comfy import patterns
from wanscope.doors.comfy.base import (
    STRENGTHS,
    B,
    Inputs,
    Node,
    boolean,
    choice,
    fraction,
    integer,
    node_output,
    number,
    socket,
    text,
)
from wanscope.edit.blocks import parse_blocks
from wanscope.edit.strengths import Strengths

COUNT = patterns.UI_BLOCKS


class BlockActivationBuilder(Node):
    TITLE = "Block Pattern"
    CATEGORY = "wanscope/blocks"
    DESCRIPTION = (
        "Chooses blocks with a preset or one by one. Presets are fractions of the depth and fit any model; `custom` "
        "uses the toggles. The output is a string of zeros and ones for 40 blocks that also carries the preset, so "
        "that a model with 30 blocks gets the preset for its own depth."
    )
    REQUIRED: ClassVar[Inputs] = {
        "preset": choice(patterns.PRESETS, "custom", "Which blocks are chosen; custom uses the toggles.")
    }
    OPTIONAL: ClassVar[Inputs] = {
        f"block_{i}": boolean(False, f"Block {i}; used with preset custom.") for i in range(COUNT)
    }
    RETURN_TYPES = (B,)
    RETURN_NAMES = ("block_activations",)

    def run(self, preset: str, **toggles: Any) -> dict[str, Any]:
        pattern = patterns.pattern_from_toggles(preset, toggles)
        return node_output(parse_blocks(pattern.source, COUNT).describe(), pattern)


class BlockStrengthBuilder(Node):
    TITLE = "Block Strength Builder"
    CATEGORY = "wanscope/blocks"
    DESCRIPTION = (
        "Sets a strength for each block: a shape over the depth, or with `custom` the sliders. Positions and widths "
        "are given for 40 blocks and scaled to a model's own depth."
    )
    REQUIRED: ClassVar[Inputs] = {
        "pattern": choice(patterns.SHAPES, "custom", "The shape over the depth; custom uses the sliders."),
        "base_strength": fraction(0.5, "The factor that the shape is multiplied by."),
    }
    OPTIONAL: ClassVar[Inputs] = {
        "peak_block": integer(20, 0, 39, "The block at the peak of the Gaussian shapes."),
        "spread": number(5.0, 0.5, 20.0, 0.5, "The width of the Gaussian shapes, in blocks."),
        "step_size": integer(5, 1, 20, "The number of blocks per step of `stepped`."),
        **{f"block_{i}_strength": fraction(0.0, f"Block {i}; used with pattern custom.") for i in range(COUNT)},
    }
    RETURN_TYPES = (STRENGTHS, "STRING")
    RETURN_NAMES = ("block_strengths", "strength_visualization")

    def run(
        self,
        pattern: str,
        base_strength: float,
        peak_block: int = 20,
        spread: float = 5.0,
        step_size: int = 5,
        **sliders: Any,
    ) -> dict[str, Any]:
        built = patterns.build_strengths(pattern, base_strength, peak_block, spread, step_size, sliders)
        picture = Strengths(tuple(built["strengths"])).bars()
        return node_output(picture, built, picture)


class BlockStrengths(Node):
    TITLE = "Block Strengths"
    CATEGORY = "wanscope/blocks"
    DESCRIPTION = (
        "Sets a strength for each block with the mouse: drag over the bars, or choose a shape. `values` holds the "
        "numbers that are used, one per block, separated by commas; `blocks` is the number of blocks, which follows a "
        "model that is connected downstream."
    )
    REQUIRED: ClassVar[Inputs] = {
        "shape": choice(patterns.SHAPES, "uniform", "The shape over the depth; dragging a bar sets it to custom."),
        "base": fraction(0.5, "The factor that the shape is multiplied by."),
        "blocks": integer(40, 1, 200, "The number of blocks: 30 for 1.3B and 5B, 40 for 14B."),
        "values": text("", "With shape custom: one number per block, separated by commas."),
    }
    RETURN_TYPES = (STRENGTHS, "STRING")
    RETURN_NAMES = ("block_strengths", "picture")

    def run(self, shape: str, base: float, blocks: int, values: str) -> dict[str, Any]:
        if shape == "custom":
            numbers = [part.strip() for part in values.split(",") if part.strip()]
            from wanscope.edit.strengths import parse_strengths

            found = parse_strengths([float(v) if _is_number(v) else v for v in numbers], blocks)
            metadata: dict[str, Any] = {"blocks": blocks, "base_strength": base}
            built = {"strengths": list(found.values), "pattern": shape, "metadata": metadata}
        else:
            built = patterns.build_strengths(shape, base, 20, 5.0, 5, {})
            found = patterns.parse_strength_input(built, blocks)
            built = {**built, "strengths": list(found.values)}
        picture = found.bars()
        return node_output(picture, built, picture)


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True


class StrengthVisualizer(Node):
    TITLE = "Strength Picture"
    CATEGORY = "wanscope/blocks"
    DESCRIPTION = "Shows block strengths as bars, as text and as an image."
    REQUIRED: ClassVar[Inputs] = {
        "block_strengths": socket(STRENGTHS, "The output of a strength builder."),
        "show_numbers": boolean(True, "Write each strength after its bar."),
        "graph_height": integer(10, 5, 20, "Height of the image, in tens of pixels."),
    }
    RETURN_TYPES = ("STRING", "IMAGE")
    RETURN_NAMES = ("text_visualization", "graph_image")
    OUTPUT_NODE = True

    def run(self, block_strengths: Any, show_numbers: bool, graph_height: int) -> dict[str, Any]:
        values = Strengths(tuple(float(v) for v in block_strengths["strengths"]))
        picture = values.bars()
        if not show_numbers:
            picture = "\n".join(line.rpartition(" ")[0] for line in picture.splitlines())
        name = block_strengths.get("pattern", "custom")
        return node_output(f"{name}\n{picture}", picture, draw_graph(values, graph_height))


def draw_graph(values: Strengths, height: int) -> Tensor:
    """Return an IMAGE [1, 10 x height, 10 x blocks, 3] with one bar per block, values 0 to 1.

    The full height is a strength of 1, or the largest absolute strength if that is more than 1.
    """
    full = max(1.0, *(abs(v) for v in values.values))
    image = torch.full((1, 10 * height, 10 * values.count, 3), 0.1)
    for i, value in enumerate(values.values):
        rows = round(abs(value) / full * (10 * height - 2))
        if rows:
            image[0, -rows:, 10 * i + 1 : 10 * i + 9] = torch.tensor([0.35, 0.7, 0.9])
    return image
