"""A video of the denoising: the clean video that each step predicts, one step after another.

Needs the clean latents that the steps predicted (`capture: {x0: true}`) and the model's VAE. The clip keeps playing
while the steps advance, a fraction of a second each, under a label with the step and its noise level; the last
prediction plays through to the end.

Shape suffixes: K stored steps, C channels, T latent frames, h and w latent height and width, F frames, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from wanscope import events
from wanscope.errors import ModelError
from wanscope.study import recipe_model
from wanscope.study.recipe_model import ModelKey
from wanscope.take.compare import BACKGROUND, INK, LEAST_CELL
from wanscope.take.store import Take
from wanscope.take.video import write_video

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKLWan

STEP_SECONDS = 0.5
NAME = "denoising.mp4"
LABEL_PIXELS = 24


def denoising_video(take: Take, out: Path, device: str = "auto", on_event: events.Listener = events.ignore) -> int:
    """Write the video of `take`'s denoising to `out` and return the number of steps that it shows.

    Raises NotCaptured for a take without predicted clean latents, and ModelError where the VAE is not the one that the
    take was made with.
    """
    from wanscope.wan.load import pick_device

    clean_KCThw = take.x0
    vae = vae_of(take, pick_device(device), on_event)
    fps = take.recipe.video.fps or 8
    write_video(out, _frames(take, clean_KCThw, vae, fps), fps, {"title": f"denoising of {take.recipe.prompt}"})
    return clean_KCThw.shape[0]


def vae_of(take: Take, device: torch.device, on_event: events.Listener = events.ignore) -> AutoencoderKLWan:
    """Return only the VAE of the model that a take names, in fp32.

    Raises ModelError where its weights are no longer those that the take was made with.
    """
    from wanscope.wan.load import load_vae

    key = ModelKey.of(take.recipe)
    source = recipe_model.find_local(key) or recipe_model.find(key, on_event)
    wanted, have = take.recipe.model.weights.get("vae"), source.identity().get("vae")
    if wanted is not None and wanted != have:
        raise ModelError(
            f"the VAE of {take.recipe.model.name} is not the one that take {take.id} was made with",
            f"its weights are {str(have)[:12]}, and the take's were {wanted[:12]}",
        )
    return load_vae(source).to(device)  # type: ignore[arg-type]


def _frames(take: Take, clean_KCThw, vae: AutoencoderKLWan, fps: float) -> Iterator[np.ndarray]:
    import torch

    from wanscope.study.make_take import frames_of
    from wanscope.wan.vae import decode

    stored = take.manifest.x0
    assert stored is not None
    steps, sigmas = take.recipe.sampler.steps or 0, take.sigmas
    first = take.recipe.sampler.start_step
    hold = max(1, round(fps * STEP_SECONDS))
    shown = 0
    for place, step in enumerate(stored.states):
        latents = torch.from_numpy(np.asarray(clean_KCThw[place], dtype=np.float32))[None]
        clip_FHW3 = frames_of(decode(vae, latents))
        zoom = max(1, round(LEAST_CELL / clip_FHW3.shape[2]))
        text = f"step {step + 1} of {steps}, noise {sigmas[step - first]:.3f}"
        strip_HW3 = _label(text, clip_FHW3.shape[2] * zoom)
        last = place == len(stored.states) - 1
        for k in range(len(clip_FHW3) if last else hold):
            frame_HW3 = clip_FHW3[k if last else (shown + k) % len(clip_FHW3)]
            yield np.concatenate([strip_HW3, frame_HW3.repeat(zoom, axis=0).repeat(zoom, axis=1)])
        shown += hold


def _label(text: str, width: int) -> np.ndarray:
    from PIL import Image, ImageDraw, ImageFont

    strip = Image.new("RGB", (width, LABEL_PIXELS), BACKGROUND)
    ImageDraw.Draw(strip).text((6, 3), text, fill=INK, font=ImageFont.load_default(size=15))
    return np.array(strip)
