"""Embedding algebra: difference, weighted sum, product, normalise, and paths between prompts.

Operands are token matrices [L, D] of one prompt each, in any float dtype. Those of unequal token counts are aligned by
rows of zeros at the end, which is what padding is to Wan; the result says so. Everything is computed in float64 and
rounded once; the result has the operands' dtype. Operands are never changed.

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
    """A new token matrix. note: what should be known of how it came to be, empty if nothing."""

    embedding: Tensor
    note: str = ""


@dataclass(frozen=True, eq=False)
class Path:
    """A path through prompts: `embeddings[i]` lies at `positions[i]`, where operand k is at k."""

    embeddings: tuple[Tensor, ...]
    positions: tuple[float, ...]
    note: str = ""


def difference(a_LD: Tensor, b_LD: Tensor, *, normalize: bool = False, scale: float = 1.0) -> Result:
    """scale (A - B), with every token scaled to length 1 before that where `normalize` is set."""
    rows, common = _aligned([a_LD, b_LD])
    d_LD = rows[0] - rows[1]
    if normalize:
        d_LD = unit_rows(d_LD)
    return common.result(_weight(scale) * d_LD)


def weighted_sum(operands: Sequence[Tensor], weights: Sequence[float]) -> Result:
    """The sum of weight times operand, over any number of them."""
    if len(weights) != len(operands):
        raise RecipeError(f"{len(operands)} embeddings have {len(weights)} weights", "each has its own", "")
    rows, common = _aligned(operands)
    total_LD = torch.zeros_like(rows[0])
    for row_LD, weight in zip(rows, weights, strict=True):
        total_LD += _weight(weight) * row_LD
    return common.result(total_LD)


def product(operands: Sequence[Tensor]) -> Result:
    """The element-wise product. A token that one operand lacks is zero in the result."""
    rows, common = _aligned(operands)
    out_LD = rows[0].clone()
    for row_LD in rows[1:]:
        out_LD *= row_LD
    return common.result(out_LD)


def normalize(embedding_LD: Tensor, length: float = 1.0) -> Result:
    """Every token scaled to the same length (L2 norm). Tokens that are zero stay zero."""
    rows, common = _aligned([embedding_LD])
    return common.result(_weight(length) * unit_rows(rows[0]))


def interpolate(
    operands: Sequence[Tensor], steps: int, method: Method = "linear", *, include_endpoints: bool = True
) -> Path:
    """A path of `steps` prompts through two or more operands, in order, at equal distances of position.

    With `include_endpoints` it begins at the first operand and ends at the last; without, both are left out and the
    steps divide the path evenly between them. At an operand's own position the path is that operand, to the bit.

    linear: straight between neighbours.
    spherical: per token, the direction turns at constant speed on the great circle between both directions and the
    length goes straight between both lengths (Shoemake 1985). Where a token is zero on one side (padding) it has no
    direction, and the path is straight. Opposite directions have no shortest way; the path turns through a fixed
    perpendicular one (of the axis in which the token is smallest).
    cubic: the uniform Catmull-Rom spline through all operands (Catmull and Rom 1974), with end tangents from the
    operands mirrored at both ends (2 P0 - P1). Through two operands that is the straight line.

    Raises RecipeError for fewer than two operands, a number of steps that makes no path, an unknown method.
    """
    way = _way(method)
    if len(operands) < 2:
        raise RecipeError(f"{len(operands)} embedding", "a path goes through two or more", "")
    fewest = 2 if include_endpoints else 1
    if isinstance(steps, bool) or not isinstance(steps, int) or not fewest <= steps <= MAX_STEPS:
        raise RecipeError(f"steps is {steps!r}", f"this path has from {fewest} to {MAX_STEPS}", "steps: 5")
    rows, common = _aligned(operands)
    last = len(rows) - 1
    out: list[Tensor] = []
    positions: list[float] = []
    for i in range(steps):
        position = last * i / (steps - 1) if include_endpoints else last * (i + 1) / (steps + 1)
        before = min(int(position), last - 1)
        share = position - before
        point_LD = rows[before + int(share)] if share in (0.0, 1.0) else way(rows, before, share)
        positions.append(position)
        out.append(common.result(point_LD).embedding)
    note = common.note
    if method == "cubic" and last == 1:
        note = " ".join(filter(None, [note, "Through two embeddings the cubic path is the straight line."]))
    return Path(tuple(out), tuple(positions), note)


def between(a_LD: Tensor, b_LD: Tensor, share: float, method: Method = "linear") -> Result:
    """The prompt at a share of the way from a (0) to b (1), as `interpolate` has it. Raises RecipeError."""
    way = _way(method)
    if not 0 <= share <= 1:
        raise RecipeError(f"the place between two prompts is {share:g}", "it is a share, from 0 to 1", "0.5")
    rows, common = _aligned([a_LD, b_LD])
    return common.result(rows[int(share)] if share in (0, 1) else way(rows, 0, share))


def _way(method: str) -> Callable[[list[Tensor], int, float], Tensor]:
    ways: dict[str, Callable[[list[Tensor], int, float], Tensor]] = {
        "linear": _linear,
        "spherical": _spherical,
        "cubic": _catmull_rom,
    }
    if method not in ways:
        raise RecipeError(f"{method!r} is not a way to interpolate", nearest(str(method), ways), "method: spherical")
    return ways[method]


def trim(embedding_LD: Tensor) -> Tensor:
    """Without the rows of zeros at its end, at least one row. A view, not a copy."""
    check_same_dim([embedding_LD])
    return embedding_LD[: max(1, real_tokens(embedding_LD))]


def unit_rows(rows_LD: Tensor) -> Tensor:
    """Every row divided by its L2 norm; rows of zeros stay."""
    norm_L1 = torch.linalg.vector_norm(rows_LD, dim=1, keepdim=True)
    return rows_LD / torch.where(norm_L1 == 0, torch.ones_like(norm_L1), norm_L1)


@dataclass(frozen=True)
class _Common:
    dtype: torch.dtype
    note: str

    def result(self, exact_LD: Tensor) -> Result:
        # copied, so that a result never shares memory with an operand
        return Result(rounded(exact_LD, self.dtype).clone(), self.note)


def _aligned(operands: Sequence[Tensor]) -> tuple[list[Tensor], _Common]:
    """All operands in the precision of the computation, on the first one's device, with the same number of rows."""
    if not operands:
        raise RecipeError("no embedding is given", "an operation needs at least one", "")
    check_same_dim(operands)
    counts = [len(operand) for operand in operands]
    length = max(counts)
    dtype = operands[0].dtype
    for operand in operands:
        dtype = torch.promote_types(dtype, operand.dtype)
    rows = [padded(exact(operand).to(operands[0].device), length) for operand in operands]
    return rows, _Common(dtype, alignment_note(counts))


def alignment_note(counts: Sequence[int]) -> str:
    """What is said of operands with these token counts; nothing where all are equal."""
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
    away_LD = away_LD - (away_LD * u_LD).sum(1, keepdim=True) * u_LD  # once more: near the ends rounding is all of it
    sine_L1 = torch.linalg.vector_norm(away_LD, dim=1, keepdim=True)
    # Parallel directions span no plane. Equal ones turn by no angle, in whichever; opposite ones are given one.
    no_plane_L1 = sine_L1 < torch.finfo(u_LD.dtype).eps * max(16, u_LD.shape[1])
    across_LD = torch.where(no_plane_L1, _perpendicular(u_LD), unit_rows(away_LD))
    sine_L1 = torch.where(no_plane_L1, torch.zeros_like(sine_L1), sine_L1)
    angle_L1 = torch.atan2(sine_L1, cosine_L1)
    turned_LD = torch.cos(share * angle_L1) * u_LD + torch.sin(share * angle_L1) * across_LD
    length_L1 = (1 - share) * norm_a_L1 + share * norm_b_L1
    straight_L1 = (norm_a_L1 == 0) | (norm_b_L1 == 0)
    if rows[0].shape[1] == 1:  # on a line there is nothing to turn through
        straight_L1 = torch.ones_like(straight_L1)
    return torch.where(straight_L1, _linear(rows, before, share), length_L1 * turned_LD)


def _perpendicular(unit_LD: Tensor) -> Tensor:
    """For each unit row a unit row perpendicular to it: the axis in which it is smallest, made perpendicular."""
    axis_LD = torch.zeros_like(unit_LD).scatter_(1, unit_LD.abs().argmin(1, keepdim=True), 1.0)
    return unit_rows(axis_LD - (axis_LD * unit_LD).sum(1, keepdim=True) * unit_LD)


def _catmull_rom(rows: list[Tensor], before: int, share: float) -> Tensor:
    p1, p2 = rows[before], rows[before + 1]
    p0 = rows[before - 1] if before else 2 * p1 - p2
    p3 = rows[before + 2] if before + 2 < len(rows) else 2 * p2 - p1
    t = share
    return 0.5 * (2 * p1 + (p2 - p0) * t + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2 + (3 * p1 - p0 - 3 * p2 + p3) * t**3)
