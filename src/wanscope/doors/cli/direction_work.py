"""`wanscope direction learn` and `show`: the whole request is checked before any weight is loaded."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wanscope.doors.cli import output as out
from wanscope.doors.cli.options import MEMORY
from wanscope.doors.cli.process import prepare_process
from wanscope.doors.cli.request import absolute_model, apply, parse_seeds, parse_set
from wanscope.errors import RequestError, nearest
from wanscope.study import direction_request
from wanscope.take.disk import guarded, require_writable

if TYPE_CHECKING:
    from wanscope.edit.direction import Direction

BLOCKS = ("sampler", "video")


@dataclass(frozen=True)
class LearnOptions:
    """The options of the command."""

    pairs: Path
    out: Path
    model: str
    on: str
    blocks: str
    seeds: str | None
    negative: str | None
    sets: Sequence[str]
    device: str
    dtype: str
    memory: str


def run_learn(options: LearnOptions, json: bool) -> int:
    if options.memory not in MEMORY:
        raise RequestError(f"--memory {options.memory} is not known", nearest(options.memory, MEMORY), "--memory auto")
    pairs = direction_request.read_pairs(Path(os.path.expanduser(options.pairs)))
    path = _new_file(Path(os.path.expanduser(options.out)))
    settings = _settings(options.sets)
    prepare_process()
    from wanscope import events
    from wanscope.study.recipe_model import ModelKey, find, tokenizer_of
    from wanscope.wan.load import load, pick_device

    pick_device(options.device)
    key = ModelKey(absolute_model(options.model), options.dtype)
    variant = find(key, events.ignore).variant
    request = direction_request.request_direction(
        variant,
        pairs,
        on=options.on,
        blocks=options.blocks,
        seeds=None if options.seeds is None else parse_seeds(options.seeds),
        negative=options.negative,
        **settings,
    )
    tokenizer, length = tokenizer_of(key)
    direction_request.check(request, tokenizer, length, variant.closed_vocabulary)
    require_writable(path.parent)
    tell = (lambda _: None) if json else out.say
    tell(_sized(request))
    model = load(key.name, device=options.device, dtype=options.dtype, memory=options.memory)

    def on_pair(done: int, of: int) -> None:
        if request.samplings:
            tell(f"pair {done} of {of}")

    def on_event(event: events.Event) -> None:
        if isinstance(event, events.Note):
            tell(event.text)

    direction = direction_request.learn(model, request, on_pair=on_pair, on_event=on_event)
    with guarded(path.parent):
        direction.save(path)
    if json:
        out.document({"file": str(path), **_data(direction)})
        return 0
    where = out.shown_path(path)
    on = "" if request.on == "context" else " on hidden"
    out.say(f"The direction: {where}")
    out.say(f'Use it: wanscope generate --template "..." --edit "steer {where} ablate{on} in {_blocks(direction)}"')
    return 0


def run_show(path: Path, json: bool) -> int:
    if not os.path.isfile(Path(os.path.expanduser(path))):
        raise RequestError(f"there is no file {path}", "", "wanscope direction learn PAIRS --out FILE")
    from wanscope.edit.direction import read_direction

    direction = read_direction(path)
    data = _data(direction)
    if json:
        out.document({"file": str(path), **data})
        return 0
    own = direction.manifest
    facts = [("on", own.on), ("model", own.model), ("blocks", _blocks(direction)), ("pairs", str(len(own.pairs)))]
    if own.on == "hidden":
        facts += [("seeds", ", ".join(map(str, own.seeds))), ("steps", str(own.steps))]
    out.facts([*facts, ("dimensions", str(data["dimensions"]))])
    out.say()
    rows = [
        [str(expert), str(block), f"{length:.4g}"]
        for expert, lengths in enumerate(data["lengths"])
        for block, length in enumerate(lengths)
        if block in own.blocks
    ]
    out.table(("expert", "block", "length"), rows, right=("expert", "block", "length"))
    out.say()
    for number, (first, second) in enumerate(own.pairs, 1):
        out.say(f"{number}  {first}")
        out.say(f"{' ' * len(str(number))}  {second}")
    return 0


def _new_file(path: Path) -> Path:
    """Check that the path names a new .safetensors file, before the work: learning on a large model takes long."""
    if path.suffix != ".safetensors":
        raise RequestError(
            f"--out {path} is not a .safetensors file",
            "a direction is written in that format",
            f"--out {path.with_suffix('.safetensors')}",
        )
    if os.path.exists(path):
        raise RequestError(
            f"--out {path} already exists",
            "a direction is written to a new file",
            f"--out {path.with_stem(path.stem + '-2')}",
        )
    return path


def _settings(sets: Sequence[str]) -> dict[str, Any]:
    changes = dict(map(parse_set, sets))
    for key in changes:
        block, dot, _ = key.partition(".")
        if block not in BLOCKS or not dot:
            raise RequestError(
                f"--set {key} is not a setting of learning",
                "only settings of sampler and video are",
                "--set sampler.steps=10",
            )
    return apply({}, changes)


def _sized(request: direction_request.DirectionRequest) -> str:
    pairs = f"{len(request.pairs)} pair{'s'[: len(request.pairs) != 1]}"
    if not request.samplings:
        return f"{pairs} of prompts; nothing is sampled"
    seeds = f"{len(request.seeds)} seed{'s'[: len(request.seeds) != 1]}"
    return f"{pairs} of prompts x {seeds}: {request.samplings} samplings of {request.sampler.steps} steps"


def _blocks(direction: Direction) -> str:
    from wanscope.edit.blocks import parse_blocks

    return parse_blocks(list(direction.manifest.blocks), direction.tensor_ELD.shape[1]).ranges


def _data(direction: Direction) -> dict[str, Any]:
    lengths_EL = direction.tensor_ELD.norm(dim=-1)
    return {
        **asdict(direction.manifest),
        "dimensions": direction.tensor_ELD.shape[-1],
        "lengths": [[float(length) for length in row] for row in lengths_EL],
    }
