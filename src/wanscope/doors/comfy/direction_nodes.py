"""Nodes for concept directions: learn them from pairs of prompts, save and load them, steer along them.

WANSCOPE_DIRECTION is either pairs of raw embeddings, from which the direction is learned with a model's projection
while it samples, or a direction learned earlier (`edit/direction.py`), for one expert. The files are in ComfyUI's
`user/wanscope/directions` and have the same format as those of the command line.

Shape suffixes: E experts, L tokens or (of a direction) blocks, D dimensions.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from wanscope.doors.comfy import catalog
from wanscope.doors.comfy.base import (
    CONDITIONING,
    DIRECTION,
    MODEL,
    Inputs,
    Node,
    choice,
    node_output,
    number,
    socket,
    text,
)
from wanscope.doors.comfy.embeds import first_prompt
from wanscope.doors.comfy.native_nodes import BLOCKS, BRANCH, END, START, ModelEdit, edited_model_output, projection_of
from wanscope.doors.comfy.patterns import parse_block_input
from wanscope.edit.direction import Direction, DirectionManifest, direction_of, read_direction
from wanscope.edit.edits import Steer
from wanscope.errors import RecipeError, nearest
from wanscope.runtime.comfy import native
from wanscope.runtime.comfy.direction import learned_direction
from wanscope.runtime.comfy.live import CONNECTED, LiveEdit
from wanscope.workspace import Workspace

Pairs = tuple[tuple[Tensor, Tensor], ...]
PROJECTION = "text_embedding of expert"


class LearnDirection(Node):
    TITLE = "Learn Concept Direction"
    CATEGORY = "wanscope/native"
    DESCRIPTION = (
        "Learns a direction in the space of the context: the mean difference between prompts with a concept and the "
        "same prompts without it. Several pairs that share nothing but the concept give a cleaner direction."
    )
    REQUIRED: ClassVar[Inputs] = {
        "with_1": socket(CONDITIONING, "A prompt with the concept."),
        "without_1": socket(CONDITIONING, "The same prompt without it."),
    }
    OPTIONAL: ClassVar[Inputs] = {
        f"{name}_{i}": socket(CONDITIONING, f"Pair {i}.") for i in (2, 3, 4) for name in ("with", "without")
    }
    RETURN_TYPES = (DIRECTION,)
    RETURN_NAMES = ("direction",)

    def run(self, **given: Any) -> dict[str, Any]:
        pairs: list[tuple[Tensor, Tensor]] = []
        for i in (1, 2, 3, 4):
            both = [given.get(f"{name}_{i}") for name in ("with", "without")]
            if (both[0] is None) != (both[1] is None):
                raise RecipeError(
                    f"pair {i} has only one prompt",
                    "a pair is one prompt with the concept and one without it",
                    f"connect both with_{i} and without_{i}",
                )
            if both[0] is not None:
                pairs.append((first_prompt(both[0]), first_prompt(both[1])))
        return node_output(f"{len(pairs)} pairs", tuple(pairs))


class SteerModel(ModelEdit):
    TITLE = "Steer along Direction"
    DESCRIPTION = (
        "Moves every token of the context that the chosen blocks read along a learned direction. A direction of hidden "
        "states, which only a file can hold, moves the video tokens before the chosen blocks instead. `add`: adds the "
        "learned difference times strength, which may be negative. `ablate`: removes the tokens' component along the "
        "direction. `rotate`: turns the tokens toward it and keeps their length."
    )
    REQUIRED: ClassVar[Inputs] = {
        "model": socket(MODEL, "A Wan model; the output is a copy with the edit."),
        "direction": socket(DIRECTION, "The output of Learn Concept Direction or Load Direction."),
        "operation": choice(("add", "ablate", "rotate"), "add", "The operation along the direction."),
        "strength": number(1.0, -10.0, 10.0, 0.05, "Any number for add; from 0 to 1 for ablate and rotate."),
        "blocks": BLOCKS,
        "start_percent": START,
        "end_percent": END,
        "branch": BRANCH,
    }

    def run(
        self,
        model: Any,
        direction: Any,
        operation: str,
        strength: float,
        blocks: Any,
        start_percent: float,
        end_percent: float,
        branch: str,
        unique_id: str | None = None,
    ) -> dict[str, Any]:
        chosen = parse_block_input(blocks, native.depth(model))
        if operation != "add" and not 0 <= strength <= 1:
            raise RecipeError(f"strength {strength:g} for {operation}", "it must be from 0 to 1", "strength: 1")
        stored, pairs = (direction, ()) if isinstance(direction, Direction) else (None, tuple(direction))
        if stored is not None:
            inner = native.diffusion_model(model)
            stored.require_model(1, len(inner.blocks), int(inner.dim), self.TITLE)
            stored.require(stored.manifest.on, chosen.indices, self.TITLE)
        edit = Steer(
            CONNECTED,
            operation=operation,
            on=stored.manifest.on if stored else "context",
            strength=strength,
            blocks=chosen.ranges,
            branch=branch,
        )
        live_edit = LiveEdit(edit, pairs=pairs, direction=stored, start=start_percent, end=end_percent)
        summary = f"{chosen.picture}\n{operation} on the {edit.on}: {chosen.describe()}"
        if stored is not None:
            summary = f"{summary}\n{weights_mismatch_note(stored, model)}".strip()
        return edited_model_output(model, live_edit, unique_id, summary)


class SaveDirection(Node):
    TITLE = "Save Direction"
    CATEGORY = "wanscope/native"
    DESCRIPTION = (
        "Learns the direction in a model's context from the pairs and saves it as a safetensors file with a manifest "
        "in `user/wanscope/directions`. The file fits models of the same width and depth; for Wan 2.2 A14B connect "
        "both experts. A loaded direction is saved unchanged. LoRAs on the text projection are ignored."
    )
    REQUIRED: ClassVar[Inputs] = {
        "direction": socket(DIRECTION, "The output of Learn Concept Direction."),
        "model": socket(MODEL, "The Wan model it is learned with; for Wan 2.2 A14B the high-noise expert."),
        "name": text("direction", "The file's name; an existing file with this name is replaced."),
    }
    OPTIONAL: ClassVar[Inputs] = {"model_2": socket(MODEL, "The low-noise expert of Wan 2.2 A14B.")}
    RETURN_TYPES = (DIRECTION, "STRING")
    RETURN_NAMES = ("direction", "file")
    OUTPUT_NODE = True

    def run(self, direction: Any, model: Any, name: str, model_2: Any = None) -> dict[str, Any]:
        path = direction_path(name)
        if isinstance(direction, Direction):
            made = direction
        else:
            made = learn_direction(tuple(direction), [model] if model_2 is None else [model, model_2])
        path.parent.mkdir(parents=True, exist_ok=True)
        made.save(path)
        return node_output(f"saved as {path.name}: {describe_direction(made)}", direction, path.name)


class LoadDirection(Node):
    TITLE = "Load Direction"
    CATEGORY = "wanscope/native"
    DESCRIPTION = (
        "Loads a direction from a file in `user/wanscope/directions`: one that Save Direction wrote, or one that was "
        "learned with wanscope outside ComfyUI and copied there, for the context or hidden states."
    )
    REQUIRED: ClassVar[Inputs] = {
        "name": text("direction", "The file's name."),
        "expert": choice(
            ("high noise", "low noise"), "high noise", "Which expert, if the file holds both experts of Wan 2.2 A14B."
        ),
    }
    RETURN_TYPES = (DIRECTION, "STRING")
    RETURN_NAMES = ("direction", "report")

    @classmethod
    def IS_CHANGED(cls, name: str, **given: Any) -> str:
        path = direction_path(name)
        return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else name

    def run(self, name: str, expert: str = "high noise") -> dict[str, Any]:
        path = direction_path(name)
        if not path.is_file():
            there = sorted(file.stem for file in path.parent.glob("*.safetensors"))
            raise RecipeError(
                f"there is no direction {path.stem!r}",
                f"{nearest(path.stem, there)} {path.parent} holds {', '.join(there[:20]) or 'none'}".strip(),
                "Save Direction",
            )
        loaded = read_direction(path)
        experts = len(loaded.tensor_ELD)
        at = 1 if expert == "low noise" and experts > 1 else 0
        found = replace(loaded, tensor_ELD=loaded.tensor_ELD[at : at + 1])
        report = describe_direction(loaded) + (f"; the {expert} expert" if experts > 1 else "")
        return node_output(report, found, report)


def direction_path(name: str) -> Path:
    """Return the file of a direction by name. Raises RecipeError for a name with a folder or a leading dot."""
    plain = name.strip().removesuffix(".safetensors")
    if not plain or plain != Path(plain).name or plain.startswith(".") or "\\" in plain or "\0" in plain:
        raise RecipeError(
            f"{name!r} is not a name for a direction", "it must be a file name without folders", "name: weathered"
        )
    return (catalog.folder() or Workspace.find().folder) / "directions" / f"{plain}.safetensors"


@torch.no_grad()
def learn_direction(pairs: Pairs, models: list[Any]) -> Direction:
    """Learn the context direction [E, L, D] from pairs of raw embeddings [tokens, text dim], for one or two experts.

    It is the same in all L blocks. Raises RecipeError for no pairs, identical prompts, or models of different sizes.
    """
    inners = [native.diffusion_model(model) for model in models]
    depth = len(inners[0].blocks)
    if len({(len(inner.blocks), int(inner.dim)) for inner in inners}) > 1:
        raise RecipeError(
            "the two models differ in size", "they must be the two experts of one model", "disconnect model_2"
        )
    means = [learned_direction(pairs, lambda rows, i=inner: projection_of(i)(rows)[None]).cpu() for inner in inners]
    manifest = DirectionManifest(
        on="context",
        model=f"a Wan model in ComfyUI, {depth} blocks of width {int(inners[0].dim)}",
        weights={f"{PROJECTION} {i}": _hash(inner.text_embedding) for i, inner in enumerate(inners)},
        blocks=tuple(range(depth)),
        pairs=tuple((_embedding_id(a_LD), _embedding_id(b_LD)) for a_LD, b_LD in pairs),
    )
    return direction_of([torch.stack(means)[:, None].expand(-1, depth, -1)], manifest)


def describe_direction(direction: Direction) -> str:
    """Return a phrase that says from how many pairs and with which model a direction was learned."""
    own = direction.manifest
    pairs = "1 pair" if len(own.pairs) == 1 else f"{len(own.pairs)} pairs"
    return f"{own.on} direction of {pairs}, learned on {own.model}"


def weights_mismatch_note(direction: Direction, model: Any) -> str:
    """Return a note if a direction saved here was learned with another text projection than the model's, else "".

    A file made outside ComfyUI gives no note: it records the model's files, which a loaded model does not name.
    """
    own = {sha256 for name, sha256 in direction.manifest.weights.items() if name.startswith(PROJECTION)}
    if not own or _hash(native.diffusion_model(model).text_embedding) in own:
        return ""
    return (
        f"Note: the direction was learned on other weights ({direction.manifest.model}, another text projection), so "
        "it may mean something else in this model."
    )


def _embedding_id(tokens_LD: Tensor) -> str:
    """Return the hash of an embedding [L, D], which replaces the prompt's text that conditioning does not carry."""
    values = tokens_LD.detach().cpu().contiguous().view(torch.uint8).numpy()
    return f"embedding {hashlib.sha256(values.tobytes()).hexdigest()}"


def _hash(module: torch.nn.Module) -> str:
    """Return the SHA-256 of a module's parameters and buffers."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        plain = value.detach().cpu().contiguous().reshape(-1)  # the scales of fp8 layers have no dimension
        digest.update(plain.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
