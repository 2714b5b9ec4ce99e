"""Texts as a transformer's blocks read them: padded, projected once by each expert, and kept for the run.

The contexts that blocks read are projected while the transformer itself runs, when group offload has its weights on the
device. The notes about a boost are computed before the run, on the device where the weights are then.

Shape suffixes: N text positions, L real tokens, D text dim before and model dim after projection.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from wanscope.edit.amplify import Boosted, boost
from wanscope.edit.planned_texts import Boost, PlannedText
from wanscope.edit.token_matrix import padded
from wanscope.runtime.compose import Project


def context_of(text: PlannedText, project: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the context [1, N, D] of a text as blocks read it, with its boost applied if it has one.

    project: from raw [L, D] to [1, N, D], padded as in the model; with no tokens, all rows are padding.
    """
    own_1ND = project(text.embedding)
    if text.boost is None:
        return own_1ND
    pad_D = project(text.embedding[:0])[0, 0]
    return padded(_boosted(text, text.boost, own_1ND, project, pad_D).context, own_1ND.shape[1], pad_D)[None]


def boosted_of(text: PlannedText, wanted: Boost, project: Callable[[Tensor], Tensor]) -> Boosted:
    """Return the context of a text after the boost `wanted`, and the differences before and after it.

    project: as in `context_of`.
    """
    return _boosted(text, wanted, project(text.embedding), project, project(text.embedding[:0])[0, 0])


def _boosted(
    text: PlannedText, wanted: Boost, own_1ND: Tensor, project: Callable[[Tensor], Tensor], pad_D: Tensor
) -> Boosted:
    main_LD = wanted.main.embedding
    return boost(
        project(main_LD)[0, : len(main_LD)],
        own_1ND[0, : len(text.embedding)],
        wanted.factor,
        keep_norm=wanted.keep_norm,
        pad_D=pad_D,
    )


class Projection:
    """The contexts [1, N, D] of planned texts, for each expert. length: N."""

    def __init__(self, experts: Sequence[Any], length: int) -> None:
        self._experts, self._length = tuple(experts), length
        self._kept: dict[tuple[int, PlannedText], Tensor] = {}
        self._passing: dict[int, tuple[PlannedText, Tensor]] = {}

    def of(self, expert: int) -> Project:
        """Return the function that projects a text with one expert, to [1, N, D]."""
        return lambda text: self._context(expert, text)

    def boosted(self, expert: int, text: PlannedText) -> Boosted:
        """Return the differences before and after a text's boost, for one expert. The text must have a boost."""
        assert text.boost is not None
        return boosted_of(text, text.boost, lambda embedding_LD: self._projected(expert, embedding_LD))

    def clear(self) -> None:
        """Release all tensors and the experts."""
        self._kept.clear()
        self._passing.clear()
        self._experts = ()

    def _context(self, expert: int, text: PlannedText) -> Tensor:
        if text.passing:  # one of many texts that are each read at one step only
            if expert not in self._passing or self._passing[expert][0] is not text:
                self._passing[expert] = (text, self._compute(expert, text))
            return self._passing[expert][1]
        key = (expert, text)
        if key not in self._kept:
            self._kept[key] = self._compute(expert, text)
        return self._kept[key]

    def _compute(self, expert: int, text: PlannedText) -> Tensor:
        return context_of(text, lambda embedding_LD: self._projected(expert, embedding_LD))

    def _projected(self, expert: int, embedding_LD: Tensor) -> Tensor:
        """Return [1, N, D], computed exactly as the transformer projects its own text."""
        transformer = self._experts[expert]
        text_embedder = transformer.condition_embedder.text_embedder
        device = next(text_embedder.parameters()).device
        raw_1ND = padded(embedding_LD, self._length)[None].to(device, transformer.dtype)
        with torch.no_grad():
            return text_embedder(raw_1ND)
