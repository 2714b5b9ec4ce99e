"""Attention capture on a model without edits: processors on `attn2` for the duration of a `with`, then its own again.

Shape suffixes: B batch, Q video positions, D model dim, L text positions, H heads, K head dim.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor

from wanscope.runtime.columns import TextRows, text_rows
from wanscope.runtime.recorder import AttentionRecorder

IMAGE_TEXT_LENGTH = 512  # where image tokens stand before the text, diffusers takes it to be so long


class RecordingProcessor:
    """Wan's cross-attention as diffusers runs it, that tells a recorder its queries, keys and values."""

    # diffusers' setters skip processors without them, silently.
    _attention_backend: Any = None
    _parallel_config: Any = None

    def __init__(self, recorder: AttentionRecorder, place: Tensor, text: TextRows, own: Any) -> None:
        self.recorder, self.place, self.text = recorder, place, text
        self._attention_backend, self._parallel_config = own._attention_backend, own._parallel_config

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        rotary_emb: Any = None,
    ) -> Tensor:
        context_BLD, image_BID = encoder_hidden_states, None
        if attn.add_k_proj is not None:
            images = context_BLD.shape[1] - IMAGE_TEXT_LENGTH
            image_BID, context_BLD = context_BLD[:, :images], context_BLD[:, images:]
        q_BQHK = attn.norm_q(attn.to_q(hidden_states)).unflatten(2, (attn.heads, -1))
        if getattr(attn, "fused_projections", False):
            k_BLD, v_BLD = attn.to_kv(context_BLD).chunk(2, dim=-1)
        else:
            k_BLD, v_BLD = attn.to_k(context_BLD), attn.to_v(context_BLD)
        k_BLHK = attn.norm_k(k_BLD).unflatten(2, (attn.heads, -1))
        v_BLHK = v_BLD.unflatten(2, (attn.heads, -1))
        image_BQD = None
        if image_BID is not None:
            k_image = attn.norm_added_k(attn.add_k_proj(image_BID)).unflatten(2, (attn.heads, -1))
            v_image = attn.add_v_proj(image_BID).unflatten(2, (attn.heads, -1))
            image_BQD = self._attended(q_BQHK, k_image, v_image, None)
        if self.recorder.active:
            self.recorder.record(attn, self.place, hidden_states, q_BQHK, k_BLHK, v_BLHK, context_BLD, self.text)
        out_BQD = self._attended(q_BQHK, k_BLHK, v_BLHK, attention_mask)
        if image_BQD is not None:
            out_BQD = out_BQD + image_BQD
        return attn.to_out[1](attn.to_out[0](out_BQD))

    def _attended(self, q_BQHK: Tensor, k_BLHK: Tensor, v_BLHK: Tensor, mask: Tensor | None) -> Tensor:
        out_BQHK = dispatch_attention_fn(
            q_BQHK,
            k_BLHK,
            v_BLHK,
            attn_mask=mask,
            dropout_p=0.0,
            is_causal=False,
            backend=self._attention_backend,
            parallel_config=None,
        )
        return out_BQHK.flatten(2, 3).type_as(q_BQHK)


@contextmanager
def watching(model: Any, recorder: AttentionRecorder) -> Iterator[None]:
    """Record on all of a model's experts for the duration of the `with`; after it they are as they were."""
    text = text_rows(recorder.plan.real, model.text_length, model.device)
    before = []
    try:
        for expert in model.experts():
            for block, module in enumerate(expert.blocks):
                place = recorder.place(block)
                if place is not None:
                    before.append((module.attn2, module.attn2.processor))
                    module.attn2.processor = RecordingProcessor(recorder, place, text, module.attn2.processor)
        yield
    finally:
        for attn, own in before:
            attn.processor = own
