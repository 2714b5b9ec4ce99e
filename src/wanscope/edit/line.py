"""The parser of the one-line form of edits: reads a line token by token into the mapping that the edit is made from.

The parts that all kinds share are read here: `in` (or `into`) the blocks, `at` a strength, `during` a schedule, `on`
context or hidden states, and `name=value` for every other field. A kind reads its own beginning
(`EditBase.read_beginning`) with the methods below.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NoReturn

from wanscope.edit.canonical_fields import number_text
from wanscope.edit.line_tokens import Token, bare, is_quoted, tokens, top_level
from wanscope.errors import EditError, nearest
from wanscope.spec.strict_yaml import read_yaml

KEYWORDS = {"in": "blocks", "into": "blocks", "at": "strength", "during": "schedule", "on": "on"}
# `after` and `where` are keywords of some kinds only, but reserved in all, so that lines are parsed the same way.
RESERVED = (*KEYWORDS, "after", "where")
_plain_word = re.compile(r"[^\W\d_]\w*")
_setting = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)

Reader = Callable[["Line", Token], Any]


class Line:
    """One line, read from left to right. kind: its first word. data: the fields read so far. place: the next token."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = tokens(text)
        self.place = 0
        self.data: dict[str, Any] = {}
        self.kind = ""
        self.example = ""

    def settings(
        self,
        fields: Collection[str],
        readers: Mapping[str, Reader],
        reserved: Sequence[str],
        read_own: Callable[[Line, Token, Token | None], None],
    ) -> None:
        """Read everything after the kind's own beginning.

        fields: the fields of the kind. readers: parsers of fields that are not plain text. reserved: the kind's own
        keywords. read_own: reads the part of the line that begins with one of them.
        """
        while self.place < len(self.tokens):
            token = self.take()
            found = setting_of(token)
            if found and found[0] in reserved:
                read_own(self, Token(found[0], token.at), found[1])
            elif found:
                self.put(found[0], self.value(*found, readers), token, fields)
            elif token.text in reserved:
                read_own(self, token, None)
            elif token.text in KEYWORDS:
                name = KEYWORDS[token.text]
                value = Token(self.rest_of_part(token), token.at)
                self.put(name, self.value(name, value, readers), token, fields)
            elif token.text in RESERVED:
                self.fail(token, f"{self.kind} has no {token.text!r}; {nearest(token.text, fields)}", self.example)
            else:
                known = [*KEYWORDS, *reserved]
                self.fail(
                    token,
                    f"{token.text!r} is not expected here ({nearest(token.text, known)}); a text needs quotes",
                    self.example,
                )

    def put(self, name: str, value: Any, token: Token, fields: Collection[str]) -> None:
        """Set a field. Raises EditError for a field that the kind does not have or that is given twice."""
        if name not in fields:
            self.fail(token, f"{self.kind} has no {name!r}; {nearest(name, fields)}", self.example)
        if name in self.data:
            self.fail(token, f"{name} is given twice")
        self.data[name] = value

    def value(self, name: str, token: Token, readers: Mapping[str, Reader]) -> Any:
        """Return the value that the text of a field denotes."""
        text = token.text.strip()
        if name in readers:
            return readers[name](self, Token(text, token.at))
        if name in ("strength", "schedule") and text[:1] in ("{", "["):
            return read_yaml(f"value: {text}", "the edit")["value"]
        return bare(text)

    # ---- tokens

    def here(self) -> Any:
        """Return the next token without consuming it; None at the end."""
        return self.tokens[self.place] if self.place < len(self.tokens) else None

    def take(self) -> Token:
        """Consume the next token and return it."""
        self.place += 1
        return self.tokens[self.place - 1]

    def end(self) -> Token:
        """Return an empty token at the end of the line, for errors."""
        return Token("", len(self.text.rstrip()))

    def begins_a_part(self, token: Token) -> bool:
        """Return whether a token begins a part of the line, as `in`, `at`, `after` and `name=value` do."""
        return not is_quoted(token.text) and (token.text in (*KEYWORDS, "after") or is_setting(token))

    def until(self, stops: Sequence[str] = ()) -> str:
        """Consume and return the text up to the next part, or to one of `stops`. Commas inside it are kept."""
        first = last = None
        while (token := self.here()) and token.text not in (*RESERVED, *stops) and not is_setting(token):
            last = self.take()
            first = first or last
        return self.text[first.at : last.end].rstrip(" ,") if first and last else ""

    def rest_of_part(self, word: Token) -> str:
        """Consume and return the text after a keyword. Raises EditError if there is none."""
        text = self.until()
        if not text:
            self.fail(self.here() or self.end(), f"something is missing after {word.text!r}", self.example)
        return text

    def fail(self, token: Token, why: str, fix: str = "") -> NoReturn:
        """Raise EditError with a caret under the token."""
        raise EditError(self.text, token.at, why, fix)


def is_setting(token: Token) -> bool:
    """Return whether a token is `name=value`."""
    return _setting.fullmatch(token.text) is not None


def setting_of(token: Token) -> tuple[str, Token] | None:
    """Split `name=value` into the name and the value, a token with its position in the line. None for other tokens."""
    found = _setting.fullmatch(token.text)
    return (found[1], Token(found[2], token.at + len(found[1]) + 1)) if found else None


def items_of(text: str) -> list[str]:
    """Return `[a, 'b c']` or `a, 'b c'` as a list."""
    inner = text[1:-1] if text[:1] == "[" and text[-1:] == "]" else text
    return [bare(item.strip()) for item in top_level(inner, ",") if item.strip()]


def is_plain_word(word: str) -> bool:
    """Return whether a word can be written without quotes."""
    return _plain_word.fullmatch(word) is not None and word not in RESERVED


def field_text(value: Any) -> str:
    """Return a field's value as it is written in a line."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return number_text(value)
    if isinstance(value, list):
        return f"[{', '.join(field_text(item) for item in value)}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f'"{key}": {number_text(item)}' for key, item in value.items()) + "}"
    return str(value)
