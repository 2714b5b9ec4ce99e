"""Columns against the full softmax in float64, to the bounds of the definitions, at logits up to 30."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from wanscope.runtime import columns as module
from wanscope.runtime.columns import TextRows, columns, mean_columns, pad_spread, pad_tolerance, text_rows

BOUNDS = {torch.float64: 1e-13, torch.float32: 5e-6, torch.bfloat16: 2e-4, torch.float16: 2e-4}


def drawn(B: int, Q: int, H: int, K: int, L: int, real: int, seed: int = 0, top: float = 30.0) -> tuple[Tensor, Tensor]:
    """Return queries and keys in float64 with equal keys for the padding and a largest logit of `top`."""
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(B, Q, H, K, dtype=torch.float64, generator=generator)
    k = torch.randn(B, L, H, K, dtype=torch.float64, generator=generator)
    k[:, real:] = k[:, real : real + 1] if real < L else k[:, real:]
    largest = torch.einsum("bqhk,blhk->bhql", q, k).abs().max() * K**-0.5
    return q * (top / largest), k


def softmax64(q: Tensor, k: Tensor, bias_L: Tensor | None = None) -> Tensor:
    """Return the full map [B, H, Q, L] of q and k, computed in float64."""
    logits = torch.einsum("bqhk,blhk->bhql", q.double(), k.double()) * q.shape[-1] ** -0.5
    return torch.softmax(logits if bias_L is None else logits + bias_L, -1)


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("slices", [1, 3])
def test_columns_equal_those_of_the_full_softmax(dtype: torch.dtype, slices: int, monkeypatch) -> None:
    monkeypatch.setattr(module, "SLICE_BYTES", 1 if slices > 1 else 1 << 30)  # at least 64 queries per slice
    q, k = (x.to(dtype) for x in drawn(2, 150, 3, 32, 512, 17))
    full = softmax64(q, k)
    expected = torch.cat([full[..., [0, 5, 16]], full[..., 17:].sum(-1, keepdim=True)], -1)
    found = columns(q, k, text_rows(17, 512), torch.tensor([0, 5, 16, 17]))
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert (found.double() - expected).abs().max() <= BOUNDS[dtype]
    averaged = mean_columns(q, k, text_rows(17, 512), torch.tensor([0, 5, 16, 17]))
    assert (averaged.double() - expected.mean(1)).abs().max() <= BOUNDS[dtype]


@given(Q=st.integers(1, 40), H=st.integers(1, 4), K=st.integers(1, 40), L=st.integers(1, 40), data=st.data())
@settings(max_examples=40, deadline=None)
def test_any_shape_sums_to_one_and_is_right(Q: int, H: int, K: int, L: int, data) -> None:
    real = data.draw(st.integers(0, L))
    q, k = drawn(1, Q, H, K, L, real, seed=Q + 7 * K)
    text = text_rows(real, L)
    p = columns(q, k, text, torch.arange(len(text.rows)))
    full = softmax64(q, k)
    assert torch.allclose(p.sum(-1), torch.ones(1, H, Q, dtype=torch.float64))
    assert (p[..., :real] - full[..., :real]).abs().max() <= 1e-13 if real else True
    if real < L:
        assert (p[..., -1] - full[..., real:].sum(-1)).abs().max() <= 1e-13


def test_weighted_rows_equal_attention_with_a_log_bias() -> None:
    q, k = drawn(1, 20, 2, 16, 32, 6)
    weights = [0.0, math.log(0.3), 0.0, -math.inf, 0.0, 0.0]
    bias = torch.tensor([*weights, *[0.0] * 26], dtype=torch.float64)
    text = text_rows(6, 32, log_weights=weights)
    p = columns(q, k, text, torch.arange(7))
    full = softmax64(q, k, bias)
    assert (p[..., :6] - full[..., :6]).abs().max() <= 1e-13
    assert p[..., 3].max() == 0


def test_too_few_real_rows_are_detected() -> None:
    context = torch.randn(1, 512, 24, generator=torch.Generator().manual_seed(1))
    context[:, 20:] = context[:, 20:21]
    assert float(pad_spread(context, text_rows(20, 512).rows)) == 0
    assert float(pad_spread(context, text_rows(19, 512).rows)) > 100 * pad_tolerance(torch.float32)
    assert float(pad_spread(context, text_rows(512, 512).rows)) == 0


def test_a_block_with_columns_compiles_whole_and_once() -> None:
    q, k = (x.float() for x in drawn(1, 30, 2, 16, 64, 9))
    text, index = text_rows(9, 64), torch.tensor([1, 9])
    graphs: list[object] = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    def block(q: Tensor, k: Tensor, rows: Tensor, bias: Tensor, index: Tensor) -> Tensor:
        return mean_columns(q * 1.0, k, TextRows(rows, bias), index) + columns(q, k, TextRows(rows, bias), index)[:, 0]

    compiled = torch.compile(block, fullgraph=True, backend=backend)
    for _ in range(3):
        found = compiled(q, k, *text, index)
    assert len(graphs) == 1 and torch.equal(found, block(q, k, *text, index))


@pytest.mark.parametrize(("real", "length", "weights"), [(5, 4, None), (-1, 4, None), (0, 0, None), (2, 4, [0.0])])
def test_numbers_that_do_not_fit_are_refused(real: int, length: int, weights) -> None:
    with pytest.raises(ValueError, match=r"fit|weights"):
        text_rows(real, length, log_weights=weights)
