"""Records cross-attention maps inside the running model, for a capture (`wanscope.capture.attention_sink`).

The processor of a recorded block calls `record` with the tensors of its attention; `around_call` wraps each model call
and passes its maps to the sink. In between, the maps of all recorded blocks are in one buffer in host memory (pinned if
there is a GPU), so recording needs no device memory beyond one block's maps, and one synchronization per call. A
processor sees only tensors and the same Python state in every block, so a compiled block is compiled once for calls
that are recorded and once for those that are not.

Measures, for row r (a set of text positions), query position q and heads h:

- probability: sum over r of P_h(q, t), exact (columns.py); averaged over the heads unless they are kept.
- contribution: | sum over r and h of P_h(q, t) V_h(t) W_O,h |, the length of what the row adds to the block's hidden
  state at q, after the output projection. Attention weights alone say little if values are small (Kobayashi et al.
  2020, arXiv 2004.10102, equation 5). If heads are kept, it is computed for each head.
- gramcol: in each latent frame, the cosine of each position's hidden state with that of the position that gives the
  row the most attention: a column of the frame's Gram matrix, chosen by the text. After GramCol of IMAP (arXiv
  2603.02919), here on the state that cross-attention reads, normalized to -1 to 1.

Shape suffixes: B batch, Q video positions (= T * S), T latent frames, S positions of a frame, H heads, K head dim,
L text positions, m rows of `TextRows`, w positions of a row of maps (padded), R rows of maps, D model dim.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from wanscope.capture.attention_sink import AttentionSink
from wanscope.capture.moments import Moment
from wanscope.errors import NumericalError
from wanscope.runtime.columns import TextRows, pad_spread, pad_tolerance, query_slices
from wanscope.runtime.maps import MapRecorder


class AttentionRecorder(MapRecorder):
    """Records cross-attention; `record` runs inside the model. dtype: that of the transformer."""

    def __init__(self, sink: AttentionSink, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(sink, device)
        plan, self._dtype = self.plan, dtype
        self.real = torch.tensor(plan.real, device=device)
        self.grid_TS = (plan.grid[0], plan.grid[1] * plan.grid[2])
        words = [row.columns for row in plan.rows if row.kind != "pad"]
        self.has_pad = len(words) < len(plan.rows)  # its row is the last one
        width = max((len(columns) for columns in words), default=1)
        columns_Rw = torch.tensor([[*columns, *[-1] * (width - len(columns))] for columns in words]).view(-1, width)
        self.mask_Rw = (columns_Rw >= 0).float().to(device)
        self.index_Rw = columns_Rw.clamp_min(0).to(device)
        self.spread = torch.zeros((), device=device)

    def record(
        self,
        attn: Any,
        place: Tensor,
        hidden_BQD: Tensor,
        q_BQHK: Tensor,
        k_BLHK: Tensor,
        v_BLHK: Tensor,
        context_BLD: Tensor,
        text: TextRows,
    ) -> None:
        """Record one block from inside its attention, before anything is bent.

        attn: the attention module, whose output projection is used for contributions. place: the index of the block's
        maps, a tensor []. hidden_BQD: the state that cross-attention reads. q, k, v: its queries, and the text's keys
        and values. context_BLD: the text. text: the rows that represent it.
        """
        at = slice(self.sample, self.sample + 1)
        q_BQHK, k_BLHK = q_BQHK[at], k_BLHK[at]
        self.spread.copy_(torch.maximum(self.spread, pad_spread(context_BLD[at], text.rows).to(self.spread.device)))
        heads = None if self.averaged else self.heads
        pad_m = _pad_rows(context_BLD[self.sample], text, self.real) if self.has_pad else None
        probability = None
        if "probability" in self.measures or "gramcol" in self.measures:
            probability = row_probabilities(q_BQHK, k_BLHK, text, self.index_Rw, self.mask_Rw, pad_m, heads)
        for measure in self.measures:
            if measure == "probability":
                assert probability is not None
                maps = probability
            elif measure == "contribution":
                grams = value_grams(attn, v_BLHK[at], text, self.index_Rw, self.mask_Rw)
                maps = row_contributions(q_BQHK, k_BLHK, text, self.index_Rw, grams, pad_m, heads)
            else:
                assert probability is not None
                maps = gram_columns(hidden_BQD[self.sample], probability[0], self.grid_TS)[None]
            self.keep(measure, place, maps)

    def _check(self, moment: Moment, skipped: frozenset[int]) -> None:
        """Check the padding in addition; raise NumericalError if its rows are not equal."""
        super()._check(moment, skipped)
        spread = float(self.spread)
        self.spread.zero_()
        if not spread <= pad_tolerance(self._dtype):
            raise NumericalError(
                f"the text's padding is not one repeated row at step {moment.step}",
                f"its rows differ by {spread:.1e} of the context's largest value, so one column cannot represent all "
                "of them",
            )


def _pad_rows(context_LD: Tensor, text: TextRows, real: Tensor) -> Tensor:
    """Return which rows after the prompt's own `real` tokens are padding, float32 [m]: 1 if equal to the last row.

    It is one row unless the context is longer than this prompt: in another branch, or with a donor's tokens in it.
    """
    rows_mD = context_LD.index_select(0, text.rows)
    off_m = (rows_mD - rows_mD[-1:]).abs().amax(-1)
    equal_m = off_m <= pad_tolerance(context_LD.dtype) * context_LD.abs().amax()
    return (equal_m & (torch.arange(rows_mD.shape[0], device=rows_mD.device) >= real)).float()


def row_probabilities(
    q_BQHK: Tensor,
    k_BLHK: Tensor,
    text: TextRows,
    index_Rw: Tensor,
    mask_Rw: Tensor,
    pad_m: Tensor | None,
    heads: Tensor | None,
) -> Tensor:
    """Return the sums of probabilities over the positions of each row, and (last, if `pad_m` is given) of the padding.

    The result is float32: [1, R, Q] averaged over all heads, or [H, R, Q] for `heads`. B is 1. index_Rw: indices into
    `text.rows`, used where mask_Rw is 1. pad_m: 1 for padding.
    """
    share_mR = torch.zeros(text.rows.shape[0], index_Rw.shape[0], device=q_BQHK.device)
    share_mR = share_mR.scatter_add(0, index_Rw.T, mask_Rw.T)
    if pad_m is not None:
        share_mR = torch.cat([share_mR, pad_m[:, None]], 1)
    return torch.ops.wanscope.row_probabilities(q_BQHK, k_BLHK, text.rows, text.bias, share_mR, heads)


@torch.library.custom_op("wanscope::row_probabilities", mutates_args=())
def _row_probabilities(
    q_BQHK: Tensor, k_BLHK: Tensor, rows_m: Tensor, bias_m: Tensor, share_mR: Tensor, heads: Tensor | None
) -> Tensor:
    result_HRQ = _row_probabilities_like(q_BQHK, k_BLHK, rows_m, bias_m, share_mR, heads)
    for start, stop, p_BHqm in query_slices(q_BQHK, k_BLHK, rows_m, bias_m):
        p_Hqm = p_BHqm.mean(1) if heads is None else p_BHqm[0].index_select(0, heads)
        result_HRQ[:, :, start:stop] = (p_Hqm @ share_mR.to(p_Hqm.dtype)).transpose(1, 2)
    return result_HRQ


@_row_probabilities.register_fake
def _row_probabilities_like(
    q_BQHK: Tensor, k_BLHK: Tensor, rows_m: Tensor, bias_m: Tensor, share_mR: Tensor, heads: Tensor | None
) -> Tensor:
    count = 1 if heads is None else heads.shape[0]
    return q_BQHK.new_empty((count, share_mR.shape[1], q_BQHK.shape[1]), dtype=torch.float32)


def value_grams(attn: Any, v_BLHK: Tensor, text: TextRows, index_Rw: Tensor, mask_Rw: Tensor) -> tuple[Tensor, Tensor]:
    """Return the inner products of V_h(t) W_O,h within each row, and those of the padding (the last row of `text`).

    They are float32 [R, H * w, H * w], with 0 where mask_Rw is 0, and [H, H]. B is 1. The output projection is called
    rather than read, so that LoRA, casting and quantized weights are included.
    """
    H, K = v_BLHK.shape[2], v_BLHK.shape[3]
    R, w = index_Rw.shape
    places_n = torch.cat([text.rows.index_select(0, index_Rw.reshape(-1)), text.rows[-1:]])
    v_nHK = v_BLHK[0].index_select(0, places_n)
    alone_nHHK = torch.eye(H, dtype=v_nHK.dtype, device=v_nHK.device)[None, :, :, None] * v_nHK[:, None]
    project = attn.to_out[0]
    none_D = project(torch.zeros(1, H * K, dtype=v_nHK.dtype, device=v_nHK.device))
    u_nHD = (project(alone_nHHK.reshape(-1, H * K)) - none_D).float().view(R * w + 1, H, -1)
    u_RwHD = u_nHD[:-1].view(R, w, H, -1) * mask_Rw[:, :, None, None]
    u_RnD = u_RwHD.transpose(1, 2).reshape(R, H * w, -1)
    return u_RnD @ u_RnD.transpose(1, 2), u_nHD[-1] @ u_nHD[-1].T


def row_contributions(
    q_BQHK: Tensor,
    k_BLHK: Tensor,
    text: TextRows,
    index_Rw: Tensor,
    grams: tuple[Tensor, Tensor],
    pad_m: Tensor | None,
    heads: Tensor | None,
) -> Tensor:
    """Return the length of each row's contribution, with that of the padding last if `pad_m` is given.

    The result is float32: [1, R, Q] for all heads together, or [H, R, Q] for each of `heads`. B is 1. grams: from
    `value_grams`.
    """
    return torch.ops.wanscope.row_contributions(
        q_BQHK, k_BLHK, text.rows, text.bias, index_Rw, grams[0], grams[1], pad_m, heads
    )


@torch.library.custom_op("wanscope::row_contributions", mutates_args=())
def _row_contributions(
    q_BQHK: Tensor,
    k_BLHK: Tensor,
    rows_m: Tensor,
    bias_m: Tensor,
    index_Rw: Tensor,
    gram_Rnn: Tensor,
    pad_gram_HH: Tensor,
    pad_m: Tensor | None,
    heads: Tensor | None,
) -> Tensor:
    result_HRQ = _row_contributions_like(q_BQHK, k_BLHK, rows_m, bias_m, index_Rw, gram_Rnn, pad_gram_HH, pad_m, heads)
    for start, stop, p_BHqm in query_slices(q_BQHK, k_BLHK, rows_m, bias_m):
        p_Hqm = p_BHqm[0].float()
        shares = [(p_Hqm.index_select(-1, index_w), gram) for index_w, gram in zip(index_Rw, gram_Rnn, strict=True)]
        if pad_m is not None:
            shares.append(((p_Hqm * pad_m).sum(-1, keepdim=True), pad_gram_HH))
        for row, (p_Hqw, gram_nn) in enumerate(shares):
            result_HRQ[:, row, start:stop] = _lengths(p_Hqw, gram_nn, heads)
    return result_HRQ


def _lengths(p_Hqw: Tensor, gram_nn: Tensor, heads: Tensor | None) -> Tensor:
    """Return | sum p u |, given the inner products of u, n = (H, w): [q] over all heads, or [H, q] of `heads`."""
    H, count, w = p_Hqw.shape
    if heads is None:
        p_qn = p_Hqw.transpose(0, 1).reshape(count, H * w)
        squared = ((p_qn @ gram_nn) * p_qn).sum(-1)
    else:
        own_Hww = gram_nn.view(H, w, H, w).diagonal(dim1=0, dim2=2).permute(2, 0, 1).index_select(0, heads)
        own_Hqw = p_Hqw.index_select(0, heads)
        squared = ((own_Hqw @ own_Hww) * own_Hqw).sum(-1)
    return squared.clamp_min(0).sqrt()


@_row_contributions.register_fake
def _row_contributions_like(
    q_BQHK: Tensor,
    k_BLHK: Tensor,
    rows_m: Tensor,
    bias_m: Tensor,
    index_Rw: Tensor,
    gram_Rnn: Tensor,
    pad_gram_HH: Tensor,
    pad_m: Tensor | None,
    heads: Tensor | None,
) -> Tensor:
    count = 1 if heads is None else heads.shape[0]
    rows = index_Rw.shape[0] + (pad_m is not None)
    return q_BQHK.new_empty((count, rows, q_BQHK.shape[1]), dtype=torch.float32)


def gram_columns(hidden_QD: Tensor, probability_RQ: Tensor, grid_TS: tuple[int, int]) -> Tensor:
    """Return the cosines [R, Q] of each state with that of the position in its frame that attends most to the row.

    probability_RQ: from `row_probabilities`. grid_TS: latent frames and positions per frame, with Q = T * S.
    """
    return torch.ops.wanscope.gram_columns(hidden_QD, probability_RQ, grid_TS[0], grid_TS[1])


@torch.library.custom_op("wanscope::gram_columns", mutates_args=())
def _gram_columns(hidden_QD: Tensor, probability_RQ: Tensor, frames: int, positions: int) -> Tensor:
    result_RQ = _gram_columns_like(hidden_QD, probability_RQ, frames, positions)
    for frame in range(frames):
        at = slice(frame * positions, (frame + 1) * positions)
        state_SD = torch.nn.functional.normalize(hidden_QD[at].float(), dim=-1)
        peak_R = probability_RQ[:, at].argmax(-1)
        result_RQ[:, at] = state_SD.index_select(0, peak_R) @ state_SD.T
    return result_RQ


@_gram_columns.register_fake
def _gram_columns_like(hidden_QD: Tensor, probability_RQ: Tensor, frames: int, positions: int) -> Tensor:
    return torch.empty_like(probability_RQ)
