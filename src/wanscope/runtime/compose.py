"""What a block's cross-attention reads once the edits on its context have acted, in tensors and nothing else.

Every runtime hands in the context that its model would read and a way to project a text, and gets back the contexts to
be read instead: one, or several whose attention outputs are summed by weight (a `mix`).

    [A]                    --mix B at s-->      [(1 - s) A, s B]          (A alone at s = 0, B alone at s = 1)
    [w1 A, w2 B]           --tokens C at s-->   [w1 ((1 - s) A + s C), w2 ((1 - s) B + s C)]
    [w1 A, w2 B]           --append C at s-->   [w1 (A | s C), w2 (B | s C)]      C's tokens in the pad's places, each
                                                with log s added to its logits

Shape suffixes: N text positions, D model dim, b branch of one (a batch of one).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from wanscope.edit.operations import (
    Append,
    BendMaps,
    BlendTokens,
    MixIn,
    Operation,
    ReadInstead,
    ShiftTokens,
    SkipAttention,
)
from wanscope.edit.plan import EditPlan
from wanscope.edit.planned import PlannedEdit
from wanscope.edit.planned_texts import PlannedText
from wanscope.edit.rules import READS_TEXT

# A text's context [1, N, D], padding included, as the model itself projects it.
Project = Callable[[PlannedText], Tensor]
# (the prompts in a text, the place that it begins at)
Standing = tuple[frozenset[str], int]


@dataclass(frozen=True, eq=False)
class Read:
    """One context that is read. weight: of its attention output. real: its rows that are no padding.

    standing: which prompts stand where in it. log_weights: (first place, tokens, log weight) of appended tokens.
    bends: (what is done, places of the words), in their order. text: the text whose projection this is, untouched;
    None where it is anything else.
    """

    context_1ND: Tensor
    weight: float
    real: int
    standing: tuple[Standing, ...]
    log_weights: tuple[tuple[int, int, float], ...] = ()
    bends: tuple[tuple[BendMaps, tuple[int, ...]], ...] = ()
    text: PlannedText | None = None

    def columns(self, edit: PlannedEdit) -> tuple[int, ...]:
        """The places of an edit's words."""
        found = {column + at for prompts, at in self.standing for column in edit.columns_in(prompts)}
        return tuple(sorted(found))


@dataclass(frozen=True, eq=False)
class Composed:
    """What one block's cross-attention does in one branch. reads: at least one. skip: it does not run at all. applied:
    the edits that made this."""

    reads: tuple[Read, ...]
    skip: bool = False
    applied: tuple[PlannedEdit, ...] = ()

    @property
    def plain(self) -> bool:
        """Whether the model's own attention does it, given the one context."""
        first = self.reads[0]
        return len(self.reads) == 1 and not self.skip and not first.bends and not first.log_weights


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """What edits are computed in: float32, or float64 for a float64 model."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def compose(
    plan: EditPlan, branch: str, step: int, block: int, expert: int, own_1ND: Tensor, project: Project
) -> Composed:
    """A block's cross-attention in one pass. own_1ND: the text's context that the model itself would read."""
    main = plan.main[branch]  # type: ignore[index]
    reads = [Read(own_1ND, 1.0, main.real, ((main.prompts, 0),))]
    applied: list[PlannedEdit] = []
    skip = False
    for edit in plan.edits:
        strength = edit.strength(branch, step, block)
        if not strength:
            continue
        for part in edit.parts:
            if part not in READS_TEXT:
                continue
            applied.append(edit)
            operation = edit.operation_at(part, branch, step, strength)
            if isinstance(operation, SkipAttention):
                skip = True
            else:
                reads = _after(reads, operation, edit, expert, block, project)
    return Composed(tuple(reads), skip, tuple(applied))


def _after(
    reads: list[Read], operation: Operation, edit: PlannedEdit, expert: int, block: int, project: Project
) -> list[Read]:
    """What is read after an operation on the context or the attention."""
    match operation:
        case ReadInstead(text=text):  # by the model's own attention, as if it were the prompt
            return [_whole(text, project)]
        case MixIn(text=text, share=share):
            kept = [replace(read, weight=read.weight * (1 - share)) for read in reads]
            return [*(read for read in kept if read.weight), replace(_whole(text, project), weight=share)]
        case Append(text=text, weight=weight):
            context_1ND = project(text)
            return [_appended(read, text, context_1ND, weight) for read in reads]
        case BlendTokens(text=text):
            context_1ND = project(text)
            return [_blended(read, operation, edit, context_1ND) for read in reads]
        case ShiftTokens(direction=direction):
            direction_D = direction.at(expert, block)
            return [_shifted(read, operation, direction_D) for read in reads]
        case BendMaps():
            return [_bent(read, operation, read.columns(edit)) for read in reads]
    raise TypeError(f"{type(operation).__name__} is not an operation on the context or the attention")


def _whole(text: PlannedText, project: Project) -> Read:
    return Read(project(text), 1.0, text.real, ((text.prompts, 0),), text=text)


def _bent(read: Read, operation: BendMaps, columns: tuple[int, ...]) -> Read:
    return replace(read, bends=(*read.bends, (operation, columns))) if columns else read


def _appended(read: Read, donor: PlannedText, donor_1ND: Tensor, s: float) -> Read:
    at, tokens = read.real, donor.real
    context_1ND = read.context_1ND.clone()
    context_1ND[:, at : at + tokens] = donor_1ND[:, :tokens]
    weights = read.log_weights if s == 1 else (*read.log_weights, (at, tokens, math.log(s)))
    standing = (*read.standing, (donor.prompts, at))
    return replace(read, context_1ND=context_1ND, real=at + tokens, standing=standing, log_weights=weights, text=None)


def _blended(read: Read, operation: BlendTokens, edit: PlannedEdit, donor_1ND: Tensor) -> Read:
    text = operation.text
    blended_1ND = combined(read.context_1ND, donor_1ND, operation.operation, operation.strength)
    if operation.words_only:
        columns = list(read.columns(edit))
        context_1ND = read.context_1ND.clone()
        context_1ND[:, columns] = blended_1ND[:, columns]
        return replace(read, context_1ND=context_1ND, text=None)
    standing = (*read.standing, (text.prompts, 0))
    return replace(read, context_1ND=blended_1ND, real=max(read.real, text.real), standing=standing, text=None)


def combined(a: Tensor, b: Tensor, operation: str, s: float) -> Tensor:
    """blend: (1 - s) a + s b, to the bit a at 0 and b at 1; replace: b; add: a + s b. In a's dtype."""
    if operation == "replace" or (operation == "blend" and s == 1):
        return b
    a_wide, b_wide = a.to(compute_dtype(a.dtype)), b.to(compute_dtype(a.dtype))
    out = torch.lerp(a_wide, b_wide, s) if operation == "blend" else a_wide + s * b_wide
    return out.to(a.dtype)


def _shifted(read: Read, operation: ShiftTokens, direction_D: Tensor) -> Read:
    context_1ND = read.context_1ND.clone()
    rows = context_1ND[:, : read.real]
    context_1ND[:, : read.real] = shifted(rows, direction_D, operation.operation, operation.strength)
    return replace(read, context_1ND=context_1ND, text=None)


def shifted(x: Tensor, direction_D: Tensor, operation: str, s: float) -> Tensor:
    """x [..., D] along a direction d of unit length u = d / |d|, row by row, in x's dtype.

    add: x + s d. ablate: x - s (x.u) u. rotate: at the angle t from u, turned in the plane of both to (1 - s) t from
    it, its length kept; a row that is parallel to u (or zero) stays.
    """
    x_wide = x.to(compute_dtype(x.dtype))
    d = direction_D.to(x.device, x_wide.dtype)
    if operation == "add":
        return (x_wide + s * d).to(x.dtype)
    u = d / d.norm()
    along = (x_wide @ u)[..., None]
    if operation == "ablate":
        return (x_wide - s * along * u).to(x.dtype)
    across = x_wide - along * u
    length, across_length = x_wide.norm(dim=-1, keepdim=True), across.norm(dim=-1, keepdim=True)
    angle = torch.atan2(across_length, along) * (1 - s)
    w = across / across_length.clamp_min(torch.finfo(x_wide.dtype).tiny)
    turned = length * (torch.cos(angle) * u + torch.sin(angle) * w)
    parallel = across_length <= 8 * torch.finfo(x_wide.dtype).eps * length
    return torch.where(parallel, x_wide, turned).to(x.dtype)
