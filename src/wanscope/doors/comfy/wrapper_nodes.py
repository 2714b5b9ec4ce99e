"""The older ids that edit a WanVideoWrapper model with an injection, and show what it did.

Every one returns a copy of the model with its edit; the model given and the text embeds given stay as they are. An edit
also rides in the text embeds that come out, so that a node of ours further down that has the model applies it.
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
    choice,
    number,
    output_used,
    shown,
    socket,
    switch,
    text,
    unit,
)
from wanscope.doors.comfy.embeds import (
    at_most,
    first_prompt,
    negatives_of,
    prompts_of,
    setting,
    with_setting,
)
from wanscope.doors.comfy.embeds_nodes import difference_text
from wanscope.doors.comfy.patterns import NONE, blocks_of, strengths_of
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
BLOCKS = text(NONE, "Which blocks: a pattern node's output, zeros and ones, or words such as late or 0-9,20.")


def live_on(model: Any, text_embeds: Any = None, level: str = "off") -> Live:
    """The edits on a model, with those that ride in the text embeds and are not on it yet."""
    now = wrapper.live_of(model)
    live = node_log.continued(now, level)
    for edit in setting(text_embeds, "edits") or ():
        if edit not in live.edits:
            live = live.with_edit(edit)
    return live


def placed(model: Any, live: Live, text_embeds: Any, unique_id: str | None, prompt: Any, said: str) -> dict[str, Any]:
    """The outputs of an editor: the model with its edits, the embeds with them riding along, and what to show."""
    if not output_used(prompt, unique_id, 0):
        said += (
            "\nThe model output is connected to nothing: this acts only through a node of ours further down that has "
            "the model and these text embeds."
        )
    # with no edit left there may still be those of an earlier node to take off
    untouched = not live.edits and wrapper.live_of(model) is None
    out = model if untouched else wrapper.attach(model, live, negatives_of(text_embeds))
    node_log.follow(live, unique_id, said)
    embeds = with_setting(text_embeds, edits=live.edits)
    return shown(said, out, embeds, blocks=wrapper.depth(model))


def injection(injection_embeds: Any, live: Live, node: str) -> tuple[Tensor, str]:
    """The donor's real tokens, and a sentence on what was left out of it.

    RecipeError where nothing is connected and no booster waits with a donor.
    """
    if injection_embeds is None:
        waiting = [e.donor_LD for e in live.edits if e.provisional]
        if waiting and waiting[-1] is not None:
            return waiting[-1], ""
        raise RecipeError(
            f"{node} has no injection_embeds",
            "blocks are chosen, and nothing is there to be injected into them",
            "connect a second WanVideo TextEncode, or set enable_patching to false",
        )
    prompts = prompts_of(injection_embeds, "injection_embeds")
    donor_LD, note = at_most(prompts[0])
    if len(prompts) > 1:
        note = f"injection_embeds holds {len(prompts)} prompts; the first is injected. {note}".strip()
    return donor_LD, note


class ActivationEditor(Node):
    TITLE = "Inject Embeds into Blocks"
    CATEGORY = "wanscope/WanVideoWrapper"
    DESCRIPTION = (
        "Blocks that are chosen read the injected prompt beside the main one: the outputs of their two "
        "cross-attentions are mixed, 1 is the injected prompt alone. `hidden_states` blends in the hidden states that "
        "the injected prompt's own pass has, on the same latents. Only the positive pass is edited. Connect the model "
        "output to the sampler; what was applied is shown here after the run, and an edit that did not fire stops it."
    )
    REQUIRED: ClassVar[Inputs] = {
        "model": socket(M, "The model; it stays as it is, the output is a copy with the edit."),
        "text_embeds": socket(E, "The main prompt."),
        "injection_strength": unit(0.5, "From 0 (off) to 1 (the injected prompt alone)."),
        "block_activations": BLOCKS,
        "enable_patching": switch(True, "Off: nothing is edited."),
        "log_level": choice(node_log.LEVELS, "off", "What is written to the log."),
        "injection_mode": choice(MODES, "context", "What is injected into."),
    }
    OPTIONAL: ClassVar[Inputs] = {"injection_embeds": socket(E, "The prompt that is injected.")}
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
        return inject(
            "Inject Embeds into Blocks", model, text_embeds, injection_embeds, enable_patching, unique_id, prompt,
            blocks=block_activations, strength=injection_strength, on=MODES[injection_mode], level=log_level,
        )  # fmt: skip


def inject(
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
    """What both editors do: an injection on a copy of the model, or a model without one and why."""
    depth = wrapper.depth(model)
    chosen = blocks_of(blocks, depth)
    live = live_on(model, text_embeds, level)
    strengths = [strength] * depth if isinstance(strength, float | int) else strength
    acts = [i for i in chosen.indices if strengths[i]]
    if not enabled or not acts:
        why = "switched off" if not enabled else chosen.describe() if not chosen.chosen else "strength 0"
        return placed(model, live, text_embeds, unique_id, prompt, f"Nothing is injected: {why}.")
    donor_LD, note = injection(injection_embeds, live, name)
    main_LD = first_prompt(text_embeds)
    check_same_dim([main_LD, donor_LD], ["text_embeds", "injection_embeds"])
    edit = Inject(donor=CONNECTED, blocks=chosen.ranges, strength=tuple(strengths), on=on)
    live = live.with_edit(LiveEdit(edit, donor_LD))
    live.log("verbose", f"inject: {chosen.picture} {difference_text(main_LD, donor_LD)}")
    said = f"{chosen.picture}\n{chosen.describe()}\n{difference_text(main_LD, donor_LD)}\n{note}".strip()
    return placed(model, live, text_embeds, unique_id, prompt, said)


class AdvancedActivationEditor(Node):
    TITLE = "Inject Embeds with Block Strengths"
    CATEGORY = "wanscope/WanVideoWrapper"
    DESCRIPTION = (
        "As Inject Embeds into Blocks, with a strength of its own for each block. Without block_strengths the uniform "
        "one holds. A block acts where the pattern chooses it and its strength is above 0; with block_strengths "
        "connected and no block chosen, the strengths alone decide."
    )
    REQUIRED: ClassVar[Inputs] = {
        "model": socket(M, "The model; the output is a copy with the edit."),
        "text_embeds": socket(E, "The main prompt."),
        "block_activations": BLOCKS,
        "enable_patching": switch(True, "Off: nothing is edited."),
    }
    OPTIONAL: ClassVar[Inputs] = {
        "injection_embeds": socket(E, "The prompt that is injected."),
        "block_strengths": socket(STRENGTHS, "A strength for each block."),
        "uniform_strength": unit(0.5, "The strength where block_strengths is not connected."),
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
            strength = list(strengths_of(block_strengths, depth).values)
            if not blocks_of(blocks, depth).chosen:
                blocks = "all"
        return inject(
            "Inject Embeds with Block Strengths", model, text_embeds, injection_embeds, enable_patching, unique_id,
            prompt, blocks=blocks, strength=strength,
        )  # fmt: skip


class BlockActivationViewer(Node):
    TITLE = "Show Edits"
    CATEGORY = "wanscope/WanVideoWrapper"
    DESCRIPTION = "The edits on a model, a pattern as a picture, and after a run what it applied."
    REQUIRED: ClassVar[Inputs] = {
        "model": socket(M, "A model with edits."),
        "show_visual": switch(True, "Draw patterns as blocks."),
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
            chosen = blocks_of(block_activations, depth)
            lines += [chosen.picture] * show_visual + [chosen.describe()]
        live = wrapper.live_of(model)
        for i, edit in enumerate(live.edits if live else ()):
            acts = Blocks(tuple(bool(s) for s in edit.strengths(depth)))
            lines.append(f"{i + 1}. {edit.name}: {acts.picture if show_visual else ''} {acts.describe()}")
        riding = [e for e in setting(text_embeds, "edits") or () if live is None or e not in live.edits]
        if riding:
            lines.append(f"{len(riding)} edits ride in the text embeds and are not on this model: they do not act.")
        head = "\n".join(lines)
        node_log.follow(live, unique_id, head)
        report = f"{head}\n{node_log.live_report(live)}"
        return shown(report, report)


class InjectionTester(Node):
    TITLE = "Test Injection"
    CATEGORY = "wanscope/WanVideoWrapper"
    DESCRIPTION = (
        "How far the injected prompts are from the main one (raw and as the blocks read them, over real tokens), which "
        "tokens and dimensions differ most, a sentence of advice, and after a run what was applied."
    )
    REQUIRED: ClassVar[Inputs] = {
        "model": socket(M, "A model with edits."),
        "text_embeds": socket(E, "The main prompt."),
        "show_details": switch(True, "All figures, or the advice alone."),
    }
    HIDDEN: ClassVar[Inputs] = {"unique_id": "UNIQUE_ID"}
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("test_results",)
    OUTPUT_NODE = True

    def run(self, model: Any, text_embeds: Any, show_details: bool, unique_id: str | None = None) -> dict[str, Any]:
        live = live_on(model, text_embeds)
        on_model = wrapper.live_of(model)
        lines = []
        for i, edit in enumerate(live.edits):
            if edit.donor_LD is None:
                continue
            found = measure_difference(first_prompt(text_embeds), edit.donor_LD, projection_of(model))
            missing = "" if on_model and edit in on_model.edits else " (not on this model: it does not act)"
            lines.append(f"{i + 1}. {edit.name}{missing}")
            lines.append(render_difference(found) if show_details else found.advice)
        head = "\n".join(lines) or "No injection is on this model."
        node_log.follow(on_model, unique_id, head)
        report = f"{head}\n{node_log.live_report(on_model)}"
        return shown(report, report)


def projection_of(model: Any) -> Any:
    """The model's text projection where its weights are in memory, else None: then only raw figures are shown."""
    projection = wrapper.transformer_of(model).text_embedding
    weight = projection[0].weight
    return None if weight.is_meta or weight.dtype.itemsize == 1 else projection


class ProjectionBooster(Node):
    TITLE = "Boost Projected Difference"
    CATEGORY = "wanscope/WanVideoWrapper"
    DESCRIPTION = (
        "Multiplies the difference of the injected prompt from the main one after the model's text projection. By "
        "itself it injects the boosted prompt into all blocks; an editor node after it takes its place and injects "
        "the boosted prompt into the blocks and with the strength that it is set to."
    )
    REQUIRED: ClassVar[Inputs] = {
        "model": socket(M, "The model; the output is a copy."),
        "text_embeds": socket(E, "The main prompt."),
        "injection_embeds": socket(E, "The prompt that is injected."),
        "boost_factor": number(10.0, 1.0, 50.0, 1.0, "What the projected difference is multiplied with."),
        "preserve_norm": switch(True, "Keep the length of every token as the main prompt has it."),
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
        donor_LD, note = injection(injection_embeds, Live(), self.TITLE)
        check_same_dim([first_prompt(text_embeds), donor_LD], ["text_embeds", "injection_embeds"])
        edit = Inject(donor=CONNECTED, boost=boost_factor, keep_norm=preserve_norm)
        live = live_on(model, text_embeds).with_edit(LiveEdit(edit, donor_LD, provisional=True))
        figures = self.figures(model, first_prompt(text_embeds), donor_LD, boost_factor, preserve_norm)
        info = f"{figures} {note}".strip()
        out = placed(model, live, text_embeds, unique_id, prompt, info)
        return {**out, "result": (*out["result"], info)}

    def figures(self, model: Any, main_LD: Tensor, donor_LD: Tensor, factor: float, keep_norm: bool) -> str:
        projection = projection_of(model)
        if projection is None:
            return f"The projected difference is multiplied by {factor:g} while sampling."
        from wanscope.edit.difference import project

        main_LC, donor_LC = project(main_LD, projection).float(), project(donor_LD, projection).float()
        pad_C = project(main_LD.new_zeros(1, main_LD.shape[1]), projection)[0].float()
        return boost(main_LC, donor_LC, factor, keep_norm=keep_norm, pad_D=pad_C).describe()
