"""What the nodes share: names of sockets, inputs declared once, and what becomes of text reports."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

M, E, B = "WANVIDEOMODEL", "WANVIDEOTEXTEMBEDS", "STRING"
MODEL, CONDITIONING = "MODEL", "CONDITIONING"
STRENGTHS, LATENT_EMBEDS, GUIDANCE = "BLOCK_STRENGTHS", "LATENT_EMBEDS", "GUIDANCE_CONFIG"
DIRECTION, WORDS, MAPS = "WANSCOPE_DIRECTION", "WANSCOPE_WORDS", "WANSCOPE_MAPS"
Inputs = dict[str, Any]


class Node:
    """A node: `REQUIRED` and `OPTIONAL` inputs, `run` with their names. `DESCRIPTION` is its help page's first part."""

    REQUIRED: ClassVar[Inputs] = {}
    OPTIONAL: ClassVar[Inputs] = {}
    HIDDEN: ClassVar[Inputs] = {}
    RETURN_TYPES: ClassVar[tuple[str, ...]] = ()
    RETURN_NAMES: ClassVar[tuple[str, ...]] = ()
    FUNCTION = "run"
    CATEGORY = "wanscope"
    DESCRIPTION = ""
    TITLE = ""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Inputs]:
        kinds = {"required": cls.REQUIRED, "optional": cls.OPTIONAL, "hidden": cls.HIDDEN}
        return {kind: dict(inputs) for kind, inputs in kinds.items() if inputs or kind == "required"}


def number(default: float, low: float, high: float, step: float, tip: str) -> tuple[str, Inputs]:
    return "FLOAT", {"default": default, "min": low, "max": high, "step": step, "tooltip": tip}


def whole(default: int, low: int, high: int, tip: str, step: int = 1) -> tuple[str, Inputs]:
    return "INT", {"default": default, "min": low, "max": high, "step": step, "tooltip": tip}


def unit(default: float, tip: str) -> tuple[str, Inputs]:
    return number(default, 0.0, 1.0, 0.01, tip)


def choice(options: Iterable[str], default: str, tip: str) -> tuple[list[str], Inputs]:
    return list(options), {"default": default, "tooltip": tip}


def switch(default: bool, tip: str) -> tuple[str, Inputs]:
    return "BOOLEAN", {"default": default, "tooltip": tip}


def text(default: str, tip: str, multiline: bool = False) -> tuple[str, Inputs]:
    return "STRING", {"default": default, "multiline": multiline, "tooltip": tip}


def socket(kind: str, tip: str) -> tuple[str, Inputs]:
    return kind, {"tooltip": tip}


def shown(report: str, *results: Any, blocks: int | None = None) -> dict[str, Any]:
    """Results, with a text that the page shows in the node. blocks: of its model, which bars upstream then follow."""
    depth = {} if blocks is None else {"wanscope_blocks": [blocks]}
    return {"ui": {"text": [report], **depth}, "result": results}


def output_used(prompt: Mapping[str, Any] | None, node: str | None, index: int) -> bool:
    """Whether another node of the prompt reads this output. True where the prompt is not known."""
    if not prompt or node is None:
        return True
    links = (value for other in prompt.values() for value in other.get("inputs", {}).values())
    return any(isinstance(link, list) and link == [node, index] for link in links)
