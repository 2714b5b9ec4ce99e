"""Checks prompts and the texts of edits with the model's own tokenizer, before any weights are loaded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from wanscope.edit.word_places import check_texts, texts_of
from wanscope.errors import RecipeError
from wanscope.prompt.tokens import check_length, token_columns, unknown_words
from wanscope.recipe import Recipe

SUGGESTED = "wan2.1-t2v-1.3b"


def check_prompts(tokenizer: Any, recipes: Iterable[Recipe], text_length: int, closed_vocabulary: bool) -> None:
    """Check every text of `recipes`, each distinct one once.

    Raises RecipeError for a text longer than `text_length` tokens, for a word to track or bend that has no token, and,
    on a model with a closed vocabulary, for words that it was not trained on.
    """
    checked: set[str] = set()
    marked: set[tuple[str, Any]] = set()
    edited: set[tuple[str, str]] = set()
    unknown: dict[str, None] = {}
    for recipe in recipes:
        texts = {recipe.prompt: "prompt", recipe.negative: "negative prompt"}
        for text, name in (*texts.items(), *texts_of(recipe.edits).items()):
            if text in checked:
                continue
            checked.add(text)
            check_length(tokenizer, text, text_length, name)
            if closed_vocabulary:
                unknown.update(dict.fromkeys(unknown_words(tokenizer, text)))
        if recipe.marks and (recipe.prompt, recipe.marks) not in marked and not unknown:
            marked.add((recipe.prompt, recipe.marks))
            token_columns(tokenizer, recipe.prompt, recipe.marks, text_length)
        if recipe.edits and not unknown and (key := (recipe.prompt, str(recipe.edits))) not in edited:
            edited.add(key)
            check_texts(tokenizer, recipe.prompt, recipe.edits, text_length)
    reject_unknown_words(unknown)


def check_length_and_words(tokenizer: Any, texts: Mapping[str, str], text_length: int, closed_vocabulary: bool) -> None:
    """Check length and vocabulary of `texts`, a mapping from the name used in errors to the text.

    Raises RecipeError as `check_prompts` does.
    """
    for name, text in texts.items():
        check_length(tokenizer, text, text_length, name)
    if closed_vocabulary:
        reject_unknown_words({word: None for text in texts.values() for word in unknown_words(tokenizer, text)})


def reject_unknown_words(unknown: Iterable[str]) -> None:
    """Raise RecipeError where there are unknown words; it names all of them, and a model that reads any text."""
    words = ", ".join(repr(word) for word in sorted(unknown))
    if words:
        raise RecipeError(
            f"marbles does not know {words}",
            "it is a tiny model of moving colored shapes, and these words are not in its training data",
            f"--model {SUGGESTED}",
        )
