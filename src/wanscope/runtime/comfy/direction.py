"""Concept directions learned from pairs of raw texts with the text projection of the model that is sampled.

Shape suffixes: L raw tokens, D text dim before and model dim after the projection.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wanscope.errors import RecipeError

Project = Callable[[Tensor], Tensor]  # raw [L, D] -> context [1, at least L, D], padded as the model pads


@dataclass(frozen=True)
class CallDirection:
    """A direction [D] learned for one model call. A plan uses it in place of a stored `Direction`."""

    direction_D: Tensor

    def at(self, expert: int, block: int) -> Tensor:
        """Return the direction [D], which is the same for all experts and blocks."""
        return self.direction_D


def learned_direction(pairs: Sequence[tuple[Tensor, Tensor]], project: Project) -> Tensor:
    """Return a direction [D] in float64: the difference of the mean context tokens, averaged over pairs of texts.

    pairs: raw embeddings [L, D] (with, without). Raises RecipeError for no pairs, or for prompts with the same context.
    """
    parts = [
        project(a_LD)[0, : len(a_LD)].double().mean(0) - project(b_LD)[0, : len(b_LD)].double().mean(0)
        for a_LD, b_LD in pairs
    ]
    if not parts:
        raise RecipeError(
            "the direction has no pairs of prompts", "it is learned from at least one", "connect with_1 and without_1"
        )
    direction_D = torch.stack(parts).mean(0)
    if not float(direction_D.norm()):
        raise RecipeError("the direction is zero", "its prompts are the same for the model", "use other prompts")
    return direction_D
