"""The prompts of a study, checked with the model's own tokenizer and encoded once, before the transformer is placed.

Shape suffixes: L real tokens, D text dim.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wanscope import events
from wanscope.errors import RecipeError
from wanscope.prompt.tokens import check_length, token_columns, unknown_words
from wanscope.recipe import Recipe

if TYPE_CHECKING:
    from torch import Tensor

    from wanscope.sample.loop import Conditioning
    from wanscope.wan.model import WanModel

SUGGESTED = "wan2.1-t2v-1.3b"


def check_prompts(tokenizer: Any, recipes: Iterable[Recipe], text_length: int, marbles: bool) -> None:
    """RecipeError for a text that is longer than the model reads, a marked word that has no token, and, on marbles,
    words that its tokenizer never saw."""
    checked: set[str] = set()
    marked: set[tuple[str, Any]] = set()
    strangers: dict[str, None] = {}
    for recipe in recipes:
        for name, text in (("prompt", recipe.prompt), ("negative prompt", recipe.negative)):
            if text in checked:
                continue
            checked.add(text)
            check_length(tokenizer, text, text_length, name)
            if marbles:
                strangers.update(dict.fromkeys(unknown_words(tokenizer, text)))
        if recipe.marks and (recipe.prompt, recipe.marks) not in marked and not strangers:
            marked.add((recipe.prompt, recipe.marks))
            token_columns(tokenizer, recipe.prompt, recipe.marks, text_length)
    if strangers:
        words = ", ".join(repr(word) for word in sorted(strangers))
        raise RecipeError(
            f"marbles does not know {words}",
            "it is a tiny world of colored shapes that move, and was never shown such words",
            f"--model {SUGGESTED}",
        )


@dataclass(frozen=True)
class Texts:
    """Raw embeddings [L, D] by text, on the CPU in the encoder's dtype; `conditioning` applies a recipe's weights."""

    embeddings: dict[str, Tensor]
    tokenizer: Any
    text_length: int

    def conditioning(self, recipe: Recipe) -> Conditioning:
        """What the loop reads of a recipe's prompts, weights of marked words applied."""
        from wanscope.prompt.weights import apply_weights
        from wanscope.sample.loop import Conditioning

        cond_LD = self.embeddings[recipe.prompt]
        if any(mark.weighted for mark in recipe.marks) and recipe.weights != "none":
            columns = token_columns(self.tokenizer, recipe.prompt, recipe.marks, self.text_length)
            cond_LD = apply_weights(cond_LD, columns, len(cond_LD), recipe.weights)
        return Conditioning(cond_LD, self.embeddings[recipe.negative])


def encode_prompts(model: WanModel, recipes: Sequence[Recipe], on_event: events.Listener) -> Texts:
    """Encode every prompt and negative prompt of `recipes`, each once."""
    from wanscope.wan.text import encode

    began = time.monotonic()
    texts = list(dict.fromkeys(text for recipe in recipes for text in (recipe.prompt, recipe.negative)))
    embeddings = {text: found.cpu() for text, found in zip(texts, encode(model, texts), strict=True)}
    on_event(events.PromptsEncoded(len(texts), time.monotonic() - began))
    return Texts(embeddings, model.tokenizer, model.text_length)
