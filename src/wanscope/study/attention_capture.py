"""What a recipe's attention capture records: the plan, its size on disk, and the checks before any work."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from wanscope.capture.attention_plan import (
    AttentionPlan,
    ModelFacts,
    chosen,
    plan_attention,
    plan_self_attention,
    require_heads,
    require_marks,
)
from wanscope.prompt.tokens import MarkLike
from wanscope.recipe import CaptureSpec, Keyframes, Recipe, SamplerSpec, VideoSpec
from wanscope.spec.capture import AttentionCapture
from wanscope.wan.variants import Variant, latent_shape

CHARACTERS_PER_TOKEN = 4  # of English in UMT5's vocabulary; only for estimates where no tokenizer is at hand


def facts_of(video: VideoSpec, sampler: SamplerSpec, variant: Variant, text_length: int | None = None) -> ModelFacts:
    """Return what a capture needs to know about the model and the run, taken from configs alone."""
    assert video.width and video.height and video.frames
    _, *sizes = latent_shape(variant, video.width, video.height, video.frames)
    frames, rows, columns = (size // patch for size, patch in zip(sizes, variant.patch, strict=True))
    return ModelFacts(
        blocks=variant.blocks,
        heads=variant.heads,
        steps=sampler.steps or 0,
        start_step=sampler.start_step,
        grid=(frames, rows, columns),
        text_length=text_length or variant.text_length,
        guided=any(_guided(scale) for scale in (sampler.guidance, sampler.guidance_2)),
    )


def _guided(scale: float | Keyframes | None) -> bool:
    scales = [number for _, number in scale.keys] if isinstance(scale, Keyframes) else [scale]
    return any(number is not None and number != 1 for number in scales)


def attention_plan(recipe: Recipe, variant: Variant, tokenizer: Any, text_length: int) -> AttentionPlan | None:
    """Return the plan of a recipe's cross-attention capture, or None where it asks for none.

    Raises RecipeError for a capture that the prompt or the model cannot provide.
    """
    spec = recipe.capture.attention
    if spec is None:
        return None
    facts = facts_of(recipe.video, recipe.sampler, variant, text_length)
    return plan_attention(spec, tokenizer, recipe.prompt, recipe.negative, recipe.marks, facts)


def self_attention_plan(recipe: Recipe, variant: Variant) -> AttentionPlan | None:
    """Return the plan of a recipe's self-attention capture, or None where it asks for none.

    Raises RecipeError for a capture that the model cannot provide.
    """
    spec = recipe.capture.self_attention
    return None if spec is None else plan_self_attention(spec, facts_of(recipe.video, recipe.sampler, variant))


def check_attention(recipes: Iterable[Recipe], variant: Variant, tokenizer: Any, text_length: int) -> None:
    """Raise RecipeError for a recipe whose attention cannot be recorded as requested; each distinct text is checked
    once.
    """
    checked: set[Any] = set()
    for recipe in recipes:
        key = (recipe.capture, recipe.prompt, recipe.negative, recipe.marks, recipe.sampler)
        if recipe.capture.inside and key not in checked:
            checked.add(key)
            attention_plan(recipe, variant, tokenizer, text_length)
            self_attention_plan(recipe, variant)


def check_capture_indices(
    capture: CaptureSpec, prompt: str, marks: Iterable[MarkLike], sampler: SamplerSpec, variant: Variant
) -> None:
    """Check what needs no tokenizer: that marks exist, and that blocks, steps and heads are in range.

    Raises RecipeError.
    """
    for name, spec in (("capture.attention", capture.attention), ("capture.self_attention", capture.self_attention)):
        if spec is None:
            continue
        if isinstance(spec, AttentionCapture) and spec.branch == "cond":
            require_marks(spec, prompt, marks)
        chosen(spec.blocks, variant.blocks, "blocks", name)
        chosen(spec.steps, sampler.steps or 0, "steps", name)
        require_heads(spec, variant.heads, name)


def attention_bytes(recipe: Recipe, variant: Variant, tokenizer: Any = None, text_length: int | None = None) -> int:
    """Return the bytes of a recipe's stored attention maps.

    With a tokenizer, tokens are counted exactly; without one, they are estimated from the length of the words.
    """
    itself = self_attention_plan(recipe, variant)
    own = 0 if itself is None else itself.bytes
    spec = recipe.capture.attention
    if spec is None:
        return own
    if tokenizer is not None:
        plan = attention_plan(recipe, variant, tokenizer, text_length or variant.text_length)
        return own if plan is None else own + plan.bytes
    facts = facts_of(recipe.video, recipe.sampler, variant, text_length)
    tokens = [math.ceil(len(mark.text) / CHARACTERS_PER_TOKEN) for mark in recipe.marks if spec.marked]
    tokens += [math.ceil(len(word) / CHARACTERS_PER_TOKEN) for word in spec.words]
    rows = 1 + len(tokens) + (sum(count for count in tokens if count > 1) if spec.keep == "maps" else 0)
    if spec.everything:
        rows += math.ceil(len(recipe.prompt) / CHARACTERS_PER_TOKEN) + 1
    heads = {"mean": 1, "all": facts.heads}.get(str(spec.heads), len(spec.heads))
    steps = sum(step >= facts.start_step for step in chosen(spec.steps, facts.steps, "steps"))
    kept = {"maps": steps, "mean": 1, "nothing": 0}[spec.keep]
    blocks = len(chosen(spec.blocks, facts.blocks, "blocks"))
    return own + 2 * kept * blocks * heads * rows * math.prod(facts.grid) * len(spec.measures)
