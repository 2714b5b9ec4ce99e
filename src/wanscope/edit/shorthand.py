"""Edits in one line, for the command line and for labels.

    inject 'a green square moves left' into late at 0.4
    inject 'beach + 0.5*(gothic - plain)' where beach='a beach' gothic='a gothic hall' plain=hall.safetensors
    inject stored('warm hall') into mid at 0.5
    bend circle translate x=0.25 in 4-9
    bend 'red circle', square amplify 2 during step(10)
    steer color.safetensors ablate in mid
    skip 3
    skip late cross_attention
    prompts 0 'a red circle', 10 'a blue circle' linear

`in` (or `into`) says the blocks, `at` the strength, `during` the schedule, `on` context or hidden, `after` the block at
which a donor is captured; every other field is `name=value`. Texts stand in quotes, single or double, where a backslash
makes the next quote or backslash an ordinary character. `parse` reads such a line or an edit's JSON; `shorthand` writes
one, with everything that is not at its default but for hashes of files: parse(shorthand(edit)) is the edit.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from wanscope.edit.canonical_fields import number_text
from wanscope.edit.edits import BENDS, KINDS, Bend, Donor, Edit, Inject, Prompts, Skip, Steer, text_keys
from wanscope.edit.line_tokens import Token, bare, contents, is_quoted, quoted, tokens, top_level
from wanscope.errors import EditError, RecipeError, nearest
from wanscope.spec.strict_yaml import read_yaml
from wanscope.spec.validation import validated

EXAMPLES = {
    "inject": "inject 'a green square moves left' into late at 0.4",
    "bend": "bend circle translate x=0.25 in 4-9",
    "steer": "steer color.safetensors ablate in mid",
    "skip": "skip 3",
    "prompts": "prompts 0 'a red circle', 10 'a blue circle'",
}
KEYWORDS = {
    "in": "blocks",
    "into": "blocks",
    "at": "strength",
    "during": "schedule",
    "on": "on",
    "after": "after_block",
}
_setting = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)
_plain_name = re.compile(r"[\w./~+-]+\.safetensors")
_plain_word = re.compile(r"[^\W\d_]\w*")


def parse(text: str) -> Edit:
    """The edit that one line means, or that its JSON object is. EditError, with a caret, or RecipeError."""
    stripped = text.strip()
    if stripped.startswith("{"):
        return edit_from(_mapping(stripped))
    return edit_from(_Line(text).read(), f"in the edit {_short(text)!r}: ")


def edit_from(data: Any, where: str = "") -> Edit:
    """An edit from plain data (a mapping with `kind`, or one line of text). RecipeError where it is none."""
    if isinstance(data, str):
        return parse(data)
    kind = data.get("kind") if isinstance(data, Mapping) else None
    if not isinstance(kind, str) or kind not in KINDS:
        hint = nearest(kind, KINDS) if isinstance(kind, str) else f"its kind is one of {', '.join(KINDS)}"
        raise RecipeError(f"{where}the edit has the kind {kind!r}", hint, EXAMPLES["inject"])
    try:
        edit: Any = validated(KINDS[kind], text_keys(data))
    except RecipeError as error:
        fix = _in_one_line(error.fix) if where else error.fix
        raise RecipeError(f"{where}{error.what}", error.why, fix or EXAMPLES[kind]) from None
    return edit


def _in_one_line(fix: str) -> str:
    """A fix as it is written in a line: `blocks: late` is `into late` there."""
    for word, key in (("into", "blocks"), ("at", "strength"), ("during", "schedule")):
        fix = re.sub(rf"\b{key}: (?=\S)", f"{word} ", fix)
    return fix


def _mapping(text: str) -> dict[str, Any]:
    return read_yaml(text, "the edit")  # JSON is YAML, and quotes may then be left out


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


# reading


class _Line:
    """One line, read token by token into the mapping of an edit."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = tokens(text)
        self.place = 0
        self.data: dict[str, Any] = {}

    def read(self) -> dict[str, Any]:
        if not self.tokens:
            raise RecipeError("the edit is empty", "it names what is to be done", EXAMPLES["inject"])
        first = self.take()
        kind = first.text.lower()
        if kind not in KINDS:
            self.fail(first, f"an edit begins with {', '.join(KINDS)}; {nearest(kind, KINDS)}", EXAMPLES["inject"])
        self.kind = self.data["kind"] = kind
        {"inject": self.inject, "bend": self.bend, "steer": self.steer, "skip": self.skip, "prompts": self.prompts}[
            kind
        ]()
        while self.place < len(self.tokens):
            self.setting()
        return self.data

    # the beginnings of the five kinds

    def inject(self) -> None:
        if not self.here() or _setting.fullmatch(self.here().text):
            return  # the donor may be given by name, or is found missing
        token = self.take()
        donor = self.donor(token)
        if donor is None:
            self.fail(
                token, "a donor stands in quotes, or is a .safetensors file or stored('NAME')", EXAMPLES["inject"]
            )
        self.data["donor"] = donor

    def donor(self, token: Token) -> dict[str, Any] | None:
        """A prompt in quotes, a file, or an embedding of the catalogue."""
        if is_quoted(token.text):
            return {"prompt": contents(token.text)}
        inside = re.fullmatch(r"(?:file|stored)\((.*)\)", token.text, re.DOTALL)
        if inside and is_quoted(inside[1].strip()):
            return {"embedding": contents(inside[1].strip())}
        return {"embedding": token.text} if token.text.endswith(".safetensors") else None

    def bend(self) -> None:
        words: list[str] = []
        while (token := self.here()) and not (token.text in BENDS and words):
            if not is_quoted(token.text) and (token.text in KEYWORDS or _setting.fullmatch(token.text)):
                break
            words.append(bare(self.take().text))
        if not words:
            self.fail(token or self.end(), "it names no word whose attention is bent", EXAMPLES["bend"])
        self.data["words"] = words
        if not (token and token.text in BENDS):
            hint = next((nearest(w, BENDS) for w in words[1:] if "mean" in nearest(w, BENDS)), f"{', '.join(BENDS)}")
            self.fail(token or self.end(), f"what to do is missing after the words: {hint}", EXAMPLES["bend"])
        operation = self.data["operation"] = self.take().text
        needed, allowed = BENDS[operation]
        token = self.here()
        if token and token.text not in KEYWORDS and not _setting.fullmatch(token.text):
            names = needed or allowed
            if len(names) != 1:
                self.fail(token, f"{operation} takes {' and '.join(f'{n}=...' for n in names)}", EXAMPLES["bend"])
            self.data[names[0]] = self.value(names[0], self.take())

    def steer(self) -> None:
        token = self.here()
        if token and not _setting.fullmatch(token.text) and token.text not in KEYWORDS:
            self.data["direction"] = bare(self.take().text)
        token = self.here()
        if token and token.text in ("add", "ablate", "rotate"):
            self.data["operation"] = self.take().text

    def skip(self) -> None:
        blocks = self.until(("block", "cross_attention", "attention"))
        if blocks:
            self.data["blocks"] = blocks
        token = self.here()
        if token and token.text in ("block", "cross_attention", "attention"):
            self.data["part"] = "block" if self.take().text == "block" else "cross_attention"

    def prompts(self) -> None:
        keys: dict[str, str] = {}
        while (token := self.here()) and token.text[:1].isdigit():
            step, _, rest = self.take().text.partition(":")
            prompt = Token(rest, token.at + len(step) + 1) if rest else self.here()
            if not step.isdigit() or prompt is None or not is_quoted(prompt.text):
                self.fail(prompt or self.end(), "each step is followed by its prompt in quotes", EXAMPLES["prompts"])
            if not rest:
                self.take()
            if str(int(step)) in keys:
                self.fail(token, f"step {step} is given twice")
            keys[str(int(step))] = contents(prompt.text)
        if not keys:
            self.fail(token or self.end(), "it begins with a step and its prompt", EXAMPLES["prompts"])
        self.data["keys"] = keys
        if (token := self.here()) and token.text in ("step", "linear", "spherical"):
            self.data["interpolate"] = self.take().text

    # what follows them

    def setting(self) -> None:
        token = self.take()
        found = _setting.fullmatch(token.text)
        if found:
            self.put(found[1], self.value(found[1], Token(found[2], token.at + len(found[1]) + 1)), token)
        elif token.text == "where" and self.kind == "inject":
            self.where(token)
        elif token.text in KEYWORDS:
            name = KEYWORDS[token.text]
            text = self.until()
            if not text:
                self.fail(self.here() or self.end(), f"something is missing after {token.text!r}", EXAMPLES[self.kind])
            self.put(name, self.value(name, Token(text, token.at)), token)
        else:
            known = [*KEYWORDS, *(["where"] if self.kind == "inject" else [])]
            self.fail(
                token,
                f"{token.text!r} is not expected here ({nearest(token.text, known)}), or it wants quotes",
                EXAMPLES[self.kind],
            )

    def where(self, token: Token) -> None:
        """Makes the donor an expression, with what its names mean."""
        text = self.data.get("donor", {}).get("prompt")
        if text is None:
            self.fail(token, "'where' follows an expression in quotes", EXAMPLES["inject"])
        names: dict[str, Any] = {}
        while (token := self.here()) and (found := _setting.fullmatch(token.text)):
            value = self.donor(Token(found[2].rstrip(","), token.at + len(found[1]) + 1))
            if value is None:
                break  # a field of the edit
            self.take()
            names[found[1]] = value
        if not names:
            self.fail(token or self.end(), "'where' says what the names mean", "where beach='a beach'")
        self.data["donor"] = {"expression": text, "names": names}

    def put(self, name: str, value: Any, token: Token) -> None:
        fields = [f for f in KINDS[self.kind].model_fields if f != "kind"]
        if name == "after_block" and self.kind == "inject":
            donor = self.data.get("donor")
            if not isinstance(donor, dict):
                self.fail(token, "'after' follows a donor", EXAMPLES["inject"])
            self.data["donor"] = {**donor, "after_block": value}
            return
        if name not in fields:
            self.fail(token, f"{self.kind} has no {name!r}; {nearest(name, fields)}", EXAMPLES[self.kind])
        if name in self.data:
            self.fail(token, f"{name} is given twice")
        self.data[name] = value

    def value(self, name: str, token: Token) -> Any:
        text = token.text.strip()
        if name in ("strength", "schedule") and text[:1] in ("{", "["):
            return _mapping(f"value: {text}")["value"]
        if name in ("words", "heads", "box"):
            inner = text[1:-1] if text[:1] == "[" and text[-1:] == "]" else text
            items = [bare(item.strip()) for item in top_level(inner, ",") if item.strip()]
            return [int(item) if item.isdigit() else item for item in items] if name == "heads" else items
        if name == "after_block":
            return int(text) if text.isdigit() else text
        if name == "donor":
            return self.donor(Token(text, token.at)) or contents(text)
        return bare(text)

    # tokens

    def here(self) -> Any:
        """The next token; None at the end."""
        return self.tokens[self.place] if self.place < len(self.tokens) else None

    def take(self) -> Token:
        self.place += 1
        return self.tokens[self.place - 1]

    def end(self) -> Token:
        return Token("", len(self.text.rstrip()))

    def until(self, stops: Sequence[str] = ()) -> str:
        """The text up to the next keyword or setting, commas inside it kept."""
        first = last = None
        while (token := self.here()) and token.text not in (*KEYWORDS, "where", *stops):
            if _setting.fullmatch(token.text):
                break
            last = self.take()
            first = first or last
        return self.text[first.at : last.end].rstrip(" ,") if first and last else ""

    def fail(self, token: Token, why: str, fix: str = "") -> NoReturn:
        raise EditError(self.text, token.at, why, fix)


# writing


def shorthand(edit: Edit) -> str:
    """The edit in one line, with everything that is not at its default (but for hashes of files)."""
    data = edit.model_dump(mode="json", exclude_defaults=True)
    for key in ("kind", "sha256"):
        data.pop(key, None)
    words = [edit.kind]
    if isinstance(edit, Inject):
        words += _donor_words(edit.donor)
        data.pop("donor")
    elif isinstance(edit, Bend):
        words.append(", ".join(_word(word) for word in edit.words))
        words.append(edit.operation)
        del data["words"], data["operation"]
        needed, allowed = BENDS[edit.operation]
        words += [_text(name, data.pop(name)) for name in needed]
        words += [f"{name}={_text(name, data.pop(name))}" for name in allowed if name in data]
    elif isinstance(edit, Steer):
        words.append(edit.direction if _plain_name.fullmatch(edit.direction) else quoted(edit.direction))
        words.append(edit.operation)
        del data["direction"]
        data.pop("operation", None)
    elif isinstance(edit, Skip):
        words.append(edit.blocks)
        del data["blocks"]
        words += [edit.part] if data.pop("part", None) else []
    elif isinstance(edit, Prompts):
        words.append(", ".join(f"{step} {quoted(prompt)}" for step, prompt in edit.keys.items()))
        del data["keys"]
        words += [edit.interpolate] if data.pop("interpolate", None) else []
    said = {"blocks": "into" if isinstance(edit, Inject) else "in", "strength": "at", "schedule": "during", "on": "on"}
    for name, word in said.items():
        if name in data:
            words += [word, _text(name, data.pop(name))]
    words += [f"{name}={_text(name, value)}" for name, value in data.items()]
    return " ".join(words)


def _donor_words(donor: Donor) -> list[str]:
    after = [] if donor.after_block is None else ["after", str(donor.after_block)]
    if donor.expression is None:
        return [_donor_text(donor), *after]
    names = [f"{name}={_donor_text(inner)}" for name, inner in donor.names.items()]
    return [quoted(donor.expression), "where", *names, *after]


def _donor_text(donor: Donor) -> str:
    if donor.prompt is not None:
        return quoted(donor.prompt)
    path = donor.embedding or ""
    if not path.endswith(".safetensors"):
        return f"stored({quoted(path)})"
    return path if _plain_name.fullmatch(path) else f"file({quoted(path)})"


def _word(word: str) -> str:
    reserved = word in BENDS or word in KEYWORDS or word == "where"
    return word if _plain_word.fullmatch(word) and not reserved else quoted(word)


def _text(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return number_text(value)
    if isinstance(value, list):
        return f"[{', '.join(_word(item) if isinstance(item, str) else number_text(item) for item in value)}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f'"{key}": {number_text(item)}' for key, item in value.items()) + "}"
    return quoted(value) if name == "donor_negative" else str(value)
