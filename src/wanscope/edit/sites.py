"""Where edits act: the guidance passes, the parts of a block, and sites. Does not need torch."""

from __future__ import annotations

from typing import Literal

from wanscope.spec.branch import Branch

BRANCHES: tuple[Branch, ...] = ("cond", "uncond")

# The part of a block that an edit changes: the text that its cross-attention reads, that attention's maps, the hidden
# state at the block's input, or whether the block runs at all.
Part = Literal["context", "attention", "hidden", "block"]

# (the edit's position in the recipe's list, block, branch, step)
Site = tuple[int, int, str, int]
