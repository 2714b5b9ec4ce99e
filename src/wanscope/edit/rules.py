"""The rules of combining edits: the order in which they act, and which edits silence which. All runtimes apply them.

Order. Edits that set the prompt (`prompts`) act first, wherever they are listed: they say what the prompt is at each
step. All others act in the order listed, each on the result of those before it. Edits that only observe (ComfyUI's
attention maps) come last.

Silence. Where an edit would be overwritten, or where the part that it acts on does not run, its table is set to zero,
so it is neither planned nor counted there:

1. A skipped block reads no text. All edits of its context or attention are silent there, including both parts of an
   `on: both` injection, and so are skips of its cross-attention. Edits of hidden states only act on the state that
   passes through.
2. A skipped cross-attention reads no text either. The edits of rule 1 are silent there, except other skips.
3. Where an edit replaces everything that is read (a `mix` or a blend of `tokens` at strength 1, `replace` of `tokens`,
   `prompts`), earlier edits of the context or attention are silent. Skips are not, and neither is an `on: both`
   injection, because its hidden states remain.

Shape suffixes: S steps, L blocks; in ComfyUI a table has the one row of a model call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from wanscope.edit.sites import Branch, Part

if TYPE_CHECKING:
    import numpy as np

READS_TEXT = frozenset[Part](("context", "attention"))
Tables = Mapping[Branch, "np.ndarray"]


class RuledEdit(Protocol):
    """The part of an edit's interface that the rules use; see `EditBase`."""

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts of a block that the edit touches."""
        ...

    skips: ClassVar[bool]  # whether the parts that it touches do not run
    sets_prompt: ClassVar[bool]  # whether it sets the prompt, and so acts first
    observes: ClassVar[bool]  # whether it changes nothing, and so acts last

    def replaces(self, table: Any) -> Any:
        """Return where the edit replaces everything that would be read, given its strengths: bool, same shape."""
        ...


@dataclass(frozen=True)
class Silence:
    """Edit `silent` does not act where edit `by` acts. Both are positions in the list given to `silenced`."""

    silent: int
    by: int
    why: Literal["block skipped", "attention skipped", "replaced"]

    def sentence(self, silent: str, by: str) -> str:
        """Return the note for the user, with the names of both edits."""
        why = {
            "block skipped": f"{by} skips the blocks it acts in",
            "attention skipped": f"{by} skips the cross-attention it acts in",
            "replaced": f"{by} leaves nothing of it",
        }
        return f"{silent} does not act where {why[self.why]}"


def acting_order(edits: Sequence[RuledEdit]) -> list[int]:
    """Return the positions of the edits in the order in which they act."""
    return sorted(range(len(edits)), key=lambda i: (not edits[i].sets_prompt, edits[i].observes))


def silenced(
    edits: Sequence[RuledEdit], tables: Sequence[Tables]
) -> tuple[list[dict[Branch, np.ndarray]], list[Silence]]:
    """Return the tables of edits with zeros where an edit is silent, and the list of which edit silences which.

    edits: in acting order. tables: strengths of each edit by branch, all of the same shape [S, L]; not changed.
    """
    out = [dict(table) for table in tables]
    found: list[Silence] = []
    for by, skip in enumerate(edits):
        if skip.skips:
            for i, other in enumerate(edits):
                if i != by and _needs_what_is_skipped(other, skip):
                    why = "block skipped" if "block" in skip.parts else "attention skipped"
                    gone = {branch: table != 0 for branch, table in out[by].items()}
                    found += _without(out[i], gone, Silence(i, by, why))
    for by, later in enumerate(edits):
        gone = {branch: later.replaces(table) for branch, table in out[by].items()}
        if any(where.any() for where in gone.values()):
            for i, earlier in enumerate(edits[:by]):
                if not earlier.skips and "hidden" not in earlier.parts:
                    found += _without(out[i], gone, Silence(i, by, "replaced"))
    return out, found


def _needs_what_is_skipped(other: RuledEdit, skip: RuledEdit) -> bool:
    if other.skips:
        return "block" in skip.parts and "block" not in other.parts
    return bool(READS_TEXT & set(other.parts))


def _without(tables: dict[Branch, np.ndarray], gone: Mapping[Any, np.ndarray], silence: Silence) -> list[Silence]:
    """Set an edit's tables to zero at `gone`, in place. Returns [silence] if the edit would have acted there."""
    changed = False
    for branch, where in gone.items():
        if branch in tables and tables[branch][where].any():
            kept = tables[branch].copy()
            kept[where] = 0.0
            tables[branch] = kept
            changed = True
    return [silence] if changed else []
