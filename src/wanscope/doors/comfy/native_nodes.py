"""Nodes for ComfyUI's own Wan models: MODEL in, a copy with the edit out."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor

from wanscope.doors.comfy import node_log
from wanscope.doors.comfy.base import (
    CONDITIONING,
    MODEL,
    STRENGTHS,
    WORDS,
    Inputs,
    Node,
    choice,
    number,
    shown,
    socket,
    text,
    unit,
)
from wanscope.doors.comfy.embeds import first_prompt, only_first
from wanscope.doors.comfy.patterns import blocks_of, strengths_of
from wanscope.edit.difference import measure_difference, render_difference
from wanscope.edit.edits import Bend, Inject, Prompts, Skip
from wanscope.errors import RecipeError
from wanscope.runtime.comfy import native
from wanscope.runtime.comfy.live import CONNECTED, LiveEdit

START = unit(0.0, "From which share of the whole sampling on; the same in every stage of it.")
END = unit(1.0, "Until which share of the whole sampling.")
BLOCKS = text("all", "Which blocks: all, early, mid, late, 0-9,20, zeros and ones, or a pattern node's output.")
BRANCH = choice(("cond", "uncond", "both"), "cond", "Which pass; on both, guidance cancels much of an edit.")


def edited(model: Any, edit: LiveEdit, unique_id: str | None, said: str, level: str = "off") -> dict[str, Any]:
    """A copy of the model with one more edit, and the node's text, which follows the runs."""
    now = native.live_of(model)
    live = node_log.with_edit(now, edit, level)
    live.log("verbose", f"{edit.name}: {said}")
    out = native.attach(model, live)
    node_log.follow(live, unique_id, said)
    return shown(said, out, blocks=native.depth(model))


class ModelEdit(Node):
    """A node whose output is a copy of its model with one more edit."""

    CATEGORY = "wanscope/native"
    HIDDEN: ClassVar[Inputs] = {"unique_id": "UNIQUE_ID"}
    RETURN_TYPES = (MODEL,)
    RETURN_NAMES = ("model",)


def projection_of(inner: Any) -> Callable[[Tensor], Tensor]:
    """Raw rows [L, text dim] as the transformer's blocks read them, [L, D], with its weights where they lie now."""
    weight = next(inner.text_embedding.parameters())
    dtype = weight.dtype if weight.dtype.itemsize > 1 else torch.float32
    return lambda rows_LD: inner.text_embedding(rows_LD.to(weight.device, dtype))


class InjectPrompt(ModelEdit):
    TITLE = "Inject Prompt into Blocks"
    DESCRIPTION = (
        "The chosen blocks read another prompt beside the main one. `context` changes what cross-attention reads, "
        "`hidden` blends in the hidden states of the other prompt's own pass on the same latents. Three ways on the "
        "context: `mix` the outputs of both cross-attentions, `append` the other prompt's tokens with a weight, or "
        "blend `tokens` place by place. Strength 1 in all blocks with mix or tokens is the other prompt alone. Only "
        "the positive pass is edited unless another branch is chosen. An edit that is due and does not act fails the "
        "run."
    )
    REQUIRED: ClassVar[Inputs] = {
        "model": socket(MODEL, "A Wan model; the output is a copy with the edit."),
        "donor": socket(CONDITIONING, "The prompt that is injected."),
        "strength": unit(0.5, "From 0 (off) to 1 (the donor alone); block_strengths, if connected, multiply it."),
        "blocks": BLOCKS,
        "where": choice(("context", "hidden", "both"), "context", "What is injected into."),
        "mode": choice(("mix", "append", "tokens"), "mix", "How, on the context."),
        "start_percent": START,
        "end_percent": END,
        "branch": BRANCH,
        "log_level": choice(node_log.LEVELS, "off", "What is written to the log."),
    }
    OPTIONAL: ClassVar[Inputs] = {
        "block_strengths": socket(STRENGTHS, "A strength for each block."),
        "donor_negative": socket(CONDITIONING, "With branch both: what the negative pass gets."),
        "operation": choice(("blend", "replace", "add"), "blend", "Of tokens and hidden states."),
        "boost": number(0.0, 0.0, 50.0, 0.5, "Multiply the difference after projection; 0 is off."),
    }

    def run(
        self,
        model: Any,
        donor: Any,
        strength: float,
        blocks: Any,
        where: str,
        mode: str,
        start_percent: float,
        end_percent: float,
        branch: str,
        log_level: str = "off",
        block_strengths: Any = None,
        donor_negative: Any = None,
        operation: str = "blend",
        boost: float = 0.0,
        unique_id: str | None = None,
    ) -> dict[str, Any]:
        depth = native.depth(model)
        chosen = blocks_of(blocks, depth)
        values = [strength] * depth
        if block_strengths is not None:
            values = [strength * v for v in strengths_of(block_strengths, depth).values]
        if where != "hidden" and mode != "tokens" and operation != "blend":
            raise RecipeError(
                f"operation {operation} with mode {mode}", "it works on tokens and hidden states", "mode: tokens"
            )
        edit = Inject(
            donor=CONNECTED,
            blocks=chosen.ranges,
            strength=tuple(values),
            on=where,
            mode="mix" if where == "hidden" else mode,
            operation=operation if where != "context" or mode == "tokens" else "blend",
            branch=branch,
            boost=boost or None,
        )
        donor_LD = first_prompt(donor, "donor")
        negative = None if donor_negative is None else first_prompt(donor_negative, "donor_negative")
        live_edit = LiveEdit(edit, donor_LD, negative, start=start_percent, end=end_percent)
        acts = edit.strengths(depth)
        said = f"{acts.blocks.picture}\n{acts.describe()}\n{only_first(donor, donor_negative)}".strip()
        return edited(model, live_edit, unique_id, said, log_level)


class SkipBlocks(ModelEdit):
    TITLE = "Skip Blocks"
    DESCRIPTION = "Leaves blocks out, or only their cross-attention, in one branch and for a part of the sampling."
    REQUIRED: ClassVar[Inputs] = {
        "model": socket(MODEL, "A Wan model; the output is a copy with the edit."),
        "blocks": text("9", "Which blocks are left out."),
        "part": choice(("block", "cross_attention"), "block", "The whole block, or what it reads of the prompt."),
        "start_percent": START,
        "end_percent": END,
        "branch": BRANCH,
    }

    def run(
        self,
        model: Any,
        blocks: Any,
        part: str,
        start_percent: float,
        end_percent: float,
        branch: str,
        unique_id: str | None = None,
    ) -> dict[str, Any]:
        chosen = blocks_of(blocks, native.depth(model))
        edit = LiveEdit(Skip(blocks=chosen.ranges, part=part, branch=branch), start=start_percent, end=end_percent)
        return edited(model, edit, unique_id, f"{chosen.picture}\nskipped: {chosen.describe()}")


class PromptSchedule(ModelEdit):
    TITLE = "Prompts over Time"
    DESCRIPTION = (
        "Other prompts at other times of the sampling, for every block. Until the first one begins the sampler's own "
        "prompt holds. With `step` each holds until the next begins; with `linear` and `spherical` the prompt moves "
        "from each to the next, token by token, and the last holds to the end. To move away from the sampler's own "
        "prompt, connect it as prompt_1 with begin_1 at 0."
    )
    REQUIRED: ClassVar[Inputs] = {
        "model": socket(MODEL, "A Wan model; the output is a copy with the edit."),
        "prompt_1": socket(CONDITIONING, "The first of the other prompts."),
        "begin_1": unit(0.3, "From which share of the whole sampling on prompt 1 holds."),
        "interpolate": choice(("step", "linear", "spherical"), "step", "How one becomes the next."),
        "branch": BRANCH,
    }
    OPTIONAL: ClassVar[Inputs] = {
        key: value
        for i in (2, 3, 4)
        for key, value in (
            (f"prompt_{i}", socket(CONDITIONING, f"Prompt {i}; not connected, its time does not count.")),
            (f"begin_{i}", unit(0.3 * i if i < 4 else 1.0, f"From which share on prompt {i} holds.")),
        )
    }

    def run(
        self, model: Any, interpolate: str, branch: str, unique_id: str | None = None, **given: Any
    ) -> dict[str, Any]:
        depth = native.depth(model)
        used = [i for i in (1, 2, 3, 4) if given.get(f"prompt_{i}") is not None]
        keyed = tuple((float(given[f"begin_{i}"]), first_prompt(given[f"prompt_{i}"], f"prompt_{i}")) for i in used)
        for (i, before), (j, after) in pairwise((i, share) for i, (share, _) in zip(used, keyed, strict=True)):
            if after <= before:
                raise RecipeError(
                    f"prompt_{j} begins at {after:g}, and prompt_{i} at {before:g}",
                    "each begins later than the one before it",
                    f"begin_{j}: {min(1.0, before + 0.1):g}",
                )
        edit = Prompts({i: f"{CONNECTED} {i}" for i in used}, interpolate=interpolate, branch=branch)
        now = native.live_of(model)
        mine = {"cond", "uncond"} if branch == "both" else {branch}
        others = [other for other in (now.edits if now else ()) if other.edit.sets_prompt]
        if any(mine & set(other.branches()) for other in others):
            raise RecipeError("the model has prompts over time already", "these would replace them", "one such node")
        times = ", ".join(f"prompt {i} from {share:.0%}" for i, (share, _) in zip(used, keyed, strict=True))
        said = f"{times}; {interpolate}; all {depth} blocks"
        return edited(model, LiveEdit(edit, keyed=keyed, start=keyed[0][0]), unique_id, said)


class BendAttention(ModelEdit):
    TITLE = "Bend Attention"
    DESCRIPTION = (
        "Changes the attention maps of chosen words while sampling: amplify or suppress by a factor, scale, rotate, "
        "translate, flip, blur, or keep only a box of the frame. The rest of the attention is renormalized."
    )
    REQUIRED: ClassVar[Inputs] = {
        "model": socket(MODEL, "A Wan model; the output is a copy with the edit."),
        "words": socket(WORDS, "What Words of a Prompt makes."),
        "operation": choice(
            ("amplify", "suppress", "scale", "rotate", "translate", "flip", "blur", "region"), "amplify", "The change."
        ),
        "strength": unit(1.0, "From the map as it is (0) to the changed one (1)."),
        "blocks": BLOCKS,
        "factor": number(2.0, 0.01, 100.0, 0.05, "Of amplify, suppress and scale."),
        "angle": number(0.0, -360.0, 360.0, 1.0, "Of rotate, in degrees, counterclockwise."),
        "x": number(0.0, -1.0, 1.0, 0.01, "Of translate, to the right, in widths; left edge of region."),
        "y": number(0.0, -1.0, 1.0, 0.01, "Of translate, down, in heights; top edge of region."),
        "right": unit(1.0, "Right edge of region."),
        "bottom": unit(1.0, "Bottom edge of region."),
        "axis": choice(("x", "y"), "x", "Of flip: x swaps left and right."),
        "sigma": number(1.0, 0.0, 64.0, 0.1, "Of blur, in tokens (16 pixels; 32 on the 5B)."),
        "start_percent": START,
        "end_percent": END,
        "branch": BRANCH,
    }

    def run(
        self,
        model: Any,
        words: Any,
        operation: str,
        strength: float,
        blocks: Any,
        start_percent: float,
        end_percent: float,
        branch: str,
        unique_id: str | None = None,
        **given: Any,
    ) -> dict[str, Any]:
        chosen = blocks_of(blocks, native.depth(model))
        own: dict[str, Any] = {
            "amplify": {"factor": given["factor"]},
            "suppress": {"factor": given["factor"]},
            "scale": {"factor": given["factor"]},
            "rotate": {"angle": given["angle"]},
            "translate": {"x": given["x"], "y": given["y"]},
            "flip": {"axis": given["axis"]},
            "blur": {"sigma": given["sigma"]},
            "region": {"box": (given["x"], given["y"], given["right"], given["bottom"])},
        }[operation]
        edit = Bend(words.words, operation, strength=strength, blocks=chosen.ranges, branch=branch, **own)
        live_edit = LiveEdit(edit, columns=words.columns, words=words.words, start=start_percent, end=end_percent)
        said = f"{operation} {', '.join(words.words)}: {chosen.describe()}"
        return edited(model, live_edit, unique_id, f"{chosen.picture}\n{said}")


class PromptDifference(Node):
    TITLE = "Difference of Prompts"
    CATEGORY = "wanscope/native"
    DESCRIPTION = (
        "How far prompt B is from prompt A for the model: relative L2 and cosine distance over real tokens, raw and as "
        "the blocks read them, which tokens and dimensions differ most, and a sentence of advice."
    )
    REQUIRED: ClassVar[Inputs] = {
        "a": socket(CONDITIONING, "The prompt that is measured from."),
        "b": socket(CONDITIONING, "The other prompt."),
    }
    OPTIONAL: ClassVar[Inputs] = {"model": socket(MODEL, "A Wan model, for the figures after its projection.")}
    RETURN_TYPES = ("STRING", "FLOAT")
    RETURN_NAMES = ("report", "relative_l2")
    OUTPUT_NODE = True

    def run(self, a: Any, b: Any, model: Any = None) -> dict[str, Any]:
        projection = None if model is None else projection_of(native.diffusion_model(model))
        with torch.no_grad():
            found = measure_difference(first_prompt(a, "a").float(), first_prompt(b, "b").float(), projection)
        report = render_difference(found)
        return shown(report, report, float(found.raw.matrix.relative_l2 or 0.0))
