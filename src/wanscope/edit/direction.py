"""Concept directions: what differs in a model's states between two kinds of prompts, for `steer`.

A direction is the mean over pairs of prompts of the difference between the states of the one and the other (difference
of means), for each expert and block, at one site: `context` (the projected text, mean over its real tokens; the same in
every block) or `hidden` (a block's input, mean over the video's tokens and the steps). It keeps the length that the
difference had, so `add` at strength 1 moves by as much as the prompts of a pair differ.

Stored as one safetensors file: the tensor `direction`, float32 [experts, blocks, D], and a manifest in its metadata.
Sources: Turner et al. 2023 (arXiv 2308.10248) and Arditi et al. 2024 (arXiv 2406.11717) for difference of means and
projecting out, in language models.

Shape suffixes: E experts, L blocks, D model dim.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from wanscope.edit.blocks import parse_blocks
from wanscope.errors import RecipeError

KEY, TENSOR = "wanscope_direction", "direction"
VERSION = 1
Place = Literal["context", "hidden"]


@dataclass(frozen=True)
class DirectionManifest:
    """How a direction was learned. weights: as `weights_behind` has them. blocks: where it was learned."""

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
    """A direction [E, L, D] and how it was learned. Blocks outside of `manifest.blocks` hold zeros."""

    tensor_ELD: Tensor
    manifest: DirectionManifest

    def at(self, expert: int, block: int) -> Tensor:
        """[D], float32."""
        return self.tensor_ELD[expert, block]

    def require(self, on: str, chosen: tuple[int, ...], where: str) -> None:
        """RecipeError unless it was learned at this site and in all these blocks."""
        if self.manifest.on != on:
            raise RecipeError(
                f"{where} steers the {on} with a direction of the {self.manifest.on}",
                "the two are different spaces",
                f"on: {self.manifest.on}",
            )
        missing = sorted(set(chosen) - set(self.manifest.blocks))
        if missing:
            count = self.tensor_ELD.shape[1]
            learned = parse_blocks(list(self.manifest.blocks), count).ranges
            raise RecipeError(
                f"{where}: the direction was not learned in block {missing[0]}",
                f"it was in blocks {learned}",
                f"blocks: {learned}",
            )

    def require_model(self, experts: int, blocks: int, dim: int, where: str) -> None:
        """RecipeError unless it fits a model of these sizes."""
        if tuple(self.tensor_ELD.shape) != (experts, blocks, dim):
            have = " x ".join(str(size) for size in self.tensor_ELD.shape)
            raise RecipeError(
                f"{where}: the direction does not fit this model",
                f"it is {have} (experts, blocks, dimensions) and the model {experts} x {blocks} x {dim}; "
                f"it was learned on {self.manifest.model}",
                "a direction learned on this model",
            )

    def weights_mismatch_note(self, weights: Mapping[str, str]) -> str:
        """That it was learned on other weights than these (as `weights_behind` has them), or that this is not known;
        empty where they are the same. It may be meant (a fine-tune, a LoRA), so it is told and not refused."""
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
        """Write the file, in one move into its place."""
        from safetensors.torch import save_file

        path = Path(path)
        if path.suffix != ".safetensors":
            raise RecipeError(
                f"a direction is saved as {path.name}", "it is a .safetensors file", f"{path.stem}.safetensors"
            )
        beside = path.with_name(f".{path.name}.{os.getpid()}.new")  # two processes may learn the same one at once
        try:
            save_file({TENSOR: self.tensor_ELD.contiguous()}, beside, {KEY: json.dumps(asdict(self.manifest))})
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)


def weights_behind(parts: Mapping[str, str], loras: Iterable[Any]) -> dict[str, str]:
    """What a direction is learned on: the transformers among a model's parts (name -> SHA-256), and its LoRA files."""
    files = sorted((lora.sha256 or "", lora.expert, lora.weight) for lora in loras)
    return {
        **{name: sha256 for name, sha256 in parts.items() if name.startswith("transformer")},
        **{f"LoRA {i} ({expert}, {weight:g})": sha256 for i, (sha256, expert, weight) in enumerate(files, 1)},
    }


def direction_of(differences_ELD: list[Tensor], manifest: DirectionManifest) -> Direction:
    """The mean of each pair's difference [E, L, D]. RecipeError where it is zero in a block that was learned."""
    mean_ELD = torch.stack([d.double() for d in differences_ELD]).mean(0)
    lengths_EL = mean_ELD.norm(dim=-1)
    for block in manifest.blocks:
        if not bool((lengths_EL[:, block] > 0).all()):
            raise RecipeError(
                f"the prompts of the pairs do not differ in block {block}",
                "at block 0 all hidden states are still the noise's own" if block == 0 else "their difference is zero",
                "pairs that differ in one word, and for hidden states blocks from 1 on",
            )
    return Direction(mean_ELD.float(), manifest)


def read_direction(path: Path | str) -> Direction:
    """A stored direction. RecipeError for a file that is none."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(Path(path).expanduser(), framework="pt") as file:
            metadata: dict[str, Any] = json.loads((file.metadata() or {}).get(KEY, "null")) or {}
            names = list(file.keys())
            tensor = file.get_tensor(TENSOR) if TENSOR in names else None
    except (OSError, ValueError, SafetensorError) as error:
        raise RecipeError(f"{path} cannot be read as a direction", str(error)) from None
    if not metadata or tensor is None or tensor.ndim != 3 or not torch.isfinite(tensor).all():
        raise RecipeError(f"{path} holds no direction", "it was not written by wanscope's learning of directions", "")
    if metadata.get("version", 0) > VERSION:
        raise RecipeError(f"{path} was written by a newer wanscope", f"its version is {metadata['version']}")
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
