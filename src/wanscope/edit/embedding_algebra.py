"""Embedding algebra: difference, weighted sum, product, normalization, and paths between prompts.

Operands are token matrices [L, D] of one prompt each, in any float dtype. Operands with different token counts are
aligned by appending rows of zeros, as Wan pads its prompts, and the result has a note of it. Everything is computed in
float64 and rounded once; the result has the operands' dtype (promoted, if they differ). Operands are never changed. All
functions raise RecipeError for operands that have different D, are empty, or are not finite.

Shape suffixes: L tokens, D dimension.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from wanscope.edit.token_matrix import check_same_dim, exact, padded, real_tokens, rounded
from wanscope.errors import RecipeError, nearest

Method = Literal["linear", "spherical", "cubic"]
MAX_STEPS = 10_000


@dataclass(frozen=True, eq=False)
class Result:
    """A new token matrix [L, D]. note: a remark for the user on how it was computed, or empty."""

    embedding: Tensor
    note: str = ""


@dataclass(frozen=True, eq=False)
class Path:
    """A path through prompts: `embeddings[i]` [L, D] is at `positions[i]`, where operand k is at position k."""

    embeddings: tuple[Tensor, ...]
    positions: tuple[float, ...]
    note: str = ""


def difference(a_LD: Tensor, b_LD: Tensor, *, normalize: bool = False, scale: float = 1.0) -> Result:
    """Return scale * (A - B). With `normalize`, every token of A - B is first scaled to norm 1."""
    rows, common = _aligned([a_LD, b_LD])
    d_LD = rows[0] - rows[1]
    if normalize:
        d_LD = unit_rows(d_LD)
    return common.result(_weight(scale) * d_LD)


def weighted_sum(operands: Sequence[Tensor], weights: Sequence[float]) -> Result:
    """Return the sum of weight times operand over any number of operands [L, D]."""
    if len(weights) != len(operands):
        raise RecipeError(f"{len(operands)} embeddings have {len(weights)} weights", "each embedding needs one", "")
    rows, common = _aligned(operands)
    total_LD = torch.zeros_like(rows[0])
    for row_LD, weight in zip(rows, weights, strict=True):
        total_LD += _weight(weight) * row_LD
    return common.result(total_LD)


def product(operands: Sequence[Tensor]) -> Result:
    """Return the element-wise product of operands [L, D]. A token that one operand lacks is zero in the result."""
    rows, common = _aligned(operands)
    out_LD = rows[0].clone()
    for row_LD in rows[1:]:
        out_LD *= row_LD
    return common.result(out_LD)


def normalize(embedding_LD: Tensor, length: float = 1.0) -> Result:
    """Scale every token to the L2 norm `length`. Tokens that are zero stay zero."""
    rows, common = _aligned([embedding_LD])
    return common.result(_weight(length) * unit_rows(rows[0]))


def interpolate(
    operands: Sequence[Tensor], steps: int, method: Method = "linear", *, include_endpoints: bool = True
) -> Path:
    """Return a path of `steps` prompts through two or more operands [L, D], in order, at evenly spaced positions.

    With `include_endpoints`, the path begins at the first operand and ends at the last; without it, both are left out
    and the steps are evenly spaced between them. At an operand's own position, the path is exactly that operand.

    linear: piecewise linear.
    spherical: slerp per token (Shoemake 1985): the direction rotates at constant speed along the great circle between
    the two directions, and the norm is interpolated linearly. If a token is zero on one side (padding), it has no
    direction and is interpolated linearly. Opposite directions have no unique great circle; the path then goes through
    a fixed perpendicular direction, made from the axis in which the token is smallest.
    cubic: the uniform Catmull-Rom spline through all operands (Catmull and Rom 1974), with the first and the last
    operand extrapolated by mirroring (2 P0 - P1). Through two operands it is a straight line.

    Raises RecipeError for fewer than two operands, too few or too many steps, or an unknown method.
    """
    interpolated = _method(method)
    if len(operands) < 2:
        raise RecipeError(f"a path cannot go through {len(operands)} embeddings", "it needs two or more", "")
    fewest = 2 if include_endpoints else 1
    if isinstance(steps, bool) or not isinstance(steps, int) or not fewest <= steps <= MAX_STEPS:
        raise RecipeError(f"steps is {steps!r}", f"this path can have {fewest} to {MAX_STEPS} steps", "steps: 5")
    rows, common = _aligned(operands)
    last = len(rows) - 1
    out: list[Tensor] = []
    positions: list[float] = []
    for i in range(steps):
        position = last * i / (steps - 1) if include_endpoints else last * (i + 1) / (steps + 1)
        before = min(int(position), last - 1)
        share = position - before
        point_LD = rows[before + int(share)] if share in (0.0, 1.0) else interpolated(rows, before, share)
        positions.append(position)
        out.append(common.result(point_LD).embedding)
    note = common.note
    if method == "cubic" and last == 1:
        note = " ".join(filter(None, [note, "Through two embeddings, the cubic path is a straight line."]))
    return Path(tuple(out), tuple(positions), note)


def between(a_LD: Tensor, b_LD: Tensor, share: float, method: Method = "linear") -> Result:
    """Return the prompt at the fraction `share` of the path from a (0) to b (1); see `interpolate`.

    Raises RecipeError for a share outside 0 to 1 or an unknown method.
    """
    interpolated = _method(method)
    if not 0 <= share <= 1:
        raise RecipeError(f"the position between two prompts is {share:g}", "it is a fraction from 0 to 1", "0.5")
    rows, common = _aligned([a_LD, b_LD])
    return common.result(rows[int(share)] if share in (0, 1) else interpolated(rows, 0, share))


def _method(method: str) -> Callable[[list[Tensor], int, float], Tensor]:
    """Return the function (operands, index of the one before, fraction toward the next) -> [L, D] of a method."""
    methods: dict[str, Callable[[list[Tensor], int, float], Tensor]] = {
        "linear": _linear,
        "spherical": _spherical,
        "cubic": _catmull_rom,
    }
    if method not in methods:
        hint = nearest(str(method), methods)
        raise RecipeError(f"{method!r} is not an interpolation method", hint, "method: spherical")
    return methods[method]


def trim(embedding_LD: Tensor) -> Tensor:
    """Return [L, D] without the rows of zeros at the end, but with at least one row. A view, not a copy."""
    check_same_dim([embedding_LD])
    return embedding_LD[: max(1, real_tokens(embedding_LD))]


def unit_rows(rows_LD: Tensor) -> Tensor:
    """Divide every row of [L, D] by its L2 norm. Rows of zeros stay zero."""
    norm_L1 = torch.linalg.vector_norm(rows_LD, dim=1, keepdim=True)
    return rows_LD / torch.where(norm_L1 == 0, torch.ones_like(norm_L1), norm_L1)


@dataclass(frozen=True)
class _Common:
    dtype: torch.dtype
    note: str

    def result(self, exact_LD: Tensor) -> Result:
        # a copy, so that a result never shares memory with an operand
        return Result(rounded(exact_LD, self.dtype).clone(), self.note)


def _aligned(operands: Sequence[Tensor]) -> tuple[list[Tensor], _Common]:
    """Return all operands in the precision of the computation, on the first one's device, padded to equal lengths."""
    if not operands:
        raise RecipeError("no embedding is given", "at least one is needed", "")
    check_same_dim(operands)
    counts = [len(operand) for operand in operands]
    length = max(counts)
    dtype = operands[0].dtype
    for operand in operands:
        dtype = torch.promote_types(dtype, operand.dtype)
    rows = [padded(exact(operand).to(operands[0].device), length) for operand in operands]
    return rows, _Common(dtype, alignment_note(counts))


def alignment_note(counts: Sequence[int]) -> str:
    """Return the note on operands with these token counts; empty if all are equal."""
    if len(set(counts)) <= 1:
        return ""
    return f"Token counts {', '.join(map(str, counts))}: aligned to {max(counts)} by rows of zeros."


def _weight(value: float) -> float:
    if not math.isfinite(value):
        raise RecipeError(f"the weight {value}", "a weight is a finite number", "1.0")
    return float(value)


def _linear(rows: list[Tensor], before: int, share: float) -> Tensor:
    return (1 - share) * rows[before] + share * rows[before + 1]


def _spherical(rows: list[Tensor], before: int, share: float) -> Tensor:
    a_LD, b_LD = rows[before], rows[before + 1]
    norm_a_L1, norm_b_L1 = (torch.linalg.vector_norm(x, dim=1, keepdim=True) for x in (a_LD, b_LD))
    u_LD, v_LD = unit_rows(a_LD), unit_rows(b_LD)
    cosine_L1 = (u_LD * v_LD).sum(1, keepdim=True)
    away_LD = v_LD - cosine_L1 * u_LD
    # orthogonalized a second time, because for nearly parallel directions away_LD is mostly rounding error
    away_LD = away_LD - (away_LD * u_LD).sum(1, keepdim=True) * u_LD
    sine_L1 = torch.linalg.vector_norm(away_LD, dim=1, keepdim=True)
    # Parallel directions do not span a plane, so one is chosen. For equal directions the angle is 0 anyway.
    no_plane_L1 = sine_L1 < torch.finfo(u_LD.dtype).eps * max(16, u_LD.shape[1])
    across_LD = torch.where(no_plane_L1, _perpendicular(u_LD), unit_rows(away_LD))
    sine_L1 = torch.where(no_plane_L1, torch.zeros_like(sine_L1), sine_L1)
    angle_L1 = torch.atan2(sine_L1, cosine_L1)
    turned_LD = torch.cos(share * angle_L1) * u_LD + torch.sin(share * angle_L1) * across_LD
    length_L1 = (1 - share) * norm_a_L1 + share * norm_b_L1
    straight_L1 = (norm_a_L1 == 0) | (norm_b_L1 == 0)
    if rows[0].shape[1] == 1:  # with D = 1 there is no rotation
        straight_L1 = torch.ones_like(straight_L1)
    return torch.where(straight_L1, _linear(rows, before, share), length_L1 * turned_LD)


def _perpendicular(unit_LD: Tensor) -> Tensor:
    """Return a unit row perpendicular to each unit row: the axis in which it is smallest, orthogonalized."""
    axis_LD = torch.zeros_like(unit_LD).scatter_(1, unit_LD.abs().argmin(1, keepdim=True), 1.0)
    return unit_rows(axis_LD - (axis_LD * unit_LD).sum(1, keepdim=True) * unit_LD)


def _catmull_rom(rows: list[Tensor], before: int, share: float) -> Tensor:
    p1, p2 = rows[before], rows[before + 1]
    p0 = rows[before - 1] if before else 2 * p1 - p2
    p3 = rows[before + 2] if before + 2 < len(rows) else 2 * p2 - p1
    t = share
    return 0.5 * (2 * p1 + (p2 - p0) * t + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2 + (3 * p1 - p0 - 3 * p2 + p3) * t**3)
