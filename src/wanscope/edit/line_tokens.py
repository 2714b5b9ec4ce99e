"""The tokenizer of the one-line form of edits: splits a line at spaces that are not inside quotes or brackets."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from wanscope.errors import EditError

QUOTES = "'\""
OPENING, CLOSING = "([{", ")]}"
_plain_file = re.compile(r"[\w./~+-]+\.safetensors")
# A quote opens a text at the start of a token or after one of these characters; elsewhere it is an apostrophe.
_BEFORE_QUOTE = "=:,([{ "


@dataclass(frozen=True)
class Token:
    """A piece of the line, including quotes. at: where it begins. end: where it ends, including a trailing comma."""

    text: str
    at: int
    end: int = 0


def tokens(line: str) -> list[Token]:
    """Return the tokens of a line, without trailing commas. Raises EditError for an unclosed quote or bracket."""
    found = (Token(line[start:end].removesuffix(","), start, end) for start, end in _pieces(line, None))
    return [token for token in found if token.text]


def top_level(text: str, separator: str) -> list[str]:
    """Split the text at every separator that is not inside quotes or brackets."""
    return [text[start:end] for start, end in _pieces(text, separator)]


def _pieces(line: str, separator: str | None) -> Iterator[tuple[int, int]]:
    """Yield (begin, end) of the pieces between separators (None: whitespace)."""
    start, i = 0, 0
    opened: list[int] = []
    while i < len(line):
        c = line[i]
        first = i == start or line[i - 1] in _BEFORE_QUOTE
        if c in QUOTES and first:
            i = _closing(line, i)
        elif c in OPENING:
            opened.append(i)
        elif c in CLOSING and opened:
            opened.pop()
        elif not opened and (c.isspace() if separator is None else c == separator):
            if i > start:
                yield start, i
            start = i + 1
        i += 1
    if opened:
        raise EditError(line, opened[-1], f"this {line[opened[-1]]!r} is never closed")
    if len(line) > start:
        yield start, len(line)


def _closing(line: str, at: int) -> int:
    i = at + 1
    while i < len(line):
        if line[i] == "\\":
            i += 1
        elif line[i] == line[at]:
            return i
        i += 1
    raise EditError(line, at, "this quote is never closed")


def is_quoted(text: str) -> bool:
    """Return whether the whole text is one quoted text."""
    return len(text) >= 2 and text[0] in QUOTES and _closing_or(text) == len(text) - 1


def _closing_or(text: str) -> int:
    try:
        return _closing(text, 0)
    except EditError:
        return -1


def contents(text: str) -> str:
    """Return the content of a quoted text, with escapes resolved."""
    out, i, inner = [], 0, text[1:-1]
    while i < len(inner):
        if inner[i] == "\\" and inner[i + 1 : i + 2] in ("\\", *QUOTES):
            i += 1
        out.append(inner[i])
        i += 1
    return "".join(out)


def bare(text: str) -> str:
    """Return the text without the quotes around it, if there are any."""
    return contents(text) if is_quoted(text) else text


def quoted(text: str) -> str:
    """Put a text in quotes, so that `contents` returns it."""
    quote = '"' if "'" in text and '"' not in text else "'"
    return quote + text.replace("\\", "\\\\").replace(quote, "\\" + quote) + quote


def is_plain_file(text: str) -> bool:
    """Return whether the text is the path of a .safetensors file that can be written without quotes."""
    return _plain_file.fullmatch(text) is not None
