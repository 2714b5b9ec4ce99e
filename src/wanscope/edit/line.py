"""An edit's line while it is read, token by token, into the mapping that the edit is made from.

What all kinds share is here: `in` (or `into`) the blocks, `at` a strength, `during` a schedule, `on` context or hidden
states, and `name=value` for every other field. A kind reads its own beginning (`EditBase.read_beginning`) with the
methods below.
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
# Words that only some kinds know. No kind takes them for anything else, so that a line means the same in all.
RESERVED = (*KEYWORDS, "after", "where")
_plain_word = re.compile(r"[^\W\d_]\w*")
_setting = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)

Reader = Callable[["Line", Token], Any]


class Line:
    """One line, read from its first token to its last. kind: its first word. data: what was read so far."""

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
        """Reads everything behind the kind's own beginning.

        fields: what the kind has. readers: of fields that are no plain text. reserved, read_own: the kind's own words,
        and what reads the part of the line that one of them begins.
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
                    f"{token.text!r} is not expected here ({nearest(token.text, known)}), or it needs quotes",
                    self.example,
                )

    def put(self, name: str, value: Any, token: Token, fields: Collection[str]) -> None:
        """Sets a field; EditError for one that the kind does not have, or that is given twice."""
        if name not in fields:
            self.fail(token, f"{self.kind} has no {name!r}; {nearest(name, fields)}", self.example)
        if name in self.data:
            self.fail(token, f"{name} is given twice")
        self.data[name] = value

    def value(self, name: str, token: Token, readers: Mapping[str, Reader]) -> Any:
        """What the text of a field means."""
        text = token.text.strip()
        if name in readers:
            return readers[name](self, Token(text, token.at))
        if name in ("strength", "schedule") and text[:1] in ("{", "["):
            return read_yaml(f"value: {text}", "the edit")["value"]
        return bare(text)

    # ---- tokens

    def here(self) -> Any:
        """The next token; None at the end."""
        return self.tokens[self.place] if self.place < len(self.tokens) else None

    def take(self) -> Token:
        """The next token, which is then behind."""
        self.place += 1
        return self.tokens[self.place - 1]

    def end(self) -> Token:
        """An empty token where the line ends."""
        return Token("", len(self.text.rstrip()))

    def begins_a_part(self, token: Token) -> bool:
        """Whether a token begins a part of the line: `in`, `at`, `after`, `name=value` and the like."""
        return not is_quoted(token.text) and (token.text in (*KEYWORDS, "after") or is_setting(token))

    def until(self, stops: Sequence[str] = ()) -> str:
        """The text up to the next part, or to one of `stops`; commas inside it are kept."""
        first = last = None
        while (token := self.here()) and token.text not in (*RESERVED, *stops) and not is_setting(token):
            last = self.take()
            first = first or last
        return self.text[first.at : last.end].rstrip(" ,") if first and last else ""

    def rest_of_part(self, word: Token) -> str:
        """The text behind a word that begins a part. EditError where there is none."""
        text = self.until()
        if not text:
            self.fail(self.here() or self.end(), f"something is missing after {word.text!r}", self.example)
        return text

    def fail(self, token: Token, why: str, fix: str = "") -> NoReturn:
        """EditError with a caret under the token."""
        raise EditError(self.text, token.at, why, fix)


def is_setting(token: Token) -> bool:
    """Whether a token is `name=value`."""
    return _setting.fullmatch(token.text) is not None


def setting_of(token: Token) -> tuple[str, Token] | None:
    """The name of a `name=value`, and its value where it is in the line."""
    found = _setting.fullmatch(token.text)
    return (found[1], Token(found[2], token.at + len(found[1]) + 1)) if found else None


def items_of(text: str) -> list[str]:
    """`[a, 'b c']` or `a, 'b c'` as a list."""
    inner = text[1:-1] if text[:1] == "[" and text[-1:] == "]" else text
    return [bare(item.strip()) for item in top_level(inner, ",") if item.strip()]


def is_plain_word(word: str) -> bool:
    """Whether a word needs no quotes in a line."""
    return _plain_word.fullmatch(word) is not None and word not in RESERVED


def field_text(value: Any) -> str:
    """A field's value as a line has it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return number_text(value)
    if isinstance(value, list):
        return f"[{', '.join(field_text(item) for item in value)}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f'"{key}": {number_text(item)}' for key, item in value.items()) + "}"
    return str(value)
