"""Records rows of self-attention: how much a few chosen positions of the video attend to every position, exactly.

For a chosen position p and all positions u, with q and k as the attention gets them (normalized, with RoPE applied),

    P_u = exp(q_p.k_u / sqrt(K) - lse),    lse = log sum_v exp(q_p.k_v / sqrt(K))

A row's softmax needs only its own logits, so a few rows cost a few products with the keys, and the map of all pairs of
positions is never computed (for 14B at 832 x 480 x 81 it would be 86 GB per block). Heads are processed in slices of
`SLICE_BYTES`; logits, softmax and result are float32 (float64 for float64 inputs) regardless of the model's dtype.

Shape suffixes: B batch, Q video positions, H heads, K head dim, D model dim, p chosen positions, R rows of maps (= p),
h heads of a slice.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor

from wanscope.capture.attention_sink import AttentionSink
from wanscope.runtime.columns import SLICE_BYTES, compute_dtype
from wanscope.runtime.maps import MapRecorder


class SelfAttentionRecorder(MapRecorder):
    """Records the self-attention of the plan's positions; `record` runs inside the model."""

    def __init__(self, sink: AttentionSink, device: torch.device) -> None:
        super().__init__(sink, device)
        self.index_p = torch.tensor([row.columns[0] for row in self.plan.rows], dtype=torch.int64, device=device)

    def record(self, place: Tensor, q_BQHK: Tensor, k_BQHK: Tensor) -> None:
        """Record one block. place: the index of its maps, a tensor []. q_BQHK, k_BQHK: with RoPE applied."""
        at = slice(self.sample, self.sample + 1)
        heads = None if self.averaged else self.heads
        self.keep("self", place, position_rows(q_BQHK[at], k_BQHK[at], self.index_p, heads))


class RecordedSelfAttention:
    """A processor for `block.attn1` of a recorded block, which replaces diffusers' own for one call.

    Its output equals that of diffusers bit for bit. As in `EditedAttention`, everything that differs between blocks is
    a tensor.
    """

    def __init__(self, backend: Any, parallel: Any, recorder: SelfAttentionRecorder, place: Tensor) -> None:
        self._attention_backend, self._parallel_config = backend, parallel
        self.recorder, self.place = recorder, place

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        assert encoder_hidden_states is None and attention_mask is None
        if attn.fused_projections:
            query, key, value = attn.to_qkv(hidden_states).chunk(3, dim=-1)
        else:
            query, key, value = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        q_BQHK = attn.norm_q(query).unflatten(2, (attn.heads, -1))
        k_BQHK = attn.norm_k(key).unflatten(2, (attn.heads, -1))
        v_BQHK = value.unflatten(2, (attn.heads, -1))
        if rotary_emb is not None:
            q_BQHK, k_BQHK = rotated(q_BQHK, *rotary_emb), rotated(k_BQHK, *rotary_emb)
        self.recorder.record(self.place, q_BQHK, k_BQHK)
        out_BQHK = dispatch_attention_fn(
            q_BQHK,
            k_BQHK,
            v_BQHK,
            attn_mask=None,
            dropout_p=0.0,
            is_causal=False,
            backend=self._attention_backend,
            parallel_config=self._parallel_config,
        )
        out_BQD = out_BQHK.flatten(2, 3).type_as(q_BQHK)
        return attn.to_out[1](attn.to_out[0](out_BQD))


def rotated(x_BQHK: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return x with RoPE applied: neighboring values are rotated as pairs, by the angles of their position.

    cos, sin: [1, Q, 1, K], with each angle twice.
    """
    even, odd = x_BQHK[..., 0::2], x_BQHK[..., 1::2]
    cos, sin = cos[..., 0::2], sin[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2).type_as(x_BQHK)


def position_rows(q_BQHK: Tensor, k_BQHK: Tensor, index_p: Tensor, heads: Tensor | None) -> Tensor:
    """Return the attention probabilities of the positions `index_p` over all positions.

    The result is float32: [1, p, Q] averaged over all heads, or [H, p, Q] for `heads`. B is 1.
    """
    return torch.ops.wanscope.position_rows(q_BQHK, k_BQHK, index_p, heads)


@torch.library.custom_op("wanscope::position_rows", mutates_args=())
def _position_rows(q_BQHK: Tensor, k_BQHK: Tensor, index_p: Tensor, heads: Tensor | None) -> Tensor:
    _, Q, H, K = q_BQHK.shape
    dtype = compute_dtype(q_BQHK.dtype)
    q_HpK = q_BQHK[0].index_select(0, index_p).to(dtype).transpose(0, 1)
    k_QHK = k_BQHK[0]
    if heads is not None:
        q_HpK, k_QHK = q_HpK.index_select(0, heads), k_QHK.index_select(1, heads)
    result_HpQ = _position_rows_like(q_BQHK, k_BQHK, index_p, heads)
    if heads is None:
        result_HpQ.zero_()
    width = max(1, SLICE_BYTES // (dtype.itemsize * Q * (K + 2 * len(index_p))))
    for start in range(0, q_HpK.shape[0], width):
        part = slice(start, start + width)
        k_hKQ = k_QHK[:, part].to(dtype).permute(1, 2, 0)
        p_hpQ = (torch.bmm(q_HpK[part], k_hKQ) * K**-0.5).softmax(-1)
        if heads is None:
            result_HpQ += p_hpQ.sum(0, keepdim=True) / H
        else:
            result_HpQ[part] = p_hpQ
    return result_HpQ


@_position_rows.register_fake
def _position_rows_like(q_BQHK: Tensor, k_BQHK: Tensor, index_p: Tensor, heads: Tensor | None) -> Tensor:
    count = 1 if heads is None else heads.shape[0]
    return q_BQHK.new_empty((count, index_p.shape[0], q_BQHK.shape[1]), dtype=torch.float32)
