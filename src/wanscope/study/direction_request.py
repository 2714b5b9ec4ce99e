"""Learning a concept direction: the request is checked before any weights are loaded, then the direction is learned.

request = request_direction(variant, pairs, on="context")     # all checks that need no tokenizer
check(request, tokenizer, text_length, closed_vocabulary)     # lengths and words
learn(model, request).save("red.safetensors")
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from wanscope import events
from wanscope.edit.blocks import parse_blocks
from wanscope.errors import RecipeError, nearest
from wanscope.recipe import SamplerSpec, VideoSpec
from wanscope.spec.strict_yaml import read_yaml_file
from wanscope.spec.validation import validated
from wanscope.study.check_texts import check_length_and_words
from wanscope.study.expand import size_of
from wanscope.wan.variants import Variant, check_video

if TYPE_CHECKING:
    from wanscope.edit.direction import Direction
    from wanscope.wan.model import WanModel

Place = Literal["context", "hidden"]
PLACES: tuple[Place, ...] = ("context", "hidden")
EXAMPLE = "pairs: [[a red circle, a blue circle], [a red square, a blue square]]"


@dataclass(frozen=True)
class DirectionRequest:
    """Which direction is learned, with every setting decided.

    seeds, sampler and video are used only for hidden states.
    """

    pairs: tuple[tuple[str, str], ...]
    on: Place
    blocks: str
    seeds: tuple[int, ...]
    negative: str
    sampler: SamplerSpec
    video: VideoSpec

    @property
    def samplings(self) -> int:
        """How many videos are sampled: every prompt once per seed; 0 for the context."""
        return 2 * len(self.pairs) * len(self.seeds) if self.on == "hidden" else 0


def request_direction(
    variant: Variant,
    pairs: Any,
    *,
    on: str = "context",
    blocks: Any = "all",
    seeds: int | Sequence[int] | None = None,
    negative: str | None = None,
    sampler: Any = None,
    video: Any = None,
) -> DirectionRequest:
    """Return the checked request to learn a direction on a model of `variant`.

    pairs: two plain prompts each, (with the concept, without it). seeds: a count or a list, 1 seed by default. seeds,
    negative, sampler and video control the sampling that hidden states need, and are refused with `on="context"`.
    Raises RecipeError for a setting that is not possible or would do nothing.
    """
    if on not in PLACES:
        raise RecipeError(f"a direction of {on!r} cannot be learned", nearest(on, PLACES), "--on context")
    if on == "context":
        given = {"seeds": seeds, "negative": negative, "sampler": sampler or None, "video": video or None}
        unused = next((name for name, value in given.items() if value is not None), None)
        if unused is not None:
            raise RecipeError(
                f"{unused} is given for a direction of the context",
                "nothing is sampled to learn one, so the setting would do nothing",
                "--on hidden",
            )
    chosen = parse_blocks(blocks, variant.blocks).indices
    if not [block for block in chosen if block or on == "context"]:
        raise RecipeError(
            f"blocks {blocks!r} selects no block to learn in",
            "hidden states differ from block 1 on" if chosen else f"the model has blocks 0 to {variant.blocks - 1}",
            "--blocks all",
        )
    defaults = variant.defaults.values()
    size = validated(VideoSpec, video or {}, "video").resolved(defaults)
    check_video(variant, *size_of(size))
    steps = validated(SamplerSpec, sampler or {}, "sampler").resolved(defaults, variant.experts)
    if steps.start_step:
        raise RecipeError(
            f"sampler.start_step is {steps.start_step}",
            "a direction is learned on complete paths",
            "sampler.start_step=0",
        )
    own = str(variant.defaults.negative_prompt) if negative is None else negative
    if on == "context":
        own = ""  # not used
    return DirectionRequest(_pairs(pairs), on, str(blocks), _seeds(seeds), own, steps, size)


def _pairs(pairs: Any) -> tuple[tuple[str, str], ...]:
    if isinstance(pairs, str) or not isinstance(pairs, Sequence) or not pairs:
        raise RecipeError("there are no pairs of prompts", "a direction is what differs between them", EXAMPLE)
    out = []
    for number, pair in enumerate(pairs, 1):
        texts = [pair] if isinstance(pair, str) or not isinstance(pair, Sequence) else list(pair)
        if len(texts) != 2 or not all(isinstance(text, str) and text.strip() for text in texts):
            raise RecipeError(
                f"pair {number} is {pair!r}", "a pair is two prompts: with the concept, without it", EXAMPLE
            )
        if texts[0] == texts[1]:
            raise RecipeError(
                f"both prompts of pair {number} are {texts[0]!r}",
                "a direction is what differs between the two",
                EXAMPLE,
            )
        out.append((texts[0], texts[1]))
    return tuple(out)


def _seeds(seeds: int | Sequence[int] | None) -> tuple[int, ...]:
    chosen = list(range(1 if seeds is None else seeds)) if seeds is None or isinstance(seeds, int) else list(seeds)
    if not chosen or any(isinstance(seed, bool) or not isinstance(seed, int) or seed < 0 for seed in chosen):
        raise RecipeError(f"seeds is {seeds!r}", "it is a count or a list of whole numbers from 0 up", "--seeds 4")
    if len(set(chosen)) != len(chosen):
        raise RecipeError(f"seeds is {seeds!r}", "a seed is listed twice", "--seeds 4")
    return tuple(chosen)


def read_pairs(path: Path) -> tuple[tuple[str, str], ...]:
    """Return the pairs in a YAML file whose only key is `pairs:`, a list of lists of two prompts.

    Raises RecipeError for any other file.
    """
    data = read_yaml_file(path, f"the file of pairs {str(path)!r}", "a file of pairs", EXAMPLE)
    if list(data) != ["pairs"]:
        extra = next((key for key in data if key != "pairs"), None)
        why = f"{extra!r} is not a known key" if extra is not None else "its key 'pairs' is missing"
        raise RecipeError(f"{path} is not a file of pairs", why, EXAMPLE)
    return _pairs(data["pairs"])


def check(request: DirectionRequest, tokenizer: Any, text_length: int, closed_vocabulary: bool) -> None:
    """Raise RecipeError for a prompt that is longer than `text_length` tokens, or that has words outside a closed
    vocabulary.
    """
    texts = {
        f"prompt {'AB'[place]} of pair {number}": text
        for number, pair in enumerate(request.pairs, 1)
        for place, text in enumerate(pair)
    }
    check_length_and_words(
        tokenizer, {**texts, "the negative prompt": request.negative}, text_length, closed_vocabulary
    )


def learn(
    model: WanModel,
    request: DirectionRequest,
    *,
    on_pair: Callable[[int, int], None] = lambda done, of: None,
    on_event: events.Listener = events.ignore,
) -> Direction:
    """Learn the direction and return it.

    The text encoder and then the transformer are moved to the device where they run. on_pair(done, of): called after
    each pair.
    """
    from wanscope.sample.learn_direction import learn_direction, texts_of_pairs
    from wanscope.wan import placement
    from wanscope.wan.text import encode

    texts = texts_of_pairs(request.pairs, request.negative)
    placement.place_encoder(model)
    raw = {text: found.cpu() for text, found in zip(texts, encode(model, texts), strict=True)}
    batch = 2 if request.sampler.cfg_batched else 1
    placement.place(model, *size_of(request.video), batch=batch, on_event=on_event)
    return learn_direction(
        model,
        request.pairs,
        request.sampler,
        request.video,
        on=request.on,
        blocks=request.blocks,
        seeds=request.seeds,
        negative=request.negative,
        raw=raw,
        on_pair=on_pair,
    )
