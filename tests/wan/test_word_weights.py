"""Weights against float64 arithmetic in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from wanscope.errors import RecipeError
from wanscope.prompt.tokens import Columns
from wanscope.wan.word_weights import apply_weights, column_weights, resolve_mode

L, D, REAL = 12, 16, 7


def embedding(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    e_LD = torch.randn(L, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    e_LD[REAL:] = 0
    return e_LD


def words(*columns: int, weight: float = 1.0, weighted: bool = True) -> Columns:
    return Columns("w", columns, ("w",) * len(columns), ((0, 1),), weight, weighted)


def interpolated(e_LD: np.ndarray, column: int, weight: float) -> np.ndarray:
    mean = e_LD[:REAL].sum(0) / REAL
    moved = mean + weight * (e_LD[column] - mean)
    return moved / np.sqrt((moved**2).sum()) * np.sqrt((e_LD[column] ** 2).sum())


def test_multiply_scales_marked_tokens_and_no_others():
    e_LD = embedding()
    out = apply_weights(e_LD, [words(1, 3, weight=1.5), words(4, weight=0.25)], REAL)
    expected = e_LD.double().numpy()
    expected[[1, 3]] *= 1.5
    expected[4] *= 0.25
    np.testing.assert_allclose(out.double().numpy(), expected, rtol=1e-7)
    untouched = [0, 2, *range(5, L)]
    assert torch.equal(out[untouched], e_LD[untouched])


@pytest.mark.parametrize("weight", [0.3, 1.5, 4.0])
def test_interpolate_moves_from_the_mean_of_the_real_tokens_and_keeps_the_norm(weight: float):
    e_LD = embedding()
    out = apply_weights(e_LD, [words(2, 5, weight=weight)], REAL, "interpolate")
    for column in (2, 5):
        np.testing.assert_allclose(
            out[column].double().numpy(), interpolated(e_LD.double().numpy(), column, weight), rtol=1e-5, atol=1e-6
        )
    norms = torch.linalg.vector_norm(e_LD[:REAL], dim=-1)
    torch.testing.assert_close(torch.linalg.vector_norm(out[:REAL], dim=-1), norms, rtol=1e-6, atol=0)
    # away from the mean for w > 1, toward it for w < 1
    mean = e_LD[:REAL].mean(0)
    before, after = (torch.cosine_similarity(x[2], mean, dim=0) for x in (e_LD, out))
    assert (after < before) == (weight > 1)


def test_the_mean_is_that_of_the_prompt_before_any_weight():
    e_LD = embedding()
    alone = apply_weights(e_LD, [words(2, weight=3.0)], REAL, "interpolate")
    together = apply_weights(e_LD, [words(2, weight=3.0), words(4, weight=0.5)], REAL, "interpolate")
    assert torch.equal(alone[2], together[2])


@pytest.mark.parametrize("mode", ["multiply", "interpolate"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_weight_one_keeps_every_bit(mode, dtype):
    e_LD = embedding(dtype)
    assert torch.equal(apply_weights(e_LD, [words(1, weight=1.0)], REAL, mode), e_LD)
    out = apply_weights(e_LD, [words(1, weight=1.0), words(2, weight=2.0)], REAL, mode)
    assert torch.equal(out[1], e_LD[1])
    assert not torch.equal(out[2], e_LD[2])
    assert out.dtype == dtype
    # opposite weights on the same token cancel before anything is computed
    assert torch.equal(apply_weights(e_LD, [words(1, weight=2.0), words(1, weight=0.5)], REAL, mode), e_LD)


def test_low_precision_is_rounded_once():
    e_LD = embedding(torch.bfloat16)
    out = apply_weights(e_LD, [words(3, weight=1.7)], REAL)
    assert torch.equal(out[3], (e_LD[3].double() * 1.7).bfloat16())


def test_modes():
    given, plain = words(1, weight=2.0), words(1, weight=1.0, weighted=False)
    assert resolve_mode("auto", [plain]) == "none"
    assert resolve_mode("auto", [plain, given]) == "multiply"
    assert [resolve_mode(mode, [given]) for mode in ("none", "multiply", "interpolate")] == [
        "none",
        "multiply",
        "interpolate",
    ]
    e_LD = embedding()
    assert torch.equal(apply_weights(e_LD, [given], REAL, "none"), e_LD)
    assert torch.equal(apply_weights(e_LD, [plain], REAL, "multiply"), e_LD)
    assert torch.equal(apply_weights(e_LD, [], REAL), e_LD)
    with pytest.raises(RecipeError, match="'multipy' is not a way"):
        apply_weights(e_LD, [given], REAL, "multipy")  # pyright: ignore


def test_overlapping_marks_multiply():
    assert column_weights([words(1, 2, weight=1.5), words(2, weight=2.0), words(3, weight=1.0), words(4)]) == {
        1: 1.5,
        2: 3.0,
    }
    assert column_weights([words(1, weight=2.0, weighted=False)]) == {}


@pytest.mark.parametrize("mode", ["multiply", "interpolate"])
def test_a_batch_is_weighted_row_by_row_and_the_input_never_changes(mode):
    e_BLD = torch.stack([embedding(), embedding().flip(0).roll(REAL, 0)])
    before = e_BLD.clone()
    out = apply_weights(e_BLD, [words(0, 3, weight=1.5)], REAL, mode)
    assert torch.equal(e_BLD, before)
    for row in range(2):
        alone = apply_weights(e_BLD[row], [words(0, 3, weight=1.5)], REAL, mode)
        torch.testing.assert_close(out[row], alone, rtol=1e-6, atol=1e-7)


def test_a_row_of_zeros_stays_in_interpolate():
    e_LD = embedding()
    e_LD[2] = 0
    out = apply_weights(e_LD, [words(2, weight=2.0)], REAL, "interpolate")
    assert torch.equal(out, e_LD)
    zeros_LD = torch.zeros(L, D)
    assert torch.equal(apply_weights(zeros_LD, [words(2, weight=2.0)], REAL, "interpolate"), zeros_LD)


def test_impossible_requests_are_refused():
    e_LD = embedding()
    with pytest.raises(RecipeError, match="7 real tokens"):
        apply_weights(e_LD, [words(REAL, weight=2.0)], REAL)
    with pytest.raises(RecipeError, match="12 rows"):
        apply_weights(e_LD, [words(1, weight=2.0)], L + 1)
    for weight in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(RecipeError, match="above zero"):
            apply_weights(e_LD, [words(1, weight=weight)], REAL)
    with pytest.raises(RecipeError, match="not finite"):
        apply_weights(embedding(torch.float16), [words(1, weight=1e6)], REAL)
