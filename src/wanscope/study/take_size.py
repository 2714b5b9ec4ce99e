"""The size of takes on disk, computed before any work for the dry run and the check of free space."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

from wanscope.capture.latents import stored_states
from wanscope.recipe import CaptureSpec, Recipe, VideoSpec
from wanscope.study.attention_capture import attention_bytes
from wanscope.study.expand import size_of
from wanscope.wan.variants import Variant, latent_shape

# Bytes per pixel of a frame, for H.264 at the rate factor in take/video.py. Marbles needs 0.1, grainy footage more.
VIDEO_BYTES_PER_PIXEL = 0.2
SMALL_FILES = 64 << 10  # take.json, events, poster


@dataclass(frozen=True)
class TakeSize:
    """Bytes of one take by file. scratch: needed only while the take is made."""

    video: int
    final: int
    latents: int
    scratch: int
    x0: int = 0
    attention: int = 0

    @property
    def kept(self) -> int:
        """The bytes of the finished take."""
        return self.video + self.final + self.latents + self.x0 + self.attention + SMALL_FILES


def take_size(
    video: VideoSpec, latent_shape: tuple[int, ...], states: int, capture: CaptureSpec, attention: int = 0
) -> TakeSize:
    """Return an upper bound of a take's size, except for the video, whose size is a rough estimate.

    latent_shape: (channels, latent frames, latent height, latent width). states: how many states the path has, steps
    + 1. attention: the bytes of the attention maps.
    """
    values = prod(latent_shape)
    pixels = (video.width or 0) * (video.height or 0) * (video.frames or 0)
    latents = scratch = x0 = 0
    if capture.latents is not None:
        kept = len(stored_states(states, capture.latents.every))
        latents = kept * values * (2 if capture.latents.dtype == "fp16" else 4)
        scratch = states * values * 4
    if capture.x0 is not None:
        kept = len(stored_states(states - 1, capture.x0.every))
        x0 = kept * values * (2 if capture.x0.dtype == "fp16" else 4)
    return TakeSize(int(pixels * VIDEO_BYTES_PER_PIXEL), 4 * values, latents, scratch, x0, attention)


def bytes_needed(sizes: Iterable[TakeSize]) -> int:
    """Return the bytes that takes need when made one after another: everything kept, plus the largest scratch."""
    each = list(sizes)
    return sum(size.kept for size in each) + max((size.scratch for size in each), default=0)


def recipe_size(recipe: Recipe, variant: Variant) -> TakeSize:
    """Return the size of a recipe's take."""
    states = (recipe.sampler.steps or 0) - recipe.sampler.start_step + 1
    shape = latent_shape(variant, *size_of(recipe.video))
    return take_size(recipe.video, shape, states, recipe.capture, attention_bytes(recipe, variant))
