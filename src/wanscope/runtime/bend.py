"""Bends the attention maps of chosen words, as a low-rank correction of the fused attention's output.

With P the attention probabilities of the chosen text positions T (see columns.py), P' the bent ones and V their values,
each head's output becomes

    out' = (out + (P' - P)_T V_T) / Z,     Z = 1 + sum_T (P' - P)

which is the attention whose T columns are P' and whose rows are normalized again. If `renormalize` is false, the output
is not divided by Z. The result is the same as computing the full softmax, replacing the columns and multiplying by all
values, but only the T columns are needed. P' is never negative. If Z < 1e-6, there is nothing left to attend to, which
is an error.

Operations act on each text token's map over the video, frame by frame on the grid of video tokens. A map's value at a
position is the share of attention that the position gives the text token. Moving a map therefore moves values without a
Jacobian: a map that is scaled up has a larger sum. Values from outside the frame are 0. `strength` s interpolates:
P' = P + s (op(P) - P), clamped at 0.

The operations are those of AttentionBender (arXiv 2604.20936), on exact columns instead of full maps.

Shape suffixes: B batch, Q video positions (= T * Y * X), H heads, K head dim, l bent text positions, T latent frames,
Y and X rows and columns of video tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from wanscope.edit.operations import MapChange
from wanscope.errors import NumericalError

MapKind = Literal["multiply", "warp", "blur"]
MIN_MASS = 1e-6


@dataclass(frozen=True)
class MapOperation:
    """A map operation prepared for one grid of tokens, with its parameters in one tensor.

    kind: `multiply` (tensor: float32 [Y, X] or [], a factor for each position), `warp` (float32 [Y, X, 2], where each
    position takes its value from, in grid_sample's coordinates) or `blur` (float32 [2, R], the vertical and the
    horizontal kernel of R taps).
    """

    kind: MapKind
    tensor: Tensor

    def to(self, device: torch.device | str) -> MapOperation:
        return MapOperation(self.kind, self.tensor.to(device))


def amplify(factor: float) -> MapOperation:
    """Return the operation P' = factor * P. Raises ValueError for a negative factor."""
    return MapOperation("multiply", torch.tensor(_not_negative("factor", factor)))


def suppress(factor: float) -> MapOperation:
    """Return the operation P' = P / factor. Raises ValueError for a factor that is not positive."""
    return MapOperation("multiply", torch.tensor(1 / _positive("factor", factor)))


def region(box: tuple[float, float, float, float], grid_YX: tuple[int, int]) -> MapOperation:
    """Return the operation that keeps maps only inside a box (left, top, right, bottom), in fractions of the frame.

    Positions on the edge of the box are weighted by the part that is inside. Raises ValueError for a box that is empty
    or outside the frame.
    """
    left, top, right, bottom = box
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise ValueError(
            f"the box {box} is not (left, top, right, bottom) with left < right and top < bottom in 0 to 1"
        )
    inside_Y, inside_X = _covered(top, bottom, grid_YX[0]), _covered(left, right, grid_YX[1])
    return MapOperation("multiply", inside_Y[:, None] * inside_X[None])


def translate(x: float, y: float, grid_YX: tuple[int, int]) -> MapOperation:
    """Return the operation that moves maps right by x of the frame's width and down by y of its height."""
    Y, X = grid_YX
    return _warp(grid_YX, [[1, 0], [0, 1]], (x * X, y * Y))


def scale(factor: float, grid_YX: tuple[int, int]) -> MapOperation:
    """Return the operation that scales maps about the frame's center: 2 makes them twice as wide and high.

    Raises ValueError for a factor that is not positive.
    """
    size = 1 / _positive("factor", factor)
    return _warp(grid_YX, [[size, 0], [0, size]])


def rotate(angle: float, grid_YX: tuple[int, int]) -> MapOperation:
    """Return the operation that rotates maps about the frame's center by `angle` degrees counterclockwise."""
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    # y points down, so the source of a counterclockwise rotation on screen is given by this matrix in (x, y).
    return _warp(grid_YX, [[cos, -sin], [sin, cos]])


def flip(axis: Literal["x", "y"], grid_YX: tuple[int, int]) -> MapOperation:
    """Return the operation that mirrors maps: x swaps left and right, y swaps top and bottom.

    Raises ValueError for another axis.
    """
    if axis not in ("x", "y"):
        raise ValueError(f"a flip is along x or y, not along {axis!r}")
    return _warp(grid_YX, [[-1 if axis == "x" else 1, 0], [0, -1 if axis == "y" else 1]])


def blur(sigma: float) -> MapOperation:
    """Return a Gaussian blur within each frame, with a standard deviation of `sigma` tokens.

    At the frame's edge the kernel is normalized over the part inside, so that a constant map stays constant. Raises
    ValueError for a sigma that is not positive.
    """
    radius = max(1, math.ceil(4 * _positive("sigma", sigma)))
    at_R = torch.arange(-radius, radius + 1, dtype=torch.float64)
    kernel_R = torch.exp(-0.5 * (at_R / sigma) ** 2)
    return MapOperation("blur", (kernel_R / kernel_R.sum()).float().expand(2, -1).contiguous())


def map_operation(edit: MapChange, grid_TYX: tuple[int, int, int]) -> MapOperation:
    """Return the operation of a bend, for a grid of tokens. Raises ValueError for parameters out of range."""
    grid_YX = grid_TYX[1:]
    if edit.operation == "amplify":
        return amplify(edit.factor or 1.0)
    if edit.operation == "suppress":
        return suppress(edit.factor or 1.0)
    if edit.operation == "scale":
        return scale(edit.factor or 1.0, grid_YX)
    if edit.operation == "rotate":
        return rotate(edit.angle or 0.0, grid_YX)
    if edit.operation == "translate":
        return translate(edit.x or 0.0, edit.y or 0.0, grid_YX)
    if edit.operation == "flip":
        assert edit.axis == "x" or edit.axis == "y"
        return flip(edit.axis, grid_YX)
    if edit.operation == "blur":
        return blur(edit.sigma or 0.0)
    assert edit.box is not None
    return region(edit.box, grid_YX)


def bend_maps(
    p_BHQl: Tensor, operation: MapOperation, strength: Tensor | float, grid_TYX: tuple[int, int, int]
) -> Tensor:
    """Return the bent probabilities P' = P + strength * (operation(P) - P), clamped at 0: [B, H, Q, l].

    p_BHQl: exact columns. strength: a number, or a tensor of shape [] or [H], where 0 does not change that head's maps
    (with a tensor, steps and blocks share one compiled graph). Raises ValueError if Q does not match the grid.
    """
    B, H, Q, tokens = p_BHQl.shape
    T, Y, X = grid_TYX
    if Q != T * Y * X:
        raise ValueError(f"maps of {Q} positions do not fit a grid of {T} x {Y} x {X}")
    maps = p_BHQl.permute(0, 1, 3, 2).reshape(B * H * tokens * T, 1, Y, X)
    tensor = operation.tensor.to(maps.dtype)
    if operation.kind == "multiply":
        bent = maps * tensor
    elif operation.kind == "warp":
        grid = tensor.expand(maps.shape[0], -1, -1, -1)
        bent = F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    else:
        bent = _blurred(maps, tensor[0]) / _blurred(torch.ones_like(maps[:1]), tensor[0])
    bent_BHQl = bent.reshape(B, H, tokens, Q).permute(0, 1, 3, 2)
    if isinstance(strength, Tensor) and strength.dim() == 1:
        strength = strength[:, None, None]
    return (p_BHQl + strength * (bent_BHQl - p_BHQl)).clamp_min(0)


def bent_output(
    out_BQHK: Tensor, p_BHQl: Tensor, p_new_BHQl: Tensor, v_BlHK: Tensor, renormalize: bool = True
) -> tuple[Tensor, Tensor]:
    """Return (out', min_mass): the attention's output with columns p replaced by p_new, and the smallest Z, shape [].

    out_BQHK: the text attention's output, before image attention is added and before `to_out`. p_BHQl, p_new_BHQl: the
    columns before and after. v_BlHK: the values of the bent positions. out' is [B, Q, H, K] in out's dtype; the sum is
    computed in the dtype of the columns. Pass `min_mass` to `require_mass` after the call, because a compiled block
    cannot raise an error.
    """
    change_BHQl = p_new_BHQl - p_BHQl
    v_BHlK = v_BlHK.permute(0, 2, 1, 3).to(change_BHQl.dtype)
    result_BHQK = out_BQHK.permute(0, 2, 1, 3).to(change_BHQl.dtype) + change_BHQl @ v_BHlK
    z_BHQ1 = 1 + change_BHQl.sum(-1, keepdim=True)
    if renormalize:
        result_BHQK = result_BHQK / z_BHQ1.clamp_min(MIN_MASS)
    return result_BHQK.permute(0, 2, 1, 3).to(out_BQHK.dtype), z_BHQ1.amin()


def require_mass(min_mass: float, where: str) -> None:
    """Raise NumericalError if some positions have nothing left to attend to.

    min_mass: the smallest Z of a call. where: for the message, such as "at step 3".
    """
    if not min_mass >= MIN_MASS:
        raise NumericalError(
            f"bending leaves some positions nothing to attend to {where}",
            f"the chosen words had nearly all of their attention, and after bending a share of {min_mass:.3g} remains; "
            f"at least {MIN_MASS:g} is needed to normalize it",
            "renormalize: false",
        )


def _warp(
    grid_YX: tuple[int, int], source: list[list[float]], offset: tuple[float, float] = (0.0, 0.0)
) -> MapOperation:
    """Return the warp in which a position takes the value at source @ (p - offset).

    p: the position relative to the frame's center. p and offset: (x, y) in tokens.
    """
    Y, X = grid_YX
    y_Y = torch.arange(Y, dtype=torch.float64) - (Y - 1) / 2
    x_X = torch.arange(X, dtype=torch.float64) - (X - 1) / 2
    at_YX2 = torch.stack((x_X.expand(Y, X) - offset[0], y_Y[:, None].expand(Y, X) - offset[1]), -1)
    from_YX2 = at_YX2 @ torch.tensor(source, dtype=torch.float64).T
    # With align_corners=False a frame of X tokens spans -1 to 1, edge to edge: a token is 2 / X.
    return MapOperation("warp", (from_YX2 * torch.tensor([2 / X, 2 / Y], dtype=torch.float64)).float())


def _blurred(maps: Tensor, kernel_R: Tensor) -> Tensor:
    """Return maps [n, 1, Y, X] convolved with the kernel [R] in both directions, with zero padding."""
    radius = kernel_R.shape[0] // 2
    down = F.conv2d(maps, kernel_R[None, None, :, None], padding=(radius, 0))
    return F.conv2d(down, kernel_R[None, None, None, :], padding=(0, radius))


def _covered(low: float, high: float, count: int) -> Tensor:
    """Divide 0..1 into `count` cells and return the fraction of each that is between low and high, float32 [count]."""
    edges = torch.arange(count + 1, dtype=torch.float64) / count
    part = torch.clamp(edges[1:], max=high) - torch.clamp(edges[:-1], min=low)
    return (part.clamp_min(0) * count).float()


def _positive(name: str, value: float) -> float:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a number above 0, not {value}")
    return float(value)


def _not_negative(name: str, value: float) -> float:
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be a number of at least 0, not {value}")
    return float(value)
