"""Nodes that make and show block patterns and strengths. They need no model."""

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
    choice,
    number,
    shown,
    socket,
    switch,
    text,
    unit,
    whole,
)
from wanscope.edit.blocks import parse_blocks
from wanscope.edit.strengths import Strengths

COUNT = patterns.DRAWN_FOR


class BlockActivationBuilder(Node):
    TITLE = "Block Pattern"
    CATEGORY = "wanscope/blocks"
    DESCRIPTION = (
        "Chooses blocks by a preset or one by one. Presets are shares of the depth and fit any model; with `custom` "
        "the toggles count. The output is a text of zeros and ones for 40 blocks that knows what was meant, so that "
        "a model of 30 blocks gets the preset of its own depth."
    )
    REQUIRED: ClassVar[Inputs] = {
        "preset": choice(patterns.PRESETS, "custom", "Which blocks; custom reads the toggles.")
    }
    OPTIONAL: ClassVar[Inputs] = {f"block_{i}": switch(False, f"Block {i}, with preset custom.") for i in range(COUNT)}
    RETURN_TYPES = (B,)
    RETURN_NAMES = ("block_activations",)

    def run(self, preset: str, **toggles: Any) -> dict[str, Any]:
        pattern = patterns.toggled(preset, toggles)
        return shown(parse_blocks(pattern.meant, COUNT).describe(), pattern)


class BlockStrengthBuilder(Node):
    TITLE = "Block Strength Builder"
    CATEGORY = "wanscope/blocks"
    DESCRIPTION = (
        "A strength for each block: a shape over the depth, or with `custom` the sliders. Places and widths are given "
        "for 40 blocks and scaled to a model's own depth."
    )
    REQUIRED: ClassVar[Inputs] = {
        "pattern": choice(patterns.SHAPES, "custom", "The shape over the depth; custom reads the sliders."),
        "base_strength": unit(0.5, "What the shape is multiplied with."),
    }
    OPTIONAL: ClassVar[Inputs] = {
        "peak_block": whole(20, 0, 39, "Where the gaussian shapes have their peak."),
        "spread": number(5.0, 0.5, 20.0, 0.5, "How wide the gaussian shapes are, in blocks."),
        "step_size": whole(5, 1, 20, "How many blocks a step of `stepped` has."),
        **{f"block_{i}_strength": unit(0.0, f"Block {i}, with pattern custom.") for i in range(COUNT)},
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
        built = patterns.built_strengths(pattern, base_strength, peak_block, spread, step_size, sliders)
        picture = Strengths(tuple(built["strengths"])).bars()
        return shown(picture, built, picture)


class BlockStrengths(Node):
    TITLE = "Block Strengths"
    CATEGORY = "wanscope/blocks"
    DESCRIPTION = (
        "A strength for each block, drawn by mouse: drag over the bars, or choose a shape. `values` is what is sent, "
        "one number a block with commas between; `blocks` is how many there are, and follows a model that is "
        "connected downstream."
    )
    REQUIRED: ClassVar[Inputs] = {
        "shape": choice(patterns.SHAPES, "uniform", "A shape fits any model; dragging a bar makes it custom."),
        "base": unit(0.5, "What the shape is multiplied with."),
        "blocks": whole(40, 1, 200, "How many blocks the bars are drawn for: 30 for 1.3B and 5B, 40 for 14B."),
        "values": text("", "With shape custom: a number for each block, with commas between."),
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
            built = patterns.built_strengths(shape, base, 20, 5.0, 5, {})
            found = patterns.strengths_of(built, blocks)
            built = {**built, "strengths": list(found.values)}
        picture = found.bars()
        return shown(picture, built, picture)


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
        "block_strengths": socket(STRENGTHS, "What a strength builder makes."),
        "show_numbers": switch(True, "Write each strength behind its bar."),
        "graph_height": whole(10, 5, 20, "Height of the image, in tens of pixels."),
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
        return shown(f"{name}\n{picture}", picture, graph(values, graph_height))


def graph(values: Strengths, height: int) -> Tensor:
    """IMAGE [1, 10 height, 10 blocks, 3]: a bar a block, the largest of 1 and the strongest block being full height."""
    full = max(1.0, *(abs(v) for v in values.values))
    image = torch.full((1, 10 * height, 10 * values.count, 3), 0.1)
    for i, value in enumerate(values.values):
        rows = round(abs(value) / full * (10 * height - 2))
        if rows:
            image[0, -rows:, 10 * i + 1 : 10 * i + 9] = torch.tensor([0.35, 0.7, 0.9])
    return image
