"""The arithmetic of an edited text attention, once for every runtime: log weights, bent maps, weighted sums.

A block's cross-attention reads one context or several (`compose.py`). Each is attended to, with the log weights of
appended tokens where there are any; the maps of its bent words are changed; the outputs are summed by weight.

It runs inside compiled blocks, so all that differs between blocks and steps is a tensor: a Python number would be
compiled in, and compiled again in every block.

Shape suffixes: B batch, Q video positions, H heads, K head dim, N text positions, l bent places of one text, p those
of one bend.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from wanscope.runtime.bend import LEAST_MASS, MapOperation, bend_maps, bent_output
from wanscope.runtime.columns import TextRows, columns
from wanscope.runtime.compose import Read, compute_dtype


class MakeTensor(Protocol):
    """Makes a tensor of numbers, on the device that the attention runs on."""

    def __call__(self, data: Any, /, *, dtype: torch.dtype) -> Tensor: ...


@dataclass(eq=False)
class BendStep:
    """One bend of one context's maps.

    row: of the batch. places_p: its words, among the row's bent places. strength_H: 0 for heads that keep their maps.
    """

    row: int
    places_p: Tensor
    strength_H: Tensor
    operation: MapOperation
    renormalize: bool


def bent_places(read: Read) -> list[int]:
    """The columns of a context that any bend changes, in rising order."""
    return sorted({column for _, columns_ in read.bends for column in columns_})


def bend_steps(
    read: Read,
    row: int,
    heads: int,
    dtype: torch.dtype,
    operation: Callable[[int], MapOperation],
    tensor: MakeTensor,
) -> list[BendStep]:
    """A context's bends, in their order. operation: the map operation of `read.bends[i]`, made ready for the grid."""
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
    """(out', least): an attention's output of one row of the batch with its maps bent, one bend after another.

    places_l: the columns that any bend changes. least: a tensor [], the smallest mass that a renormalized bend left
    (see `bend.require_mass`), 1 where none did.
    """
    p_BHQl = columns(q_BQHK, k_BNHK, text, places_l)
    v_BlHK = v_BNHK.index_select(1, places_l)
    least = p_BHQl.new_ones(())
    for step in steps:
        old_BHQp = p_BHQl.index_select(-1, step.places_p)
        new_BHQp = bend_maps(old_BHQp, step.operation, step.strength_H, grid_TYX)
        v_BpHK = v_BlHK.index_select(1, step.places_p)
        out_BQHK, left = bent_output(out_BQHK, old_BHQp, new_BHQp, v_BpHK, step.renormalize)
        p_BHQl = p_BHQl.index_copy(-1, step.places_p, new_BHQp)
        if step.renormalize:
            # The next bend starts from maps that sum to 1 again.
            p_BHQl = p_BHQl / (1 + (new_BHQp - old_BHQp).sum(-1, keepdim=True)).clamp_min(LEAST_MASS)
            least = torch.minimum(least, left.to(least.dtype))
    return out_BQHK, least


def row_log_weights(read: Read, rows: int) -> list[float]:
    """The log weight of each of a context's first `rows` rows: 0 but for appended tokens."""
    values = [0.0] * rows
    for first, tokens, log_weight in read.log_weights:
        values[first : first + tokens] = [log_weight] * tokens
    return values


def attended_with_log_weights(q_BQHK: Tensor, k_BNHK: Tensor, v_BNHK: Tensor, bias_B11N: Tensor) -> Tensor:
    """Attention [B, Q, H, K] with a bias on its logits, by torch's own kernel: the other fused ones take none."""
    q, k, v = (x.transpose(1, 2) for x in (q_BQHK, k_BNHK, v_BNHK))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias_B11N.to(q.dtype)).transpose(1, 2)


def weighted_sum(outputs: Sequence[Tensor], weights: Sequence[float], weights_SB: Tensor | None = None) -> Tensor:
    """The sum of S attention outputs [B, Q, ...] by weight, in their dtype or, where that is narrower, in float32.

    weights: as numbers, of a batch of one. weights_SB: the same as a tensor [S, B] for each row of a batch, which
    compiled blocks need; without it `weights` are used.
    """
    if len(outputs) == 1:
        return outputs[0]
    if not torch.compiler.is_compiling() and len(outputs) == 2 and weights[0] + weights[1] == 1:
        # One kernel, its weight in float32 whatever the dtype; a compiled block would have the number compiled in.
        return torch.lerp(outputs[0], outputs[1], weights[1])
    total = None
    for i in range(len(outputs)):
        wide = outputs[i].to(compute_dtype(outputs[i].dtype))
        shape = (-1, *[1] * (wide.dim() - 1))
        term = wide * (weights[i] if weights_SB is None else weights_SB[i].view(shape))
        total = term if total is None else total + term
    assert total is not None
    return total
