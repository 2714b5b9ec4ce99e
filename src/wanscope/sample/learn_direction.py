"""Learns a concept direction from pairs of prompts: the mean difference between the model's states for the two prompts.

    direction = learn_direction(model, [("a red circle", "a blue circle"), ...], sampler, video, on="hidden")
    direction.save("red.safetensors")

Both prompts of a pair are sampled from the same noise. See `edit/direction.py` for the format of
the file.

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
    """Return the direction from the second prompts of `pairs` to the first ones.

    on: `context` averages over the real tokens of the projected text, and nothing is sampled. `hidden` averages over
    the video's tokens and all cond passes, in the chosen `blocks` except block 0 (whose input comes before the
    first text attention), over all `seeds`. sampler: resolved. raw: text embeddings [tokens, text dim] by text, if the
    texts are already encoded. on_pair(done, of): called after each pair.

    Raises RecipeError if `pairs` (or, on `hidden`, `seeds`) are empty, if the pairs do not differ, or if an expert is
    not used in any step.
    """
    if not pairs or (on == "hidden" and not seeds):
        missing = "seeds" if pairs else "pairs of prompts"
        raise RecipeError("there is nothing to learn a direction from", f"no {missing} were given")
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
    """Return all texts that have to be encoded, without duplicates."""
    return list(dict.fromkeys([negative, *(prompt for pair in pairs for prompt in pair)]))


def _context(model: WanModel, embedding_LD: Tensor) -> Tensor:
    """Return the mean over the real tokens of a projected text, float64 [E, L, D]; it is the same for every block."""
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
    """Return the mean input of each block over positions and cond passes while sampling `prompt`, float64 [E, L, D]."""
    experts = len(model.experts())
    sums: list[Tensor] = []  # holds one tensor once the model's width is known
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
            f"expert {expert} was not used in any of {sampler.steps} steps",
            "a direction has a vector for each expert, and there are no states to learn this one from",
            "--set sampler.steps=20",
        )
    return sums[0] / calls_EL1
