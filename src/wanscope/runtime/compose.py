"""Computes the contexts that a block's cross-attention reads after the edits of its context.

Each runtime passes the context that its model would read and a function that projects a text, and gets the contexts to
read instead: one, or several whose attention outputs are summed by weight (a `mix`).

    [A]                    --mix B at s-->      [(1 - s) A, s B]          (A alone at s = 0, B alone at s = 1)
    [w1 A, w2 B]           --tokens C at s-->   [w1 ((1 - s) A + s C), w2 ((1 - s) B + s C)]
    [w1 A, w2 B]           --append C at s-->   [w1 (A | s C), w2 (B | s C)]      C's tokens in place of padding, each
                                                with log s added to its logits

Shape suffixes: N text positions, D model dim, 1 a batch of one.
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
from wanscope.runtime.columns import compute_dtype

# Returns a text's context [1, N, D] with padding, as the model itself projects it.
Project = Callable[[PlannedText], Tensor]
# (the prompts whose tokens these are, the row of the context at which they start)
PromptStart = tuple[frozenset[str], int]


@dataclass(frozen=True, eq=False)
class Read:
    """One context that is read.

    weight: of its attention output in the sum. real: the number of rows that are not padding. prompt_starts: which
    prompts start at which row. log_weights: (first row, number of tokens, log weight) of appended tokens. bends: (the
    operation, the rows of its words), in order. text: the text, if this is its unchanged projection, otherwise None.
    """

    context_1ND: Tensor
    weight: float
    real: int
    prompt_starts: tuple[PromptStart, ...]
    log_weights: tuple[tuple[int, int, float], ...] = ()
    bends: tuple[tuple[BendMaps, tuple[int, ...]], ...] = ()
    text: PlannedText | None = None

    def columns(self, edit: PlannedEdit) -> tuple[int, ...]:
        """Return the rows of an edit's words, in ascending order."""
        found = {column + start for prompts, start in self.prompt_starts for column in edit.columns_in(prompts)}
        return tuple(sorted(found))


@dataclass(frozen=True, eq=False)
class Composed:
    """What one block's cross-attention does in one branch.

    reads: the contexts, at least one. skip: whether it is skipped entirely. applied: the edits that have acted.
    """

    reads: tuple[Read, ...]
    skip: bool = False
    applied: tuple[PlannedEdit, ...] = ()

    @property
    def plain(self) -> bool:
        """Whether the model's own attention suffices, reading the only context."""
        first = self.reads[0]
        return len(self.reads) == 1 and not self.skip and not first.bends and not first.log_weights


def compose(
    plan: EditPlan, branch: str, step: int, block: int, expert: int, own_1ND: Tensor, project: Project
) -> Composed:
    """Return what a block's cross-attention does in one branch of a model call.

    own_1ND: the text context that the model itself would read.
    """
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
                reads = _apply(reads, operation, edit, expert, block, project)
    return Composed(tuple(reads), skip, tuple(applied))


def _apply(
    reads: list[Read], operation: Operation, edit: PlannedEdit, expert: int, block: int, project: Project
) -> list[Read]:
    """Return the contexts to read after an operation on the context or the attention."""
    match operation:
        case ReadInstead(text=text):  # as if the donor were the prompt
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
    start, tokens = read.real, donor.real
    context_1ND = read.context_1ND.clone()
    context_1ND[:, start : start + tokens] = donor_1ND[:, :tokens]
    weights = read.log_weights if s == 1 else (*read.log_weights, (start, tokens, math.log(s)))
    starts = (*read.prompt_starts, (donor.prompts, start))
    real = start + tokens
    return replace(read, context_1ND=context_1ND, real=real, prompt_starts=starts, log_weights=weights, text=None)


def _blended(read: Read, operation: BlendTokens, edit: PlannedEdit, donor_1ND: Tensor) -> Read:
    text = operation.text
    blended_1ND = combined(read.context_1ND, donor_1ND, operation.operation, operation.strength)
    if operation.words_only:
        columns = list(read.columns(edit))
        context_1ND = read.context_1ND.clone()
        context_1ND[:, columns] = blended_1ND[:, columns]
        return replace(read, context_1ND=context_1ND, text=None)
    starts = (*read.prompt_starts, (text.prompts, 0))
    return replace(read, context_1ND=blended_1ND, real=max(read.real, text.real), prompt_starts=starts, text=None)


def combined(a: Tensor, b: Tensor, operation: str, s: float) -> Tensor:
    """Return a combined with b at strength s, in the shape and dtype of a (any shape; b has the same).

    operation: `blend` is (1 - s) a + s b, bit for bit a at s = 0 and b at s = 1; `replace` is b; `add` is a + s b.
    """
    if operation == "replace" or (operation == "blend" and s == 1):
        return b
    a_computed, b_computed = a.to(compute_dtype(a.dtype)), b.to(compute_dtype(a.dtype))
    out = torch.lerp(a_computed, b_computed, s) if operation == "blend" else a_computed + s * b_computed
    return out.to(a.dtype)


def _shifted(read: Read, operation: ShiftTokens, direction_D: Tensor) -> Read:
    context_1ND = read.context_1ND.clone()
    rows = context_1ND[:, : read.real]
    context_1ND[:, : read.real] = shifted(rows, direction_D, operation.operation, operation.strength)
    return replace(read, context_1ND=context_1ND, text=None)


def shifted(x: Tensor, direction_D: Tensor, operation: str, s: float) -> Tensor:
    """Return x [..., D] moved along a direction d [D], row by row, in the shape and dtype of x.

    With u = d / |d|: `add` is x + s d. `ablate` is x - s (x.u) u. `rotate` turns a row at the angle t from u, in the
    plane of both, to the angle (1 - s) t and keeps its length; a row parallel to u (or zero) is not changed.
    """
    x_computed = x.to(compute_dtype(x.dtype))
    d = direction_D.to(x.device, x_computed.dtype)
    if operation == "add":
        return (x_computed + s * d).to(x.dtype)
    u = d / d.norm()
    along = (x_computed @ u)[..., None]
    if operation == "ablate":
        return (x_computed - s * along * u).to(x.dtype)
    across = x_computed - along * u
    length, across_length = x_computed.norm(dim=-1, keepdim=True), across.norm(dim=-1, keepdim=True)
    angle = torch.atan2(across_length, along) * (1 - s)
    w = across / across_length.clamp_min(torch.finfo(x_computed.dtype).tiny)
    turned = length * (torch.cos(angle) * u + torch.sin(angle) * w)
    parallel = across_length <= 8 * torch.finfo(x_computed.dtype).eps * length
    return torch.where(parallel, x_computed, turned).to(x.dtype)
