"""Environment variables to set before torch is imported; user interfaces call `prepare` first."""

from __future__ import annotations

import os
from collections.abc import MutableMapping

ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")  # torch's name since 2.9, and the one before
EXPANDABLE = "expandable_segments"


def prepare(environment: MutableMapping[str, str] = os.environ) -> str:
    """Turn on expandable segments in torch's CUDA allocator and return the resulting setting.

    Sizes change between encoding, denoising and decoding, and would otherwise fragment the GPU's memory. Other
    settings that the user made, in either variable, are kept.
    """
    name = next((name for name in ALLOCATOR if environment.get(name)), ALLOCATOR[0])
    setting = environment.get(name, "")
    if EXPANDABLE not in setting:
        environment[name] = ",".join(part for part in (setting, f"{EXPANDABLE}:True") if part)
    environment.setdefault("TOKENIZERS_PARALLELISM", "false")
    return environment[name]
