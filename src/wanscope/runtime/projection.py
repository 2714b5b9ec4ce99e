"""Texts as a transformer's blocks read them: padded, projected once by each expert, kept for the run.

What blocks read is projected while the transformer itself runs, when group offload has its weights on the device; what
is told of a boost before the run, wherever they lie then.

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
    """[1, N, D]: a text as blocks read it, its difference from its main prompt multiplied where it has a boost.

    project: raw [L, D] -> [1, N, D], padded as the model pads; of no tokens at all it is the padding.
    """
    own_1ND = project(text.embedding)
    if text.boost is None:
        return own_1ND
    pad_D = project(text.embedding[:0])[0, 0]
    return padded(_boosted(text, text.boost, own_1ND, project, pad_D).context, own_1ND.shape[1], pad_D)[None]


def boosted_of(text: PlannedText, wanted: Boost, project: Callable[[Tensor], Tensor]) -> Boosted:
    """What `wanted`, a text's boost, makes of its context, with the differences before and after."""
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
    """Contexts [1, N, D] of planned texts, by expert."""

    def __init__(self, experts: Sequence[Any], length: int) -> None:
        self._experts, self._length = tuple(experts), length
        self._kept: dict[tuple[int, PlannedText], Tensor] = {}
        self._passing: dict[int, tuple[PlannedText, Tensor]] = {}

    def of(self, expert: int) -> Project:
        """The projection of one expert."""
        return lambda text: self._context(expert, text)

    def boosted(self, expert: int, text: PlannedText) -> Boosted:
        """The differences before and after a text's boost, as one expert projects it. The boost has to be there."""
        assert text.boost is not None
        return boosted_of(text, text.boost, lambda embedding_LD: self._projected(expert, embedding_LD))

    def clear(self) -> None:
        self._kept.clear()
        self._passing.clear()
        self._experts = ()

    def _context(self, expert: int, text: PlannedText) -> Tensor:
        if text.passing:  # one of many, read at one step
            if expert not in self._passing or self._passing[expert][0] is not text:
                self._passing[expert] = (text, self._made(expert, text))
            return self._passing[expert][1]
        key = (expert, text)
        if key not in self._kept:
            self._kept[key] = self._made(expert, text)
        return self._kept[key]

    def _made(self, expert: int, text: PlannedText) -> Tensor:
        return context_of(text, lambda embedding_LD: self._projected(expert, embedding_LD))

    def _projected(self, expert: int, embedding_LD: Tensor) -> Tensor:
        """Exactly what the transformer does with the text that it is given."""
        transformer = self._experts[expert]
        text_embedder = transformer.condition_embedder.text_embedder
        device = next(text_embedder.parameters()).device
        raw_1ND = padded(embedding_LD, self._length)[None].to(device, transformer.dtype)
        with torch.no_grad():
            return text_embedder(raw_1ND)
