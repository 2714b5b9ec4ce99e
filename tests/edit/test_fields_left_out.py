"""Every kind of edit, every choice of its fields, and each field left out: refused in one sentence, or it runs.

Generated from the kinds' own fields, so that a new kind or field is covered when it has a value below.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from itertools import product
from typing import Any, Literal, get_args, get_origin

import pytest
import torch
from pydantic import ValidationError

from helpers.edited import edited
from helpers.tiny import tiny_model
from wanscope.edit.edits import KINDS, Edit
from wanscope.edit.shorthand import edit_from, shorthand
from wanscope.errors import EditNotApplied, RecipeError

torch.set_num_threads(1)
VALUES: dict[str, Any] = {
    "schedule": "linear(1, 0.5)",
    "blocks": "1-2",
    "strength": 0.5,
    "donor": "a large blue square",
    "donor_negative": "gray",
    "words": ["circle"],
    "difference": 1.5,
    "boost": 1.5,
    "keep_norm": True,
    "factor": 2.0,
    "x": 0.25,
    "y": -0.25,
    "angle": 30.0,
    "sigma": 1.0,
    "box": [0, 0, 0.5, 1],
    "heads": [0],
    "renormalize": False,
    "direction": "file",
    "sha256": "context",
    "keys": {0: "a green cat", 1: "a red circle moves left"},
}
RUN = ("inject", "bend", "skip", "prompts")  # steering needs a file, and is run in tests of directions


def choices(annotation: Any) -> tuple[Any, ...]:
    """Return the values of a Literal, also of an optional one; () for any other annotation."""
    if get_origin(annotation) in (typing.Union, types.UnionType):
        inner = [each for each in get_args(annotation) if each is not type(None)]
        return choices(inner[0]) if len(inner) == 1 else ()
    return get_args(annotation) if get_origin(annotation) is Literal else ()


def combinations(kind: str) -> Iterator[dict[str, Any]]:
    """Yield one mapping per combination of the choices of a kind, without its other fields."""
    fields = {name: choices(info.annotation) for name, info in KINDS[kind].model_fields.items() if name != "kind"}
    named = {name: values for name, values in fields.items() if values and name != "branch"}
    for chosen in product(*named.values()):
        yield dict(zip(named, chosen, strict=True))


def requests(kind: str) -> Iterator[dict[str, Any]]:
    """Yield for each combination: the required fields alone, each optional one added, and all but each one."""
    fields = [name for name in KINDS[kind].model_fields if name != "kind"]
    for chosen in combinations(kind):
        others = {name: VALUES[name] for name in fields if name not in chosen and name != "branch"}
        required = {name: value for name, value in others.items() if KINDS[kind].model_fields[name].is_required()}
        yield {**required, **chosen}
        for name in others:
            yield {**required, **chosen, name: others[name]}
        everything = {**others, **chosen}
        for name in everything:
            yield {key: value for key, value in everything.items() if key != name}
        yield everything


def built(kind: str, data: dict[str, Any]) -> Edit | str:
    """Return the edit, or the sentence that refuses it."""
    try:
        return edit_from({"kind": kind, **data})
    except (RecipeError, ValidationError) as error:
        return str(error)


def test_every_field_has_a_value_here() -> None:
    for kind, cls in KINDS.items():
        for name, info in cls.model_fields.items():
            assert name in VALUES or choices(info.annotation), f"{kind}.{name}"


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_left_out_has_a_default_or_is_named(kind: str) -> None:
    edits = refused = 0
    for data in requests(kind):
        found = built(kind, data)
        if isinstance(found, str):
            refused += 1
            assert len(found) > 20 and not found.startswith("Value error, \n"), (data, found)
            continue
        edits += 1
        again = edit_from(shorthand(found))
        if "sha256" in data:  # the one-line form names the file, whose hash is filled in again
            found = found.model_copy(update={"sha256": None})
        assert again == found, data
    assert edits > 0 and (refused > 0 or kind in ("skip", "prompts"))


@pytest.mark.parametrize("kind", RUN)
def test_what_is_accepted_runs(kind: str) -> None:
    """On a model of four blocks, two steps; each distinct edit once."""
    model = tiny_model("2.1", seed=3)
    found = (built(kind, data) for data in requests(kind))
    distinct = {edit.model_dump_json(): edit for edit in found if not isinstance(edit, str)}
    assert distinct
    ran, refused = 0, []
    for edit in distinct.values():
        if edit.inactive_reason(4):
            continue
        try:
            result = edited(model, [edit], steps=2)
        except (RecipeError, EditNotApplied) as error:
            refused.append(str(error))
            continue
        assert result.latents.isfinite().all(), edit
        ran += 1
    assert ran >= 1 and all(len(text) > 20 for text in refused)
