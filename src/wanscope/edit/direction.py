"""Concept directions for `steer`: the difference of a model's activations between two kinds of prompts.

A direction is a difference of means: the mean over pairs of prompts of the difference between the activations for the
first and the second prompt, for each expert and block, at one site: `context` (the projected text, mean over its real
tokens; the same in every block) or `hidden` (a block's input, mean over the video's tokens and the steps). It is not
normalized, so `add` at strength 1 moves activations by as much as the prompts of a pair differ on average.

It is stored as one safetensors file: the tensor `direction`, float32 [E, L, D], and a manifest in the metadata.
Sources: Turner et al. 2023 (arXiv 2308.10248) and Arditi et al. 2024 (arXiv 2406.11717), who use differences of means
and project directions out in language models.

Shape suffixes: E experts, L blocks, D model dim.
"""

from __future__ import annotations

import glob
import json
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from wanscope.edit.blocks import parse_blocks
from wanscope.errors import RecipeError
from wanscope.spec.strict_json import read_json

STALE_SECONDS = 3600  # an unfinished file that is older belongs to a killed process
KEY, TENSOR = "wanscope_direction", "direction"
VERSION = 1
Place = Literal["context", "hidden"]


@dataclass(frozen=True)
class DirectionManifest:
    """How a direction was learned. weights: as returned by `weights_behind`. blocks: those it was learned in."""

    on: Place
    model: str
    weights: dict[str, str]
    blocks: tuple[int, ...]
    pairs: tuple[tuple[str, str], ...]
    seeds: tuple[int, ...] = ()
    steps: int = 0
    version: int = VERSION


@dataclass(frozen=True, eq=False)
class Direction:
    """A direction, float32 [E, L, D], and how it was learned. It is zero in blocks outside `manifest.blocks`."""

    tensor_ELD: Tensor
    manifest: DirectionManifest

    def at(self, expert: int, block: int) -> Tensor:
        """Return the direction in one block of one expert, float32 [D]."""
        return self.tensor_ELD[expert, block]

    def require(self, on: str, chosen: tuple[int, ...], where: str) -> None:
        """Raise RecipeError unless the direction was learned at this site and in all `chosen` blocks.

        where: the edit's name, for the message.
        """
        if self.manifest.on != on:
            raise RecipeError(
                f"{where} steers {on} with a direction learned on {self.manifest.on}",
                "these are different spaces",
                f"on: {self.manifest.on}",
            )
        missing = sorted(set(chosen) - set(self.manifest.blocks))
        if missing:
            count = self.tensor_ELD.shape[1]
            learned = parse_blocks(list(self.manifest.blocks), count).ranges
            raise RecipeError(
                f"{where}: the direction was not learned in block {missing[0]}",
                f"it was learned in blocks {learned}",
                f"blocks: {learned}",
            )

    def require_model(self, experts: int, blocks: int, dim: int, where: str) -> None:
        """Raise RecipeError unless the direction has the shape [experts, blocks, dim] of a model.

        where: the edit's name, for the message.
        """
        if tuple(self.tensor_ELD.shape) != (experts, blocks, dim):
            have = " x ".join(str(size) for size in self.tensor_ELD.shape)
            raise RecipeError(
                f"{where}: the direction does not fit this model",
                f"its shape is {have} (experts x blocks x dimensions), the model's is {experts} x {blocks} x {dim}; "
                f"it was learned on {self.manifest.model}",
                "use a direction learned on this model",
            )

    def weights_mismatch_note(self, weights: Mapping[str, str]) -> str:
        """Return a note if the direction was learned on weights other than these, or if that is unknown; else "".

        weights: as returned by `weights_behind`. Using other weights may be intended (a fine-tune, a LoRA), so this is
        a note and not an error.
        """
        own = self.manifest.weights
        if not any(name in own for name in weights):
            return (
                f"the direction was learned on {self.manifest.model}; its file does not name the weights of that "
                "model's transformer, so whether they are this model's is not known"
            )
        other = [name.split()[0] for name in {**own, **weights} if own.get(name) != weights.get(name)]
        if not other:
            return ""
        return (
            f"the direction was learned on other weights ({self.manifest.model}; not the same: "
            f"{', '.join(dict.fromkeys(other))}), so in this model it may stand for something else"
        )

    def save(self, path: Path | str) -> None:
        """Write the file atomically. Raises RecipeError unless `path` ends in .safetensors."""
        from safetensors.torch import save_file

        path = Path(path)
        if path.suffix != ".safetensors":
            raise RecipeError(
                f"a direction cannot be saved as {path.name}",
                "directions are .safetensors files",
                f"{path.stem}.safetensors",
            )
        for left in path.parent.glob(f".{glob.escape(path.name)}.*.new"):  # of killed processes
            if time.time() - left.stat().st_mtime > STALE_SECONDS:
                left.unlink(missing_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.new")  # two processes may learn the same one at once
        try:
            save_file({TENSOR: self.tensor_ELD.contiguous()}, temporary, {KEY: json.dumps(asdict(self.manifest))})
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def weights_behind(parts: Mapping[str, str], loras: Iterable[Any]) -> dict[str, str]:
    """Return the weights that a direction is learned on: name -> SHA-256 of a model's transformers and LoRA files.

    parts: name -> SHA-256 of all parts of a model.
    """
    files = sorted((lora.sha256 or "", lora.expert, lora.weight) for lora in loras)
    return {
        **{name: sha256 for name, sha256 in parts.items() if name.startswith("transformer")},
        **{f"LoRA {i} ({expert}, {weight:g})": sha256 for i, (sha256, expert, weight) in enumerate(files, 1)},
    }


def direction_of(differences_ELD: list[Tensor], manifest: DirectionManifest) -> Direction:
    """Return the direction that is the mean of the differences [E, L, D], one per pair and seed.

    Raises RecipeError if the mean is zero in a block of `manifest.blocks`.
    """
    mean_ELD = torch.stack([d.double() for d in differences_ELD]).mean(0)
    lengths_EL = mean_ELD.norm(dim=-1)
    for block in manifest.blocks:
        if not bool((lengths_EL[:, block] > 0).all()):
            raise RecipeError(
                f"the prompts of the pairs do not differ in block {block}",
                "the hidden states that enter block 0 do not depend on the text"
                if block == 0
                else "their mean difference is zero",
                "use pairs that differ in one word, and for hidden states blocks from 1 on",
            )
    return Direction(mean_ELD.float(), manifest)


def read_direction(path: Path | str) -> Direction:
    """Read a stored direction. Raises RecipeError for a file that is not a direction or cannot be read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(Path(os.path.expanduser(path)), framework="pt") as file:
            metadata: dict[str, Any] = read_json((file.metadata() or {}).get(KEY, "null")) or {}
            names = list(file.keys())
            tensor = file.get_tensor(TENSOR) if TENSOR in names else None
    except (OSError, ValueError, SafetensorError) as error:
        raise RecipeError(f"{path} cannot be read as a direction", str(error)) from None
    if not metadata or tensor is None or tensor.ndim != 3 or not torch.isfinite(tensor).all():
        raise RecipeError(f"{path} does not contain a direction", "`wanscope direction learn` writes one", "")
    if metadata.get("version", 0) > VERSION:
        raise RecipeError(
            f"{path} was written by a newer wanscope",
            f"its format version is {metadata['version']}, and this wanscope reads up to {VERSION}",
        )
    manifest = DirectionManifest(
        on=metadata["on"],
        model=metadata["model"],
        weights=dict(metadata["weights"]),
        blocks=tuple(metadata["blocks"]),
        pairs=tuple((a, b) for a, b in metadata["pairs"]),
        seeds=tuple(metadata["seeds"]),
        steps=metadata["steps"],
    )
    return Direction(tensor.float(), manifest)
