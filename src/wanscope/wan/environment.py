"""Settings that must stand before torch is imported; doors call `prepare` first. No torch here."""

from __future__ import annotations

import os
from collections.abc import MutableMapping

ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")  # torch's name since 2.9, and the older one
EXPANDABLE = "expandable_segments"


def prepare(environment: MutableMapping[str, str] = os.environ) -> str:
    """Let torch's CUDA allocator grow its segments, so that sizes that change between prompts, denoising and decoding
    do not fragment the GPU's memory. What the user set, in either variable, stays. Returns the setting."""
    name = next((name for name in ALLOCATOR if environment.get(name)), ALLOCATOR[0])
    setting = environment.get(name, "")
    if EXPANDABLE not in setting:
        environment[name] = ",".join(part for part in (setting, f"{EXPANDABLE}:True") if part)
    environment.setdefault("TOKENIZERS_PARALLELISM", "false")
    return environment[name]
