"""The texts that planned edits read, as embeddings.

Shape suffixes: L real tokens, D text dim.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class PlannedText:
    """A text that is read: its raw embedding [L, D] (real tokens only), and the prompts whose words are in it.

    boost: how the difference of its context from another text's is multiplied, after projection. passing: one of many
    texts that are each read at a single step, so that caching its context would not pay.
    """

    embedding: Tensor
    prompts: frozenset[str]
    boost: Boost | None = None
    passing: bool = False

    @property
    def real(self) -> int:
        """How many tokens are not padding."""
        return max(len(self.embedding), len(self.boost.main.embedding) if self.boost else 0)

    def same_as(self, other: PlannedText) -> bool:
        """Whether both are the same text to the bit, with the same prompts and boost."""
        import torch

        a, b = self.embedding, other.embedding
        alike = self.prompts == other.prompts and self.boost == other.boost and a.dtype == b.dtype
        return alike and (a is b or torch.equal(a, b))


@dataclass(frozen=True)
class Boost:
    """A context's difference from that of `main`, multiplied by `factor`; `keep_norm`: at each token's old length."""

    main: PlannedText
    factor: float
    keep_norm: bool
