"""The arithmetic of an edited text attention, shared by all runtimes: log weights, bent maps, weighted sums.

A block's cross-attention reads one context or several (`compose.py`). It attends to each one, with log weights if
tokens are appended; the maps of bent words are changed; the outputs are summed by weight.

It runs inside compiled blocks, so everything that differs between blocks and steps is a tensor: a Python number would
become a constant in the graph, and every block would be compiled separately.

Shape suffixes: B batch, Q video positions, H heads, K head dim, N text positions, l bent rows of one text, p those of
one bend, S contexts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from wanscope.runtime.bend import MIN_MASS, MapOperation, bend_maps, bent_output
from wanscope.runtime.columns import TextRows, columns, compute_dtype
from wanscope.runtime.compose import Read


class MakeTensor(Protocol):
    """Makes a tensor on the device that the attention runs on."""

    def __call__(self, data: Any, /, *, dtype: torch.dtype) -> Tensor: ...


@dataclass(eq=False)
class BendStep:
    """One bend of one context's maps.

    row: the batch row. places_p: int64, indices of its words in the context's `bent_places`. strength_H: 0 for heads
    whose maps do not change.
    """

    row: int
    places_p: Tensor
    strength_H: Tensor
    operation: MapOperation
    renormalize: bool


def bent_places(read: Read) -> list[int]:
    """Return the rows of a context that any bend changes, in ascending order."""
    return sorted({column for _, columns_ in read.bends for column in columns_})


def bend_steps(
    read: Read,
    row: int,
    heads: int,
    dtype: torch.dtype,
    operation: Callable[[int], MapOperation],
    tensor: MakeTensor,
) -> list[BendStep]:
    """Return the bends of a context, in order.

    row: the batch row. heads: the number of attention heads. operation(i): the map operation of `read.bends[i]`,
    prepared for the grid.
    """
    places = bent_places(read)
    steps = []
    for i, (bend, columns_) in enumerate(read.bends):
        chosen = bend.change.heads
        strengths = [bend.strength if not chosen or head in chosen else 0.0 for head in range(heads)]
        where = tensor([places.index(column) for column in columns_], dtype=torch.int64)
        steps.append(BendStep(row, where, tensor(strengths, dtype=dtype), operation(i), bend.change.renormalize))
    return steps


def bent(
    out_BQHK: Tensor,
    q_BQHK: Tensor,
    k_BNHK: Tensor,
    v_BNHK: Tensor,
    text: TextRows,
    places_l: Tensor,
    steps: Sequence[BendStep],
    grid_TYX: tuple[int, int, int],
) -> tuple[Tensor, Tensor]:
    """Return (out', min_mass): the attention's output of one batch row after all bends, applied one after another.

    out_BQHK, q_BQHK, k_BNHK, v_BNHK: output, queries, keys and values of that row (B = 1). places_l: the rows of the
    text that any bend changes. out' is shaped like out. min_mass: shape [], the smallest mass that a renormalized bend
    leaves (see `bend.require_mass`), or 1 without one.
    """
    p_BHQl = columns(q_BQHK, k_BNHK, text, places_l)
    v_BlHK = v_BNHK.index_select(1, places_l)
    min_mass = p_BHQl.new_ones(())
    for step in steps:
        old_BHQp = p_BHQl.index_select(-1, step.places_p)
        new_BHQp = bend_maps(old_BHQp, step.operation, step.strength_H, grid_TYX)
        v_BpHK = v_BlHK.index_select(1, step.places_p)
        out_BQHK, mass = bent_output(out_BQHK, old_BHQp, new_BHQp, v_BpHK, step.renormalize)
        p_BHQl = p_BHQl.index_copy(-1, step.places_p, new_BHQp)
        if step.renormalize:
            # The next bend starts from maps that again sum to 1.
            p_BHQl = p_BHQl / (1 + (new_BHQp - old_BHQp).sum(-1, keepdim=True)).clamp_min(MIN_MASS)
            min_mass = torch.minimum(min_mass, mass.to(min_mass.dtype))
    return out_BQHK, min_mass


def row_log_weights(read: Read, rows: int) -> list[float]:
    """Return the log weight of each of a context's first `rows` rows: 0 except for appended tokens."""
    values = [0.0] * rows
    for first, tokens, log_weight in read.log_weights:
        values[first : first + tokens] = [log_weight] * tokens
    return values


def attended_with_log_weights(q_BQHK: Tensor, k_BNHK: Tensor, v_BNHK: Tensor, bias_B11N: Tensor) -> Tensor:
    """Return attention [B, Q, H, K] with a bias on its logits.

    It uses torch's own kernel, because the other fused kernels do not accept a bias.
    """
    q, k, v = (x.transpose(1, 2) for x in (q_BQHK, k_BNHK, v_BNHK))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias_B11N.to(q.dtype)).transpose(1, 2)


def weighted_sum(outputs: Sequence[Tensor], weights: Sequence[float], weights_SB: Tensor | None = None) -> Tensor:
    """Return the weighted sum [B, Q, ...] of S attention outputs, in their dtype or float32 if that is wider.

    weights: one number per output, for a batch of one. weights_SB: a tensor [S, B] of weights for each row of a batch,
    which is used instead of `weights` if given, and which compiled blocks need.
    """
    if len(outputs) == 1:
        return outputs[0]
    if not torch.compiler.is_compiling() and len(outputs) == 2 and weights[0] + weights[1] == 1:
        # One kernel, with its weight in float32 for any dtype; in a compiled block the number would be a constant.
        return torch.lerp(outputs[0], outputs[1], weights[1])
    total = None
    for i in range(len(outputs)):
        output = outputs[i].to(compute_dtype(outputs[i].dtype))
        shape = (-1, *[1] * (output.dim() - 1))
        term = output * (weights[i] if weights_SB is None else weights_SB[i].view(shape))
        total = term if total is None else total + term
    assert total is not None
    return total
