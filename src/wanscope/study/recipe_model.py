"""The model of a recipe: finding it, identifying it, loading it, and checking that it is the one the recipe names.

The identity of a model has two parts: a hash of each component's weights (wan/identity.py), and `settings`, a hash of
the other things that its folder determines: the scheduler's settings, the boundary between experts, and per-token
timesteps. Both determine pixels, so both are part of a recipe's id.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from wanscope import events
from wanscope.errors import ModelError
from wanscope.recipe import Components, LoraSpec, Recipe
from wanscope.study.expand import Expansion, size_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from wanscope.wan.locate import Source
    from wanscope.wan.model import WanModel
    from wanscope.wan.tokenizer_files import TextTokenizer
    from wanscope.wan.variants import Variant

# Not part of the model's identity: the recipe has its own shift.
_NOT_SETTINGS = ("flow_shift", "shift")


@dataclass(frozen=True)
class ModelKey:
    """What determines the loaded model: takes with the same key are made by one loaded model."""

    name: str
    dtype: str
    components: Components = field(default_factory=Components)
    loras: tuple[LoraSpec, ...] = ()

    @classmethod
    def of(cls, recipe: Recipe) -> ModelKey:
        """Return the key of the model that makes a recipe's take."""
        return cls(recipe.model.name, recipe.dtype, recipe.model.components, recipe.loras)

    @classmethod
    def of_study(cls, expansion: Expansion) -> ModelKey:
        """Return the key of the model that makes all takes of a study."""
        return cls(expansion.study.model, expansion.dtype, expansion.study.components, expansion.loras)


def weights_of(model: Source | WanModel) -> dict[str, str]:
    """Return what a recipe records of a model, {part: SHA-256}, for a model that was found or loaded.

    Raises ModelError where the model has no identity.
    """
    identity = model.identity() if callable(model.identity) else dict(model.identity)
    if not identity:
        raise ModelError(
            "the model's weights are not identified",
            "its identity is empty, but a recipe has to name the weights",
            "WanModel.from_pipeline(pipe)",
        )
    scheduler = model.scheduler if hasattr(model, "scheduler") else model.scheduler_config  # type: ignore[union-attr]
    settings = {
        "scheduler": {k: v for k, v in scheduler.items() if not k.startswith("_") and k not in _NOT_SETTINGS},
        "boundary_ratio": model.boundary_ratio,
        "expand_timesteps": bool(model.expand_timesteps),
    }
    text = json.dumps(settings, sort_keys=True, default=str)
    return {**identity, "settings": hashlib.sha256(text.encode()).hexdigest()}


def find(key: ModelKey, on_event: events.Listener) -> Source:
    """Find the model's parts, downloading what is missing. Nothing is loaded."""
    from wanscope.wan.locate import locate

    parts = key.components
    return locate(key.name, encoder=parts.text_encoder, vae=parts.vae, tokenizer=parts.tokenizer, on_event=on_event)


def find_local(key: ModelKey) -> Source | None:
    """Find the model's parts on this machine; return None where something would have to be downloaded."""
    from wanscope.wan.variants import VARIANTS

    hub_id = VARIANTS[key.name].hub_id if key.name in VARIANTS else key.name
    if hub_id is None or os.path.isdir(Path(os.path.expanduser(key.name))):
        return find(key, events.ignore)
    if any(not os.path.isfile(Path(os.path.expanduser(part.strip()))) for part in key.name.split(" + ")):
        return _cached(hub_id, key)
    return find(key, events.ignore) if key.components != Components() else None


def _cached(hub_id: str, key: ModelKey) -> Source | None:
    import huggingface_hub

    from wanscope.wan.download import missing

    try:
        folder = Path(huggingface_hub.snapshot_download(hub_id, local_files_only=True))
    except (OSError, ValueError):  # not in the cache, or not a hub id
        return None
    return None if missing(folder) else find(ModelKey(str(folder), key.dtype, key.components), events.ignore)


def load_model(
    key: ModelKey,
    recipes: Sequence[Recipe],
    device: str,
    memory: str,
    on_event: events.Listener,
    *,
    encoder: bool = True,
) -> WanModel:
    """Load the model with its LoRAs, ready to encode the prompts of `recipes`.

    encoder: whether the text encoder is loaded; without it nothing can be encoded. Raises ModelError where the weights
    are not those that the recipes name.
    """
    from wanscope.wan.load import load

    parts = key.components
    model = load(
        key.name,
        device=device,
        dtype=key.dtype,
        loras=[(lora.path, lora.weight, lora.expert) for lora in key.loras],
        memory=memory,
        encoder=parts.text_encoder,
        vae=parts.vae,
        tokenizer=parts.tokenizer,
        with_encoder=encoder,
        on_event=on_event,
    )
    have = weights_of(model)
    for recipe in recipes:
        require_weights(recipe, have)
    return model


def require_weights(recipe: Recipe, have: Mapping[str, str]) -> None:
    """Raise ModelError unless the weights are those that the recipe names. have: {part: SHA-256}."""
    wanted = recipe.model.weights
    other = [part for part in wanted if wanted[part] != have.get(part)] + [p for p in have if p not in wanted]
    if wanted and other:
        raise ModelError(
            f"{recipe.model.name} is not the model that this recipe was made with",
            f"its {', '.join(dict.fromkeys(other))} differ{'' if len(other) > 1 else 's'} from the recorded weights. "
            "Use the original model, or write a study with the same prompt and settings",
        )


def require_loras(recipe: Recipe, model: WanModel) -> None:
    """Raise ModelError unless a model that the caller passed in has exactly the recipe's LoRAs."""
    wanted = sorted((lora.sha256 or "", lora.weight, lora.expert) for lora in recipe.loras)
    have = sorted((lora.sha256, lora.weight, lora.expert) for lora in model.loras)
    if wanted != have:
        raise ModelError(
            "the model's LoRAs are not the recipe's",
            f"the model has {len(have)} and the recipe names {len(wanted)}"
            if len(have) != len(wanted)
            else "they differ in file, weight or expert",
            f"load(..., loras={[(lora.path, lora.weight, lora.expert) for lora in recipe.loras]})",
        )


def tokenizer_of(key: ModelKey) -> tuple[TextTokenizer | PreTrainedTokenizerBase, int]:
    """Return the model's tokenizer, for checks, and the number of tokens that the model reads.

    No weights are loaded.
    """
    from wanscope.wan.tokenizer import read_tokenizer, text_length_of

    found = find(key, events.ignore)
    tokenizer = read_tokenizer(found.parts["tokenizer"], found.variant.text_length)
    return tokenizer, text_length_of(tokenizer)


def check_memory(variant: Variant, recipes: Sequence[Recipe], device: str, memory: str) -> None:
    """Raise MemoryPlanError, with the arithmetic, where the largest of `recipes` does not fit. Nothing is loaded."""
    from wanscope.wan.load import pick_device
    from wanscope.wan.memory_plan import plan_memory
    from wanscope.wan.placement import capacity

    largest = _largest(recipes)
    have = capacity(pick_device(device))
    plan_memory(
        variant,
        largest.dtype,
        *size_of(largest.video),
        have.device_bytes,
        have.host_bytes,
        memory,
        batch=_batch(largest),
    )


def place_encoder(model: WanModel) -> None:
    """Move the text encoder to the device where it runs."""
    from wanscope.wan import placement

    placement.place_encoder(model)


def place(model: WanModel, recipes: Sequence[Recipe], on_event: events.Listener = events.ignore) -> None:
    """Move transformer and VAE to where the largest of `recipes` can run."""
    from wanscope.wan import placement

    largest = _largest(recipes)
    placement.place(model, *size_of(largest.video), batch=_batch(largest), on_event=on_event)


def _largest(recipes: Sequence[Recipe]) -> Recipe:
    return max(recipes, key=lambda recipe: (prod(size_of(recipe.video)), _batch(recipe)))


def _batch(recipe: Recipe) -> int:
    return 2 if recipe.sampler.cfg_batched else 1


def free_memory() -> None:
    """Release memory that is no longer referenced, on the host and on the GPU."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
