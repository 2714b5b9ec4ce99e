"""The one-line form of edits, for the command line and for labels.

    inject 'a green square moves left' into late at 0.4
    inject 'beach + 0.5*(gothic - plain)' where beach='a beach' gothic='a gothic hall' plain=hall.safetensors
    inject stored('warm hall') into mid at 0.5
    bend circle translate x=0.25 in 4-9
    bend 'red circle', square amplify 2 during step(10)
    steer color.safetensors ablate in mid
    skip 3
    skip late cross_attention
    prompts 0 'a red circle', 10 'a blue circle' linear

`in` (or `into`) is followed by the blocks, `at` by the strength, `during` by the schedule, `on` by context or hidden,
`after` by the block at which a donor is captured; every other field is `name=value`. Texts are in single or double
quotes; inside them, a backslash escapes a quote or a backslash.

`parse` reads such a line or an edit's JSON. `shorthand` writes one, with every field that is not at its default, except
hashes of files: parse(shorthand(edit)) equals the edit.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from wanscope.edit.edits import KINDS, Edit, text_keys
from wanscope.edit.line import Line
from wanscope.errors import RecipeError, nearest
from wanscope.spec.strict_yaml import read_yaml
from wanscope.spec.validation import validated

EXAMPLES = {name: kind.example for name, kind in KINDS.items()}


def parse(text: str) -> Edit:
    """Read an edit from its one-line form or its JSON object. Raises EditError, with a caret, or RecipeError."""
    stripped = text.strip()
    if stripped.startswith("{"):
        return edit_from(_mapping(stripped))
    return edit_from(_read(text), f"in the edit {_short(text)!r}: ")


def edit_from(data: Any, where: str = "") -> Edit:
    """Return an edit from plain data (a mapping with `kind`, or one line of text). Raises RecipeError.

    where: a prefix for messages.
    """
    if isinstance(data, str):
        return parse(data)
    kind = data.get("kind") if isinstance(data, Mapping) else None
    if not isinstance(kind, str) or kind not in KINDS:
        hint = nearest(kind, KINDS) if isinstance(kind, str) else f"its kind is one of {', '.join(KINDS)}"
        raise RecipeError(f"{where}the kind of the edit is {kind!r}", hint, EXAMPLES["inject"])
    try:
        edit: Any = validated(KINDS[kind], text_keys(data))
    except RecipeError as error:
        fix = _in_one_line(error.fix) if where else error.fix
        raise RecipeError(f"{where}{error.what}", error.why, fix or EXAMPLES[kind]) from None
    return edit


def _in_one_line(fix: str) -> str:
    """Rewrite a fix for the one-line form: `blocks: late` becomes `into late`."""
    for word, key in (("into", "blocks"), ("at", "strength"), ("during", "schedule")):
        fix = re.sub(rf"\b{key}: (?=\S)", f"{word} ", fix)
    return fix


def _mapping(text: str) -> dict[str, Any]:
    return read_yaml(text, "the edit")  # JSON is YAML, and quotes may then be left out


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


def _read(text: str) -> dict[str, Any]:
    """Read a line into the mapping that the edit is made from."""
    line = Line(text)
    if not line.tokens:
        raise RecipeError("the edit is empty", f"an edit begins with {', '.join(KINDS)}", EXAMPLES["inject"])
    first = line.take()
    name = first.text.lower()
    if name not in KINDS:
        line.fail(first, f"an edit begins with {', '.join(KINDS)}; {nearest(name, KINDS)}", EXAMPLES["inject"])
    kind = KINDS[name]
    line.kind = line.data["kind"] = name
    line.example = kind.example
    kind.read_beginning(line)
    line.settings([f for f in kind.model_fields if f != "kind"], kind.readers, kind.reserved, kind.read_own)
    return line.data


def shorthand(edit: Edit) -> str:
    """Return the edit in one line, with every field that is not at its default, except hashes of files."""
    return edit.in_one_line()
