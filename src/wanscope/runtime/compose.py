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

from wanscope.edit.edits import Inject, Steer
from wanscope.edit.plan import EditPlan, PlannedEdit, PlannedText
from wanscope.edit.planned_texts import replaces

# A text's context [1, N, D], padding included, as the model itself projects it.
Project = Callable[[PlannedText], Tensor]
# (the prompts in a text, the place that it begins at)
Standing = tuple[frozenset[str], int]


@dataclass(frozen=True, eq=False)
class Read:
    """One context that is read. weight: of its attention output. real: its rows that are no padding.

    standing: which prompts stand where in it. log_weights: (first place, tokens, log weight) of appended tokens.
    bends: (edit, strength, places of its words), in their order. text: the text whose projection this is, untouched;
    None where it is anything else.
    """

    context_1ND: Tensor
    weight: float
    real: int
    standing: tuple[Standing, ...]
    log_weights: tuple[tuple[int, int, float], ...] = ()
    bends: tuple[tuple[PlannedEdit, float, tuple[int, ...]], ...] = ()
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


def wide(dtype: torch.dtype) -> torch.dtype:
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
        s = edit.strength(branch, step, block)
        if not s or ("context" not in edit.parts and "attention" not in edit.parts):
            continue
        applied.append(edit)
        if edit.edit.kind == "skip":
            skip = True
        elif edit.edit.kind == "bend":
            reads = [_bent(read, edit, s) for read in reads]
        elif edit.keyed:
            text = edit.keyed[step]
            assert text is not None
            reads = [_whole(text, project)]
        elif isinstance(edit.edit, Steer):
            reads = [_steered(read, edit, s, expert, block) for read in reads]
        else:
            assert isinstance(edit.edit, Inject)
            reads = _injected(reads, edit.edit, edit.donor[branch], edit, s, project)  # type: ignore[index]
    return Composed(tuple(reads), skip, tuple(applied))


def _whole(text: PlannedText, project: Project) -> Read:
    return Read(project(text), 1.0, text.real, ((text.prompts, 0),), text=text)


def _bent(read: Read, edit: PlannedEdit, s: float) -> Read:
    columns = read.columns(edit)
    return replace(read, bends=(*read.bends, (edit, s, columns))) if columns else read


def _injected(
    reads: list[Read], edit: Inject, donor: PlannedText, planned: PlannedEdit, s: float, project: Project
) -> list[Read]:
    if replaces(edit, s):  # the donor is read alone, by the model's own attention
        return [_whole(donor, project)]
    if edit.mode == "mix":
        kept = [replace(read, weight=read.weight * (1 - s)) for read in reads]
        return [*(read for read in kept if read.weight), replace(_whole(donor, project), weight=s)]
    donor_1ND = project(donor)
    if edit.mode == "append":
        return [_appended(read, donor, donor_1ND, s) for read in reads]
    return [_blended(read, edit, donor, donor_1ND, planned, s) for read in reads]


def _appended(read: Read, donor: PlannedText, donor_1ND: Tensor, s: float) -> Read:
    at, tokens = read.real, donor.real
    context_1ND = read.context_1ND.clone()
    context_1ND[:, at : at + tokens] = donor_1ND[:, :tokens]
    weights = read.log_weights if s == 1 else (*read.log_weights, (at, tokens, math.log(s)))
    standing = (*read.standing, (donor.prompts, at))
    return replace(read, context_1ND=context_1ND, real=at + tokens, standing=standing, log_weights=weights, text=None)


def _blended(read: Read, edit: Inject, donor: PlannedText, donor_1ND: Tensor, planned: PlannedEdit, s: float) -> Read:
    blended_1ND = combined(read.context_1ND, donor_1ND, edit.operation, s)
    if edit.words:
        columns = list(read.columns(planned))
        context_1ND = read.context_1ND.clone()
        context_1ND[:, columns] = blended_1ND[:, columns]
        return replace(read, context_1ND=context_1ND, text=None)
    standing = (*read.standing, (donor.prompts, 0))
    return replace(read, context_1ND=blended_1ND, real=max(read.real, donor.real), standing=standing, text=None)


def combined(a: Tensor, b: Tensor, operation: str, s: float) -> Tensor:
    """blend: (1 - s) a + s b, to the bit a at 0 and b at 1; replace: b; add: a + s b. In a's dtype."""
    if operation == "replace" or (operation == "blend" and s == 1):
        return b
    a_wide, b_wide = a.to(wide(a.dtype)), b.to(wide(a.dtype))
    out = torch.lerp(a_wide, b_wide, s) if operation == "blend" else a_wide + s * b_wide
    return out.to(a.dtype)


def _steered(read: Read, edit: PlannedEdit, s: float, expert: int, block: int) -> Read:
    assert edit.direction is not None and isinstance(edit.edit, Steer)
    context_1ND = read.context_1ND.clone()
    rows = context_1ND[:, : read.real]
    direction_D = edit.direction.at(expert, block)
    context_1ND[:, : read.real] = steered(rows, direction_D, edit.edit.operation, s)
    return replace(read, context_1ND=context_1ND, text=None)


def steered(x: Tensor, direction_D: Tensor, operation: str, s: float) -> Tensor:
    """x [..., D] along a direction d of unit length u = d / |d|, row by row, in x's dtype.

    add: x + s d. ablate: x - s (x.u) u. rotate: at the angle t from u, turned in the plane of both to (1 - s) t from
    it, its length kept; a row that is parallel to u (or zero) stays.
    """
    x_wide = x.to(wide(x.dtype))
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
