"""The positions of words among a model's text tokens, found with the model's own tokenizer.

A column is a token's position in the text encoder's input, which is also its row in the text embedding. Before it is
tokenized, the text is cleaned exactly as Wan's pipeline does it, and spans are mapped through the cleaning. A text is
never truncated: one with more tokens than the model reads is rejected.
"""

from __future__ import annotations

import difflib
import html
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from wanscope.errors import ModelError, RecipeError

MAX_LENGTH = 512  # text tokens that every Wan model reads

_space = re.compile(r"\s+")
_widest_repair = 40  # characters; the longest HTML entity has 33
# Probe strings for `_repaired_position`. Several, because ftfy may keep one between letters and not between spaces.
_probes = ("Qxq", "7%7", " Qxq ", " Qxq", "Qxq ")
_words = re.compile(r"\w+(?:['’-]\w+)*")

Span = tuple[int, int]


class MarkLike(Protocol):
    """The interface that `template.Mark` and a recipe's marks share."""

    @property
    def text(self) -> str: ...
    @property
    def start(self) -> int: ...
    @property
    def end(self) -> int: ...
    @property
    def weight(self) -> float: ...
    @property
    def weighted(self) -> bool: ...


@dataclass(frozen=True)
class Columns:
    """Words and the token columns they occupy.

    columns: ascending. A token belongs to the words if it shares a character with them, so a tokenizer that has
    "sunflower" as one token returns that token for "sun". pieces: the tokens as the tokenizer writes them.
    spans: the positions of the words in the cleaned text; one span for a mark, one for each occurrence of a word.
    """

    text: str
    columns: tuple[int, ...]
    pieces: tuple[str, ...]
    spans: tuple[Span, ...]
    weight: float = 1.0
    weighted: bool = False


def clean(text: str) -> str:
    """Return the text as Wan's pipeline passes it to the tokenizer.

    The encoding is repaired, HTML entities are resolved and runs of spaces are collapsed.
    """
    return _space.sub(" ", _repair(text)).strip()


def count_tokens(tokenizer: Any, text: str) -> int:
    """Return the number of real tokens of a text, including the end token.

    Raises ModelError for a tokenizer without offsets.
    """
    return len(_encode(tokenizer, clean(text)).pieces)


def token_pieces(tokenizer: Any, text: str) -> tuple[str, ...]:
    """Return each real token of a text in readable form, such as `circle`, or `</s>` for the end token."""
    return tuple(piece.replace("▁", " ").strip() or "▁" for piece in _encode(tokenizer, clean(text)).pieces)


def check_length(tokenizer: Any, text: str, max_length: int = MAX_LENGTH, name: str = "prompt") -> int:
    """Return the number of real tokens of a text, including the end token.

    name: what the error calls the text. Raises RecipeError where the text has more than max_length tokens.
    """
    cleaned = clean(text)
    tokens = _encode(tokenizer, cleaned)
    _reject_longer(tokens, cleaned, max_length, name)
    return len(tokens.pieces)


def token_columns(
    tokenizer: Any, text: str, wanted: Iterable[MarkLike | str], max_length: int = MAX_LENGTH
) -> list[Columns]:
    """Return the token columns of each mark, or of all occurrences of each word given as plain text.

    text: a variation's text before cleaning; marks are spans of it. Raises RecipeError where the text has more than
    max_length tokens, where a mark does not match it, or where words are not in it or have no token.
    """
    wanted = list(wanted)
    cleaned = clean(text)
    tokens = _encode(tokenizer, cleaned)
    _reject_longer(tokens, cleaned, max_length)
    found = []
    for item in wanted:
        if isinstance(item, str):
            found.append(_columns(item, _occurrences(cleaned, item), tokens))
        else:
            span = _cleaned_span(text, item)
            found.append(_columns(item.text, (span,), tokens, item.weight, item.weighted))
    return found


def find_words(tokenizer: Any, text: str, words: Iterable[str], max_length: int = MAX_LENGTH) -> list[Columns]:
    """Return the token columns of every occurrence of each word or phrase, as whole words and ignoring case.

    Raises RecipeError as `token_columns` does.
    """
    return token_columns(tokenizer, text, words, max_length)


def unknown_words(tokenizer: Any, text: str) -> list[str]:
    """Return the words that contain an unknown token, once each, in order of appearance.

    Where only punctuation is unknown, it is returned without the word.
    """
    cleaned = clean(text)
    tokens = _encode(tokenizer, cleaned)
    found: dict[str, None] = {}
    for token_id, span in zip(tokens.ids, tokens.spans, strict=True):
        if span is None or token_id != tokenizer.unk_token_id:
            continue
        unknown = cleaned[slice(*span)]
        if _without_punctuation(unknown):
            unknown = _without_punctuation(cleaned[slice(*_whole_words(cleaned, span))])
        found[unknown] = None
    return list(found)


# tokens


@dataclass(frozen=True)
class _Tokens:
    """The token ids and pieces of a text; spans: each token's characters without spaces, or None if it has none."""

    ids: list[int]
    pieces: list[str]
    spans: list[Span | None]


def _encode(tokenizer: Any, cleaned: str) -> _Tokens:
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            f"the tokenizer {type(tokenizer).__name__} cannot be used",
            "it does not report which characters a token covers",
            "load it with transformers.AutoTokenizer, which gives the fast one",
        )
    encoded = tokenizer(cleaned, add_special_tokens=True, return_offsets_mapping=True, truncation=False, verbose=False)
    ids = list(encoded["input_ids"])
    pieces = tokenizer.convert_ids_to_tokens(ids)
    spans = [
        _own_characters(cleaned, piece, start, end)
        for piece, (start, end) in zip(pieces, encoded["offset_mapping"], strict=True)
    ]
    return _Tokens(ids, pieces, spans)


def _own_characters(cleaned: str, piece: str, start: int, end: int) -> Span | None:
    # A lone "▁" is the space before a word, but some tokenizers report the word's first character for it; others
    # include the space in the word's characters.
    if not piece.strip("▁"):
        return None
    while start < end and cleaned[start].isspace():
        start += 1
    while start < end and cleaned[end - 1].isspace():
        end -= 1
    return (start, end) if start < end else None


def _reject_longer(tokens: _Tokens, cleaned: str, max_length: int, name: str = "prompt") -> None:
    total = len(tokens.pieces)
    if total <= max_length:
        return
    ending = 0  # tokens after the text, which are kept even where a text is truncated
    while ending < total and tokens.spans[-1 - ending] is None:
        ending += 1
    cut = [span for span in tokens.spans[max(0, max_length - ending) :] if span is not None]
    lost = cleaned[_whole_words(cleaned, cut[0])[0] :] if cut else ""
    raise RecipeError(
        f"the {name} has {total} tokens and the model reads {max_length}",
        f"everything from {_shortened(lost)!r} on would be lost",
        f"a {name} shorter by {total - max_length} tokens",
    )


def _columns(text: str, spans: Sequence[Span], tokens: _Tokens, weight: float = 1.0, weighted: bool = False) -> Columns:
    columns = tuple(
        column
        for column, own in enumerate(tokens.spans)
        if own is not None and any(own[0] < end and start < own[1] for start, end in spans)
    )
    if not columns:
        raise RecipeError(
            f"the words {text!r} cannot be tracked",
            "the tokenizer makes no token of them",
            "mark or name other words",
        )
    return Columns(text, columns, tuple(tokens.pieces[column] for column in columns), tuple(spans), weight, weighted)


# words in the cleaned text


def _shortened(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


def _occurrences(cleaned: str, word: str) -> tuple[Span, ...]:
    wanted = clean(word)
    if not wanted:
        raise RecipeError("a word to find is empty", "", "name a word of the prompt")
    pattern = re.escape(wanted)
    before = r"(?<!\w)" if _needs_boundary(wanted[0]) else ""
    after = r"(?!\w)" if _needs_boundary(wanted[-1]) else ""
    spans = tuple(match.span() for match in re.finditer(before + pattern + after, cleaned, re.IGNORECASE))
    if spans:
        return spans
    inside = re.search(pattern, cleaned, re.IGNORECASE)
    if inside:
        longer = _without_punctuation(cleaned[slice(*_whole_words(cleaned, inside.span()))])
        raise RecipeError(f"the word {wanted!r} is not in the prompt", f"it only occurs inside {longer!r}", longer)
    words = list(dict.fromkeys(_words.findall(cleaned)))
    close = difflib.get_close_matches(wanted, words, n=1)
    some = ", ".join([word for word in words if len(word) > 2][:6]) or "a word of the prompt, exactly as written there"
    raise RecipeError(
        f"the word {wanted!r} is not in the prompt",
        f"the prompt reads {_shortened(cleaned)!r}",
        close[0] if close else f"one of {some}" if "," in some else some,
    )


def _needs_boundary(character: str) -> bool:
    """Return whether words in this character's script are separated by spaces; in Chinese and Japanese they are not."""
    is_word = re.match(r"\w", character) is not None
    return is_word and unicodedata.east_asian_width(character) not in "WF"


def _whole_words(cleaned: str, span: Span) -> Span:
    """Extend a span to the previous and the next space."""
    start, end = span
    while start > 0 and not cleaned[start - 1].isspace():
        start -= 1
    while end < len(cleaned) and not cleaned[end].isspace():
        end += 1
    return start, end


def _without_punctuation(text: str) -> str:
    """Return the text without punctuation at its ends."""
    kept = [index for index, character in enumerate(text) if not unicodedata.category(character).startswith("P")]
    return text[kept[0] : kept[-1] + 1] if kept else ""


# cleaning, and positions through it


def _repair(text: str) -> str:
    import ftfy  # 0.1 s, and only needed here

    return html.unescape(html.unescape(ftfy.fix_text(text)))


def _cleaned_span(text: str, mark: MarkLike) -> Span:
    if not (0 <= mark.start < mark.end <= len(text) and text[mark.start : mark.end] == mark.text):
        raise RecipeError(
            f"the mark {mark.text!r} is not at characters {mark.start} to {mark.end} of the prompt",
            f"those characters are {text[mark.start : mark.end]!r}",
            "let the template make the marks, or correct start and end",
        )
    repaired = _repair(text)
    start, end = mark.start, mark.end
    if repaired != text:
        start = _repaired_position(text, repaired, range(start, max(0, start - _widest_repair) - 1, -1), mark)
        end = _repaired_position(text, repaired, range(end, min(len(text), end + _widest_repair) + 1), mark)
    return len(_collapsed(repaired[:start])), len(_collapsed(repaired[:end]))


def _repaired_position(text: str, repaired: str, positions: Iterable[int], mark: MarkLike) -> int:
    """Return where the first possible one of these positions is after the repair, by inserting a probe string there.

    ftfy repairs a line as a whole, so the text around a position has to stay as it is; a probe is plain ASCII that
    ftfy does not change. A probe inside an entity or a broken character changes the repair, so such a position is
    skipped, and the mark widens to include everything that becomes one character.
    """
    for position in positions:
        for probe in _probes:
            while probe in text or probe in repaired:
                probe += probe
            before, found, after = _repair(text[:position] + probe + text[position:]).partition(probe)
            if found and before + after == repaired:
                return len(before)
    raise RecipeError(
        f"the marked words {mark.text!r} cannot be located",
        "the prompt has broken characters or HTML entities around them, which Wan repairs before reading it",
        "replace those characters by plain ones",
    )


def _collapsed(beginning: str) -> str:
    """Return the beginning of a text with spaces collapsed; one space may remain at its end."""
    return _space.sub(" ", beginning).lstrip()
