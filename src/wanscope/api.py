"""The functions of `import wanscope as ws` that combine several modules: one take at a time, on a loaded model.

import wanscope as ws

model = ws.load("marbles")
take = ws.generate(model, "a red (circle) moves left on a black background", seed=1, capture=ws.Capture(latents=True))
take.frames, take.latents, take.gram
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wanscope import events
from wanscope.errors import RecipeError, nearest
from wanscope.prompt.template import count
from wanscope.recipe import CaptureSpec, SamplerSpec, Study, VideoSpec
from wanscope.spec.validation import validated
from wanscope.take.store import Take
from wanscope.workspace import Workspace

if TYPE_CHECKING:
    from torch import Tensor

    from wanscope.edit.difference import Difference
    from wanscope.edit.direction import Direction
    from wanscope.wan.model import WanModel

BLOCKS: dict[str, type[VideoSpec | SamplerSpec]] = {"video": VideoSpec, "sampler": SamplerSpec}
WHOLE = ("negative", "weights", "init", "edits")


def generate(
    model: WanModel,
    prompt: str,
    *,
    seed: int = 0,
    capture: CaptureSpec | None = None,
    workspace: Workspace | Path | str | None = None,
    on_event: events.Listener = events.ignore,
    interrupt: Callable[[], bool] = lambda: False,
    **settings: Any,
) -> Take:
    """Make one video of `prompt` on a loaded model and return it as a Take in the workspace.

    settings: negative, weights, init; edits (one or several: Inject, Bend, Steer, Skip, Prompts, or their shorthand);
    the settings of the video (width, height, frames, duration, fps) and of the sampler (solver, steps, shift, guidance
    and so on), or `video=` and `sampler=` as a whole. The model's own values are used for what is left out. A take that
    already exists with the requested captures is opened and not made again.

    Raises what `run` raises, and the take's own error where making it fails.
    """
    from wanscope.study.read_request import Request
    from wanscope.study.run import run

    variations = count(prompt)
    if variations != 1:
        raise RecipeError(
            f"this prompt makes {variations:,} videos",
            "generate makes one; a template with alternatives is a study",
            "wanscope.run({'prompt': ..., 'seeds': 1}, model=model)",
        )
    data: dict[str, Any] = {"prompt": prompt, "seeds": [seed], "name": "generated", "baseline": False}
    data |= _grouped(settings)
    study = validated(Study, data)
    if capture is not None:
        study = study.model_copy(update={"capture": capture})
    request = Request(study=study, loose=True)
    result = run(request, workspace=workspace, model=model, on_event=on_event, interrupt=interrupt)
    if result.failed:
        raise result.failed[0].exception
    return result.takes[0]


def _grouped(settings: dict[str, Any], verb: str = "generate", whole: Sequence[str] = WHOLE) -> dict[str, Any]:
    """Group flat keywords under `video` and `sampler`; keywords in `whole` belong to neither.

    Raises RecipeError for a keyword that is not known. verb: the function's name, for that error.
    """
    known = {field: block for block, kind in BLOCKS.items() for field in kind.model_fields}
    data: dict[str, Any] = {}
    for key, value in settings.items():
        if key in BLOCKS or key in whole:
            data[key] = value
        elif key not in known:
            raise RecipeError(f"{verb} has no setting {key!r}", nearest(key, [*known, *BLOCKS, *whole]))
    for key in [key for key in settings if key in known]:
        block = data.get(known[key], {})
        if not isinstance(block, dict):
            block = block.model_dump(exclude_unset=True)
        data[known[key]] = {**block, key: settings[key]}
    return data


def difference(model: WanModel, a: str | Tensor, b: str | Tensor, *, top: int = 10) -> Difference:
    """Measure how far prompt `b` is from prompt `a`: relative L2, cosine and norm ratio over real tokens.

    a, b: prompts, or raw embeddings [L, D] (L real tokens, D text dimension). The projection is the transformer's own
    (for Wan 2.2, the high-noise expert's). `wanscope.edit.difference.render_difference(found)` returns the result as
    text, and `found.advice` is a sentence. Raises RecipeError for a prompt that the model cannot read, and ModelError
    where prompts are given and the text encoder has been freed.
    """
    from wanscope.edit.difference import measure_difference
    from wanscope.study.check_texts import check_length_and_words
    from wanscope.wan.text import encode

    prompts = {f"prompt {name}": text for name, text in (("A", a), ("B", b)) if isinstance(text, str)}
    check_length_and_words(model.tokenizer, prompts, model.text_length, model.variant.closed_vocabulary)
    a_LD, b_LD = (encode(model, [text])[0] if isinstance(text, str) else text for text in (a, b))
    projection = model.transformer.condition_embedder.text_embedder
    return measure_difference(a_LD, b_LD, projection, top=top, text_length=model.text_length)


def learn_direction(
    model: WanModel,
    pairs: Sequence[tuple[str, str]] | Path | str,
    *,
    on: str = "context",
    blocks: Any = "all",
    seeds: int | Sequence[int] | None = None,
    negative: str | None = None,
    on_pair: Callable[[int, int], None] = lambda done, of: None,
    **settings: Any,
) -> Direction:
    """Learn the concept direction from the second prompts of `pairs` to the first ones, for `Steer`.

    pairs: two plain prompts each, (with the concept, without it), or a YAML file of them. on: `context`, where nothing
    is sampled, or `hidden`, where every prompt is sampled, both prompts of a pair from the same noise. seeds (a count
    or a list), negative and the settings of sampler and video (as in `generate`) are for `hidden` only. blocks: the
    blocks whose hidden states are used. on_pair(done, of): called after each pair. `.save(path)` writes the direction.

    Raises RecipeError before any work for invalid pairs, blocks that the model does not have, prompts that it cannot
    read and settings that would do nothing, and later where the prompts do not differ for the model.
    """
    from wanscope.study import direction_request

    data = _grouped(settings, "learn_direction", ())
    found = direction_request.read_pairs(Path(os.path.expanduser(pairs))) if isinstance(pairs, str | Path) else pairs
    request = direction_request.request_direction(
        model.variant, found, on=on, blocks=blocks, seeds=seeds, negative=negative, **data
    )
    direction_request.check(request, model.tokenizer, model.text_length, model.variant.closed_vocabulary)
    return direction_request.learn(model, request, on_pair=on_pair)


def open_take(name: str | Path, workspace: Workspace | Path | str | None = None) -> Take:
    """Open a take by its id, the start of its id, its folder, or a file in or link to that folder.

    Raises TakeNotFound or DamagedTake.
    """
    return Take.open(Workspace.find(workspace).find_take(name))
