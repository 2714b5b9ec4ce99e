"""The older ids that inject latent prompts or prompts at a difference, and the second guidance."""

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
    choice,
    number,
    shown,
    socket,
    switch,
    text,
    unit,
    whole,
)
from wanscope.doors.comfy.embeds import at_most, first_prompt, same_prompt
from wanscope.doors.comfy.patterns import blocks_of
from wanscope.doors.comfy.wrapper_nodes import BLOCKS, WATCHED, injection, live_on, placed
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
    """LATENT_EMBEDS: a prompt, and after how many blocks its state is taken. Resolved while sampling."""

    tokens_LD: Tensor
    after_blocks: int
    keep: bool


class LatentEncoder(Node):
    TITLE = "Latent Prompt"
    CATEGORY = "wanscope/WanVideoWrapper"
    DESCRIPTION = (
        "Names a state inside the model: what this prompt's own pass has after so many blocks. It exists only while "
        "sampling, on the latents of that moment, so this node computes nothing; Inject Latent Prompt takes the state "
        "there. `use_cache` projects the prompt once a run instead of once a call; the result is the same."
    )
    REQUIRED: ClassVar[Inputs] = {
        "model": socket(M, "The model that will be sampled."),
        "text_embeds": socket(E, "The prompt."),
        "capture_after_blocks": whole(3, 1, 10, "After how many blocks its state is taken."),
        "use_cache": switch(True, "Project the prompt once a run."),
    }
    RETURN_TYPES = (LATENT_EMBEDS, "STRING")
    RETURN_NAMES = ("latent_embeds", "info")

    def run(self, model: Any, text_embeds: Any, capture_after_blocks: int, use_cache: bool) -> dict[str, Any]:
        depth = wrapper.depth(model)
        if capture_after_blocks >= depth:
            raise RecipeError(
                f"the state after {capture_after_blocks} blocks is asked for",
                f"this model has {depth}, and the state has to be injected before one of them",
                f"capture_after_blocks: {min(3, depth - 1)}",
            )
        tokens_LD, cut = at_most(first_prompt(text_embeds))
        info = f"{len(tokens_LD)} tokens; state after {capture_after_blocks} of {depth} blocks, while sampling. {cut}"
        return shown(info, LatentEmbeds(tokens_LD, capture_after_blocks, use_cache), info)


class LatentInjector(Node):
    TITLE = "Inject Latent Prompt"
    CATEGORY = "wanscope/WanVideoWrapper"
    DESCRIPTION = (
        "Blends the injected prompt's hidden state, taken after the number of blocks that its latent prompt names, "
        "into the input of the chosen blocks from there on. The main latent is the prompt that is sampled: its state "
        "is the running one. Chosen blocks that come before the state exists are left out, which the node says."
    )
    REQUIRED: ClassVar[Inputs] = {
        "model": socket(M, "The model; the output is a copy with the edit."),
        "main_latent": socket(LATENT_EMBEDS, "Of the prompt that is sampled."),
        "injection_latent": socket(LATENT_EMBEDS, "Of the prompt that is injected."),
        "injection_strength": unit(0.5, "From 0 (off) to 1 (the injected state alone)."),
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
                raise RecipeError(f"{name} is no latent prompt", "it is what Latent Prompt makes", "Latent Prompt")
        if main_latent.after_blocks != injection_latent.after_blocks:
            raise RecipeError(
                f"the main state is taken after {main_latent.after_blocks} blocks, the injected one after "
                f"{injection_latent.after_blocks}",
                "states are blended at one place",
                "the same capture_after_blocks in both",
            )
        depth, after = wrapper.depth(model), injection_latent.after_blocks
        chosen = blocks_of(block_activations, depth)
        said = chosen.describe()
        live = live_on(model)
        if chosen.chosen and injection_strength:
            late = [i for i in chosen.indices if i >= after]
            if not late:
                raise RecipeError(
                    f"the state after {after} blocks cannot be injected into {chosen.ranges}",
                    f"it is there from block {after} on",
                    f"block_activations with blocks from {after} on, such as mid_blocks",
                )
            if len(late) < chosen.chosen:
                said += f"; blocks before {after} are left out"
            edit = Inject(donor=CONNECTED, on="hidden", blocks=late, strength=injection_strength)
            live = live.with_edit(
                LiveEdit(edit, injection_latent.tokens_LD, after_block=after, keep_context=injection_latent.keep)
            )
        if same_prompt(main_latent.tokens_LD, injection_latent.tokens_LD):
            said += "; both latents are the same prompt, so that nothing changes"
        node_log.follow(live, unique_id, said)
        return shown(said, wrapper.attach(model, live))


class DirectInjector(Node):
    TITLE = "Inject at a Difference"
    CATEGORY = "wanscope/WanVideoWrapper"
    DESCRIPTION = (
        "The chosen blocks read a prompt that is exactly so far from the main one (relative L2 over real tokens, in "
        "percent). `blend`: on the straight line from the main prompt to the injected one. `additive`: the main prompt "
        "plus a multiple of the injected one. `replace`: the injected prompt itself, moved further only where it is "
        "nearer than the target. The prompt's text is looked up in the catalogue; connect injection_embeds instead "
        "where it is not there."
    )
    REQUIRED: ClassVar[Inputs] = {
        "model": socket(M, "The model; the output is a copy with the edit."),
        "text_embeds": socket(E, "The main prompt."),
        "injection_prompt": text("", "A prompt that is stored in the catalogue.", multiline=True),
        "difference_target": number(50.0, 10.0, 90.0, 5.0, "The difference from the main prompt, in percent."),
        "injection_mode": choice(("additive", "replace", "blend"), "blend", "How the difference is reached."),
        "block_activations": BLOCKS,
    }
    OPTIONAL: ClassVar[Inputs] = {"injection_embeds": socket(E, "The prompt that is injected.")}
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
        chosen = blocks_of(block_activations, wrapper.depth(model))
        live = live_on(model, text_embeds)
        if not chosen.chosen:
            return placed(model, live, text_embeds, unique_id, prompt, f"Nothing is injected: {chosen.describe()}.")
        main_LD = first_prompt(text_embeds)
        donor_LD, note = self.donor(injection_embeds, injection_prompt)
        donor_LD = donor_LD.to(main_LD)
        made, said = at_difference(main_LD, donor_LD, difference_target / 100, injection_mode)
        made, cut = at_most(made)
        live = live.with_edit(LiveEdit(Inject(donor=CONNECTED, blocks=chosen.ranges), made))
        said = " ".join(filter(None, [f"{chosen.picture}\n{chosen.describe()}\n{said}", note, cut]))
        return placed(model, live, text_embeds, unique_id, prompt, said)

    def donor(self, injection_embeds: Any, injection_prompt: str) -> tuple[Tensor, str]:
        if injection_embeds is not None:
            return injection(injection_embeds, Live(), self.TITLE)
        name = injection_prompt.strip()
        store = catalog.catalog() if name else None
        if store is None or not store.exists:
            raise RecipeError(
                f"{self.TITLE} has nothing to inject",
                "injection_embeds is not connected, and the prompt is not in the catalogue",
                "connect a second WanVideo TextEncode to injection_embeds",
            )
        try:
            return store.get(name).tensor(), ""
        except RequestError as error:
            raise RecipeError(
                f"the prompt {name[:60]!r} is not in the catalogue",
                error.why or "it was not stored",
                "connect a second WanVideo TextEncode to injection_embeds",
            ) from None


def at_difference(main_LD: Tensor, donor_LD: Tensor, target: float, mode: str) -> tuple[Tensor, str]:
    """The prompt at this difference from the main one, and a sentence on it. See `DirectInjector`."""
    if mode == "additive":
        # main + s donor is the line push_apart walks when the donor is seen from main as main + donor
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
        "Guidance toward a second prompt beside the first: from `blend_start` to `blend_end` the sampler's guided "
        "prediction gains injection_scale times (the second prompt's prediction minus the first's). Connect it to "
        "Apply Guidance, and set the sampler's cfg to cfg_scale. With injection_scale equal to cfg_scale the result "
        "is that of the second prompt alone. It costs one more model call a step."
    )
    REQUIRED: ClassVar[Inputs] = {
        "model": socket(M, "The model that will be sampled."),
        "main_conditioning": socket(E, "The main prompt."),
        "injection_conditioning": socket(E, "The second prompt."),
        "cfg_scale": number(6.0, 0.0, 20.0, 0.1, "The sampler's cfg."),
        "injection_scale": number(3.0, 0.0, 20.0, 0.1, "How strongly the second prompt guides."),
        "blend_start": unit(0.0, "From which share of the sampling on."),
        "blend_end": unit(1.0, "Until which share of the sampling."),
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
        donor, note = injection(injection_conditioning, Live(), self.TITLE)
        if not cfg_scale:
            raise RecipeError("cfg_scale is 0", "the second guidance is measured in it", "cfg_scale: 6")
        edit = LiveEdit(Guide(injection_scale / cfg_scale), donor, start=blend_start, end=blend_end)
        return ({"edit": edit, "cfg_scale": cfg_scale, "text_embeds": main_conditioning, "note": note},)


class ApplyGuidance(Node):
    TITLE = "Apply Guidance"
    CATEGORY = "wanscope/WanVideoWrapper"
    DESCRIPTION = "Puts a second guidance on a copy of the model. Its cfg output is what the sampler's cfg has to be."
    REQUIRED: ClassVar[Inputs] = {
        "model": socket(M, "The model; the output is a copy with the guidance."),
        "guidance_config": socket(GUIDANCE, "What Second Guidance makes."),
    }
    HIDDEN = WATCHED
    RETURN_TYPES = (M, E, "FLOAT")
    RETURN_NAMES = ("model", "text_embeds", "cfg")

    def run(self, model: Any, guidance_config: Any, unique_id: str | None = None, prompt: Any = None) -> dict[str, Any]:
        edit, embeds = guidance_config["edit"], guidance_config["text_embeds"]
        live = live_on(model, embeds).with_edit(edit)
        cfg = guidance_config["cfg_scale"]
        said = f"second guidance, weight {edit.edit.weight:.3g}; set the sampler's cfg to {cfg:g}"
        said = "\n".join(filter(None, [said, guidance_config.get("note")]))
        out = placed(model, live, embeds, unique_id, prompt, said)
        return {**out, "result": (*out["result"], cfg)}
