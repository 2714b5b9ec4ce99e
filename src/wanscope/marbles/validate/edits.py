"""`wanscope validate edits`: the effects of edits on videos, compared with known ground truth.

Every case of `edit_cases` goes through the real code path (the edit's spec, its plan, the attached runtime, the loop,
the VAE) and is read by the readers. Results are appended to a file in a folder, under a key that covers the case, the
weights and the settings: an interrupted run can be resumed, and several processes can share the work.

An edit that is not applied ends the run, so no figure can come from an edit that did nothing.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wanscope.edit.difference import measure_difference, relative_l2
from wanscope.edit.edits import Steer
from wanscope.errors import RequestError
from wanscope.marbles import readers, world
from wanscope.marbles.validate import edit_cases, edit_tables
from wanscope.marbles.validate.edit_cases import Case
from wanscope.recipe import ModelIdentity, Recipe, SamplerSpec, VideoSpec
from wanscope.study.encode_texts import Texts

if TYPE_CHECKING:
    from torch import Tensor

    from wanscope.wan.model import WanModel

DIRECTION_PAIRS = 48
DIFFERENCE_PAIRS = 200


@dataclass(frozen=True)
class EditsSettings:
    """Of every video: fewer frames and steps than the default, so that thousands of them can be made on a CPU.

    share: (i, n) makes only every n-th video, starting with the i-th; the report needs all of them.
    so_far: make none, and report on the pairs that are complete.
    """

    pairs: int = 60
    frames: int = 9
    steps: int = 10
    share: tuple[int, int] = (0, 1)
    so_far: bool = False


class Maker:
    """Makes and reads the video of a case."""

    def __init__(self, model: WanModel, settings: EditsSettings) -> None:
        own = model.variant.defaults
        self.model = model
        self.video = VideoSpec(width=own.width, height=own.height, frames=settings.frames, fps=own.fps)
        spec = SamplerSpec(steps=settings.steps)
        self.sampler = spec.resolved(own.values(), len(model.experts()))
        self.negative = own.negative_prompt
        self._texts: dict[str, Tensor] = {}

    def encoded(self, text: str) -> Tensor:
        """Return the raw embedding of a text, [L, D]."""
        from wanscope.wan.text import encode

        if text not in self._texts:
            self._texts[text] = encode(self.model, [text])[0]
        return self._texts[text]

    def recipe(self, case: Case) -> Recipe:
        from wanscope.edit.edits import with_hashes
        from wanscope.wan.identity import file_hash

        return Recipe(
            model=ModelIdentity(name="marbles", variant="marbles"),
            dtype="fp32",
            prompt=case.prompt,
            negative=self.negative,
            seed=case.seed,
            video=self.video,
            sampler=self.sampler,
            edits=with_hashes(case.edits, self.model.variant.text_dim, file_hash),
        )

    def pixels(self, case: Case) -> np.ndarray:
        """Return the case's video, uint8 [F, H, W, 3]. Raises EditNotApplied where an edit was not applied."""
        from wanscope.runtime.diffusers.session import attach
        from wanscope.sample.loop import denoise, initial_noise
        from wanscope.sample.plan_edits import edit_plan
        from wanscope.study.encode_texts import needed_texts
        from wanscope.study.make_take import frames_of
        from wanscope.wan.vae import decode

        recipe = self.recipe(case)
        texts = Texts(
            {text: self.encoded(text) for text in needed_texts([recipe])}, self.model.tokenizer, self.model.text_length
        )
        noise = initial_noise(self.model.latent_shape(self.video), recipe.seed)
        if not recipe.edits:
            result = denoise(self.model, texts.conditioning(recipe), recipe.sampler, noise)
        else:
            plan = edit_plan(self.model, recipe.edits, texts.donors(recipe), recipe.sampler, recipe.video)
            with attach(self.model, plan) as session:
                conditioning = texts.conditioning(recipe)
                result = denoise(self.model, conditioning, recipe.sampler, noise, around_call=session.around_call)
            session.verify()
        return frames_of(decode(self.model.vae, result.latents))

    def read(self, case: Case) -> dict[str, Any]:
        """Make the case's video and return what it shows."""
        seen = readers.read(self.pixels(case), 1)
        thing = seen.things[0] if seen.things else None
        row: dict[str, Any] = {name: getattr(thing, name, None) for name in readers.ATTRIBUTES}
        row["background"] = seen.background
        if thing is not None and np.isfinite(thing.path).any(axis=0).all():
            row["center"] = [round(float(value), 2) for value in np.nanmean(thing.path, axis=0)]
        return row


def cases(maker: Maker, settings: EditsSettings, folder: Path) -> Iterator[Case]:
    """Every case, question by question; `edit_cases.in_order` is the order in which they are made."""
    projection = maker.model.transformer.condition_embedder.text_embedder

    def natural(prompt: str, donor: str) -> float:
        return relative_l2(maker.encoded(prompt), maker.encoded(donor))

    def figures(prompt: str, donor: str) -> dict[str, float]:
        found = measure_difference(maker.encoded(prompt), maker.encoded(donor), projection)
        assert found.projected is not None
        return {"raw": found.raw.matrix.relative_l2 or 0.0, "projected": found.projected.matrix.relative_l2 or 0.0}

    count = settings.pairs
    yield from edit_cases.injections(count)
    yield from edit_cases.bends(count)
    yield from edit_cases.modes(count)
    yield from edit_cases.styles(count)
    yield from edit_cases.distances(count, figures)
    yield from edit_cases.amplifications(count, natural)
    yield from edit_cases.ablations(count, _directions(maker, folder))
    yield from edit_cases.hidden(count)


def _directions(maker: Maker, folder: Path) -> dict[str, Steer]:
    """Return for each color its direction in these weights' context, learning it if its file does not exist."""
    from wanscope.sample.learn_direction import learn_direction
    from wanscope.wan.identity import file_hash

    weights = hashlib.sha256(json.dumps(maker.model.identity, sort_keys=True).encode()).hexdigest()[:12]
    out = {}
    for color in world.COLORS:
        path = folder / f"direction_{color}_{weights}.safetensors"
        if not path.exists():
            learn_direction(
                maker.model,
                edit_cases.direction_pairs(color, DIRECTION_PAIRS),
                maker.sampler,
                maker.video,
                on="context",
            ).save(path)
        out[color] = Steer(str(path), sha256=file_hash(path))
    return out


def make_rows(
    model: WanModel, settings: EditsSettings, folder: Path, tell: Callable[[str], None] = lambda _: None
) -> tuple[list[tuple[Case, dict[str, Any]]], list[Case]]:
    """Make the videos; return cases with what their videos show, and the cases that are not made.

    Those are the ones of other shares, or all missing ones with `so_far`.
    """
    maker = Maker(model, settings)
    folder.mkdir(parents=True, exist_ok=True)
    stamp = {
        "weights": model.identity,
        "frames": settings.frames,
        "sampler": maker.sampler.model_dump(mode="json"),
        "negative": maker.negative,
    }
    done = _stored(folder, stamp)
    share, shares = settings.share
    out_path = folder / f"rows-{share}-of-{shares}.jsonl"
    everything = edit_cases.in_order(cases(maker, settings, folder))
    # By key, so that a video which two questions share is made by one process only.
    places = {key: place for place, key in enumerate(dict.fromkeys(case.key for case in everything))}
    if settings.so_far:
        todo = []
    else:
        _drop_torn_line(out_path)
        own = {case.key: case for case in everything if places[case.key] % shares == share}
        todo = [case for key, case in own.items() if key not in done]
        tell(f"{len(places):,} videos, of which {len(places.keys() & done.keys()):,} exist; {len(todo):,} to make")
    began = time.monotonic()
    for made, case in enumerate(todo, 1):
        done[case.key] = maker.read(case)
        with out_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"stamp": stamp, "key": case.key, "read": done[case.key]}) + "\n")
        if made % 50 == 0:
            each = (time.monotonic() - began) / made
            left = each * (len(todo) - made) / 60
            tell(f"{made:,} of {len(todo):,} made, {each:.2f} s per video, {left:.0f} min left; pair {case.number}")
    found = [(case, done[case.key]) for case in everything if case.key in done]
    return found, [case for case in everything if case.key not in done]


def _stored(folder: Path, stamp: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return rows made earlier with the same weights and settings, by key.

    The last line counts only if it is complete: another share may be writing it now, or was killed while writing it.
    """
    done: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("rows-*.jsonl")):
        complete = path.read_text(encoding="utf-8").rpartition("\n")[0]
        for line in complete.splitlines():
            row = json.loads(line)
            if row["stamp"] == stamp:
                done[row["key"]] = row["read"]
    return done


def _drop_torn_line(path: Path) -> None:
    """Remove an incomplete last line that a killed process left."""
    if path.exists():
        data = path.read_bytes()
        path.write_bytes(data[: data.rfind(b"\n") + 1])


def validate(
    settings: EditsSettings = EditsSettings(),
    *,
    folder: Path,
    model: WanModel | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> dict[str, Any] | None:
    """Return the whole report as plain data; None where other shares still have to make their videos.

    With `so_far`, the report is on the pairs that are complete and says how much is missing. Raises RequestError where
    no pair is complete. folder: where results are stored. tell: called with progress messages.
    """
    from wanscope.marbles.validate.model import machine_text, packaged

    model = model or packaged()
    began = time.monotonic()
    found, missing = make_rows(model, settings, folder, tell)
    if missing and not settings.so_far:
        tell(f"{len({case.key for case in missing}):,} videos are left to the other shares")
        return None
    everything = [case for case, _ in found] + missing
    videos = {case.key for case, _ in found}
    found = edit_cases.complete(found, everything)
    if not found:
        raise RequestError(
            f"no pair is complete yet in {folder}",
            f"{len(videos)} videos are made with these weights and settings",
            "the same command without --so-far",
        )
    maker = Maker(model, settings)
    projection = model.transformer.condition_embedder.text_embedder
    return {
        "tables": edit_tables.tables(found),
        "difference": edit_tables.difference_figures(
            edit_cases.difference_pairs(DIFFERENCE_PAIRS), maker.encoded, projection
        ),
        "settings": {"pairs": settings.pairs, "frames": settings.frames, "steps": settings.steps},
        "videos": len(videos),
        "missing": len({case.key for case in missing}),
        "model": model.identity,
        "device": str(model.device),
        "machine": machine_text(model),
        "seconds": round(time.monotonic() - began, 1),
    }
