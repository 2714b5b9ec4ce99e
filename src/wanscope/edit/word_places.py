"""The texts that the edits of a recipe need, and the token positions of the words that they name.

texts_of(edits)                 every text that has to be encoded
check_texts(tokenizer, ...)     checks lengths and words, before any work
word_places(tokenizer, ...)     the token columns of each word in each text that contains it
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from wanscope.edit.base import EditBase
from wanscope.edit.encoded_texts import Places
from wanscope.errors import RecipeError
from wanscope.prompt.tokens import check_length, find_words


def texts_of(edits: Iterable[EditBase]) -> dict[str, str]:
    """Return every text that has to be encoded for the edits, with the name that errors use for it."""
    out: dict[str, str] = {}
    for edit in edits:
        for text, name in edit.texts().items():
            out.setdefault(text, name)
    return out


def check_texts(tokenizer: Any, prompt: str, edits: Sequence[EditBase], text_length: int) -> None:
    """Raise RecipeError for a text with more than `text_length` tokens, and for words that occur in no text."""
    for text, name in texts_of(edits).items():
        check_length(tokenizer, text, text_length, name)
    for index in range(len(edits)):
        word_places(tokenizer, prompt, edits, index, text_length)


def word_places(
    tokenizer: Any, prompt: str, edits: Sequence[EditBase], index: int, text_length: int
) -> dict[str, Places]:
    """Return, for each word that edit `index` names, its token columns in each text of the recipe that contains it.

    The texts are the prompt, the donors and the prompts of `prompts` edits. The result is {} for an edit without words.
    Raises RecipeError for a word that occurs in none of them.
    """
    edit = edits[index]
    others = [text for e in edits for text in e.prompts_brought()]
    places: dict[str, Places] = {}
    for word in edit.named_words():
        missing: RecipeError | None = None
        found: dict[str, tuple[int, ...]] = {}
        for text in dict.fromkeys((prompt, *others)):
            try:
                found[text] = tuple(find_words(tokenizer, text, [word], text_length)[0].columns)
            except RecipeError as error:
                missing = missing or error
        if not found and missing is not None:
            donors = ", nor in a donor" if others else ""
            raise RecipeError(f"edits.{index}: {missing.what}{donors}", missing.why, missing.fix)
        places[word] = found
    return places


def united(places: Mapping[str, Places]) -> Places:
    """Return the token columns of any of the words, in each text that contains one."""
    columns: dict[str, set[int]] = {}
    for found in places.values():
        for text, own in found.items():
            columns.setdefault(text, set()).update(own)
    return {text: tuple(sorted(own)) for text, own in columns.items()}
