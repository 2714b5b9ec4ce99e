"""The legacy nodes that inject latent prompts or prompts at a given difference, and the nodes of a second guidance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from wanscope.doors.comfy import catalog, node_log
from wanscope.doors.comfy.base import (
    GUIDANCE,
    LATENT_EMBEDS,
    E,
    Inputs,
    M,
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
from wanscope.doors.comfy.embeds import first_prompt, is_same_prompt, truncate_tokens
from wanscope.doors.comfy.patterns import parse_block_input
from wanscope.doors.comfy.wrapper_nodes import BLOCKS, WATCHED, editor_output, edits_on_model, injected_donor
from wanscope.edit.amplify import amplify
from wanscope.edit.difference import relative_l2
from wanscope.edit.edits import Inject
from wanscope.edit.embedding_algebra import weighted_sum
from wanscope.errors import RecipeError, RequestError
from wanscope.runtime.comfy import wrapper
from wanscope.runtime.comfy.live import CONNECTED, Live, LiveEdit
from wanscope.runtime.comfy.live_kinds import Guide


@dataclass(frozen=True, eq=False)
class LatentEmbeds:
    """LATENT_EMBEDS: a prompt's tokens [L, D], and the number of blocks after which its hidden state is taken.

    The state is computed during sampling. keep: whether the prompt is projected once per run.
    """

    tokens_LD: Tensor
    after_blocks: int
    keep: bool


class LatentEncoder(Node):
    TITLE = "Latent Prompt"
    CATEGORY = "wanscope/WanVideoWrapper"
    DESCRIPTION = (
        "Selects a hidden state of the model: that of this prompt's own pass after a number of blocks. It depends on "
        "the latents of each step, so this node computes nothing; Inject Latent Prompt computes and uses the state "
        "during sampling. `use_cache` projects the prompt once per run instead of once per call; the result is the "
        "same."
    )
    REQUIRED: ClassVar[Inputs] = {
        "model": socket(M, "The model that will be sampled."),
        "text_embeds": socket(E, "The prompt."),
        "capture_after_blocks": integer(3, 1, 10, "The number of blocks after which the state is taken."),
        "use_cache": boolean(True, "Project the prompt once per run."),
    }
    RETURN_TYPES = (LATENT_EMBEDS, "STRING")
    RETURN_NAMES = ("latent_embeds", "info")

    def run(self, model: Any, text_embeds: Any, capture_after_blocks: int, use_cache: bool) -> dict[str, Any]:
        depth = wrapper.depth(model)
        if capture_after_blocks >= depth:
            raise RecipeError(
                f"the state after {capture_after_blocks} blocks cannot be injected",
                f"this model has {depth} blocks, and the state is injected before one of them",
                f"capture_after_blocks: {min(3, depth - 1)}",
            )
        tokens_LD, cut = truncate_tokens(first_prompt(text_embeds))
        info = f"{len(tokens_LD)} tokens; state after {capture_after_blocks} of {depth} blocks, during sampling. {cut}"
        return node_output(info, LatentEmbeds(tokens_LD, capture_after_blocks, use_cache), info)


class LatentInjector(Node):
    TITLE = "Inject Latent Prompt"
    CATEGORY = "wanscope/WanVideoWrapper"
    DESCRIPTION = (
        "Blends the injected prompt's hidden state, taken after the number of blocks set in its Latent Prompt, into "
        "the input of the chosen blocks from there on. The main latent belongs to the prompt that is sampled. Chosen "
        "blocks before the state exists are left out, which the node reports."
    )
    REQUIRED: ClassVar[Inputs] = {
        "model": socket(M, "The model; the output is a copy with the edit."),
        "main_latent": socket(LATENT_EMBEDS, "The Latent Prompt of the prompt that is sampled."),
        "injection_latent": socket(LATENT_EMBEDS, "The Latent Prompt of the prompt to inject."),
        "injection_strength": fraction(0.5, "From 0 (off) to 1 (the injected state alone)."),
        "block_activations": BLOCKS,
    }
    HIDDEN = WATCHED
    RETURN_TYPES = (M,)
    RETURN_NAMES = ("model",)

    def run(
        self,
        model: Any,
        main_latent: LatentEmbeds,
        injection_latent: LatentEmbeds,
        injection_strength: float,
        block_activations: Any,
        unique_id: str | None = None,
        prompt: Any = None,
    ) -> dict[str, Any]:
        for name, latent in (("main_latent", main_latent), ("injection_latent", injection_latent)):
            if not isinstance(latent, LatentEmbeds):
                raise RecipeError(
                    f"{name} is not a latent prompt",
                    "it must be the output of Latent Prompt",
                    f"connect Latent Prompt to {name}",
                )
        if main_latent.after_blocks != injection_latent.after_blocks:
            raise RecipeError(
                f"the main state is taken after {main_latent.after_blocks} blocks, the injected one after "
                f"{injection_latent.after_blocks}",
                "both states must be taken after the same block",
                f"capture_after_blocks: {injection_latent.after_blocks}",
            )
        depth, after = wrapper.depth(model), injection_latent.after_blocks
        chosen = parse_block_input(block_activations, depth)
        summary = chosen.describe()
        live = edits_on_model(model)
        if chosen.chosen and injection_strength:
            late = [i for i in chosen.indices if i >= after]
            if not late:
                raise RecipeError(
                    f"the state after {after} blocks cannot be injected into {chosen.ranges}",
                    f"it exists from block {after} on",
                    f"block_activations: {after}-{depth - 1}",
                )
            if len(late) < chosen.chosen:
                summary += f"; blocks before {after} are left out"
            edit = Inject(donor=CONNECTED, on="hidden", blocks=late, strength=injection_strength)
            live = live.with_edit(
                LiveEdit(edit, injection_latent.tokens_LD, after_block=after, keep_context=injection_latent.keep)
            )
        if is_same_prompt(main_latent.tokens_LD, injection_latent.tokens_LD):
            summary += "; both latents are the same prompt, so nothing changes"
        node_log.show_runs_in_node(live, unique_id, summary)
        return node_output(summary, wrapper.attach(model, live))


class DirectInjector(Node):
    TITLE = "Inject at a Difference"
    CATEGORY = "wanscope/WanVideoWrapper"
    DESCRIPTION = (
        "Injects a prompt at exactly the requested difference from the main one (relative L2 over real tokens, in "
        "percent) into the chosen blocks. `blend`: on the straight line from the main prompt to the injected one. "
        "`additive`: the main prompt plus a multiple of the injected one. `replace`: the injected prompt itself, moved "
        "further away only if it is nearer than the target. The prompt's text is looked up in the catalog; if it is "
        "not stored there, connect injection_embeds instead."
    )
    REQUIRED: ClassVar[Inputs] = {
        "model": socket(M, "The model; the output is a copy with the edit."),
        "text_embeds": socket(E, "The main prompt."),
        "injection_prompt": text("", "The text of a prompt that is stored in the catalog.", multiline=True),
        "difference_target": number(50.0, 10.0, 90.0, 5.0, "The difference from the main prompt, in percent."),
        "injection_mode": choice(("additive", "replace", "blend"), "blend", "How the difference is reached."),
        "block_activations": BLOCKS,
    }
    OPTIONAL: ClassVar[Inputs] = {"injection_embeds": socket(E, "The prompt to inject.")}
    HIDDEN = WATCHED
    RETURN_TYPES = (M, E)
    RETURN_NAMES = ("model", "text_embeds")

    def run(
        self,
        model: Any,
        text_embeds: Any,
        injection_prompt: str,
        difference_target: float,
        injection_mode: str,
        block_activations: Any,
        injection_embeds: Any = None,
        unique_id: str | None = None,
        prompt: Any = None,
    ) -> dict[str, Any]:
        chosen = parse_block_input(block_activations, wrapper.depth(model))
        live = edits_on_model(model, text_embeds)
        if not chosen.chosen:
            return editor_output(
                model, live, text_embeds, unique_id, prompt, f"Nothing is injected: {chosen.describe()}."
            )
        main_LD = first_prompt(text_embeds)
        donor_LD, note = self.donor(injection_embeds, injection_prompt)
        donor_LD = donor_LD.to(main_LD)
        made, summary = prompt_at_difference(main_LD, donor_LD, difference_target / 100, injection_mode)
        made, cut = truncate_tokens(made)
        live = live.with_edit(LiveEdit(Inject(donor=CONNECTED, blocks=chosen.ranges), made))
        summary = " ".join(filter(None, [f"{chosen.picture}\n{chosen.describe()}\n{summary}", note, cut]))
        return editor_output(model, live, text_embeds, unique_id, prompt, summary)

    def donor(self, injection_embeds: Any, injection_prompt: str) -> tuple[Tensor, str]:
        """Return the donor [L, D], from the input or else the catalog, and a note. RecipeError if neither has it."""
        if injection_embeds is not None:
            return injected_donor(injection_embeds, Live(), self.TITLE)
        name = injection_prompt.strip()
        store = catalog.catalog() if name else None
        if store is None or not store.exists:
            raise RecipeError(
                f"{self.TITLE} has nothing to inject",
                "injection_embeds is not connected, and the prompt is not in the catalog",
                "connect a second WanVideo TextEncode to injection_embeds",
            )
        try:
            return store.get(name).tensor(), ""
        except RequestError as error:
            raise RecipeError(
                f"the prompt {name[:60]!r} is not in the catalog",
                error.why or "it was not stored",
                "connect a second WanVideo TextEncode to injection_embeds",
            ) from None


def prompt_at_difference(main_LD: Tensor, donor_LD: Tensor, target: float, mode: str) -> tuple[Tensor, str]:
    """Return a prompt [L, D] whose relative L2 difference from the main one is `target`, and a sentence on it.

    mode: see `DirectInjector`. Raises RecipeError if the difference cannot be reached.
    """
    if mode == "additive":
        # push_apart moves along main + s (other - main); with other = main + donor that is main + s donor
        moved = amplify(main_LD, weighted_sum([main_LD, donor_LD], [1.0, 1.0]).embedding, target)
        return moved.embedding, f"additive: the injected prompt times {moved.scale:.4g}, difference {moved.after:.3f}."
    if mode == "replace":
        now = relative_l2(main_LD, donor_LD)
        if now >= target:
            return donor_LD, f"replace: the injected prompt itself, difference {now:.3f} (the target is {target:.2f})."
    moved = amplify(main_LD, donor_LD, target)
    return moved.embedding, moved.describe()


class GuidanceController(Node):
    TITLE = "Second Guidance"
    CATEGORY = "wanscope/WanVideoWrapper"
    DESCRIPTION = (
        "Adds guidance toward a second prompt: from `blend_start` to `blend_end`, injection_scale times (the second "
        "prompt's prediction minus the first's) is added to the sampler's guided prediction. Connect it to Apply "
        "Guidance, and set the sampler's cfg to cfg_scale. If injection_scale equals cfg_scale, the result is that of "
        "the second prompt alone. It costs one more model call per step."
    )
    REQUIRED: ClassVar[Inputs] = {
        "model": socket(M, "The model that will be sampled."),
        "main_conditioning": socket(E, "The main prompt."),
        "injection_conditioning": socket(E, "The second prompt."),
        "cfg_scale": number(6.0, 0.0, 20.0, 0.1, "The sampler's cfg."),
        "injection_scale": number(3.0, 0.0, 20.0, 0.1, "How strongly the second prompt guides."),
        "blend_start": fraction(0.0, "The start, as a fraction of the sampling run."),
        "blend_end": fraction(1.0, "The end, as a fraction of the sampling run."),
    }
    RETURN_TYPES = (GUIDANCE,)
    RETURN_NAMES = ("guidance_config",)

    def run(
        self,
        model: Any,
        main_conditioning: Any,
        injection_conditioning: Any,
        cfg_scale: float,
        injection_scale: float,
        blend_start: float,
        blend_end: float,
    ) -> tuple[dict[str, Any]]:
        wrapper.transformer_of(model)
        donor, note = injected_donor(injection_conditioning, Live(), self.TITLE)
        if not cfg_scale:
            raise RecipeError("cfg_scale is 0", "the weight of the second guidance is relative to it", "cfg_scale: 6")
        edit = LiveEdit(Guide(injection_scale / cfg_scale), donor, start=blend_start, end=blend_end)
        return ({"edit": edit, "cfg_scale": cfg_scale, "text_embeds": main_conditioning, "note": note},)


class ApplyGuidance(Node):
    TITLE = "Apply Guidance"
    CATEGORY = "wanscope/WanVideoWrapper"
    DESCRIPTION = "Adds a second guidance to a copy of the model. Set the sampler's cfg to the cfg output."
    REQUIRED: ClassVar[Inputs] = {
        "model": socket(M, "The model; the output is a copy with the guidance."),
        "guidance_config": socket(GUIDANCE, "The output of Second Guidance."),
    }
    HIDDEN = WATCHED
    RETURN_TYPES = (M, E, "FLOAT")
    RETURN_NAMES = ("model", "text_embeds", "cfg")

    def run(self, model: Any, guidance_config: Any, unique_id: str | None = None, prompt: Any = None) -> dict[str, Any]:
        edit, embeds = guidance_config["edit"], guidance_config["text_embeds"]
        live = edits_on_model(model, embeds).with_edit(edit)
        cfg = guidance_config["cfg_scale"]
        summary = f"second guidance, weight {edit.edit.weight:.3g}; set the sampler's cfg to {cfg:g}"
        summary = "\n".join(filter(None, [summary, guidance_config.get("note")]))
        out = editor_output(model, live, embeds, unique_id, prompt, summary)
        return {**out, "result": (*out["result"], cfg)}
