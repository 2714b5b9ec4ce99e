"""Nodes that edit ComfyUI's own Wan models: the input is a MODEL, the output a copy with the edit.

Shape suffixes: L tokens, D text dim or model dim.
"""

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
    fraction,
    node_output,
    number,
    socket,
    text,
)
from wanscope.doors.comfy.embeds import first_only_note, first_prompt
from wanscope.doors.comfy.patterns import parse_block_input, parse_strength_input
from wanscope.edit.difference import measure_difference, render_difference
from wanscope.edit.edits import Bend, Inject, Prompts, Skip
from wanscope.errors import RecipeError
from wanscope.runtime.comfy import native
from wanscope.runtime.comfy.live import CONNECTED, LiveEdit

START = fraction(0.0, "The start, as a fraction of the whole sampling run; it means the same in every stage.")
END = fraction(1.0, "The end, as a fraction of the whole sampling run.")
BLOCKS = text("all", "The blocks: all, early, mid, late, 0-9,20, zeros and ones, or the output of Block Pattern.")
BRANCH = choice(
    ("cond", "uncond", "both"), "cond", "The pass to edit; if both are edited, guidance cancels much of the effect."
)


def edited_model_output(
    model: Any, edit: LiveEdit, unique_id: str | None, summary: str, level: str = "off"
) -> dict[str, Any]:
    """Return a node's output: a copy of the model with one more edit, and a text that is updated after every run."""
    now = native.live_of(model)
    live = node_log.add_edit(now, edit, level)
    live.log("verbose", f"{edit.name}: {summary}")
    out = native.attach(model, live)
    node_log.show_runs_in_node(live, unique_id, summary)
    return node_output(summary, out, blocks=native.depth(model))


class ModelEdit(Node):
    """Base class of nodes whose output is a copy of the model with one more edit."""

    CATEGORY = "wanscope/native"
    HIDDEN: ClassVar[Inputs] = {"unique_id": "UNIQUE_ID"}
    RETURN_TYPES = (MODEL,)
    RETURN_NAMES = ("model",)


def projection_of(inner: Any) -> Callable[[Tensor], Tensor]:
    """Return a function from raw tokens [L, text dim] to the context [L, model dim] that the blocks read.

    It uses the transformer's text projection on the device that its weights are on now.
    """
    weight = next(inner.text_embedding.parameters())
    dtype = weight.dtype if weight.dtype.itemsize > 1 else torch.float32
    return lambda rows_LD: inner.text_embedding(rows_LD.to(weight.device, dtype))


class InjectPrompt(ModelEdit):
    TITLE = "Inject Prompt into Blocks"
    DESCRIPTION = (
        "Injects another prompt (the donor) into the chosen blocks. `context` changes what cross-attention reads; "
        "`hidden` blends in the hidden states of the donor's own pass on the same latents. There are three modes for "
        "the context: `mix` the outputs of the two cross-attentions, `append` the donor's tokens with a weight, or "
        "blend `tokens` position by position. Strength 1 in all blocks with mix or tokens equals the donor alone. Only "
        "the positive pass is edited unless another branch is chosen. An edit that is due and does not act is an error."
    )
    REQUIRED: ClassVar[Inputs] = {
        "model": socket(MODEL, "A Wan model; the output is a copy with the edit."),
        "donor": socket(CONDITIONING, "The prompt to inject."),
        "strength": fraction(0.5, "From 0 (off) to 1 (the donor alone); multiplied by block_strengths if connected."),
        "blocks": BLOCKS,
        "where": choice(("context", "hidden", "both"), "context", "What the donor is injected into."),
        "mode": choice(("mix", "append", "tokens"), "mix", "How the donor is injected into the context."),
        "start_percent": START,
        "end_percent": END,
        "branch": BRANCH,
        "log_level": choice(node_log.LEVELS, "off", "How much is written to the log."),
    }
    OPTIONAL: ClassVar[Inputs] = {
        "block_strengths": socket(STRENGTHS, "A strength for each block."),
        "donor_negative": socket(CONDITIONING, "With branch both: the donor of the negative pass."),
        "operation": choice(("blend", "replace", "add"), "blend", "How tokens and hidden states are combined."),
        "boost": number(
            0.0, 0.0, 50.0, 0.5, "Multiply the difference from the prompt after the text projection by this; 0 is off."
        ),
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
        chosen = parse_block_input(blocks, depth)
        values = [strength] * depth
        if block_strengths is not None:
            values = [strength * v for v in parse_strength_input(block_strengths, depth).values]
        if where != "hidden" and mode != "tokens" and operation != "blend":
            raise RecipeError(
                f"operation {operation} with mode {mode}",
                "operations other than blend are for tokens and hidden states",
                "mode: tokens",
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
        summary = f"{acts.blocks.picture}\n{acts.describe()}\n{first_only_note(donor, donor_negative)}".strip()
        return edited_model_output(model, live_edit, unique_id, summary, log_level)


class SkipBlocks(ModelEdit):
    TITLE = "Skip Blocks"
    DESCRIPTION = "Skips blocks, or only their cross-attention, in the chosen passes and part of the sampling run."
    REQUIRED: ClassVar[Inputs] = {
        "model": socket(MODEL, "A Wan model; the output is a copy with the edit."),
        "blocks": text("9", "The blocks to skip."),
        "part": choice(
            ("block", "cross_attention"), "block", "Skip the whole block, or only its cross-attention to the prompt."
        ),
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
        chosen = parse_block_input(blocks, native.depth(model))
        edit = LiveEdit(Skip(blocks=chosen.ranges, part=part, branch=branch), start=start_percent, end=end_percent)
        return edited_model_output(model, edit, unique_id, f"{chosen.picture}\nskipped: {chosen.describe()}")


class PromptSchedule(ModelEdit):
    TITLE = "Prompts over Time"
    DESCRIPTION = (
        "Uses different prompts at different times of the sampling run, in all blocks. Until the first one begins, the "
        "sampler's own prompt is used. With `step` each is used until the next begins; with `linear` and `spherical` "
        "the prompt is interpolated from each to the next, token by token, and the last is used to the end. To "
        "interpolate from the sampler's own prompt, connect it as prompt_1 with begin_1 at 0."
    )
    REQUIRED: ClassVar[Inputs] = {
        "model": socket(MODEL, "A Wan model; the output is a copy with the edit."),
        "prompt_1": socket(CONDITIONING, "The first of the other prompts."),
        "begin_1": fraction(0.3, "When prompt 1 begins, as a fraction of the whole sampling run."),
        "interpolate": choice(("step", "linear", "spherical"), "step", "How one prompt changes into the next."),
        "branch": BRANCH,
    }
    OPTIONAL: ClassVar[Inputs] = {
        key: value
        for i in (2, 3, 4)
        for key, value in (
            (f"prompt_{i}", socket(CONDITIONING, f"Prompt {i}; if it is not connected, begin_{i} is ignored.")),
            (
                f"begin_{i}",
                fraction(
                    0.3 * i if i < 4 else 1.0, f"When prompt {i} begins, as a fraction of the whole sampling run."
                ),
            ),
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
                    "each prompt must begin later than the one before it",
                    f"begin_{j}: {min(1.0, before + 0.1):g}",
                )
        edit = Prompts({i: f"{CONNECTED} {i}" for i in used}, interpolate=interpolate, branch=branch)
        now = native.live_of(model)
        mine = {"cond", "uncond"} if branch == "both" else {branch}
        others = [other for other in (now.edits if now else ()) if other.edit.sets_prompt]
        if any(mine & set(other.branches()) for other in others):
            raise RecipeError(
                "the model already has prompts over time",
                "a second Prompts over Time node would replace them",
                "use one node for all prompts of a branch",
            )
        times = ", ".join(f"prompt {i} from {share:.0%}" for i, (share, _) in zip(used, keyed, strict=True))
        summary = f"{times}; {interpolate}; all {depth} blocks"
        return edited_model_output(model, LiveEdit(edit, keyed=keyed, start=keyed[0][0]), unique_id, summary)


class BendAttention(ModelEdit):
    TITLE = "Bend Attention"
    DESCRIPTION = (
        "Changes the attention maps of chosen words while sampling: amplify or suppress them by a factor, scale, "
        "rotate, translate, flip or blur them, or keep only a box of the frame. The rest of the attention is "
        "renormalized."
    )
    REQUIRED: ClassVar[Inputs] = {
        "model": socket(MODEL, "A Wan model; the output is a copy with the edit."),
        "words": socket(WORDS, "The output of Words of a Prompt."),
        "operation": choice(
            ("amplify", "suppress", "scale", "rotate", "translate", "flip", "blur", "region"),
            "amplify",
            "The operation on the maps.",
        ),
        "strength": fraction(1.0, "From 0 (the original map) to 1 (the changed map)."),
        "blocks": BLOCKS,
        "factor": number(2.0, 0.01, 100.0, 0.05, "For amplify, suppress and scale: the factor."),
        "angle": number(0.0, -360.0, 360.0, 1.0, "For rotate: degrees counterclockwise."),
        "x": number(
            0.0, -1.0, 1.0, 0.01, "For translate: to the right, as a fraction of the width. For region: the left edge."
        ),
        "y": number(
            0.0, -1.0, 1.0, 0.01, "For translate: down, as a fraction of the height. For region: the top edge."
        ),
        "right": fraction(1.0, "For region: the right edge."),
        "bottom": fraction(1.0, "For region: the bottom edge."),
        "axis": choice(("x", "y"), "x", "For flip: x swaps left and right."),
        "sigma": number(1.0, 0.0, 64.0, 0.1, "For blur: in tokens (16 pixels; 32 pixels for the 5B)."),
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
        chosen = parse_block_input(blocks, native.depth(model))
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
        summary = f"{operation} {', '.join(words.words)}: {chosen.describe()}"
        return edited_model_output(model, live_edit, unique_id, f"{chosen.picture}\n{summary}")


class PromptDifference(Node):
    TITLE = "Difference of Prompts"
    CATEGORY = "wanscope/native"
    DESCRIPTION = (
        "Measures how far prompt B is from prompt A: relative L2 and cosine distance over real tokens, before and "
        "after the model's text projection, which tokens and dimensions differ most, and a sentence of advice."
    )
    REQUIRED: ClassVar[Inputs] = {
        "a": socket(CONDITIONING, "The reference prompt."),
        "b": socket(CONDITIONING, "The other prompt."),
    }
    OPTIONAL: ClassVar[Inputs] = {"model": socket(MODEL, "A Wan model, for the figures after its text projection.")}
    RETURN_TYPES = ("STRING", "FLOAT")
    RETURN_NAMES = ("report", "relative_l2")
    OUTPUT_NODE = True

    def run(self, a: Any, b: Any, model: Any = None) -> dict[str, Any]:
        projection = None if model is None else projection_of(native.diffusion_model(model))
        with torch.no_grad():
            found = measure_difference(first_prompt(a, "a").float(), first_prompt(b, "b").float(), projection)
        report = render_difference(found)
        return node_output(report, report, float(found.raw.matrix.relative_l2 or 0.0))
