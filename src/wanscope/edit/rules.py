"""The rulebook: in which order edits act, and which edit leaves nothing of which. Every runtime applies it.

Order. Edits that set the prompt (`prompts`) act first, wherever they are written: they say what the prompt is at each
step. All others act in the order written, each on what those before it left. What only observes (ComfyUI's attention
maps) comes last.

Silence. Where an edit would be overwritten, or what it acts on does not run, its table is set to zero, so it is
neither planned nor counted there:

1. In a skipped block no text is read. Silent there are all edits on its context or attention, `on: both` with both of
   its parts, and skips of its cross-attention. Edits on hidden states alone act on the state that passes through.
2. Skipped cross-attention reads no text either. Silent there is what rule 1 names, except other skips.
3. Where an edit replaces all that is read (a `mix` or a blend of `tokens` at strength 1, replaced `tokens`, `prompts`),
   edits before it on the context or attention are silent. Skips are not, and neither is an injection `on: both`, whose
   state remains.

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


class Ruled(Protocol):
    """What the rules ask of an edit."""

    @property
    def parts(self) -> tuple[Part, ...]:
        """What of a block it touches."""
        ...

    skips: ClassVar[bool]  # whether its parts do not run at all
    sets_prompt: ClassVar[bool]  # whether it says what the prompt is, and so acts first
    observes: ClassVar[bool]  # whether it changes nothing, and so acts last

    def replaces(self, table: Any) -> Any:
        """Where, by its strengths, it leaves nothing of what would be read: bool, of the table's shape."""
        ...


@dataclass(frozen=True)
class Silence:
    """Edit `silent` does not act where edit `by` does; both are places in the list that `silenced` was given."""

    silent: int
    by: int
    why: Literal["block skipped", "attention skipped", "replaced"]

    def sentence(self, silent: str, by: str) -> str:
        """What a person is told, with the names of both edits."""
        why = {
            "block skipped": f"{by} skips the blocks it acts in",
            "attention skipped": f"{by} skips the cross-attention it acts in",
            "replaced": f"{by} leaves nothing of it",
        }
        return f"{silent} does not act where {why[self.why]}"


def acting_order(edits: Sequence[Ruled]) -> list[int]:
    """The places of the edits in the order in which they act."""
    return sorted(range(len(edits)), key=lambda i: (not edits[i].sets_prompt, edits[i].observes))


def silenced(edits: Sequence[Ruled], tables: Sequence[Tables]) -> tuple[list[dict[Branch, np.ndarray]], list[Silence]]:
    """The tables of edits that are in acting order, zero where an edit is silent, and what silences what.

    tables: strengths of each edit by branch, all of one shape. They are not changed.
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


def _needs_what_is_skipped(other: Ruled, skip: Ruled) -> bool:
    if other.skips:
        return "block" in skip.parts and "block" not in other.parts
    return bool(READS_TEXT & set(other.parts))


def _without(tables: dict[Branch, np.ndarray], gone: Mapping[Any, np.ndarray], told: Silence) -> list[Silence]:
    """Sets an edit's tables to zero where it is silent; gives what is told of it, if it would have acted there."""
    silent = False
    for branch, where in gone.items():
        if branch in tables and tables[branch][where].any():
            kept = tables[branch].copy()
            kept[where] = 0.0
            tables[branch] = kept
            silent = True
    return [told] if silent else []
