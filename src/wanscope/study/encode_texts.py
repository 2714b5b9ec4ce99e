"""Encodes the prompts of a study and the texts of its edits, each once, before the transformer is placed.

Shape suffixes: L real tokens, D text dimension.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from wanscope import events
from wanscope.edit.edits import stored_of
from wanscope.edit.encoded_texts import DonorTexts, Places
from wanscope.edit.named_files import read_stored
from wanscope.edit.word_places import texts_of, united, word_places
from wanscope.prompt.tokens import token_columns
from wanscope.recipe import Recipe

if TYPE_CHECKING:
    from torch import Tensor

    from wanscope.sample.conditioning import Conditioning
    from wanscope.study.embedding_reuse import RunCatalog
    from wanscope.wan.model import WanModel


@dataclass(frozen=True)
class Texts:
    """Raw embeddings [L, D] by text, on the CPU in the encoder's dtype; `conditioning` applies a recipe's weights.

    stored: embeddings [L, D] from files or the catalog that edits name, by their hash.
    """

    embeddings: dict[str, Tensor]
    tokenizer: Any
    text_length: int
    stored: dict[str, Tensor] = field(default_factory=dict)

    def conditioning(self, recipe: Recipe) -> Conditioning:
        """Return the embeddings [L, D] of a recipe's prompts for the sampling loop, with word weights applied."""
        from wanscope.sample.conditioning import Conditioning
        from wanscope.wan.word_weights import apply_weights

        cond_LD = self.embeddings[recipe.prompt]
        if any(mark.weighted for mark in recipe.marks) and recipe.weights != "none":
            columns = token_columns(self.tokenizer, recipe.prompt, recipe.marks, self.text_length)
            cond_LD = apply_weights(cond_LD, columns, len(cond_LD), recipe.weights)
        return Conditioning(cond_LD, self.embeddings[recipe.negative])

    def donors(self, recipe: Recipe) -> DonorTexts:
        """Return the encoded texts, stored embeddings and token positions that the edits of a recipe read."""
        conditioning = self.conditioning(recipe)
        assert conditioning.uncond is not None
        places: dict[int, Places] = {}
        words: dict[int, dict[str, frozenset[str]]] = {}
        for i in range(len(recipe.edits)):
            found = word_places(self.tokenizer, recipe.prompt, recipe.edits, i, self.text_length)
            if found:
                places[i] = united(found)
                words[i] = {word: frozenset(texts) for word, texts in found.items()}
        return DonorTexts(
            recipe.prompt,
            recipe.negative,
            conditioning.cond,
            conditioning.uncond,
            self.embeddings,
            self.text_length,
            self.stored,
            places,
            words,
        )


def needed_texts(recipes: Iterable[Recipe]) -> list[str]:
    """Return every prompt, negative prompt and donor text of `recipes`, each once."""
    texts: dict[str, None] = {}
    for recipe in recipes:
        texts |= dict.fromkeys((recipe.prompt, recipe.negative, *texts_of(recipe.edits)))
    return list(texts)


def encode_prompts(
    model: WanModel,
    recipes: Sequence[Recipe],
    on_event: events.Listener,
    reused: Mapping[str, Tensor] | None = None,
    catalog: RunCatalog | None = None,
) -> Texts:
    """Encode every prompt, negative prompt and donor text of `recipes`, each once.

    reused: embeddings [L, D] that are already known, by text; where all are, the encoder is not used. catalog: stores
    the newly encoded ones. Raises RecipeError for a donor that cannot be amplified to the difference that its edit
    asks for.
    """
    began = time.monotonic()
    texts = needed_texts(recipes)
    known = reused or {}
    missing = [text for text in texts if text not in known]
    fresh: dict[str, Tensor] = {}
    if missing:
        from wanscope.wan.text import encode

        fresh = {text: found.cpu() for text, found in zip(missing, encode(model, missing), strict=True)}
        if catalog is not None:
            catalog.keep(fresh, recipes[0], model, time.monotonic() - began)
    embeddings = {text: known[text] if text in known else fresh[text] for text in texts}
    files = {donor.sha256 or "": donor for recipe in recipes for donor in stored_of(recipe.edits)}
    read = catalog.embedding if catalog is not None else None
    stored = {sha256: read_stored(donor, read) for sha256, donor in files.items()}
    encoded = Texts(embeddings, model.tokenizer, model.text_length, stored)
    _check_donors(encoded, recipes)
    on_event(events.PromptsEncoded(len(missing), time.monotonic() - began, len(texts) - len(missing)))
    return encoded


def _check_donors(texts: Texts, recipes: Sequence[Recipe]) -> None:
    """Resolve every donor once, so that one that cannot be computed is reported before the first take."""
    checked: set[tuple[str, str]] = set()
    for recipe in recipes:
        key = (recipe.prompt, str(recipe.edits))
        if not recipe.edits or key in checked:
            continue
        checked.add(key)
        donors = texts.donors(recipe)
        for i, edit in enumerate(recipe.edits):
            edit.check_encoded(donors, f"edits.{i}")
