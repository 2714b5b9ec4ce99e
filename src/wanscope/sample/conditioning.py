"""The text embeddings that a denoising run is conditioned on.

Shape suffixes: L real text tokens, N text tokens with padding, D text dim.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Conditioning:
    """Raw text embeddings: [L, D] for the real tokens only, or [1, N, D] with padding.

    `uncond` may be None if guidance is off (a scale of 1).
    """

    cond: Tensor
    uncond: Tensor | None = None
