"""The registry of edit kinds, and checks of a recipe's list of edits. Does not need torch.

    Inject    a donor's text (or hidden states) into chosen blocks
    Bend      the cross-attention maps of chosen words: moved, scaled, rotated, amplified, masked
    Steer     along a concept direction: add it, project it out, rotate toward it
    Skip      a block, or only its cross-attention
    Prompts   other prompts at other steps

Each kind is one file in `edit/kinds/`. All are frozen and reject unknown keys. Blocks, strengths and schedules are read
by `edit/blocks.py`, `strengths.py` and `schedule.py` and kept in one canonical form, so that equal edits have equal
ids. What depends on the model (its number of blocks, steps and heads) is checked by `check_edits`, what depends on its
tokenizer by `edit/word_places.py`, both before any work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Discriminator, Tag

from wanscope.edit.base import EditBase
from wanscope.edit.donor import Donor
from wanscope.edit.kinds.bend import Bend
from wanscope.edit.kinds.inject import Inject
from wanscope.edit.kinds.prompts import Prompts
from wanscope.edit.kinds.skip import Skip
from wanscope.edit.kinds.steer import Steer
from wanscope.edit.named_files import Find, NamedFiles
from wanscope.errors import RecipeError, RequestError

__all__ = [
    "KINDS",
    "Bend",
    "Donor",
    "Edit",
    "Inject",
    "Prompts",
    "Skip",
    "Steer",
    "check_edits",
    "stored_of",
    "text_keys",
    "with_hashes",
]

KINDS: dict[str, type[EditBase]] = {
    "inject": Inject,
    "bend": Bend,
    "steer": Steer,
    "skip": Skip,
    "prompts": Prompts,
}


def _kind_of(value: Any) -> str | None:
    return value.get("kind") if isinstance(value, Mapping) else getattr(value, "kind", None)


def text_keys(value: Any) -> Any:
    """Return a mapping with text keys. YAML reads a bare `on` as true; here it can only be the field `on`."""
    if isinstance(value, Mapping) and not all(isinstance(key, str) for key in value):
        return {("on" if key is True else str(key)): item for key, item in value.items()}
    return value


Edit = Annotated[
    Annotated[Inject, Tag("inject")]
    | Annotated[Bend, Tag("bend")]
    | Annotated[Steer, Tag("steer")]
    | Annotated[Skip, Tag("skip")]
    | Annotated[Prompts, Tag("prompts")],
    Discriminator(_kind_of),
    BeforeValidator(text_keys),
]


def check_edits(edits: Sequence[Edit], blocks: int, steps: int, heads: int) -> None:
    """Raise RecipeError, naming the edit, if a model with these blocks and heads cannot do an edit in `steps` steps."""
    for i, edit in enumerate(edits):
        try:
            edit.check(blocks, steps, heads)
        except RequestError as error:
            raise RecipeError(f"edits.{i}: {error.what}", error.why, error.fix) from None


def with_hashes(
    edits: Iterable[Edit], text_dim: int, file_hash: Callable[[Path], str], find: Find | None = None
) -> tuple[Edit, ...]:
    """Return the edits with the hash of every file that they name. A recipe's id covers the hash, not the path.

    text_dim, file_hash, find: see NamedFiles. Raises RecipeError for a file or embedding that is missing, belongs to
    another model, or is not the recorded one.
    """
    files = NamedFiles(text_dim, file_hash, find)
    return tuple(edit.with_hashes(replace(files, where=f"edits.{i}")) for i, edit in enumerate(edits))


def stored_of(edits: Iterable[Edit]) -> list[Donor]:
    """Return the stored embeddings that the edits name."""
    return [donor for edit in edits for donor in edit.stored_donors()]
