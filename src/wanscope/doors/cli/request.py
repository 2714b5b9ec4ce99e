"""Turn the options of `wanscope generate` into a request. Nothing here imports torch or writes a file.

The options override what the study file says. `--set key=value` reaches every setting; the short options are names for
the settings that are changed most.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wanscope.errors import RequestError
from wanscope.events import Note
from wanscope.recipe import Study
from wanscope.spec.strict_yaml import read_yaml
from wanscope.spec.validation import validated
from wanscope.study.read_request import STUDY_ENDINGS, Request, read_source
from wanscope.study.study_file import config_names, edit_with_paths, find_study_file, load_study_data
from wanscope.wan.experts import split_pair
from wanscope.workspace import Workspace

# Options that are short for one setting.
SETTINGS = {
    "template": "prompt",
    "negative": "negative",
    "model": "model",
    "vae": "components.vae",
    "text_encoder": "components.text_encoder",
    "tokenizer": "components.tokenizer",
    "name": "name",
    "dtype": "dtype",
    "width": "video.width",
    "height": "video.height",
    "frames": "video.frames",
    "duration": "video.duration",
    "steps": "sampler.steps",
    "guidance": "sampler.guidance",
    "start_step": "sampler.start_step",
    "denoise": "sampler.denoise",
}
# Two ways to set one thing: an option for one removes the other from the study file's settings.
RIVALS = (("video.frames", "video.duration"), ("sampler.start_step", "sampler.denoise"))


@dataclass(frozen=True)
class Options:
    """The options of the command. `values` holds the options in `SETTINGS` that were given."""

    source: str | None = None
    config: str | None = None
    seeds: str | None = None
    videos_per_variation: int | None = None
    sets: Sequence[str] = ()
    loras: Sequence[str] = ()
    from_take: str | None = None
    store_latents: bool | None = None
    store_attention: bool | None = None
    store_self_attention: Sequence[str] = ()
    edits: Sequence[str] = ()
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Wanted:
    """What to make: a study, or a take again. `notes` are shown to the user."""

    request: Request
    notes: tuple[Note, ...] = ()

    @property
    def study(self) -> Study | None:
        return self.request.study


def wanted(options: Options, workspace: Workspace) -> Wanted:
    """Read the options. Raises RequestError, RecipeError or TakeNotFound where they are not valid."""
    if options.source and options.config:
        raise RequestError(
            f"{options.source} and --config {options.config} are two studies",
            "one study is run at a time",
            f"wanscope generate {options.source}",
        )
    name = options.source or options.config
    changes = _changes(options, workspace)
    if name is None:
        if "prompt" in changes:
            return _study({}, changes, ())
        if options.from_take is not None:
            return _from_take(options.from_take, changes, (), workspace)
        raise RequestError(
            "there is nothing to generate",
            f"no study file and no --template was given; the packaged studies are {', '.join(config_names())}",
            'wanscope generate --template "a [red|blue] circle moves left"',
        )
    if not _is_study_file(name):
        _require_no_prompt(name)
        request = read_source(name, workspace)
        if not changes:
            return Wanted(request)
        note = Note(f"this is {name} with changes, not that take again")
        return _from_take(name, changes, (note,), workspace)
    data = load_study_data(name)
    # A study that names itself nothing has its file's name, unless another prompt makes it another study.
    if "name" not in data and changes.get("prompt", data.get("prompt")) == data.get("prompt"):
        data["name"] = find_study_file(name).stem
    return _study(data, changes, ())


def _is_study_file(name: str) -> bool:
    path, ending = Path(name), Path(name).suffix.lower()
    if ending in STUDY_ENDINGS or path.name in config_names():
        return True
    return os.path.isfile(path) and ending not in (".json", ".mp4")


def _require_no_prompt(name: str) -> None:
    if not os.path.exists(Path(name)) and any(c in name for c in " []|()"):
        raise RequestError(
            f"there is no study file {name!r}",
            "it reads like a prompt, and those are given with --template",
            f"wanscope generate --template {shlex.quote(name)}",
        )


def _study(data: dict[str, Any], changes: Mapping[str, Any], notes: tuple[Note, ...]) -> Wanted:
    before = data.get("prompt")
    data = apply(data, changes)
    if data.get("prompt") != before and "design" not in changes:
        data, dropped = _fitting_design(data)
        notes = (*notes, *dropped)
    if "prompt" not in data and data.keys() <= Study.model_fields.keys():  # `validated` reports a misspelled key
        raise RequestError(
            "there is no prompt", "the study file has none", '--template "a [red|blue] circle moves left"'
        )
    return Wanted(Request(study=validated(Study, data)), notes)


def _from_take(name: str, changes: Mapping[str, Any], notes: tuple[Note, ...], workspace: Workspace) -> Wanted:
    """Return a take's recipe with changes; what belongs to its model is dropped if the model changes."""
    data = _take_data(name, workspace)
    if changes.get("model", data["model"]) != data["model"]:
        data.pop("dtype", None)  # the other model's own
        lost = [key for key in ("components", "loras") if data.pop(key, None) and key not in changes]
        if lost:
            notes = (*notes, Note(f"{' and '.join(lost)} of {name} belong to {data['model']} and are left out"))
    return _study(data, changes, notes)


def _fitting_design(data: dict[str, Any]) -> tuple[dict[str, Any], tuple[Note, ...]]:
    """Return the data without the file's design where it names slots that the new prompt lacks."""
    from wanscope.prompt.template import parse

    design, prompt = data.get("design"), data.get("prompt")
    if not isinstance(design, dict) or not isinstance(prompt, str):
        return data, ()
    slots = {slot.name for slot in parse(prompt).slots}
    blocks = design.get("blocks", ())
    named = [design.get("factor"), *(blocks if isinstance(blocks, list | tuple) else ())]
    missing = [str(name) for name in named if name != "seed" and name not in slots]
    if not missing:
        return data, ()
    rest = {key: value for key, value in data.items() if key != "design"}
    return rest, (Note(f"the file's design is left out: the new prompt has no slot {', '.join(missing)}"),)


def _changes(options: Options, workspace: Workspace) -> dict[str, Any]:
    """Return {setting: value} of all options."""
    changes: dict[str, Any] = {}
    for text in options.sets:
        key, value = parse_set(text)
        changes[key] = value
    for option, key in SETTINGS.items():
        value = options.values.get(option)
        if value is None:
            continue
        if key in changes:
            flag = f"--{option.replace('_', '-')}"
            raise RequestError(f"{flag} and --set {key} set the same thing", "give one of them", f"{flag} {value}")
        changes[key] = value
    for key in ("components.vae", "components.text_encoder", "components.tokenizer"):
        if isinstance(changes.get(key), str):
            changes[key] = _absolute(changes[key])
    if isinstance(changes.get("model"), str):
        changes["model"] = absolute_model(changes["model"])
    if options.seeds is not None and options.videos_per_variation is not None:
        raise RequestError(
            "--seeds and --videos-per-variation set the same thing",
            "4 videos per variation are seeds 0 to 3",
            "--seeds 4",
        )
    if options.seeds is not None:
        changes["seeds"] = parse_seeds(options.seeds)
    if options.videos_per_variation is not None:
        changes["seeds"] = options.videos_per_variation
    if options.loras:
        changes["loras"] = [_absolute_lora(text) for text in options.loras]
    if options.edits:
        changes["edits"] = [edit_with_paths(text, _absolute) for text in options.edits]
    if options.from_take is not None:
        changes["init"] = {"take": _take_name(options.from_take, workspace)}
    if options.store_latents is not None:
        changes["capture.latents"] = options.store_latents
    if options.store_attention is not None:
        changes["capture.attention"] = options.store_attention
    if options.store_self_attention:
        changes["capture.self_attention.positions"] = list(options.store_self_attention)
    return changes


def parse_set(text: str) -> tuple[str, Any]:
    """Parse `sampler.steps=20` into the key and the value that YAML reads."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise RequestError(f"--set {text!r} is not key=value", "", "--set sampler.steps=20")
    parsed = read_yaml(f"value: {value}", f"--set {text!r}")["value"]
    # Plain text is kept whole: YAML would end it at a ' #'.
    plain = isinstance(parsed, str) and not value.lstrip().startswith(('"', "'"))
    return key.strip(), value.strip() if plain else parsed


def parse_seeds(text: str) -> int | list[int]:
    """Parse seeds: `4` is a number of seeds, `1,2,3` are the seeds themselves, and `7,` is the single seed 7."""
    try:
        numbers = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        numbers = []
    if not numbers:
        raise RequestError(f"--seeds {text!r} is not a number or a list", "4 means seeds 0 to 3", "--seeds 1,2,3")
    return numbers if "," in text else numbers[0]


def apply(data: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of `data` with every dotted key of `changes` set."""
    out = dict(data)
    for key, value in changes.items():
        for pair in RIVALS:
            if key in pair:
                other = pair[1 - pair.index(key)]
                if other not in changes:
                    out = _without(out, other.split("."))
        if key in ("capture.latents", "capture.attention") and value is True and _has(out, key.split(".")):
            continue  # the file says how they are kept
        out = _with(out, key.split("."), value, key)
    return out


def _has(data: Mapping[str, Any], path: Sequence[str]) -> bool:
    inner = data.get(path[0])
    return bool(inner) if len(path) == 1 else isinstance(inner, Mapping) and _has(inner, path[1:])


def _with(data: Any, path: Sequence[str], value: Any, key: str) -> Any:
    head, rest = path[0], path[1:]
    if isinstance(data, list):
        if not head.isdigit() or int(head) >= len(data):
            raise RequestError(f"--set {key}: there is no place {head!r}", f"the list has places 0 to {len(data) - 1}")
        place = int(head)
        return [*data[:place], _with(data[place], rest, value, key) if rest else value, *data[place + 1 :]]
    if data is not None and not isinstance(data, Mapping):
        raise RequestError(f"--set {key}: there is nothing below {data!r}", f"a plain value has no part {head!r}")
    inner = dict(data or {})
    inner[head] = _with(inner.get(head), rest, value, key) if rest else value
    return inner


def _without(data: dict[str, Any], path: Sequence[str]) -> dict[str, Any]:
    inner = data.get(path[0])
    if len(path) == 1:
        return {key: value for key, value in data.items() if key != path[0]}
    return {**data, path[0]: _without(inner, path[1:])} if isinstance(inner, dict) else data


def absolute_model(model: str) -> str:
    """Make the paths of files and folders absolute, so that a take made here can be made again from elsewhere."""
    return " + ".join(_absolute(part) for part in split_pair(model))


def _absolute(name: str) -> str:
    path = Path(os.path.expanduser(name))
    return os.path.abspath(path) if os.path.exists(path) else name


def _absolute_lora(text: str) -> str:
    if os.path.exists(Path(os.path.expanduser(text))):
        return _absolute(text)
    path, colon, weight = text.rpartition(":")
    return f"{_absolute(path)}:{weight}" if colon else text


def _take_name(name: str, workspace: Workspace) -> str:
    """Return the full id of a take in the workspace, or the folder of a take elsewhere."""
    folder = workspace.find_take(name)
    return folder.name if folder.parent == workspace.takes else str(folder)


def _take_data(name: str, workspace: Workspace) -> dict[str, Any]:
    """Return the study that makes only this take: its recipe with every setting written out."""
    from wanscope.doors.cli.again import study_data

    request = read_source(name, workspace)
    if request.study is not None:
        return request.study.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    if len(request.recipes) != 1:
        raise RequestError(f"{name} holds {len(request.recipes)} takes", "one can be changed at a time")
    return study_data(request.recipes[0])
