"""Concept directions: learned from pairs of prompts, kept in files, and steered along.

WANSCOPE_DIRECTION is either pairs of raw texts, from which a model learns the direction while it samples, or a
direction that was learned before (`edit/direction.py`), of one expert. Files lie in `user/wanscope/directions` of
ComfyUI, and are those that `wanscope` writes and reads elsewhere too.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from wanscope.doors.comfy import catalog
from wanscope.doors.comfy.base import CONDITIONING, DIRECTION, MODEL, Inputs, Node, choice, number, shown, socket, text
from wanscope.doors.comfy.embeds import first_prompt
from wanscope.doors.comfy.native_nodes import BLOCKS, BRANCH, END, START, ModelEdit, edited, projection_of
from wanscope.doors.comfy.patterns import blocks_of
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
        "A direction in what blocks read: the mean difference between prompts with a concept and the same prompts "
        "without it. Several pairs that share nothing but the concept make a cleaner direction."
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
                raise RecipeError(f"pair {i} has one prompt", "a pair is a prompt with and one without", "connect both")
            if both[0] is not None:
                pairs.append((first_prompt(both[0]), first_prompt(both[1])))
        return shown(f"{len(pairs)} pairs", tuple(pairs))


class SteerModel(ModelEdit):
    TITLE = "Steer along Direction"
    DESCRIPTION = (
        "Moves every token of the prompt along a learned direction, as the chosen blocks read it; a direction of "
        "hidden states, which only a file can hold, moves the video's own tokens before the chosen blocks. `add`: "
        "strength times the learned difference, also below 0. `ablate`: the tokens' part along the direction is taken "
        "out. `rotate`: tokens turn toward it, their length kept."
    )
    REQUIRED: ClassVar[Inputs] = {
        "model": socket(MODEL, "A Wan model; the output is a copy with the edit."),
        "direction": socket(DIRECTION, "What Learn Concept Direction or Load Direction makes."),
        "operation": choice(("add", "ablate", "rotate"), "add", "What is done along the direction."),
        "strength": number(1.0, -10.0, 10.0, 0.05, "For add any number, for ablate and rotate from 0 to 1."),
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
        chosen = blocks_of(blocks, native.depth(model))
        if operation != "add" and not 0 <= strength <= 1:
            raise RecipeError(f"strength {strength:g} for {operation}", "it is a share, from 0 to 1", "strength: 1")
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
        said = f"{chosen.picture}\n{operation} on the {edit.on}: {chosen.describe()}"
        if stored is not None:
            said = f"{said}\n{weights_mismatch_note(stored, model)}".strip()
        return edited(model, live_edit, unique_id, said)


class SaveDirection(Node):
    TITLE = "Save Direction"
    CATEGORY = "wanscope/native"
    DESCRIPTION = (
        "Learns the direction of a model's context from the pairs now, and keeps it as a safetensors file with a "
        "manifest in `user/wanscope/directions`. It fits models of the same width and depth; for Wan 2.2 A14B connect "
        "both experts. A loaded direction is kept as it is. LoRAs on the text projection are not counted."
    )
    REQUIRED: ClassVar[Inputs] = {
        "direction": socket(DIRECTION, "What Learn Concept Direction makes."),
        "model": socket(MODEL, "The Wan model that it is learned on; of Wan 2.2 A14B the high-noise one."),
        "name": text("direction", "The file's name; a file of this name is replaced."),
    }
    OPTIONAL: ClassVar[Inputs] = {"model_2": socket(MODEL, "The low-noise expert of Wan 2.2 A14B.")}
    RETURN_TYPES = (DIRECTION, "STRING")
    RETURN_NAMES = ("direction", "file")
    OUTPUT_NODE = True

    def run(self, direction: Any, model: Any, name: str, model_2: Any = None) -> dict[str, Any]:
        path = place_of(name)
        if isinstance(direction, Direction):
            made = direction
        else:
            made = learned(tuple(direction), [model] if model_2 is None else [model, model_2])
        path.parent.mkdir(parents=True, exist_ok=True)
        made.save(path)
        return shown(f"kept as {path.name}: {described(made)}", direction, path.name)


class LoadDirection(Node):
    TITLE = "Load Direction"
    CATEGORY = "wanscope/native"
    DESCRIPTION = (
        "A direction from a file in `user/wanscope/directions`: one that Save Direction wrote, or that was learned "
        "with wanscope outside of ComfyUI and copied there, also of hidden states."
    )
    REQUIRED: ClassVar[Inputs] = {
        "name": text("direction", "The file's name."),
        "expert": choice(("high noise", "low noise"), "high noise", "Of a file with both experts of Wan 2.2 A14B."),
    }
    RETURN_TYPES = (DIRECTION, "STRING")
    RETURN_NAMES = ("direction", "report")

    @classmethod
    def IS_CHANGED(cls, name: str, **given: Any) -> str:
        path = place_of(name)
        return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else name

    def run(self, name: str, expert: str = "high noise") -> dict[str, Any]:
        path = place_of(name)
        if not path.is_file():
            there = sorted(file.stem for file in path.parent.glob("*.safetensors"))
            raise RecipeError(
                f"there is no direction {path.stem!r}",
                f"{nearest(path.stem, there)} {path.parent} holds {', '.join(there[:20]) or 'none'}".strip(),
                "Save Direction",
            )
        whole = read_direction(path)
        experts = len(whole.tensor_ELD)
        at = 1 if expert == "low noise" and experts > 1 else 0
        found = replace(whole, tensor_ELD=whole.tensor_ELD[at : at + 1])
        report = described(whole) + (f"; the {expert} expert" if experts > 1 else "")
        return shown(report, found, report)


def place_of(name: str) -> Path:
    """The file of a direction's name. RecipeError for a name that would lie elsewhere."""
    plain = name.strip().removesuffix(".safetensors")
    if not plain or plain != Path(plain).name or plain.startswith(".") or "\\" in plain or "\0" in plain:
        raise RecipeError(
            f"{name!r} is no name for a direction", "it is a file name without folders", "name: weathered"
        )
    return (catalog.folder() or Workspace.find().folder) / "directions" / f"{plain}.safetensors"


@torch.no_grad()
def learned(pairs: Pairs, models: list[Any]) -> Direction:
    """The context's direction [E, L, D] on one or two experts. Raises RecipeError."""
    inners = [native.diffusion_model(model) for model in models]
    depth = len(inners[0].blocks)
    if len({(len(inner.blocks), int(inner.dim)) for inner in inners}) > 1:
        raise RecipeError("the two models differ in size", "they are the experts of one model", "")
    means = [learned_direction(pairs, lambda rows, i=inner: projection_of(i)(rows)[None]).cpu() for inner in inners]
    manifest = DirectionManifest(
        on="context",
        model=f"a Wan model in ComfyUI, {depth} blocks of width {int(inners[0].dim)}",
        weights={f"{PROJECTION} {i}": _hash(inner.text_embedding) for i, inner in enumerate(inners)},
        blocks=tuple(range(depth)),
        pairs=tuple((_named(a_LD), _named(b_LD)) for a_LD, b_LD in pairs),
    )
    return direction_of([torch.stack(means)[:, None].expand(-1, depth, -1)], manifest)


def described(direction: Direction) -> str:
    """A sentence on where it was learned."""
    own = direction.manifest
    pairs = "1 pair" if len(own.pairs) == 1 else f"{len(own.pairs)} pairs"
    return f"{own.on} direction of {pairs}, learned on {own.model}"


def weights_mismatch_note(direction: Direction, model: Any) -> str:
    """That a direction saved here was learned on another text projection than a model's; empty where it was not.

    Of a file made outside of ComfyUI nothing is said: it names the model's files, and a loaded model does not.
    """
    own = {sha256 for name, sha256 in direction.manifest.weights.items() if name.startswith(PROJECTION)}
    if not own or _hash(native.diffusion_model(model).text_embedding) in own:
        return ""
    return (
        f"Note: the direction was learned on other weights ({direction.manifest.model}, another text projection), so "
        "in this model it may stand for something else."
    )


def _named(tokens_LD: Tensor) -> str:
    """What stands for a prompt's text, which conditioning does not carry: the embedding's own hash."""
    values = tokens_LD.detach().cpu().contiguous().view(torch.uint8).numpy()
    return f"embedding {hashlib.sha256(values.tobytes()).hexdigest()}"


def _hash(module: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        plain = value.detach().cpu().contiguous().reshape(-1)  # the scales of fp8 layers have no dimension
        digest.update(plain.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
