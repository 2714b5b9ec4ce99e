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
    """A text that is read: its raw embedding [L, D] (real tokens only), and the prompts whose words it contains.

    boost: multiplies the difference of its context from another text's, after projection. passing: whether it is read
    at a single step only, so that its context need not be kept.
    """

    embedding: Tensor
    prompts: frozenset[str]
    boost: Boost | None = None
    passing: bool = False

    @property
    def real(self) -> int:
        """The number of rows of its context that are not padding."""
        return max(len(self.embedding), len(self.boost.main.embedding) if self.boost else 0)

    def same_as(self, other: PlannedText) -> bool:
        """Return whether both have bit-identical embeddings, and the same prompts and boost."""
        import torch

        a, b = self.embedding, other.embedding
        alike = self.prompts == other.prompts and self.boost == other.boost and a.dtype == b.dtype
        return alike and (a is b or torch.equal(a, b))


@dataclass(frozen=True)
class Boost:
    """Multiplies a context's difference from that of `main` by `factor`. keep_norm: see `amplify.boost`."""

    main: PlannedText
    factor: float
    keep_norm: bool
