"""The texts that planned edits read: donors by branch, prompts by step.

Shape suffixes: L real tokens, D text dim.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from wanscope.edit.donors import DonorTexts
from wanscope.edit.edits import Inject, Prompts
from wanscope.edit.line_tokens import quoted
from wanscope.errors import RecipeError

if TYPE_CHECKING:
    from torch import Tensor

Branch = Literal["cond", "uncond"]
_alternatives = re.compile(r"\[[^\[\]]*\|[^\[\]]*\]")
SHORT_DONOR = 0.5  # of the prompt's tokens; a shorter donor of mode `tokens` deserves a word


@dataclass(frozen=True, eq=False)
class PlannedText:
    """A text that is read: raw embedding [L, D] of the real tokens, and the prompts whose words stand in it.

    boost: how its context's difference from another text's is multiplied, after projection. passing: one of many, each
    read at one step, so that keeping it would be in vain.
    """

    embedding: Tensor
    prompts: frozenset[str]
    boost: Boost | None = None
    passing: bool = False

    @property
    def real(self) -> int:
        """Tokens that are no padding."""
        return max(len(self.embedding), len(self.boost.main.embedding) if self.boost else 0)

    def same_as(self, other: PlannedText) -> bool:
        """Whether both are the same text to the bit, with the same prompts and boost."""
        import torch

        a, b = self.embedding, other.embedding
        alike = self.prompts == other.prompts and self.boost == other.boost and a.dtype == b.dtype
        return alike and (a is b or torch.equal(a, b))


@dataclass(frozen=True)
class Boost:
    main: PlannedText
    factor: float
    keep_norm: bool


def donors_of(
    edit: Inject,
    texts: DonorTexts,
    main: Mapping[Branch, PlannedText],
    where: str,
    notes: list[str],
    kept: list[PlannedText],
) -> dict[Branch, PlannedText]:
    """What an injection brings into each branch. kept: the plan's donors so far; one of the same content is the same
    text, so that its context, keys and own pass are made once."""
    try:
        found = texts.donor(edit)
    except RecipeError as error:
        raise RecipeError(f"{where}: {error.what}", error.why, error.fix) from None
    if found.note:
        notes.append(f"{where}: {found.note}")
    notes += [f"{where}: {note}" for text in edit.donor.prompts() if (note := _literal_note(text))]
    own = frozenset((edit.donor.prompt,)) if edit.donor.prompt is not None else frozenset()
    out: dict[Branch, PlannedText] = {}
    negative_LD = texts.negative_donor(edit)
    for branch in ("cond", "uncond"):
        if branch == "uncond" and negative_LD is not None:
            embedding_LD, prompts = negative_LD, frozenset((edit.donor_negative or "",))
        else:
            embedding_LD, prompts = found.embedding, own
        boost = None
        if edit.boost is not None:
            boost = Boost(main[branch], edit.boost, True if edit.keep_norm is None else edit.keep_norm)
        new = PlannedText(embedding_LD, prompts, boost)
        out[branch] = next((text for text in kept if text.same_as(new)), new)
        if out[branch] is new:
            kept.append(new)
    if edit.mode == "tokens" and edit.on != "hidden":
        tokens, own_tokens = len(out["cond"].embedding), len(main["cond"].embedding)
        if edit.branch != "uncond" and tokens < SHORT_DONOR * own_tokens:
            notes.append(
                f"{where}: the donor has {tokens} tokens and the prompt {own_tokens}, so most of the prompt is blended "
                "with padding; mode: mix blends what the texts do instead of their tokens"
            )
    return out


def _literal_note(text: str) -> str:
    """What a donor's text looks like and is not read as; empty for plain words."""
    if text.rstrip().endswith(".safetensors"):
        name = text.strip()
        return f"the donor is the words {text!r} and no file; a file is {{embedding: {name}}} or file({quoted(name)})"
    if _alternatives.search(text):
        return f"the donor {text!r} is read as it stands, brackets and all: sweep the donor for alternatives"
    return ""


def idle_note(edit: Inject, donor: PlannedText, main: PlannedText, only_block_0: bool) -> str:
    """Why an injection changes nothing; empty where it does. only_block_0: whether it acts nowhere else."""
    if edit.operation == "add" and (edit.mode == "tokens" or edit.on != "context"):
        return ""
    if edit.on == "hidden" and only_block_0 and not edit.donor.after_block:
        return "the state that enters block 0 has read no text yet, so the donor's is the same"
    if edit.mode != "append" and donor.same_as(PlannedText(main.embedding, donor.prompts, donor.boost)):
        return "the donor is the prompt itself"
    return ""


def replaces(edit: Inject | Prompts, s: float) -> bool:
    """Whether nothing of what a block's cross-attention would read is left by an injection at strength s, or by other
    prompts."""
    if isinstance(edit, Prompts):
        return s != 0
    if edit.on == "hidden" or edit.mode == "append" or edit.words:
        return False
    if edit.mode == "mix" or edit.operation == "blend":
        return s == 1
    return edit.operation == "replace" and s != 0


def keyed_texts(edit: Prompts, texts: DonorTexts, steps: int) -> tuple[PlannedText | None, ...]:
    """The text of each step: that of the last key, or between it and the next one. None before the first key."""
    from wanscope.edit.embedding_algebra import interpolate

    at_key = {step: PlannedText(found, frozenset((edit.keys[step],))) for step, found in texts.keyed(edit).items()}
    out: list[PlannedText | None] = [None] * min(edit.keys)
    for start, end in pairwise([*edit.keys, steps]):
        out.append(at_key[start])
        if edit.interpolate == "step" or end not in at_key:
            out += [at_key[start]] * (end - start - 1)
            continue
        both = at_key[start].prompts | at_key[end].prompts
        path = interpolate([at_key[start].embedding, at_key[end].embedding], end - start + 1, edit.interpolate)
        out += [PlannedText(embedding, both, passing=True) for embedding in path.embeddings[1:-1]]
    return tuple(out)
