"""Learning a concept direction from pairs of prompts: the model is run on each, and what differs in its states is kept.

    direction = learn_direction(model, [("a red circle", "a blue circle"), ...], sampler, video, on="hidden")
    direction.save("red.safetensors")

Both prompts of a pair are sampled from the same noise. See `edit/direction.py` for what is stored.

Shape suffixes: E experts, L blocks, B batch, Q video positions, N text positions, D model dim.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from wanscope.capture.moments import Moment
from wanscope.edit.blocks import parse_blocks
from wanscope.edit.direction import Direction, DirectionManifest, Place, direction_of, weights_behind
from wanscope.edit.encoded_texts import DonorTexts
from wanscope.edit.planned_texts import PlannedText
from wanscope.errors import RecipeError
from wanscope.recipe import SamplerSpec
from wanscope.runtime.diffusers.session import attach
from wanscope.runtime.projection import Projection
from wanscope.sample.conditioning import Conditioning
from wanscope.sample.loop import denoise
from wanscope.sample.noise import initial_noise
from wanscope.sample.plan_edits import edit_plan
from wanscope.wan.text import encode

if TYPE_CHECKING:
    from wanscope.wan.model import Size, WanModel


@torch.no_grad()
def learn_direction(
    model: WanModel,
    pairs: Sequence[tuple[str, str]],
    sampler: SamplerSpec,
    video: Size,
    *,
    on: Place = "hidden",
    blocks: str = "all",
    seeds: Sequence[int] = (0,),
    negative: str = "",
    raw: Mapping[str, Tensor] | None = None,
    on_pair: Callable[[int, int], None] = lambda done, of: None,
) -> Direction:
    """The direction from the second prompts of `pairs` to the first ones.

    on: `context` takes the mean over a text's real tokens, and nothing is sampled; `hidden` the mean over the video's
    tokens and all cond passes, in the chosen `blocks` (from 1 on: all states are equal before the first has read its
    text), over all `seeds`. sampler: resolved. raw: embeddings [L, D] by text, where the texts are encoded already.
    on_pair(done, of): called after each pair. RecipeError for pairs that do not differ.
    """
    if not pairs or (on == "hidden" and not seeds):
        raise RecipeError("there is nothing to learn a direction from", "it takes pairs of prompts, and seeds", "")
    chosen = parse_blocks(blocks, model.blocks).indices
    if on == "hidden":
        chosen = tuple(block for block in chosen if block)
    if raw is None:
        texts = texts_of_pairs(pairs, negative)
        raw = {text: found.cpu() for text, found in zip(texts, encode(model, texts), strict=True)}
    differences = []
    for number, (first, second) in enumerate(pairs):
        if on == "context":
            differences.append(_context(model, raw[first]) - _context(model, raw[second]))
        else:
            for seed in seeds:
                states = [_hidden(model, raw, prompt, negative, sampler, video, seed) for prompt in (first, second)]
                differences.append(states[0] - states[1])
        on_pair(number + 1, len(pairs))
    keep_L = torch.zeros(model.blocks, dtype=torch.bool)
    keep_L[list(chosen)] = True
    manifest = DirectionManifest(
        on=on,
        model=model.spec or model.variant.name,
        weights=weights_behind(model.identity, model.loras),
        blocks=chosen,
        pairs=tuple((first, second) for first, second in pairs),
        seeds=tuple(seeds) if on == "hidden" else (),
        steps=(sampler.steps or 0) if on == "hidden" else 0,
    )
    return direction_of([torch.where(keep_L[:, None], d_ELD, 0.0) for d_ELD in differences], manifest)


def texts_of_pairs(pairs: Sequence[tuple[str, str]], negative: str) -> list[str]:
    """Every text that has to be encoded, each once."""
    return list(dict.fromkeys([negative, *(prompt for pair in pairs for prompt in pair)]))


def _context(model: WanModel, embedding_LD: Tensor) -> Tensor:
    """Mean over the real tokens of a projected text, the same for every block, [E, L, D]."""
    projection = Projection(model.experts(), model.text_length)
    text = PlannedText(embedding_LD, frozenset())
    means = [
        projection.of(expert)(text)[0, : len(embedding_LD)].double().mean(0).cpu()
        for expert in range(len(model.experts()))
    ]
    return torch.stack(means)[:, None].expand(-1, model.blocks, -1)


def _hidden(
    model: WanModel,
    raw: Mapping[str, Tensor],
    prompt: str,
    negative: str,
    sampler: SamplerSpec,
    video: Size,
    seed: int,
) -> Tensor:
    """Mean over positions and calls of what each block gets while `prompt` is sampled, [E, L, D]."""
    experts = len(model.experts())
    sums: list[Tensor] = []  # one, once the model's width is seen
    calls_EL1 = torch.zeros(experts, model.blocks, 1, dtype=torch.float64)

    def on_state(moment: Moment, block: int, x_BQD: Tensor) -> None:
        if "cond" not in moment.branches:
            return
        if not sums:
            sums.append(torch.zeros(experts, model.blocks, x_BQD.shape[-1], dtype=torch.float64))
        mean_D = x_BQD[moment.branches.index("cond")].float().mean(0)
        sums[0][moment.expert, block] += mean_D.double().cpu()
        calls_EL1[moment.expert, block] += 1

    texts = DonorTexts(prompt, negative, raw[prompt], raw[negative], raw, model.text_length)
    plan = edit_plan(model, (), texts, sampler, video)
    noise = initial_noise(model.latent_shape(video), seed)
    with attach(model, plan, on_state=on_state) as session:
        conditioning = Conditioning(raw[prompt], raw[negative])
        denoise(model, conditioning, sampler, noise, around_call=session.around_call)
    if not bool((calls_EL1 > 0).all()):
        expert = int((calls_EL1[:, 0, 0] == 0).nonzero()[0])
        raise RecipeError(
            f"expert {expert} made no call in {sampler.steps} steps", "nothing can be learned of it", "steps: 20"
        )
    return sums[0] / calls_EL1
