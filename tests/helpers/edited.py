"""Edited runs of small models through all of wanscope: encoded texts, plan, attach, the loop.

found = edited(model, [Inject(DONOR, blocks="late")])
found.latents, found.plan, found.session
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from helpers.tiny import video
from wanscope.edit.edits import Edit
from wanscope.edit.encoded_texts import DonorTexts
from wanscope.edit.plan import EditPlan
from wanscope.edit.word_places import texts_of, united, word_places
from wanscope.recipe import SamplerSpec, VideoSpec
from wanscope.runtime.diffusers.session import DiffusersSession, attach
from wanscope.sample import Conditioning, denoise, initial_noise
from wanscope.sample.plan_edits import edit_plan
from wanscope.wan.model import WanModel
from wanscope.wan.text import encode

PROMPT, NEGATIVE, SEED = "a red circle moves left", "gray night", 7
DONOR = "a large blue square moves right on black"  # more tokens than the prompt
SAMPLER = {"solver": "unipc", "steps": 4, "shift": 5.0, "guidance": 5.0}


@dataclass(frozen=True)
class Scene:
    """A prompt, its negative prompt and a size to sample."""

    prompt: str = PROMPT
    negative: str = NEGATIVE
    donor: str = DONOR
    size: dict[str, int] = field(default_factory=video)


TINY = Scene()


@dataclass(frozen=True)
class Edited:
    latents: Tensor
    session: DiffusersSession
    plan: EditPlan


def encoded(model: WanModel, edits: Sequence[Edit], scene: Scene = TINY) -> DonorTexts:
    """Return the encoded texts that a study would have for these edits."""
    names = list(dict.fromkeys([scene.prompt, scene.negative, *texts_of(edits)]))
    raw = {name: _encoded(model, name) for name in names}
    found = {
        i: united(word_places(model.tokenizer, scene.prompt, edits, i, model.text_length)) for i in range(len(edits))
    }
    places = {i: places for i, places in found.items() if places}
    main, uncond = raw[scene.prompt], raw[scene.negative]
    return DonorTexts(scene.prompt, scene.negative, main, uncond, raw, model.text_length, {}, places)


_kept: dict[tuple[int, str], Tensor] = {}


def _encoded(model: WanModel, text: str) -> Tensor:
    key = (id(model), text)
    if key not in _kept:
        _kept[key] = encode(model, [text])[0]
    return _kept[key]


def sampler_of(model: WanModel, **settings: Any) -> SamplerSpec:
    return SamplerSpec(**settings).resolved(SAMPLER, experts=len(model.experts()))


def planned(model: WanModel, edits: Sequence[Edit], scene: Scene = TINY, **settings: Any) -> EditPlan:
    texts = encoded(model, edits, scene)
    return edit_plan(model, edits, texts, sampler_of(model, **settings), VideoSpec(**scene.size))


def edited(
    model: WanModel,
    edits: Sequence[Edit],
    scene: Scene = TINY,
    inside: Callable[[DiffusersSession], Any] = lambda session: None,
    **settings: Any,
) -> Edited:
    """Make a run with edits, with counts verified. inside: called while they are attached."""
    plan = planned(model, edits, scene, **settings)
    texts = encoded(model, edits, scene)
    with attach(model, plan) as session:
        inside(session)
        latents = sampled(model, texts, scene, session.around_call, **settings)
    session.verify()
    return Edited(latents, session, plan)


def sampled(
    model: WanModel, texts: DonorTexts, scene: Scene = TINY, around_call: Any = None, **settings: Any
) -> Tensor:
    noise = initial_noise(model.latent_shape(VideoSpec(**scene.size)), SEED)
    conditioning = Conditioning(texts.main, texts.uncond)
    return denoise(model, conditioning, sampler_of(model, **settings), noise, around_call=around_call).latents


def unedited(model: WanModel, scene: Scene = TINY, **settings: Any) -> Tensor:
    """Make the same run with nothing attached."""
    return sampled(model, encoded(model, [], scene), scene, **settings)


def prompted(model: WanModel, prompt: str, scene: Scene = TINY, **settings: Any) -> Tensor:
    """Make the same run with another prompt."""
    other = Scene(prompt, scene.negative, scene.donor, scene.size)
    return unedited(model, other, **settings)


def apart(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())
