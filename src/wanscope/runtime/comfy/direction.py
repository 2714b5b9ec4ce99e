"""A direction learned from pairs of raw texts, by the text projection of the model at hand.

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
class Learned:
    """A direction [D] made for one call; stands where a plan has a stored one."""

    direction_D: Tensor

    def at(self, expert: int, block: int) -> Tensor:
        return self.direction_D


def learned_direction(pairs: Sequence[tuple[Tensor, Tensor]], project: Project) -> Tensor:
    """[D], float64: the mean over pairs of raw texts of the difference of mean tokens, in the space that blocks read.

    Raises RecipeError for no pair, or for prompts that are the same to the model.
    """
    parts = [
        project(a_LD)[0, : len(a_LD)].double().mean(0) - project(b_LD)[0, : len(b_LD)].double().mean(0)
        for a_LD, b_LD in pairs
    ]
    if not parts:
        raise RecipeError("a direction has no pair of prompts", "it is learned from at least one", "")
    direction_D = torch.stack(parts).mean(0)
    if not float(direction_D.norm()):
        raise RecipeError("the direction is zero", "its prompts are the same to the model", "other prompts")
    return direction_D
