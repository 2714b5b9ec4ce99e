"""The base class of the nodes, the names of socket types, declarations of inputs, and outputs with a text report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

M, E, B = "WANVIDEOMODEL", "WANVIDEOTEXTEMBEDS", "STRING"
MODEL, CONDITIONING = "MODEL", "CONDITIONING"
STRENGTHS, LATENT_EMBEDS, GUIDANCE = "BLOCK_STRENGTHS", "LATENT_EMBEDS", "GUIDANCE_CONFIG"
DIRECTION, WORDS, MAPS = "WANSCOPE_DIRECTION", "WANSCOPE_WORDS", "WANSCOPE_MAPS"
Inputs = dict[str, Any]


class Node:
    """Base class of the nodes.

    `REQUIRED`, `OPTIONAL` and `HIDDEN` declare the inputs, and `run` takes them by name. `DESCRIPTION` is the first
    part of the help page.
    """

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
    """Declare a float input with its bounds and step."""
    return "FLOAT", {"default": default, "min": low, "max": high, "step": step, "tooltip": tip}


def integer(default: int, low: int, high: int, tip: str, step: int = 1) -> tuple[str, Inputs]:
    """Declare an integer input with its bounds and step."""
    return "INT", {"default": default, "min": low, "max": high, "step": step, "tooltip": tip}


def fraction(default: float, tip: str) -> tuple[str, Inputs]:
    """Declare a float input from 0 to 1."""
    return number(default, 0.0, 1.0, 0.01, tip)


def choice(options: Iterable[str], default: str, tip: str) -> tuple[list[str], Inputs]:
    """Declare an input with a list of options."""
    return list(options), {"default": default, "tooltip": tip}


def boolean(default: bool, tip: str) -> tuple[str, Inputs]:
    """Declare a boolean input."""
    return "BOOLEAN", {"default": default, "tooltip": tip}


def text(default: str, tip: str, multiline: bool = False) -> tuple[str, Inputs]:
    """Declare a text input."""
    return "STRING", {"default": default, "multiline": multiline, "tooltip": tip}


def socket(kind: str, tip: str) -> tuple[str, Inputs]:
    """Declare an input that takes a connection of type `kind`."""
    return kind, {"tooltip": tip}


def node_output(report: str, *results: Any, blocks: int | None = None) -> dict[str, Any]:
    """Return a node's results together with a text that the page shows in the node.

    blocks: the number of blocks of the node's model; the bars and toggles of nodes upstream then show as many.
    """
    depth = {} if blocks is None else {"wanscope_blocks": [blocks]}
    return {"ui": {"text": [report], **depth}, "result": results}


def output_is_used(prompt: Mapping[str, Any] | None, node: str | None, index: int) -> bool:
    """Return whether another node of the prompt reads this output; True if the prompt is not known."""
    if not prompt or node is None:
        return True
    links = (value for other in prompt.values() for value in other.get("inputs", {}).values())
    return any(isinstance(link, list) and link == [node, index] for link in links)
