"""The config that a LoRA's trainer has written: in the file's header (diffusers) or next to it (PEFT). No torch.

    pytorch_lora_weights.safetensors   `lora_adapter_metadata` in the header, with one config per expert
    adapter_model.safetensors          adapter_config.json in the same folder

Alphas that are tensors of the file (`*.alpha`) come first.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wanscope.errors import ModelError
from wanscope.wan.identity import file_hash, files_hash

HEADER = "lora_adapter_metadata"
PEFT_FILE, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
SCALE_KEYS = ("r", "lora_alpha", "alpha", "rank_pattern", "alpha_pattern", "use_rslora")


def _beside(path: Path) -> dict[str, Any]:
    """Return the config that PEFT has written next to its file, or {}."""
    config = path.parent / PEFT_CONFIG
    if path.name != PEFT_FILE or not config.is_file():
        return {}
    return _read(config.read_text(encoding="utf-8", errors="replace"), f"{config}")


def _read(text: str, where: str) -> dict[str, Any]:
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{where} cannot be read", f"it is not JSON ({error})") from None
    if not isinstance(config, dict):
        raise ModelError(f"{where} cannot be read", "it is not a mapping")
    return config


def read_config(path: Path, metadata: Mapping[str, str], expert: str | None) -> tuple[dict[str, Any], str]:
    """Return the config of a LoRA file and where it stands, {} without one.

    metadata: of the file's header. expert: low for the part that diffusers saves as `transformer_2`. Raises ModelError
    for a config that cannot be read.
    """
    if HEADER in metadata:
        where = f"the header of {path}"
        config = _read(metadata[HEADER], where)
        prefixes = ("transformer_2.",) if expert == "low" else ("transformer.", "")
        for prefix in prefixes:
            found = {key.removeprefix(prefix): v for key, v in config.items() if key.startswith(prefix)}
            if found:
                return found, where
        return {}, where
    return _beside(path), str(path.parent / PEFT_CONFIG)


def scale_of(config: Mapping[str, Any], names: Sequence[str], rank: int, where: str) -> float | None:
    """Return the factor that a config gives to a module's product, alpha / rank, or None if it gives no alpha.

    names: of the module, in the file and in the model. With rslora, it is alpha / sqrt(rank). Raises ModelError for
    values that are not numbers.
    """
    found = (_pattern(config.get("alpha_pattern"), name, where) for name in names)
    alpha = next((value for value in found if value is not None), None)
    if alpha is None:
        alpha = config.get("lora_alpha", config.get("alpha"))
    if alpha is None:
        return None
    if not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise ModelError(f"{where} cannot be used", f"its alpha {alpha!r} is not a number")
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _pattern(patterns: Any, module: str, where: str) -> Any:
    """Return the value of the first pattern that fits the module's name: the whole name or its tail, as in PEFT."""
    if not isinstance(patterns, dict):
        return None
    try:
        return next((v for p, v in patterns.items() if re.search(rf"(^|\.){p.lstrip('^')}$", module)), None)
    except re.error as error:
        raise ModelError(f"{where} cannot be used", f"one of its patterns is not one ({error})") from None


def lora_hash(path: Path) -> str:
    """Return the SHA-256 of a LoRA in hex: of its file, and of the config next to it where that changes the scale."""
    config = _beside(path)
    own = {key: config[key] for key in SCALE_KEYS if config.get(key)}
    rank, alpha = own.get("r"), own.get("lora_alpha", own.get("alpha"))
    if alpha is None or (set(own) <= {"r", "lora_alpha", "alpha"} and alpha == rank):
        return file_hash(path)
    return files_hash([path], own)
