"""Texts and noise for the fakes in comfy_fakes.py, reproducible by seed."""

from __future__ import annotations

import torch

from helpers.tiny import TEXT_DIM

LENGTH = 16


def text(tokens: int, seed: int) -> torch.Tensor:
    return torch.randn(tokens, TEXT_DIM, generator=torch.Generator().manual_seed(seed))


def padded(tokens_LD: torch.Tensor) -> torch.Tensor:
    out = tokens_LD.new_zeros(LENGTH, TEXT_DIM)
    out[: len(tokens_LD)] = tokens_LD
    return out


MAIN, DONOR, NEGATIVE, OTHER = text(5, 1), text(9, 2), text(3, 3), text(7, 4)
NOISE = torch.randn(1, 16, 2, 8, 8, generator=torch.Generator().manual_seed(0))
