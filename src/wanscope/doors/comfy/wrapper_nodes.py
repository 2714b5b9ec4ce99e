"""The legacy nodes that inject a prompt into a WanVideoWrapper model and show what was applied.

Each returns a copy of the model with its edit; the model and the text embeds passed in are not modified. The text
embeds that it returns also carry the edit, so that a wanscope node further down that has the model can apply it.

Shape suffixes: L tokens, D text dim, C model width.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from wanscope.doors.comfy import node_log
from wanscope.doors.comfy.base import (
    STRENGTHS,
    E,
    Inputs,
    M,
    Node,
    boolean,
    choice,
    fraction,
    node_output,
    number,
    output_is_used,
    socket,
    text,
)
from wanscope.doors.comfy.embeds import (
    first_prompt,
    negatives_of,
    prompts_of,
    read_setting,
    truncate_tokens,
    with_settings,
)
from wanscope.doors.comfy.embeds_nodes import describe_difference
from wanscope.doors.comfy.patterns import NONE, parse_block_input, parse_strength_input
from wanscope.edit.amplify import boost
from wanscope.edit.blocks import Blocks
from wanscope.edit.difference import measure_difference, render_difference
from wanscope.edit.edits import Inject
from wanscope.edit.token_matrix import check_same_dim
from wanscope.errors import RecipeError
from wanscope.runtime.comfy import wrapper
from wanscope.runtime.comfy.live import CONNECTED, Live, LiveEdit

MODES = {"context": "context", "hidden_states": "hidden", "both": "both"}
WATCHED: Inputs = {"unique_id": "UNIQUE_ID", "prompt": "PROMPT"}
BLOCKS = text(NONE, "The blocks: the output of Block Pattern, zeros and ones, or a selection such as late or 0-9,20.")


def edits_on_model(model: Any, text_embeds: Any = None, level: str = "off") -> Live:
    """Return a `Live` with the edits on a model and those that the text embeds carry and that are not on it yet."""
    now = wrapper.live_of(model)
    live = node_log.continue_edits(now, level)
    for edit in read_setting(text_embeds, "edits") or ():
        if edit not in live.edits:
            live = live.with_edit(edit)
    return live


def editor_output(
    model: Any, live: Live, text_embeds: Any, unique_id: str | None, prompt: Any, summary: str
) -> dict[str, Any]:
    """Return an editor's outputs: a copy of the model with the edits, the embeds that carry them, and a text to show.

    prompt: the API prompt that is running, in which this node is `unique_id`.
    """
    if not output_is_used(prompt, unique_id, 0):
        summary += (
            "\nThe model output is not connected: this edit acts only through a wanscope node further down that has "
            "the model and these text embeds."
        )
    # even if no edit is left, those of an earlier node may have to be removed
    untouched = not live.edits and wrapper.live_of(model) is None
    out = model if untouched else wrapper.attach(model, live, negatives_of(text_embeds))
    node_log.show_runs_in_node(live, unique_id, summary)
    embeds = with_settings(text_embeds, edits=live.edits)
    return node_output(summary, out, embeds, blocks=wrapper.depth(model))


def injected_donor(injection_embeds: Any, live: Live, node: str) -> tuple[Tensor, str]:
    """Return the donor's real tokens [L, D], and a note if some of the input was left out.

    If nothing is connected, the donor is that of a Boost Projected Difference node before this one. node: this node's
    title, for the message. Raises RecipeError if there is no such node either.
    """
    if injection_embeds is None:
        waiting = [e.donor_LD for e in live.edits if e.provisional]
        if waiting and waiting[-1] is not None:
            return waiting[-1], ""
        raise RecipeError(
            f"{node} has no injection_embeds",
            "blocks are chosen, but there is nothing to inject into them",
            "connect a second WanVideo TextEncode, or set enable_patching to false",
        )
    prompts = prompts_of(injection_embeds, "injection_embeds")
    donor_LD, note = truncate_tokens(prompts[0])
    if len(prompts) > 1:
        note = f"injection_embeds holds {len(prompts)} prompts; only the first is injected. {note}".strip()
    return donor_LD, note


class ActivationEditor(Node):
    TITLE = "Inject Embeds into Blocks"
    CATEGORY = "wanscope/WanVideoWrapper"
    DESCRIPTION = (
        "Injects a second prompt into the chosen blocks. `context` mixes the outputs of the cross-attentions to the "
        "two prompts; strength 1 is the injected prompt alone. `hidden_states` blends in the hidden states of the "
        "injected prompt's own pass on the same latents. Only the positive pass is edited. Connect the model output to "
        "the sampler; what was applied is shown here after the run, and an edit that is due and does not act is an "
        "error."
    )
    REQUIRED: ClassVar[Inputs] = {
        "model": socket(M, "The model, which is not modified; the output is a copy with the edit."),
        "text_embeds": socket(E, "The main prompt."),
        "injection_strength": fraction(0.5, "From 0 (off) to 1 (the injected prompt alone)."),
        "block_activations": BLOCKS,
        "enable_patching": boolean(True, "If off, nothing is edited."),
        "log_level": choice(node_log.LEVELS, "off", "How much is written to the log."),
        "injection_mode": choice(MODES, "context", "What the prompt is injected into."),
    }
    OPTIONAL: ClassVar[Inputs] = {"injection_embeds": socket(E, "The prompt to inject.")}
    HIDDEN = WATCHED
    RETURN_TYPES = (M, E)
    RETURN_NAMES = ("model", "text_embeds")

    def run(
        self,
        model: Any,
        text_embeds: Any,
        injection_strength: float,
        block_activations: Any,
        enable_patching: bool,
        log_level: str = "off",
        injection_mode: str = "context",
        injection_embeds: Any = None,
        unique_id: str | None = None,
        prompt: Any = None,
    ) -> dict[str, Any]:
        return injection_output(
            "Inject Embeds into Blocks", model, text_embeds, injection_embeds, enable_patching, unique_id, prompt,
            blocks=block_activations, strength=injection_strength, on=MODES[injection_mode], level=log_level,
        )  # fmt: skip


def injection_output(
    name: str,
    model: Any,
    text_embeds: Any,
    injection_embeds: Any,
    enabled: bool,
    unique_id: str | None,
    prompt: Any,
    *,
    blocks: Any,
    strength: float | list[float],
    on: str = "context",
    level: str = "off",
) -> dict[str, Any]:
    """Return an editor's outputs with an injection, or without one and a text that says why.

    name: the node's title. strength: one for all blocks, or one per block.
    """
    depth = wrapper.depth(model)
    chosen = parse_block_input(blocks, depth)
    live = edits_on_model(model, text_embeds, level)
    strengths = [strength] * depth if isinstance(strength, float | int) else strength
    acts = [i for i in chosen.indices if strengths[i]]
    if not enabled or not acts:
        why = "switched off" if not enabled else chosen.describe() if not chosen.chosen else "strength 0"
        return editor_output(model, live, text_embeds, unique_id, prompt, f"Nothing is injected: {why}.")
    donor_LD, note = injected_donor(injection_embeds, live, name)
    main_LD = first_prompt(text_embeds)
    check_same_dim([main_LD, donor_LD], ["text_embeds", "injection_embeds"])
    edit = Inject(donor=CONNECTED, blocks=chosen.ranges, strength=tuple(strengths), on=on)
    live = live.with_edit(LiveEdit(edit, donor_LD))
    live.log("verbose", f"inject: {chosen.picture} {describe_difference(main_LD, donor_LD)}")
    summary = f"{chosen.picture}\n{chosen.describe()}\n{describe_difference(main_LD, donor_LD)}\n{note}".strip()
    return editor_output(model, live, text_embeds, unique_id, prompt, summary)


class AdvancedActivationEditor(Node):
    TITLE = "Inject Embeds with Block Strengths"
    CATEGORY = "wanscope/WanVideoWrapper"
    DESCRIPTION = (
        "Like Inject Embeds into Blocks, but with a separate strength for each block. Without block_strengths, all "
        "have uniform_strength. The edit acts in the blocks that the pattern selects and whose strength is above 0; if "
        "block_strengths is connected and the pattern selects none, it acts wherever the strength is above 0."
    )
    REQUIRED: ClassVar[Inputs] = {
        "model": socket(M, "The model; the output is a copy with the edit."),
        "text_embeds": socket(E, "The main prompt."),
        "block_activations": BLOCKS,
        "enable_patching": boolean(True, "If off, nothing is edited."),
    }
    OPTIONAL: ClassVar[Inputs] = {
        "injection_embeds": socket(E, "The prompt to inject."),
        "block_strengths": socket(STRENGTHS, "A strength for each block."),
        "uniform_strength": fraction(0.5, "The strength if block_strengths is not connected."),
    }
    HIDDEN = WATCHED
    RETURN_TYPES = (M, E)
    RETURN_NAMES = ("model", "text_embeds")

    def run(
        self,
        model: Any,
        text_embeds: Any,
        block_activations: Any,
        enable_patching: bool,
        injection_embeds: Any = None,
        block_strengths: Any = None,
        uniform_strength: float = 0.5,
        unique_id: str | None = None,
        prompt: Any = None,
    ) -> dict[str, Any]:
        depth = wrapper.depth(model)
        strength: float | list[float] = uniform_strength
        blocks = block_activations
        if block_strengths is not None:
            strength = list(parse_strength_input(block_strengths, depth).values)
            if not parse_block_input(blocks, depth).chosen:
                blocks = "all"
        return injection_output(
            "Inject Embeds with Block Strengths", model, text_embeds, injection_embeds, enable_patching, unique_id,
            prompt, blocks=blocks, strength=strength,
        )  # fmt: skip


class BlockActivationViewer(Node):
    TITLE = "Show Edits"
    CATEGORY = "wanscope/WanVideoWrapper"
    DESCRIPTION = "Lists the edits on a model, draws a block pattern, and after a run shows what was applied."
    REQUIRED: ClassVar[Inputs] = {
        "model": socket(M, "A model with edits."),
        "show_visual": boolean(True, "Draw patterns as blocks."),
    }
    OPTIONAL: ClassVar[Inputs] = {
        "block_activations": text(NONE, "A pattern to show."),
        "text_embeds": socket(E, "Text embeds whose settings are shown."),
    }
    HIDDEN: ClassVar[Inputs] = {"unique_id": "UNIQUE_ID"}
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("visualization",)
    OUTPUT_NODE = True

    def run(
        self,
        model: Any,
        show_visual: bool,
        block_activations: Any = None,
        text_embeds: Any = None,
        unique_id: str | None = None,
    ) -> dict[str, Any]:
        depth = wrapper.depth(model)
        lines = [f"{depth} blocks"]
        if block_activations not in (None, "", NONE):
            chosen = parse_block_input(block_activations, depth)
            lines += [chosen.picture] * show_visual + [chosen.describe()]
        live = wrapper.live_of(model)
        for i, edit in enumerate(live.edits if live else ()):
            acts = Blocks(tuple(bool(s) for s in edit.strengths(depth)))
            lines.append(f"{i + 1}. {edit.name}: {acts.picture if show_visual else ''} {acts.describe()}")
        carried = [e for e in read_setting(text_embeds, "edits") or () if live is None or e not in live.edits]
        if carried:
            lines.append(f"{len(carried)} edits in the text embeds are not on this model and do not act.")
        head = "\n".join(lines)
        node_log.show_runs_in_node(live, unique_id, head)
        report = f"{head}\n{node_log.live_report(live)}"
        return node_output(report, report)


class InjectionTester(Node):
    TITLE = "Test Injection"
    CATEGORY = "wanscope/WanVideoWrapper"
    DESCRIPTION = (
        "Measures how far the injected prompts are from the main one (over real tokens, before and after the text "
        "projection), which tokens and dimensions differ most, with a sentence of advice, and after a run shows what "
        "was applied."
    )
    REQUIRED: ClassVar[Inputs] = {
        "model": socket(M, "A model with edits."),
        "text_embeds": socket(E, "The main prompt."),
        "show_details": boolean(True, "Show all figures, or only the advice."),
    }
    HIDDEN: ClassVar[Inputs] = {"unique_id": "UNIQUE_ID"}
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("test_results",)
    OUTPUT_NODE = True

    def run(self, model: Any, text_embeds: Any, show_details: bool, unique_id: str | None = None) -> dict[str, Any]:
        live = edits_on_model(model, text_embeds)
        on_model = wrapper.live_of(model)
        lines = []
        for i, edit in enumerate(live.edits):
            if edit.donor_LD is None:
                continue
            found = measure_difference(first_prompt(text_embeds), edit.donor_LD, projection_of(model))
            missing = "" if on_model and edit in on_model.edits else " (not on this model, so it does not act)"
            lines.append(f"{i + 1}. {edit.name}{missing}")
            lines.append(render_difference(found) if show_details else found.advice)
        head = "\n".join(lines) or "This model has no injection."
        node_log.show_runs_in_node(on_model, unique_id, head)
        report = f"{head}\n{node_log.live_report(on_model)}"
        return node_output(report, report)


def projection_of(model: Any) -> Any:
    """Return the model's text projection [L, D] -> [L, C], or None if its weights are not in memory or are fp8.

    Without it, only figures before the projection are shown.
    """
    projection = wrapper.transformer_of(model).text_embedding
    weight = projection[0].weight
    return None if weight.is_meta or weight.dtype.itemsize == 1 else projection


class ProjectionBooster(Node):
    TITLE = "Boost Projected Difference"
    CATEGORY = "wanscope/WanVideoWrapper"
    DESCRIPTION = (
        "Multiplies the difference of the injected prompt from the main one after the model's text projection. On its "
        "own, it injects the boosted prompt into all blocks. An editor node after it replaces this and injects the "
        "boosted prompt into its own blocks with its own strength."
    )
    REQUIRED: ClassVar[Inputs] = {
        "model": socket(M, "The model; the output is a copy."),
        "text_embeds": socket(E, "The main prompt."),
        "injection_embeds": socket(E, "The prompt to inject."),
        "boost_factor": number(10.0, 1.0, 50.0, 1.0, "The factor that the projected difference is multiplied by."),
        "preserve_norm": boolean(True, "Keep the norm that every token has in the main prompt."),
    }
    HIDDEN = WATCHED
    RETURN_TYPES = (M, E, "STRING")
    RETURN_NAMES = ("model", "text_embeds", "info")

    def run(
        self,
        model: Any,
        text_embeds: Any,
        injection_embeds: Any,
        boost_factor: float,
        preserve_norm: bool,
        unique_id: str | None = None,
        prompt: Any = None,
    ) -> dict[str, Any]:
        donor_LD, note = injected_donor(injection_embeds, Live(), self.TITLE)
        check_same_dim([first_prompt(text_embeds), donor_LD], ["text_embeds", "injection_embeds"])
        edit = Inject(donor=CONNECTED, boost=boost_factor, keep_norm=preserve_norm)
        live = edits_on_model(model, text_embeds).with_edit(LiveEdit(edit, donor_LD, provisional=True))
        figures = self.figures(model, first_prompt(text_embeds), donor_LD, boost_factor, preserve_norm)
        info = f"{figures} {note}".strip()
        out = editor_output(model, live, text_embeds, unique_id, prompt, info)
        return {**out, "result": (*out["result"], info)}

    def figures(self, model: Any, main_LD: Tensor, donor_LD: Tensor, factor: float, keep_norm: bool) -> str:
        """Return a sentence with the difference before and after the boost, over the projected tokens."""
        projection = projection_of(model)
        if projection is None:
            return f"The projected difference is multiplied by {factor:g} during sampling."
        from wanscope.edit.difference import project

        main_LC, donor_LC = project(main_LD, projection).float(), project(donor_LD, projection).float()
        pad_C = project(main_LD.new_zeros(1, main_LD.shape[1]), projection)[0].float()
        return boost(main_LC, donor_LC, factor, keep_norm=keep_norm, pad_D=pad_C).describe()
