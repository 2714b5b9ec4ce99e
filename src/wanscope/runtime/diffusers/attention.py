"""The cross-attention of an edited or recorded block, which replaces diffusers' own processor for one call.

It reads one context or several (`compose.py`), adds log weights, bends the maps of chosen words, records maps, and
counts each edit in the code that applies it. If it has nothing to change, its output equals that of diffusers bit for
bit.

It runs inside compiled blocks, so everything that differs between blocks and steps is a tensor: a Python number would
become a constant in the graph, and every block would be compiled separately. The state that is Python (how many
contexts are read, which operations bend) is the same wherever the same edits act.

Shape suffixes: B batch (branches), Q video positions, H heads, K head dim, N text positions, I image positions, D model
dim, S contexts read, l bent rows of the text, p those of one bend, m rows that represent all of them (columns.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor

from wanscope.runtime.columns import TextRows, pad_spread
from wanscope.runtime.text_attention import BendStep, attended_with_log_weights, bent, weighted_sum

if TYPE_CHECKING:
    from wanscope.runtime.diffusers.recorder import AttentionRecorder

IMAGE_TEXT_LENGTH = 512  # with image tokens, diffusers takes the last 512 positions as the text


@dataclass(eq=False)
class ReadState:
    """One context that is read.

    context_BND: None for the one that the model passes in. bias_B11N: log weights, or None. keys_BNHK, values_BNHK:
    cached from an earlier step; if None, they are computed in the call. text, bent: for each batch row, the rows
    that represent all text positions, and the rows that any bend changes, int64 [l].
    """

    context_BND: Tensor | None = None
    bias_B11N: Tensor | None = None
    keys_BNHK: Tensor | None = None
    values_BNHK: Tensor | None = None
    bends: list[BendStep] = field(default_factory=list)
    text: list[TextRows] = field(default_factory=list)
    bent: list[Tensor] = field(default_factory=list)


class EditedAttention:
    """A processor for `block.attn2`, prepared for each call by its session.

    skips: for each batch row, whether its cross-attention is skipped. weights_SB: the weights of the contexts' outputs;
    weights: the same as numbers, for eager calls with a batch of one. counter, adds: int64, one entry for each edit and
    batch row; `adds` is what one call adds. min_mass, spread: for the session to check, the smallest mass that a bend
    left, and how far the padding is from one repeated row (`pad_spread`).
    """

    def __init__(self, backend: Any, counts: int, grid_TYX: tuple[int, int, int], device: torch.device) -> None:
        self._attention_backend = backend
        self._parallel_config = None
        self.grid_TYX = grid_TYX
        self.skips: tuple[bool, ...] = (False,)
        self.reads: list[ReadState] = [ReadState()]
        self.weights_SB: Tensor | None = None
        self.weights: tuple[float, ...] = (1.0,)
        self.counter = torch.zeros(counts, dtype=torch.int64, device=device)
        self.adds = torch.zeros(counts, dtype=torch.int64, device=device)
        self.min_mass = torch.ones((), device=device)
        self.spread = torch.zeros((), device=device)
        self.recorder: AttentionRecorder | None = None
        self.place: Tensor | None = None

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: Any = None,
    ) -> Tensor:
        """Return the block's cross-attention output [B, Q, D] for states [B, Q, D], as diffusers' processor does."""
        assert encoder_hidden_states is not None and attention_mask is None and rotary_emb is None
        self.counter.add_(self.adds)
        if all(self.skips):
            return torch.zeros_like(hidden_states)
        text_BND, image_BND = encoder_hidden_states, None
        if attn.add_k_proj is not None:
            before = encoder_hidden_states.shape[1] - IMAGE_TEXT_LENGTH
            image_BND, text_BND = encoder_hidden_states[:, :before], encoder_hidden_states[:, before:]

        q_BQHK = attn.norm_q(attn.to_q(hidden_states)).unflatten(2, (attn.heads, -1))
        outputs = []
        for i in range(len(self.reads)):
            read = self.reads[i]
            context_BND = text_BND if read.context_BND is None else read.context_BND
            if read.keys_BNHK is None or read.values_BNHK is None:
                k_BNHK, v_BNHK = _keys_values(attn, context_BND)
                if read.context_BND is not None:
                    read.keys_BNHK, read.values_BNHK = k_BNHK, v_BNHK
            else:
                k_BNHK, v_BNHK = read.keys_BNHK, read.values_BNHK
            out_BQHK = self._attended(q_BQHK, k_BNHK, v_BNHK, read.bias_B11N)
            if i == 0 and self.recorder is not None and self.place is not None:
                self.recorder.record(
                    attn,
                    self.place,
                    hidden_states,
                    q_BQHK,
                    k_BNHK,
                    v_BNHK,
                    context_BND,
                    read.text[self.recorder.sample],
                )
            if read.bends:
                out_BQHK = self._bent(read, out_BQHK, q_BQHK, k_BNHK, v_BNHK, context_BND)
            outputs.append(out_BQHK)
        out_BQD = weighted_sum(outputs, self.weights, self.weights_SB).flatten(2, 3).type_as(q_BQHK)

        if image_BND is not None:
            k_BIHK = attn.norm_added_k(_image_keys(attn, image_BND)).unflatten(2, (attn.heads, -1))
            v_BIHK = _image_values(attn, image_BND).unflatten(2, (attn.heads, -1))
            out_BQD = out_BQD + self._attended(q_BQHK, k_BIHK, v_BIHK, None).flatten(2, 3).type_as(q_BQHK)
        out_BQD = attn.to_out[1](attn.to_out[0](out_BQD))
        if any(self.skips):
            rows = list(out_BQD.split(1))
            out_BQD = torch.cat([torch.zeros_like(rows[i]) if self.skips[i] else rows[i] for i in range(len(rows))])
        return out_BQD

    def _attended(self, q_BQHK: Tensor, k_BNHK: Tensor, v_BNHK: Tensor, bias_B11N: Tensor | None) -> Tensor:
        if bias_B11N is not None:
            return attended_with_log_weights(q_BQHK, k_BNHK, v_BNHK, bias_B11N)
        return dispatch_attention_fn(
            q_BQHK,
            k_BNHK,
            v_BNHK,
            attn_mask=None,
            dropout_p=0.0,
            is_causal=False,
            backend=self._attention_backend,
            parallel_config=None,
        )

    def _bent(
        self,
        read: ReadState,
        out_BQHK: Tensor,
        q_BQHK: Tensor,
        k_BNHK: Tensor,
        v_BNHK: Tensor,
        context_BND: Tensor,
    ) -> Tensor:
        """Return the read's output [B, Q, H, K] with the maps of its words bent, separately for each batch row."""
        rows = list(out_BQHK.split(1))
        for row in range(len(rows)):
            steps = [step for step in read.bends if step.row == row]
            if not steps:
                continue
            text, one = read.text[row], slice(row, row + 1)
            self.spread.copy_(torch.maximum(self.spread, pad_spread(context_BND[one], text.rows)))
            rows[row], min_mass = bent(
                rows[row], q_BQHK[one], k_BNHK[one], v_BNHK[one], text, read.bent[row], steps, self.grid_TYX
            )
            self.min_mass.copy_(torch.minimum(self.min_mass, min_mass.to(self.min_mass.dtype)))
        return torch.cat(rows) if len(rows) > 1 else rows[0]


def _keys_values(attn: Any, context_BND: Tensor) -> tuple[Tensor, Tensor]:
    if attn.fused_projections:
        key, value = attn.to_kv(context_BND).chunk(2, dim=-1)
    else:
        key, value = attn.to_k(context_BND), attn.to_v(context_BND)
    return attn.norm_k(key).unflatten(2, (attn.heads, -1)), value.unflatten(2, (attn.heads, -1))


def _image_keys(attn: Any, image_BID: Tensor) -> Tensor:
    return attn.to_added_kv(image_BID).chunk(2, dim=-1)[0] if attn.fused_projections else attn.add_k_proj(image_BID)


def _image_values(attn: Any, image_BID: Tensor) -> Tensor:
    return attn.to_added_kv(image_BID).chunk(2, dim=-1)[1] if attn.fused_projections else attn.add_v_proj(image_BID)
