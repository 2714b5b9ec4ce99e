"""The errors a user can meet. Each one states what happened, why, and a fix that can be pasted.

A user interface (the command line, ComfyUI) prints `str(error)` without a traceback, and the command line exits with
`error.exit_status`. Exit status 2: the request was wrong and nothing was done. 1: the work failed.
"""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable


class WanscopeError(Exception):
    """Base of every error a user can meet.

    `what` is a clause without a full stop, `why` a sentence or clause, `fix` something that can be typed or pasted.
    """

    exit_status = 1

    def __init__(self, what: str, why: str = "", fix: str = "") -> None:
        self.what, self.why, self.fix = what, why, fix
        super().__init__(what, why, fix)

    def __str__(self) -> str:
        text = self.what if not self.why else f"{self.what}: {self.why}"
        text = text if text.endswith((".", "!", "?", "^")) or "\n" in text.rsplit(" ", 1)[-1] else text + "."
        return text if not self.fix else f"{text}\nTry: {self.fix}"


class RequestError(WanscopeError):
    """The request itself is wrong; raised before any work is done."""

    exit_status = 2


class TemplateError(RequestError):
    """A prompt template that cannot be parsed; points at the character."""

    def __init__(self, template: str, position: int, why: str, fix: str = "") -> None:
        self.template, self.position = template, position
        pointer = _pointer(template, position)
        super().__init__(f"the prompt template cannot be read at character {position + 1}", f"{why}\n{pointer}", fix)


class ExpressionError(RequestError):
    """An expression over embeddings that cannot be read or computed; points at the character."""

    def __init__(self, expression: str, position: int, why: str, fix: str = "") -> None:
        self.expression, self.position = expression, position
        pointer = _pointer(expression, position)
        super().__init__(f"the expression cannot be used at character {position + 1}", f"{why}\n{pointer}", fix)


def _pointer(text: str, position: int) -> str:
    """Return the line of `text` that contains the character at `position`, with a caret under that character."""
    line_start = text.rfind("\n", 0, position) + 1
    line_end = text.find("\n", position)
    line = text[line_start : None if line_end < 0 else line_end]
    line = "".join(character if character.isprintable() else " " for character in line)  # tabs would shift the caret
    before, after = line[: position - line_start], line[position - line_start :]
    before = before if len(before) <= 60 else "..." + before[-57:]
    after = after if len(after) <= 60 else after[:57] + "..."
    return f"  {before}{after}\n  {' ' * _display_width(before)}^"


def _display_width(text: str) -> int:
    """Return how many terminal columns a text takes: two for wide characters, none for combining ones."""
    return sum(
        0 if unicodedata.combining(character) else 1 + (unicodedata.east_asian_width(character) in "WF")
        for character in text
    )


class RecipeError(RequestError):
    """A study, recipe or option with a value that cannot work."""


class EditError(RecipeError):
    """An edit in its one-line form that cannot be read; points at the character."""

    def __init__(self, edit: str, position: int, why: str, fix: str = "") -> None:
        self.edit, self.position = edit, position
        pointer = _pointer(edit, position)
        super().__init__(f"the edit cannot be read at character {position + 1}", f"{why}\n{pointer}", fix)


class ModelError(RequestError):
    """A model that cannot be found, recognized or loaded as requested."""


class MemoryPlanError(RequestError):
    """A model that cannot fit as requested; `why` shows the arithmetic."""


class TakeNotFound(RequestError):
    """A take, study or file that was named but does not exist."""


class NotCaptured(RequestError):
    """A take was made without capturing what is now requested."""


class WorkError(WanscopeError):
    """The request was valid, but the work failed."""


class NumericalError(WorkError):
    """NaN or Inf in the latents; names the step."""


class Interrupted(WorkError):
    """The user stopped the work between two steps; completed takes are kept."""

    exit_status = 130


class StorageError(WorkError):
    """The disk is full, read-only or otherwise cannot be written."""


class StorageRefused(StorageError):
    """The disk cannot hold what is requested; found before any work is done."""

    exit_status = 2


class DamagedTake(WorkError):
    """A take whose files do not match their checksums."""


class UnreadableTake(DamagedTake, StorageError):
    """A take that the disk or the system does not let us read; what is in it is not known."""


class ReplayDiffers(WorkError):
    """The same recipe on the same machine and versions gave different bits."""


class EmbeddingNotFound(RequestError):
    """An embedding or operation that was named but is not in the catalog."""


class SqlRefused(RequestError):
    """SQL that is not a single, read-only SELECT over the catalog's tables."""


class CatalogNewer(RequestError):
    """The catalog was written by a newer wanscope or DuckDB than this one."""


class CatalogBusy(WorkError):
    """Another program held the catalog for longer than the wait limit."""


class CatalogDamaged(WorkError):
    """The catalog's file, or an embedding's file, is not as it was written."""


class EditNotApplied(WorkError):
    """An edit was not applied where it was planned to be."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `did you mean 'x'?` for the closest known name, or the list of known names where none is close."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(known))}"
