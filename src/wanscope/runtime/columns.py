"""Exact cross-attention probabilities of chosen text positions, without computing the full map.

For a query q and the keys k_t of all text positions t, with log weights b_t (0 unless an edit weights a row),

    P_t = exp(q.k_t * scale + b_t - lse),     lse = log sum_u exp(q.k_u * scale + b_u),     scale = K ** -0.5

Wan sets the padding of its text to zero and does not mask it, so every padding position has the same key. The 512
columns are therefore n real ones and one that represents 512 - n equal ones, with log(512 - n) added to its logit. That
column is the sum over the padding, which gets much of the attention. n comes from the plan: the largest number of real
rows in the *edited* context (a donor may be longer than the prompt). `pad_spread` checks that the rows after them are
in fact equal.

The queries are processed in slices, so extra memory is bounded by `SLICE_BYTES` and the result. Logits, softmax and
result are float32 (float64 for float64 inputs) regardless of the model's dtype: products of bf16 values are exact in
float32, and rounding logits to bf16 would cause errors of 6%.

`columns` and `mean_columns` are custom torch operators, so a compiled block calls them without a graph break, and their
loop over slices is not unrolled into its graph.

Shape suffixes: B batch, Q video positions, H heads, K head dim, L text positions, m rows that represent all of them
(n real ones and the padding's), l requested columns, D model dim, q positions of a slice.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

SLICE_BYTES = 16 << 20


class TextRows(NamedTuple):
    """The rows that represent all text positions, as tensors on the model's device.

    rows: int64 [m], the text positions whose keys are used. bias: float [m], added to their logits: the log of the
    number of equal positions that a row represents, or of an edit's weight.
    """

    rows: Tensor
    bias: Tensor


def text_rows(
    real: int, length: int, device: torch.device | str = "cpu", log_weights: Sequence[float] | None = None
) -> TextRows:
    """Return the rows of a context of `length` positions: the first `real` differ, the rest repeat one padding row.

    log_weights: of the real rows, if an edit weights them (a weight of 0 is -inf). The padding's row is the last one,
    with index `real`; it is absent if `real` equals `length`. Raises ValueError if the numbers do not fit.
    """
    if not 0 <= real <= length or length < 1:
        raise ValueError(f"{real} real rows do not fit a context of {length} positions")
    weights = [0.0] * real if log_weights is None else [float(w) for w in log_weights]
    if len(weights) != real:
        raise ValueError(f"{len(weights)} log weights for {real} real rows")
    if real < length:
        weights.append(math.log(length - real))
    dtype = torch.float64 if torch.device(device).type == "cpu" else torch.float32  # some devices have no float64
    bias_m = torch.tensor(weights, dtype=dtype, device=device)
    return TextRows(torch.arange(len(weights), device=device), bias_m)


def pad_spread(context_BLD: Tensor, rows_m: Tensor) -> Tensor:
    """Return the largest difference between the rows after the real ones, relative to the context's largest value.

    The result is float32 []; it is 0 if they are equal or fewer than two. context_BLD: the projected text. rows_m: from
    `text_rows`; the last one is the padding's.
    """
    tail_BlD = context_BLD[:, rows_m.shape[0] - 1 :]
    if tail_BlD.shape[1] < 2:
        return torch.zeros((), device=context_BLD.device)
    off = (tail_BlD - tail_BlD[:, :1]).abs().amax()
    return (off / context_BLD.abs().amax().clamp_min(torch.finfo(context_BLD.dtype).tiny)).float()


def pad_tolerance(dtype: torch.dtype) -> float:
    """Return the `pad_spread` up to which padding rows count as equal.

    Equal rows of a matmul's input may be rounded differently, depending on their position.
    """
    return 8 * torch.finfo(dtype).eps


def columns(q_BQHK: Tensor, k_BLHK: Tensor, text: TextRows, index_l: Tensor) -> Tensor:
    """Return the probabilities [B, H, Q, l] of the rows `index_l` of `text`, float32 (float64 for float64 inputs).

    q_BQHK, k_BLHK: queries and keys as the attention gets them (normalized, split into heads), of any float dtype; k
    has all L text positions. index_l: int64, indices into `text.rows`; the padding's is `text.rows.shape[0] - 1`.
    """
    return torch.ops.wanscope.columns(q_BQHK, k_BLHK, text.rows, text.bias, index_l)


def mean_columns(q_BQHK: Tensor, k_BLHK: Tensor, text: TextRows, index_l: Tensor) -> Tensor:
    """Return `columns` averaged over the heads, [B, Q, l], without storing those of single heads for all positions."""
    return torch.ops.wanscope.mean_columns(q_BQHK, k_BLHK, text.rows, text.bias, index_l)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype that edits and maps are computed in: float32, or float64 for a float64 model."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def query_slices(q_BQHK: Tensor, k_BLHK: Tensor, rows_m: Tensor, bias_m: Tensor) -> Iterator[tuple[int, int, Tensor]]:
    """Yield (start, stop, P [B, H, stop - start, m]) for slices of the queries [B, Q, H, K].

    k_BLHK: the keys. rows_m, bias_m: those of `TextRows`. It is for custom operators, because it is a Python loop.
    """
    B, Q, H, K = q_BQHK.shape
    m, dtype = rows_m.shape[0], compute_dtype(q_BQHK.dtype)
    k_BHKm = k_BLHK.index_select(1, rows_m).to(dtype).permute(0, 2, 3, 1).reshape(B * H, K, m)
    bias_m = bias_m.to(dtype)
    width = max(64, SLICE_BYTES // (dtype.itemsize * B * H * (K + 2 * m)))
    for start in range(0, Q, width):
        stop = min(start + width, Q)
        q_BHqK = q_BQHK[:, start:stop].to(dtype).permute(0, 2, 1, 3).reshape(B * H, stop - start, K)
        logits = torch.baddbmm(bias_m, q_BHqK, k_BHKm, alpha=K**-0.5)
        yield start, stop, logits.softmax(-1).view(B, H, stop - start, m)


@torch.library.custom_op("wanscope::columns", mutates_args=())
def _columns(q_BQHK: Tensor, k_BLHK: Tensor, rows_m: Tensor, bias_m: Tensor, index_l: Tensor) -> Tensor:
    result_BHQl = _columns_like(q_BQHK, k_BLHK, rows_m, bias_m, index_l)
    for start, stop, p_BHqm in query_slices(q_BQHK, k_BLHK, rows_m, bias_m):
        result_BHQl[:, :, start:stop] = p_BHqm.index_select(-1, index_l)
    return result_BHQl


@_columns.register_fake
def _columns_like(q_BQHK: Tensor, k_BLHK: Tensor, rows_m: Tensor, bias_m: Tensor, index_l: Tensor) -> Tensor:
    B, Q, H, _ = q_BQHK.shape
    return q_BQHK.new_empty((B, H, Q, index_l.shape[0]), dtype=compute_dtype(q_BQHK.dtype))


@torch.library.custom_op("wanscope::mean_columns", mutates_args=())
def _mean_columns(q_BQHK: Tensor, k_BLHK: Tensor, rows_m: Tensor, bias_m: Tensor, index_l: Tensor) -> Tensor:
    result_BQl = _mean_columns_like(q_BQHK, k_BLHK, rows_m, bias_m, index_l)
    for start, stop, p_BHqm in query_slices(q_BQHK, k_BLHK, rows_m, bias_m):
        result_BQl[:, start:stop] = p_BHqm.index_select(-1, index_l).mean(1)
    return result_BQl


@_mean_columns.register_fake
def _mean_columns_like(q_BQHK: Tensor, k_BLHK: Tensor, rows_m: Tensor, bias_m: Tensor, index_l: Tensor) -> Tensor:
    B, Q, _, _ = q_BQHK.shape
    return q_BQHK.new_empty((B, Q, index_l.shape[0]), dtype=compute_dtype(q_BQHK.dtype))
