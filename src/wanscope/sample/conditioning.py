"""What a denoising loop reads of a take's texts.

Shape suffixes: L and N text tokens (real, and with padding), D text dim.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Conditioning:
    """Raw text embeddings: [L, D] of the real tokens, or [1, N, D] padded. uncond may be None where guidance is 1."""

    cond: Tensor
    uncond: Tensor | None = None
