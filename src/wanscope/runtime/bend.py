"""Bending the attention maps of chosen words, as a low-rank correction of the fused attention's output.

With P the probabilities of the chosen text positions T (see columns.py), P' the bent ones and V their values, each
head's output becomes

    out' = (out + (P' - P)_T V_T) / Z,     Z = 1 + sum_T (P' - P)

which is the attention whose T columns are P' and whose rows are normalized again; without the division where
`renormalize` is false. It equals building the full softmax, replacing the columns and multiplying by all values, and
needs no more than the T columns. P' is never negative. Where Z < 1e-6 nothing is left to attend to: an error.

Operations act on each token's map over the video, frame by frame on its grid of tokens. A map's value at a position
is the share of attention that the position gives the token, so moving a map moves values and has no Jacobian: a map
scaled up holds more in sum. What comes in from outside the frame is 0. `strength` s goes part of the way,
P' = P + s (op(P) - P), clamped at 0.

Operations are those of AttentionBender (arXiv 2604.20936), on exact columns instead of full maps.

Shape suffixes: B batch, Q video positions (= T * Y * X), H heads, K head dim, l bent text positions, T latent frames,
Y and X rows and columns of tokens.
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
LEAST_MASS = 1e-6


@dataclass(frozen=True)
class MapOperation:
    """A map operation made ready for one grid of tokens; its numbers are one tensor.

    kind: `multiply` (tensor float32 [Y, X] or []: a factor at each position), `warp` (float32 [Y, X, 2]: where each
    position takes its value from, in grid_sample's coordinates), `blur` (float32 [2, R]: the kernel down and across).
    """

    kind: MapKind
    tensor: Tensor

    def to(self, device: torch.device | str) -> MapOperation:
        return MapOperation(self.kind, self.tensor.to(device))


def amplify(factor: float) -> MapOperation:
    """P' = factor * P."""
    return MapOperation("multiply", torch.tensor(_not_negative("factor", factor)))


def suppress(factor: float) -> MapOperation:
    """P' = P / factor."""
    return MapOperation("multiply", torch.tensor(1 / _positive("factor", factor)))


def region(box: tuple[float, float, float, float], grid_YX: tuple[int, int]) -> MapOperation:
    """Keep maps only inside box (left, top, right, bottom), fractions of the frame; on its edge by the part inside."""
    left, top, right, bottom = box
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise ValueError(f"the box {box} is not (left, top, right, bottom) within 0 to 1")
    inside_Y, inside_X = _covered(top, bottom, grid_YX[0]), _covered(left, right, grid_YX[1])
    return MapOperation("multiply", inside_Y[:, None] * inside_X[None])


def translate(x: float, y: float, grid_YX: tuple[int, int]) -> MapOperation:
    """Move maps right by x of the frame's width and down by y of its height."""
    Y, X = grid_YX
    return _warp(grid_YX, [[1, 0], [0, 1]], (x * X, y * Y))


def scale(factor: float, grid_YX: tuple[int, int]) -> MapOperation:
    """Enlarge maps about the frame's center: 2 makes them twice as wide and high."""
    size = 1 / _positive("factor", factor)
    return _warp(grid_YX, [[size, 0], [0, size]])


def rotate(angle: float, grid_YX: tuple[int, int]) -> MapOperation:
    """Turn maps about the frame's center by `angle` degrees, counterclockwise as one looks at the video."""
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    # Rows count downward, so a counterclockwise turn takes its values from where a clockwise one in (x, y) leads.
    return _warp(grid_YX, [[cos, -sin], [sin, cos]])


def flip(axis: Literal["x", "y"], grid_YX: tuple[int, int]) -> MapOperation:
    """Mirror maps: x swaps left and right, y swaps top and bottom."""
    if axis not in ("x", "y"):
        raise ValueError(f"a flip is along x or y, not {axis!r}")
    return _warp(grid_YX, [[-1 if axis == "x" else 1, 0], [0, -1 if axis == "y" else 1]])


def blur(sigma: float) -> MapOperation:
    """Gaussian blur of `sigma` tokens within each frame; at its edge over the part inside, so that a flat map stays."""
    radius = max(1, math.ceil(4 * _positive("sigma", sigma)))
    at_R = torch.arange(-radius, radius + 1, dtype=torch.float64)
    kernel_R = torch.exp(-0.5 * (at_R / sigma) ** 2)
    return MapOperation("blur", (kernel_R / kernel_R.sum()).float().expand(2, -1).contiguous())


def map_operation(edit: MapChange, grid_TYX: tuple[int, int, int]) -> MapOperation:
    """What a bend does to maps on a grid of tokens."""
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
    """Bent probabilities P' [B, H, Q, l], not negative: P + strength * (operation(P) - P).

    p_BHQl: exact columns. strength: a number, or a tensor of shape [] or [H] (0 leaves that head's maps as they are;
    a tensor, so that steps and blocks share one compiled graph). Several operations are applied one after another.
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
    """(out', least): the attention's output with columns `p_BHQl` replaced by `p_new_BHQl`, and the smallest Z.

    out_BQHK: the text attention's output, before image attention is added and before `to_out`. v_BlHK: values of the
    bent positions. out' has out's dtype; the sum is done in the columns'. Pass `least`, a tensor [], to
    `require_mass` after the call: inside a compiled block nothing can be raised.
    """
    change_BHQl = p_new_BHQl - p_BHQl
    v_BHlK = v_BlHK.permute(0, 2, 1, 3).to(change_BHQl.dtype)
    result_BHQK = out_BQHK.permute(0, 2, 1, 3).to(change_BHQl.dtype) + change_BHQl @ v_BHlK
    z_BHQ1 = 1 + change_BHQl.sum(-1, keepdim=True)
    if renormalize:
        result_BHQK = result_BHQK / z_BHQ1.clamp_min(LEAST_MASS)
    return result_BHQK.permute(0, 2, 1, 3).to(out_BQHK.dtype), z_BHQ1.amin()


def require_mass(least: float, where: str) -> None:
    """Raises NumericalError where the smallest Z of a call leaves a position nothing to attend to."""
    if not least >= LEAST_MASS:
        raise NumericalError(
            f"bending leaves some positions nothing to attend to {where}: of their attention {least:.3g} remains",
            f"the chosen words held all of it, and at least {LEAST_MASS:g} must remain to be normalized",
            "strength: 0.9, or renormalize: false",
        )


def _warp(grid_YX: tuple[int, int], source: list[list[float]], moved: tuple[float, float] = (0.0, 0.0)) -> MapOperation:
    """Each position takes the value at source @ (its place from the center, less `moved`), in tokens (x, y)."""
    Y, X = grid_YX
    y_Y = torch.arange(Y, dtype=torch.float64) - (Y - 1) / 2
    x_X = torch.arange(X, dtype=torch.float64) - (X - 1) / 2
    at_YX2 = torch.stack((x_X.expand(Y, X) - moved[0], y_Y[:, None].expand(Y, X) - moved[1]), -1)
    from_YX2 = at_YX2 @ torch.tensor(source, dtype=torch.float64).T
    # With align_corners=False a frame of X tokens spans -1 to 1, edge to edge: a token is 2 / X.
    return MapOperation("warp", (from_YX2 * torch.tensor([2 / X, 2 / Y], dtype=torch.float64)).float())


def _blurred(maps: Tensor, kernel_R: Tensor) -> Tensor:
    """Maps [n, 1, Y, X] convolved down and across, zeros outside."""
    radius = kernel_R.shape[0] // 2
    down = F.conv2d(maps, kernel_R[None, None, :, None], padding=(radius, 0))
    return F.conv2d(down, kernel_R[None, None, None, :], padding=(0, radius))


def _covered(low: float, high: float, count: int) -> Tensor:
    """The part of each of `count` equal cells of 0..1 that lies between low and high."""
    edges = torch.arange(count + 1, dtype=torch.float64) / count
    part = torch.clamp(edges[1:], max=high) - torch.clamp(edges[:-1], min=low)
    return (part.clamp_min(0) * count).float()


def _positive(name: str, value: float) -> float:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} is a number above 0, not {value}")
    return float(value)


def _not_negative(name: str, value: float) -> float:
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} is a number of at least 0, not {value}")
    return float(value)
