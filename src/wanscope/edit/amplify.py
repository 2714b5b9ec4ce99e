"""Amplification: move a donor to an exact difference from the main prompt, or multiply a projected difference.

The difference is the one defined in `difference.py`: relative L2 over the union of real tokens. With a the main
prompt, b the donor and d = b - a (row by row, with padding for missing rows), the amplified donor lies on a line
x(s) = p + s q:

    push_apart       a + s d: straight away from the main prompt
    maximize_diff    d is multiplied by s only in the `share` (0.3) of the dimensions that differ most
    orthogonalize    a + s d_perp, with d_perp the part of each token's d that is perpendicular to the main token

s >= 0 is solved for so that the difference of x(s), rounded to the donor's dtype, is the target. With `keep_norm`,
every token of x(s) is scaled to the norm of the main prompt's token; tokens that the main prompt lacks keep the
donor's norm. In that case some differences cannot be reached, and the error lists the ranges that can.

The search for s uses only the row-wise inner products of a, p and q, which are computed once.

Shape suffixes: L tokens of the union, D dimension, U values of s.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal, NoReturn

import numpy as np
import torch
from torch import Tensor

from wanscope.edit.difference import relative_l2
from wanscope.edit.token_matrix import check_same_dim, exact, padded, rounded
from wanscope.errors import RecipeError, nearest

Mode = Literal["push_apart", "maximize_diff", "orthogonalize"]
MODES = ("push_apart", "maximize_diff", "orthogonalize")
TOLERANCE = 1e-3  # absolute, of the difference after rounding to the dtype
MAX_TARGET = 10.0  # a larger target is probably a percentage


@dataclass(frozen=True, eq=False)
class Amplified:
    """A donor [L, D] at the requested difference. scale: the solution s. before, after: the measured differences."""

    embedding: Tensor
    before: float
    after: float
    target: float
    scale: float
    mode: str
    keep_norm: bool

    def as_data(self) -> dict[str, Any]:
        """Return plain data for JSON, without the embedding."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "embedding"}

    def describe(self) -> str:
        """Return one line: the method, and the difference before and after."""
        direction = "brought nearer" if self.target < self.before else "moved apart"
        kept = ", token norms kept" if self.keep_norm else ""
        return (
            f"{self.mode}{kept}: the donor was {direction}, from a difference of {self.before:.3f} to {self.after:.3f} "
            f"(target {self.target:.3f}, scale {self.scale:.4g})"
        )


@dataclass(frozen=True, eq=False)
class Boosted:
    """A donor's context [L, D], with its difference from the main context multiplied by `factor`.

    before, after: the relative L2 difference from the main context.
    """

    context: Tensor
    before: float
    after: float
    factor: float
    keep_norm: bool

    def as_data(self) -> dict[str, Any]:
        """Return plain data for JSON, without the context."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "context"}

    def describe(self) -> str:
        """Return one line: the factor, and the projected difference before and after."""
        kept = ", token norms kept" if self.keep_norm else ""
        return f"boosted {self.factor:g} times{kept}: projected difference {self.before:.3f}, now {self.after:.3f}"


@torch.no_grad()
def amplify(
    main_LD: Tensor,
    donor_LD: Tensor,
    target: float,
    mode: Mode = "push_apart",
    *,
    keep_norm: bool = False,
    share: float = 0.3,
    pad_D: Tensor | None = None,
) -> Amplified:
    """Move the donor along a line so that its difference from the main prompt is `target` (0.6 for "60%").

    main_LD, donor_LD: the real tokens of one prompt each, raw or projected; they may differ in L, and neither is
    changed. pad_D: replaces a token that one of them lacks: None (zeros) for raw embeddings, the projection of a zero
    row for projected ones. share: for `maximize_diff`, the fraction of the dimensions that is scaled.

    The result has the donor's dtype and device and as many rows as the longer of the two; its difference is within
    0.001 of the target. If several scales reach the target, the one nearest to 1 (the donor itself) is used. A target
    below the present difference moves the donor toward the main prompt. Raises RecipeError, which names the reachable
    range, if the target cannot be reached.
    """
    if mode not in MODES:
        raise RecipeError(f"{mode!r} is not a way to amplify", nearest(str(mode), MODES), "mode: push_apart")
    if not 0 < target <= MAX_TARGET:
        percent = f"{target / 100:g}" if math.isfinite(target) and 0 < target / 100 <= MAX_TARGET else "0.6"
        raise RecipeError(f"the target difference is {target:g}", "it is above 0 and at most 10; 0.6 is 60%", percent)
    if not 0 < share <= 1:
        raise RecipeError(f"share is {share:g}", "it is the share of the dimensions, above 0 and at most 1", "0.3")
    pair = _Pair.of(main_LD, donor_LD, pad_D)
    line = _line(pair, mode, share, keep_norm)
    before = relative_l2(main_LD, donor_LD, pad_D)

    best: tuple[float, float, float, Tensor] | None = None  # (distance from the target, difference, scale, donor)

    def attempt(aim: float) -> float | None:
        """Return the difference after rounding if `aim` is solved for, and keep the best so far. None if unsolvable."""
        nonlocal best
        scale = line.solve(aim)
        if scale is None:
            return None
        out_LD = rounded(line.point(scale), donor_LD.dtype)
        after = relative_l2(main_LD, out_LD, pad_D)
        if best is None or abs(after - target) < best[0]:
            best = (abs(after - target), after, scale, out_LD)
        return after

    # Rounding to the dtype changes the difference slightly; compensate by aiming off target by that amount.
    aim = target
    for _ in range(8):
        after = attempt(aim)
        if after is None or abs(after - target) <= TOLERANCE / 4:
            break
        aim += target - after
    if best is None:
        _unreachable(line, target, mode, keep_norm, before)
    # In a coarse dtype this may not converge for short embeddings; try values on both sides of the target.
    reach = target * torch.finfo(donor_LD.dtype).eps
    for side in range(1, 65):
        if best[0] <= TOLERANCE:
            break
        attempt(target + reach * (side // 2) / 16 * (-1) ** side)
    distance, after, scale, out_LD = best
    if distance > TOLERANCE:
        raise RecipeError(
            f"the target difference {target:g} cannot be met in {str(donor_LD.dtype).removeprefix('torch.')}",
            f"the nearest difference after rounding is {after:.4f}",
            "embeddings in float32",
        )
    return Amplified(out_LD.to(donor_LD.device), before, after, float(target), scale, mode, keep_norm)


@torch.no_grad()
def boost(
    main_LD: Tensor, donor_LD: Tensor, factor: float, *, keep_norm: bool = False, pad_D: Tensor | None = None
) -> Boosted:
    """Multiply the difference of the donor's context from the main context: a + factor (b - a).

    main_LD, donor_LD: projected contexts of the real tokens; they may differ in L, and neither is changed. pad_D: the
    projection of a zero row, used for tokens that one of them lacks (zeros if None). keep_norm: after multiplying,
    scale every token to the norm of the main context's token, or of the donor's where the main context has none.
    The result has the donor's dtype and device and as many rows as the longer of the two. Raises RecipeError for a
    factor that is negative or not finite.
    """
    if not math.isfinite(factor) or factor < 0:
        raise RecipeError(f"the boost factor is {factor:g}", "it is a number from 0; 1 changes nothing", "10")
    pair = _Pair.of(main_LD, donor_LD, pad_D)
    # computed from the nearer end, so that factors 0 and 1 give exactly the main context and the donor
    exact_LD = pair.a_LD + factor * pair.d_LD if factor < 0.5 else pair.b_LD + (factor - 1) * pair.d_LD
    out_LD = rounded(pair.normed(exact_LD) if keep_norm else exact_LD, donor_LD.dtype).to(donor_LD.device)
    before = relative_l2(main_LD, donor_LD, pad_D)
    return Boosted(out_LD, before, relative_l2(main_LD, out_LD, pad_D), float(factor), keep_norm)


@dataclass(frozen=True, eq=False)
class _Pair:
    """Main prompt a and donor b padded to the same number of rows, in float64, with d = b - a.

    norm_L1: the norm that `keep_norm` gives each token. along_LD: the part of d parallel to the main token.
    parallel_L1: where d is parallel to the main token to within rounding of the operands' dtype; the perpendicular
    part of such a d is noise.
    """

    a_LD: Tensor
    b_LD: Tensor
    d_LD: Tensor
    norm_L1: Tensor
    along_LD: Tensor
    parallel_L1: Tensor

    @classmethod
    def of(cls, main_LD: Tensor, donor_LD: Tensor, pad_D: Tensor | None) -> _Pair:
        check_same_dim([main_LD, donor_LD], ["the main prompt", "the donor"])
        length = max(len(main_LD), len(donor_LD))
        pad_D = None if pad_D is None else exact(pad_D)
        a_LD = padded(exact(main_LD), length, pad_D)
        b_LD = padded(exact(donor_LD).to(main_LD.device), length, pad_D)
        norm_a_L1, norm_b_L1 = (torch.linalg.vector_norm(x, dim=1, keepdim=True) for x in (a_LD, b_LD))
        if not norm_a_L1.any():
            raise RecipeError("the main prompt is all zeros", "no difference can be measured from it", "")
        has_token_L1 = (torch.arange(length, device=a_LD.device) < len(main_LD))[:, None] & (norm_a_L1 > 0)
        d_LD = b_LD - a_LD
        share_L1 = (d_LD * a_LD).sum(1, keepdim=True) / torch.where(norm_a_L1 == 0, 1.0, norm_a_L1.square())
        along_LD = share_L1 * a_LD
        # each value has a relative error of up to eps / 2, so d has one of up to eps relative to the longer token
        eps = max(torch.finfo(main_LD.dtype).eps, torch.finfo(donor_LD.dtype).eps, 1e-12)
        away_L1 = torch.linalg.vector_norm(d_LD - along_LD, dim=1, keepdim=True)
        parallel_L1 = away_L1 <= eps * torch.maximum(norm_a_L1, norm_b_L1)
        norm_L1 = torch.where(has_token_L1, norm_a_L1, norm_b_L1)
        return cls(a_LD, b_LD, d_LD, norm_L1, along_LD, parallel_L1)

    def normed(self, x_LD: Tensor) -> Tensor:
        """Scale rows to `norm_L1`. Rows of zeros have no direction and stay zero."""
        length_L1 = torch.linalg.vector_norm(x_LD, dim=1, keepdim=True)
        return x_LD * (self.norm_L1 / torch.where(length_L1 == 0, torch.inf, length_L1))


def _line(pair: _Pair, mode: str, share: float, keep_norm: bool) -> _Line:
    """Return the line of a mode; see the table in the module's docstring."""
    if mode == "orthogonalize":
        return _Line(pair, pair.a_LD, torch.where(pair.parallel_L1, 0.0, pair.d_LD - pair.along_LD), keep_norm)
    # With norms kept, only directions matter, and the direction of a difference that is all rounding is noise.
    d_LD = torch.where(pair.parallel_L1, pair.along_LD, pair.d_LD) if keep_norm else pair.d_LD
    if mode == "push_apart":
        return _Line(pair, pair.a_LD, d_LD, keep_norm)
    squared_D = d_LD.square().sum(0)
    most = torch.argsort(squared_D, descending=True, stable=True)[: max(1, math.ceil(share * len(squared_D)))]
    chosen_D = torch.zeros_like(squared_D, dtype=torch.bool).index_fill_(0, most, True)
    # the other dimensions are exactly the donor's
    rest_LD = pair.a_LD + d_LD if keep_norm else pair.b_LD
    return _Line(pair, torch.where(chosen_D, pair.a_LD, rest_LD), torch.where(chosen_D, d_LD, 0.0), keep_norm)


class _Line:
    """The line x(s) = p + s q for s >= 0, with rows scaled to `norm_L1` if `keep_norm`, and its difference from a."""

    def __init__(self, pair: _Pair, p_LD: Tensor, q_LD: Tensor, keep_norm: bool) -> None:
        self.pair, self.p_LD, self.q_LD, self.keep_norm = pair, p_LD, q_LD, keep_norm
        self.pp, self.pq, self.qq = _inner(p_LD, p_LD), _inner(p_LD, q_LD), _inner(q_LD, q_LD)
        self.ap, self.aq, self.aa = _inner(pair.a_LD, p_LD), _inner(pair.a_LD, q_LD), _inner(pair.a_LD, pair.a_LD)
        self.kept = pair.norm_L1[:, 0].cpu().numpy()

    def point(self, s: float) -> Tensor:
        """Return x(s), [L, D]."""
        x_LD = self.p_LD + s * self.q_LD
        return self.pair.normed(x_LD) if self.keep_norm else x_LD

    def differences(self, s_U: np.ndarray) -> np.ndarray:
        """Return the difference of x(s) from a for each s, [U], from the inner products."""
        s_U1 = s_U[:, None]
        squared_UL = np.maximum(self.pp + 2 * s_U1 * self.pq + s_U1**2 * self.qq, 0)
        along_UL = self.ap + s_U1 * self.aq
        if self.keep_norm:
            length_UL = np.sqrt(squared_UL)
            factor_UL = self.kept / np.where(length_UL == 0, np.inf, length_UL)
            squared_UL, along_UL = squared_UL * factor_UL**2, along_UL * factor_UL
        return np.sqrt(np.maximum((squared_UL - 2 * along_UL + self.aa).sum(1), 0) / self.aa.sum())

    def difference(self, s: float) -> float:
        return float(self.differences(np.array([s]))[0])

    def jumps(self) -> list[float]:
        """Return the values of s at which a row passes through zero, so that its direction flips under `keep_norm`."""
        if not self.keep_norm:
            return []
        s_L = np.where(self.qq > 0, -self.pq / np.where(self.qq == 0, 1.0, self.qq), -1.0)
        left_LD = self.p_LD + torch.from_numpy(s_L).to(self.p_LD)[:, None] * self.q_LD
        size_L = np.sqrt(np.maximum(self.pp, self.qq))
        gone_L = (s_L >= 0) & (np.sqrt(_inner(left_LD, left_LD)) <= 1e-12 * size_L)
        return sorted({round(float(s), 9) for s in s_L[gone_L]})

    @cached_property
    def pieces(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """The intervals of s on which the difference is continuous: (samples of s, differences) of each.

        s is 0 and 1e-7 to 1e7, with the donor itself (s = 1) in the middle, and 1e-4 on both sides of each jump.
        """
        jumps = self.jumps()
        around = [jump + side for jump in jumps for side in (-1e-4, 1e-4) if jump + side > 0]
        s_U = np.unique(np.concatenate([[0.0], 10 ** np.linspace(-7, 7, 2001), around]))
        for jump in jumps:
            s_U = s_U[np.abs(s_U - jump) > 0.99e-4]
        values_U = self.differences(s_U)
        bounds = [0, *(int((s_U < jump).sum()) for jump in jumps), len(s_U)]
        return [(s_U[i:j], values_U[i:j]) for i, j in pairwise(bounds) if j > i]

    def solve(self, target: float) -> float | None:
        """Return the s whose difference is `target`, the one nearest to 1 in ratio; None if there is none.

        If the curve does not cross the target, s at the closest point counts if it is within 0.6 TOLERANCE.
        """
        found: list[float] = []
        for s_U, values_U in self.pieces:
            above_U = values_U >= target
            for i in np.flatnonzero(above_U[1:] != above_U[:-1]):
                low, high = float(s_U[i]), float(s_U[i + 1])
                while low < (middle := (low + high) / 2) < high:
                    if (self.difference(middle) >= target) == above_U[i + 1]:
                        high = middle
                    else:
                        low = middle
                found.append(high)
        if not found:
            for s_U, values_U in self.pieces:
                away_U = np.abs(values_U - target)
                if away_U.min() <= 0.6 * TOLERANCE:
                    found += s_U[away_U <= away_U.min() + 1e-12].tolist()
        return min(found, key=lambda s: abs(math.log(max(s, 1e-12))), default=None)

    def reachable(self) -> list[tuple[float, float]]:
        """Return the differences that can be reached, as (low, high) ranges in ascending order."""
        ranges = sorted((float(values.min()), float(values.max())) for _, values in self.pieces)
        merged: list[tuple[float, float]] = []
        for low, high in ranges:
            if merged and low <= merged[-1][1] + TOLERANCE:
                merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
            else:
                merged.append((low, high))
        return merged


def _inner(x_LD: Tensor, y_LD: Tensor) -> np.ndarray:
    """Return the inner product of each row of x with the same row of y, float64 [L]."""
    return (x_LD * y_LD).sum(1).double().cpu().numpy()


def _unreachable(line: _Line, target: float, mode: str, keep_norm: bool, before: float) -> NoReturn:
    ranges = line.reachable()
    if not line.qq.any():
        why = "the donor does not differ from the main prompt"
        if mode == "orthogonalize" and before:
            why = "each token of the donor is parallel to the main prompt's"
        raise RecipeError(f"the target difference {target:g} cannot be met", why, "another donor or mode")
    shown = " and ".join(f"{low:.3f} to {high:.3f}" if high < 1e5 else f"{low:.3f} upward" for low, high in ranges)
    kept = " with token norms kept" if keep_norm else ""
    best = min((x for pair in ranges for x in pair), key=lambda x: abs(x - target))
    why = f"with these prompts it reaches {shown}"
    if keep_norm:
        why += "; keep_norm: false reaches more"
    raise RecipeError(f"the target difference {target:g} cannot be met by {mode}{kept}", why, f"target: {best:.3f}")
