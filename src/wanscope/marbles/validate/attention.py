"""`wanscope validate attention`: does the map of an object's word lie on the object? Scored against ground truth.

Two kinds of clips are reported separately: `rendered` ones, encoded and noised to the level of each step, with the
renderer's own masks; and `generated` ones, with the masks that the readers find in the finished video. For both, the
maps of the object's shape word and color word are recorded with every measure, in every block and step, in the cond
pass.

Settings are chosen on one half of the clips (even numbers) and scored on the other, never on the clips they were chosen
on. Maps are stored in a folder as they are made, so that an interrupted run can be resumed.

Shape suffixes: N clips, M measures, W words, S steps, L blocks, V settings, T latent frames, Y and X tokens, F pixel
frames, H and W pixels of masks.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wanscope.marbles import readers, world
from wanscope.marbles.validate import mask_scores
from wanscope.marbles.validate.model import machine_text, packaged
from wanscope.recipe import CaptureSpec, ModelIdentity, Recipe, SamplerSpec, VideoSpec
from wanscope.spec.capture import MEASURES, AttentionCapture

if TYPE_CHECKING:
    from wanscope.capture.attention_sink import Seen
    from wanscope.wan.model import WanModel

_STREAM = 3_000_003
KINDS = ("rendered", "generated")
WORDS = ("shape", "color")
SCORES = ("mIoU", "average precision", "pointing")


@dataclass(frozen=True)
class AttentionSettings:
    """clips: of each kind. steps: of the sampler, and as many noise levels of the rendered clips."""

    clips: int = 60
    steps: int = 10


@dataclass(frozen=True)
class Clip:
    """A clip's maps, float32 [M, W, S, L, T, Y, X], with the ground truth on the grid of tokens."""

    maps: np.ndarray
    share_TYX: np.ndarray
    centers_T2: np.ndarray


class Recorder:
    """Makes clips of both kinds and records their maps."""

    def __init__(self, model: WanModel, settings: AttentionSettings) -> None:
        own = model.variant.defaults
        self.model = model
        self.video = VideoSpec(width=own.width, height=own.height, frames=own.frames, fps=own.fps)
        self.sampler = SamplerSpec(steps=settings.steps).resolved(own.values(), len(model.experts()))
        self.negative = own.negative_prompt
        self.sigmas = self._sigmas()

    def _sigmas(self) -> tuple[float, ...]:
        from wanscope.sample.solvers import make_solver

        solver = make_solver(self.sampler, self.model.scheduler_config, self.model.device)
        return tuple(min(float(sigma), 0.999) for sigma in solver.sigmas[:-1])

    def scene(self, kind: str, number: int) -> tuple[world.Scene, str]:
        """Return the scene of a clip and its caption."""
        rng = np.random.default_rng([_STREAM, KINDS.index(kind), number])
        scene = world.sample_scene(rng, 1, held_out=False)
        return scene, world.caption(scene, rng, full=True)

    def clip(self, kind: str, number: int) -> Clip:
        """Make the clip with this number, of kind `rendered` or `generated`."""
        scene, prompt = self.scene(kind, number)
        if kind == "rendered":
            return self._rendered(scene, prompt, number)
        return self._generated(scene, prompt, number)

    def _recipe(self, scene: world.Scene, prompt: str, seed: int, sampler: SamplerSpec) -> Recipe:
        thing = scene.things[0]
        tokens = (thing.shape, thing.color)
        return Recipe(
            model=ModelIdentity(name="marbles", variant="marbles"),
            dtype="fp32",
            prompt=prompt,
            negative=self.negative,
            seed=seed,
            video=self.video,
            sampler=sampler,
            capture=CaptureSpec(attention=AttentionCapture(tokens=tokens, measures=MEASURES, keep="nothing")),
        )

    def _run(self, recipe: Recipe, init: Any = None) -> tuple[Any, np.ndarray]:
        """Return the final latents, and maps [M, W, S, L, T, Y, X] of the run's steps."""
        from wanscope.capture.attention_sink import AttentionSink
        from wanscope.runtime.diffusers.recorder import AttentionRecorder
        from wanscope.runtime.diffusers.session import attach
        from wanscope.sample.loop import denoise, initial_noise
        from wanscope.sample.plan_edits import edit_plan
        from wanscope.study.attention_capture import attention_plan
        from wanscope.study.encode_texts import Texts, needed_texts
        from wanscope.wan.text import encode

        model = self.model
        words = needed_texts([recipe])
        texts = Texts(dict(zip(words, encode(model, words), strict=True)), model.tokenizer, model.text_length)
        plan = attention_plan(recipe, model.variant, model.tokenizer, model.text_length)
        assert plan is not None
        steps = {step: place for place, step in enumerate(plan.steps)}
        maps = np.full((len(MEASURES), len(WORDS), len(steps), model.blocks, *plan.grid), np.nan, np.float32)

        def keep(seen: Seen) -> None:
            maps[MEASURES.index(seen.measure), :, steps[seen.step], seen.block] = seen.maps[: len(WORDS)]

        sink = AttentionSink(plan, Path(), keep)
        try:
            recorder = AttentionRecorder(sink, model.device, model.dtype)
            edits = edit_plan(model, (), texts.donors(recipe), recipe.sampler, recipe.video)
            with attach(model, edits, recorder) as session:
                result = denoise(
                    model,
                    texts.conditioning(recipe),
                    recipe.sampler,
                    initial_noise(model.latent_shape(self.video), recipe.seed),
                    init_latents=init,
                    around_call=session.around_call,
                )
            session.verify()
            sink.finish()
        finally:
            sink.close()
        assert np.isfinite(maps).all()
        return result.latents, maps

    def _rendered(self, scene: world.Scene, prompt: str, number: int) -> Clip:
        """Make one model call for each noise level, on the clip's latents noised to that level."""
        import torch

        from wanscope.wan.vae import encode

        drawn = world.render(scene, self.video.frames or world.FRAMES)
        video = torch.from_numpy(drawn.video).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
        latents = encode(self.model.vae, video)
        levels = []
        for sigma in self.sigmas:
            # One unguided step from this level, so that the recorded call is the only one.
            sampler = SamplerSpec(sigmas=(1.0, sigma), start_step=1, guidance=1.0, solver="euler")
            own = self.model.variant.defaults
            recipe = self._recipe(scene, prompt, number, sampler.resolved(own.values(), len(self.model.experts())))
            levels.append(self._run(recipe, latents)[1])
        maps = np.concatenate(levels, axis=2)
        return Clip(maps, *self._truth(drawn.masks[:, 0], drawn.paths[:, 0], maps))

    def _generated(self, scene: world.Scene, prompt: str, number: int) -> Clip:
        from wanscope.study.make_take import frames_of
        from wanscope.wan.vae import decode

        latents, maps = self._run(self._recipe(scene, prompt, number, self.sampler))
        seen = readers.read(frames_of(decode(self.model.vae, latents)), 1)
        if not seen.things:
            empty = np.zeros(maps.shape[-3:])
            return Clip(maps, empty, np.full((len(empty), 2), np.nan))
        thing = seen.things[0]
        return Clip(maps, *self._truth(thing.masks, thing.path, maps))

    def _truth(self, masks_FHW: np.ndarray, path_F2: np.ndarray, maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        grid = (maps.shape[-3], maps.shape[-2], maps.shape[-1])
        height, width = masks_FHW.shape[1:]
        return mask_scores.token_masks(masks_FHW, grid), mask_scores.token_centers(path_F2, width, height)


def clips(
    model: WanModel, settings: AttentionSettings, kind: str, folder: Path, tell: Callable[[str], None]
) -> Iterator[Clip]:
    """The clips of a kind, from `folder` where they are there already."""
    recorder = Recorder(model, settings)
    stamp = json.dumps([model.identity, settings.steps, _STREAM], sort_keys=True)
    place = folder / hashlib.sha256(stamp.encode()).hexdigest()[:16]
    place.mkdir(parents=True, exist_ok=True)
    made, began = 0, time.monotonic()
    for number in range(settings.clips):
        path = place / f"{kind}_{number:04d}.npz"
        if path.exists():
            with np.load(path) as stored:
                yield Clip(stored["maps"], stored["share"], stored["centers"])
            continue
        clip = recorder.clip(kind, number)
        part = path.with_suffix(".part.npz")
        np.savez(part, maps=clip.maps, share=clip.share_TYX, centers=clip.centers_T2)
        part.replace(path)
        made += 1
        if made in (1, 3) or (number + 1) % 10 == 0:
            each = (time.monotonic() - began) / made
            left = each * (settings.clips - number - 1)
            tell(
                f"{kind}: {number + 1} of {settings.clips} clips, {each:.1f} s each, {left / 60:.0f} min left of these"
            )
        yield clip


def scores(found: list[Clip], words: int, steps: int, blocks: int) -> list[dict[str, Any]]:
    """Return, for each measure and word, the scores of the best step and block and of the mean of all maps.

    The best one is chosen on one half of the clips; both are scored on the other half.
    """
    halves = _halves(found)
    chance = float(np.mean([(clip.share_TYX >= mask_scores.COVERED).mean() for half in halves for clip in half]))
    out = []
    for m, measure in enumerate(MEASURES):
        for w in range(words):
            singles = [
                _average(clip.maps[m, w].reshape(steps * blocks, *clip.maps.shape[-3:]), clip) for clip in halves[0]
            ]
            best = int(np.nanmean(singles, axis=0).argmax())
            step, block = divmod(best, blocks)
            for name, pick in (
                ("best", lambda clip, m=m, w=w, s=step, b=block: clip.maps[m, w, s, b]),
                ("mean of all", lambda clip, m=m, w=w: clip.maps[m, w].mean((0, 1))),
            ):
                row = {"measure": measure, "word": WORDS[w], "setting": name}
                row |= {"step": step, "block": block} if name == "best" else {"step": "", "block": ""}
                out.append(row | _scored(halves, pick) | {"chance precision": round(chance, 3)})
    return out


def profiles(found: list[Clip]) -> list[dict[str, Any]]:
    """Return scores by block (maps averaged over steps) and by step (over blocks), for both words."""
    halves = _halves(found)
    out = []
    for m, measure in enumerate(MEASURES):
        for w, word in enumerate(WORDS):
            for what, axis in (("block", 0), ("step", 1)):
                pick = lambda clip, m=m, w=w, axis=axis: clip.maps[m, w].mean(axis)  # noqa: E731
                scored = {name: _rounded(values) for name, values in _settings(halves, pick).items()}
                out.append({"measure": measure, "word": word, "by": what, **scored})
    return out


def grids(found: list[Clip]) -> list[dict[str, Any]]:
    """Return scores of the maps of every single step and block, [S][L], for both words."""
    halves = _halves(found)
    out = []
    for m, measure in enumerate(MEASURES):
        for w, word in enumerate(WORDS):
            steps, blocks = found[0].maps.shape[2:4]
            pick = lambda clip, m=m, w=w: clip.maps[m, w].reshape(-1, *clip.maps.shape[-3:])  # noqa: E731
            scored = {n: _rounded(v.reshape(steps, blocks)) for n, v in _settings(halves, pick).items()}
            out.append({"measure": measure, "word": word, **scored})
    return out


def _halves(found: list[Clip]) -> tuple[list[Clip], list[Clip]]:
    """Return the clips that show an object in two halves: those to choose on, and those to score on."""
    usable = [clip for clip in found if (clip.share_TYX >= mask_scores.COVERED).any()]
    return usable[0::2], usable[1::2]


def _settings(halves: tuple[list[Clip], list[Clip]], pick: Callable[[Clip], np.ndarray]) -> dict[str, np.ndarray]:
    """Return mean scores [V] of the second half for every setting in `pick(clip)` [V, T, Y, X].

    The threshold of each IoU is the best one of the first half.
    """
    first, second = halves
    at_V = np.mean([mask_scores.overlaps(pick(clip), clip.share_TYX) for clip in first], axis=0).argmax(1)
    every = np.arange(len(at_V))
    iou = [mask_scores.overlaps(pick(clip), clip.share_TYX)[every, at_V] for clip in second]
    precision = [mask_scores.average_precision(pick(clip), clip.share_TYX) for clip in second]
    pointed = [mask_scores.pointing(pick(clip), clip.share_TYX) for clip in second]
    return {name: np.mean(values, axis=0) for name, values in zip(SCORES, (iou, precision, pointed), strict=True)}


def _rounded(values: np.ndarray) -> list[Any]:
    return np.round(values, 3).tolist()


def _average(maps_VTYX: np.ndarray, clip: Clip) -> np.ndarray:
    return mask_scores.average_precision(maps_VTYX, clip.share_TYX)


def _scored(halves: tuple[list[Clip], list[Clip]], pick: Callable[[Clip], np.ndarray]) -> dict[str, Any]:
    """Return the scores of one setting, `pick(clip)` [T, Y, X], on the second half.

    The threshold of its IoU is the best one of the first half.
    """
    from wanscope.marbles.validate.edit_tables import mean_interval

    first, second = halves
    at = int(np.mean([mask_scores.overlaps(pick(clip)[None], clip.share_TYX)[0] for clip in first], axis=0).argmax())
    iou = [float(mask_scores.overlaps(pick(clip)[None], clip.share_TYX)[0, at]) for clip in second]
    precision = [float(_average(pick(clip)[None], clip)[0]) for clip in second]
    pointed = [float(mask_scores.pointing(pick(clip)[None], clip.share_TYX)[0]) for clip in second]
    path = mask_scores.path_correlation(np.stack([pick(c) for c in second]), np.stack([c.centers_T2 for c in second]))
    out: dict[str, Any] = {"threshold": round(float(mask_scores.THRESHOLDS[at]), 2)}
    for name, values in (("mIoU", iou), ("average precision", precision), ("pointing", pointed)):
        mean, low, high = mean_interval(values)
        low, high = max(0.0, low), min(1.0, high)  # every score is a share
        out |= {name: round(mean, 3), f"{name}, 95%": f"{low:.2f} to {high:.2f}"}
    return out | {"path r": None if math.isnan(path) else round(path, 3), "n": len(second)}


def validate(
    settings: AttentionSettings = AttentionSettings(),
    *,
    folder: Path,
    model: WanModel | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Return the whole report as plain data.

    folder: where maps are stored. tell: called with progress messages.
    """
    model = model or packaged()
    began = time.monotonic()
    tables = {}
    for kind in KINDS:
        found = list(clips(model, settings, kind, folder, tell))
        shown = sum(bool((clip.share_TYX >= mask_scores.COVERED).any()) for clip in found)
        tables[kind] = {
            "clips": len(found),
            "usable": shown,
            "rows": scores(found, len(WORDS), settings.steps, model.blocks),
            "profiles": profiles(found),
            "grids": grids(found),
        }
        tell(f"{kind}: scored")
    return {
        "tables": tables,
        "settings": {"clips": settings.clips, "steps": settings.steps, "covered": mask_scores.COVERED},
        "sigmas": [round(sigma, 4) for sigma in Recorder(model, settings).sigmas],
        "model": model.identity,
        "device": str(model.device),
        "machine": machine_text(model),
        "seconds": round(time.monotonic() - began, 1),
    }


def as_markdown(report: dict[str, Any]) -> str:
    """Return the report as a Markdown page."""
    own = report["settings"]
    lines = [
        "# Validation of attention maps in marbles",
        "",
        f"`wanscope validate attention`: {own['clips']} clips of each kind, {own['steps']} noise levels "
        f"({', '.join(f'{sigma:.2f}' for sigma in report['sigmas'])}). A token belongs to the object where the object "
        f"covers at least {own['covered']:.0%} of it. Settings and thresholds are chosen on one half of the clips and "
        "scored on the other; intervals are 95% t intervals over its clips, clipped to 0 to 1.",
        "",
        f"The machine: {report['machine']}.",
    ]
    for kind, table in report["tables"].items():
        columns = list(table["rows"][0])
        lines += ["", f"## {kind.capitalize()} clips ({table['usable']} of {table['clips']} show an object)", ""]
        lines += [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
        lines += [f"| {' | '.join(str(row[column]) for column in columns)} |" for row in table["rows"]]
        lines += ["", "Block by block (maps averaged over steps) and step by step (over blocks):", ""]
        lines += ["| measure | word | by | score | from the first to the last |", "|---|---|---|---|---|"]
        for row in table["profiles"]:
            for score in SCORES:
                values = " ".join(f"{value:.2f}" for value in row[score])
                lines.append(f"| {row['measure']} | {row['word']} | {row['by']} | {score} | {values} |")
        for grid in table["grids"]:
            if grid["word"] == "shape":
                lines += ["", f"Average precision of single maps, shape word, {grid['measure']}, one row per step:", ""]
                blocks = range(len(grid["average precision"][0]))
                lines += [f"| step | {' | '.join(f'block {i}' for i in blocks)} |", f"|---|{'---|' * len(blocks)}"]
                for step, values in enumerate(grid["average precision"]):
                    lines.append(f"| {step} | {' | '.join(f'{value:.2f}' for value in values)} |")
        lines += ["", "The JSON file next to this page has these grids for both words and all scores."]
    return "\n".join(lines) + "\n"
