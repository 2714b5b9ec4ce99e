"""Edits inside diffusers' own WanImageToVideoPipeline, bit for bit, on tiny models of every kind that takes an image.

The loop is the pipeline's: a small driver passes the step, branch and expert of each call to the session.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import pytest
import torch
from diffusers import UniPCMultistepScheduler, WanImageToVideoPipeline
from PIL import Image
from torch import Tensor
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

from helpers.edited import DONOR, NEGATIVE, PROMPT, SAMPLER, SEED, TINY, apart, planned
from helpers.tiny import tiny_model, tiny_transformer, transformer_config
from wanscope.capture.moments import Moment
from wanscope.edit.edits import Bend, Edit, Inject, Prompts, Skip
from wanscope.runtime.diffusers.session import DiffusersSession, attach
from wanscope.wan.model import WanModel

# two-images: Wan 2.1 with twice as many image tokens
KINDS = ("i2v", "i2v-2.1", "i2v-2.1-two-images", "i2v-2.2", "5b")
LAST = 3  # the last block


def picture(seed: int) -> Image.Image:
    noise = torch.randint(0, 256, (8, 8, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(noise.numpy()).resize((TINY.size["width"], TINY.size["height"]))


def image_encoder() -> CLIPVisionModel:
    """Return a tiny image encoder with 257 tokens, like Wan 2.1's."""
    config = CLIPVisionConfig(
        hidden_size=20, intermediate_size=20, num_hidden_layers=2, num_attention_heads=2, image_size=224, patch_size=14
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return CLIPVisionModel(config).eval().requires_grad_(False)


@dataclass(frozen=True)
class Subject:
    model: WanModel
    pipe: Any  # a WanImageToVideoPipeline, whose annotations allow images only as tensors
    last_image: Image.Image | None


@functools.cache
def subject(kind: str) -> Subject:
    two_images = kind.endswith("two-images")
    model = tiny_model(kind.removesuffix("-two-images"), seed=3)
    if two_images:
        config = transformer_config("i2v-2.1") | {"pos_embed_seq_len": 514}
        model.transformer = tiny_transformer(config, seed=3)
    clip = model.transformer.config["image_dim"] is not None
    pipe = WanImageToVideoPipeline(
        tokenizer=model.tokenizer,  # type: ignore[arg-type]
        text_encoder=model.text_encoder,  # type: ignore[arg-type]
        vae=model.vae,
        scheduler=UniPCMultistepScheduler(  # type: ignore[arg-type]
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=SAMPLER["shift"]
        ),
        image_processor=CLIPImageProcessor() if clip else None,  # type: ignore[arg-type]
        image_encoder=image_encoder() if clip else None,  # type: ignore[arg-type]
        transformer=model.transformer,
        transformer_2=model.transformer_2,  # type: ignore[arg-type]
        boundary_ratio=model.boundary_ratio,
        expand_timesteps=model.expand_timesteps,
    )
    pipe.set_progress_bar_config(disable=True)
    return Subject(model, pipe, picture(2) if two_images else None)


def sampled(kind: str, prompt: str = PROMPT, negative: str = NEGATIVE, image: int = 1) -> Tensor:
    """Return the pipeline's latents."""
    of = subject(kind)
    return of.pipe(
        picture(image),
        prompt,
        negative,
        TINY.size["height"],
        TINY.size["width"],
        TINY.size["frames"],
        SAMPLER["steps"],
        SAMPLER["guidance"],
        generator=torch.Generator().manual_seed(SEED),
        last_image=of.last_image,
        max_sequence_length=of.model.text_length,
        output_type="latent",
    ).frames


base = functools.cache(sampled)


@contextmanager
def driven(of: Subject, session: DiffusersSession) -> Iterator[list[Moment]]:
    """Run the pipeline's calls inside the session's region; yields the list of their moments."""
    moments: list[Moment] = []
    branch: list[Any] = []
    scheduler = of.pipe.scheduler

    def wrap(expert: int, transformer: Any, stack: ExitStack) -> None:
        forward, cache_context = transformer.forward, transformer.cache_context

        def named(name: str, **more: Any) -> Any:
            branch[:] = [name]
            return cache_context(name, **more)

        def told(*args: Any, **kwargs: Any) -> Any:
            step = scheduler.timesteps.tolist().index(of.pipe.current_timestep.item())
            sigma = float(scheduler.sigmas[step])
            moments.append(Moment(step, len(scheduler.timesteps), 0, (branch[0],), expert, sigma))
            with session.around_call(moments[-1]):
                return forward(*args, **kwargs)

        stack.enter_context(mock.patch.object(transformer, "cache_context", named))
        stack.enter_context(mock.patch.object(transformer, "forward", told))

    with ExitStack() as stack:
        for expert, transformer in enumerate(of.model.experts()):
            wrap(expert, transformer, stack)
        yield moments


def edited(kind: str, *edits: Edit) -> tuple[Tensor, list[Moment]]:
    """Return the pipeline's latents with edits, whose counts are verified, and its calls."""
    of = subject(kind)
    plan = planned(of.model, edits)
    with attach(of.model, plan) as session, driven(of, session) as moments:
        latents = sampled(kind)
    session.verify()
    assert session.counts() == plan.planned()
    assert [m.sigma for m in moments if m.branches == ("cond",)] == pytest.approx(plan.passes.sigmas, abs=1e-6)
    return latents, moments


def run(kind: str, *edits: Edit) -> Tensor:
    return edited(kind, *edits)[0]


def inside(model: WanModel) -> list[tuple[Any, ...]]:
    """Return what an attached session could leave behind: modules, processors, attributes, hooks."""
    return [
        (name, module, getattr(module, "processor", None), sorted(vars(module)), [*module._forward_pre_hooks])
        for transformer in model.experts()
        for name, module in transformer.named_modules()
    ]


def test_the_identities_can_detect_a_difference():
    for kind in KINDS:
        assert apart(base(kind), base(kind, DONOR)) > 0.02, kind
        assert apart(base(kind), base(kind, negative="black night")) > 0.02, kind
        assert apart(base(kind), base(kind, image=3)) > 0.02, kind


@pytest.mark.parametrize("kind", KINDS)
def test_a_session_with_no_edits_equals_the_pipeline(kind: str):
    latents, moments = edited(kind)
    assert torch.equal(latents, base(kind))
    steps = SAMPLER["steps"]
    assert [(m.step, *m.branches) for m in moments] == [(s, b) for s in range(steps) for b in ("cond", "uncond")]
    assert {m.expert for m in moments} == ({0, 1} if kind == "i2v-2.2" else {0})
    assert [m.expert for m in moments] == sorted(m.expert for m in moments)


@pytest.mark.parametrize("kind", KINDS)
def test_edits_of_strength_0_equal_the_pipeline(kind: str):
    nothing = [
        Inject(DONOR, strength=0.0),
        Inject(DONOR, on="both", strength=0.0, branch="both"),
        Inject(DONOR, mode="tokens", schedule=0.0),
        Inject(DONOR, mode="append", strength=0.0),
        Bend(["circle"], "amplify", factor=1.0),
        Bend(["circle"], "flip", axis="x", strength=0.0),
        Skip("none"),
    ]
    assert torch.equal(run(kind, *nothing), base(kind))


WHOLE = {
    "mix": Inject(DONOR),
    "tokens": Inject(DONOR, mode="tokens"),
    "both": Inject(DONOR, on="both", blocks=f"2-{LAST}"),
    "prompts": Prompts({0: DONOR}),
}


@pytest.mark.parametrize("edit", WHOLE.values(), ids=WHOLE)
@pytest.mark.parametrize("kind", KINDS)
def test_a_donor_in_place_of_the_prompt_equals_the_pipeline_with_the_donor(kind: str, edit: Edit):
    assert torch.equal(run(kind, edit), base(kind, DONOR))


@pytest.mark.parametrize("kind", KINDS)
def test_both_branches_equal_the_pipeline_with_both_texts(kind: str):
    both = Inject(DONOR, donor_negative="black night", branch="both")
    assert torch.equal(run(kind, both), base(kind, DONOR, "black night"))
    uncond = Inject("black night", branch="uncond")
    assert torch.equal(run(kind, uncond), base(kind, negative="black night"))


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_replaced_at_the_last_block_is_context_replaced_before_it(kind: str):
    hidden = run(kind, Inject(DONOR, on="hidden", operation="replace", blocks=[LAST]))
    assert torch.equal(hidden, run(kind, Inject(DONOR, blocks=f"0-{LAST - 1}")))
    assert apart(hidden, base(kind)) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_skip_equals_the_pipeline_without_the_block(kind: str):
    skipped = run(kind, Skip([1], branch="both"))
    with ExitStack() as stack:
        for transformer in subject(kind).model.experts():
            without = torch.nn.ModuleList([block for i, block in enumerate(transformer.blocks) if i != 1])
            stack.enter_context(mock.patch.object(transformer, "blocks", without))
        assert torch.equal(skipped, sampled(kind))
    assert apart(skipped, base(kind)) > 1e-2


@pytest.mark.parametrize("kind", KINDS)
def test_an_edited_run_differs_and_leaves_the_pipeline_as_it_was(kind: str):
    half = [Inject(DONOR, strength=0.5), Bend(["circle"], "translate", x=0.5), Inject("gray", on="hidden", blocks=[1])]
    before = inside(subject(kind).model)
    first = run(kind, *half)
    assert inside(subject(kind).model) == before
    assert all(mine[1] is theirs[1] for mine, theirs in zip(inside(subject(kind).model), before, strict=True))
    for expected in (base(kind), base(kind, DONOR), *(run(kind, edit) for edit in half)):
        assert apart(first, expected) > 1e-3
    assert torch.equal(sampled(kind), base(kind))
    assert torch.equal(run(kind, *half), first)
