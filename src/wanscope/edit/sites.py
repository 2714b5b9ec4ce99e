"""Where edits act: the names of guidance's passes, of the parts of a block, and of a site. No torch."""

from __future__ import annotations

from typing import Literal

from wanscope.spec.branch import Branch

BRANCHES: tuple[Branch, ...] = ("cond", "uncond")

# What of a block an edit changes: the text that its cross-attention reads, that attention's maps, the state at the
# block's input, or whether the block runs at all.
Part = Literal["context", "attention", "hidden", "block"]

# (the edit's place in the recipe's list, block, branch, step)
Site = tuple[int, int, str, int]
