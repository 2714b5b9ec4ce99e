"""Takes made without a model, for tests: a random path and a moving gradient, everything else as in real takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from wanscope.capture.arrays import create_array
from wanscope.capture.path_gram import PathGram
from wanscope.recipe import CaptureSpec, LatentsCapture, ModelIdentity, Recipe, SamplerSpec, VideoSpec
from wanscope.take.manifest import Manifest, StoredLatents, environment, list_files
from wanscope.take.store import EVENTS, LATENTS, POSTER, VIDEO, Take, TakeWriter, latents_sha256
from wanscope.take.video import METADATA_KEY, write_poster, write_video

STEPS = 4


def recipe(seed: int = 0, prompt: str = "a red circle", latents: bool = True, **changes: Any) -> Recipe:
    values: dict[str, Any] = {
        "model": ModelIdentity(name="tiny", variant="tiny", weights={"transformer": "0" * 64}),
        "dtype": "fp32",
        "prompt": prompt,
        "negative": "",
        "seed": seed,
        "video": VideoSpec(width=64, height=48, frames=9, fps=8),
        "sampler": SamplerSpec(solver="unipc", steps=STEPS, shift=5.0, guidance=5.0),
        "capture": CaptureSpec(latents=LatentsCapture(dtype="fp32")) if latents else CaptureSpec(),
    }
    return Recipe(**{**values, **changes})


def path_of(recipe: Recipe) -> np.ndarray:
    """Return the states [S + 1, C, T, h, w], fp32: a random walk from the recipe's seed."""
    video = recipe.video
    shape = (16, (video.frames - 1) // 4 + 1, video.height // 8, video.width // 8)
    rng = np.random.default_rng(recipe.seed)
    steps = rng.standard_normal((recipe.sampler.steps + 1, *shape)) * 0.2
    steps[0] *= 5
    return np.cumsum(steps, axis=0).astype(np.float32)


def frames_of(recipe: Recipe) -> np.ndarray:
    """Return smooth frames, uint8 [F, H, W, 3], different for every seed."""
    video = recipe.video
    f, y, x = np.meshgrid(*(np.arange(n) for n in (video.frames, video.height, video.width)), indexing="ij")
    red = 255 * x / video.width
    green = 255 * y / video.height
    blue = 255 * ((f + recipe.seed) % video.frames) / video.frames
    return np.stack([red, green, blue], axis=-1).astype(np.uint8)


def write_take(takes: Path, recipe: Recipe) -> Take:
    states = path_of(recipe)
    with TakeWriter(takes, recipe.id) as writer:
        gram = stored = None
        if recipe.capture.latents:
            spec = recipe.capture.latents
            array = create_array(writer.folder / LATENTS, states.shape, (16, 1, *states.shape[3:]), spec.dtype, {})
            with PathGram(writer.folder / "scratch") as path:
                for k, state in enumerate(states):
                    array[k] = state.astype(array.dtype)
                    path.add(state)
                gram = tuple(tuple(row) for row in path.matrix().tolist())
            stored = StoredLatents(dtype=spec.dtype, every=1, states=tuple(range(len(states))))
        writer.write_final(states[-1])
        frames = frames_of(recipe)
        env = environment("cpu", 1)
        checksum = latents_sha256(states[-1])
        carried = {
            "recipe": recipe.model_dump(mode="json"),
            "take": recipe.id,
            "latents_sha256": checksum,
            "environment": env.model_dump(mode="json"),
        }
        write_video(writer.folder / VIDEO, frames, recipe.video.fps, {METADATA_KEY: json.dumps(carried)})
        write_poster(writer.folder / POSTER, frames[len(frames) // 2])
        (writer.folder / EVENTS).write_text('{"event": "TakeStarted"}\n')
        manifest = Manifest(
            id=recipe.id,
            hash=recipe.hash,
            recipe=recipe,
            made="2025-01-01T00:00:00+00:00",
            environment=env,
            seconds={"total": 1.0},
            peak_bytes={},
            evaluations=2 * STEPS,
            sigmas=tuple(np.linspace(1, 0, STEPS + 1).tolist()),
            latent_shape=states.shape[1:],
            latents_sha256=checksum,
            latents=stored,
            gram=gram,
            files=list_files(writer.folder),
        )
        return writer.commit(manifest)
