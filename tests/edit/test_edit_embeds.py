"""Embedding algebra against NumPy in float64, SciPy-free closed forms, and geometry."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wanscope.edit import embedding_algebra
from wanscope.errors import RecipeError

D = 6
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def rows(tokens: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(tokens, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def full(x: torch.Tensor, tokens: int) -> np.ndarray:
    out = np.zeros((tokens, x.shape[1]))
    out[: len(x)] = x.double().numpy()
    return out


def close(result: torch.Tensor, expected: np.ndarray, dtype: torch.dtype) -> None:
    """Rounded once: half a unit in the last place of float64 arithmetic."""
    assert result.dtype == dtype
    torch.testing.assert_close(
        result, torch.from_numpy(expected).to(dtype), rtol=2 * torch.finfo(dtype).eps, atol=1e-12
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_operations_with_unequal_lengths(dtype):
    a, b, c = rows(4, 0, dtype), rows(2, 1, dtype), rows(5, 2, dtype)
    before = [x.clone() for x in (a, b, c)]
    na, nb, nc = (full(x, 5) for x in (a, b, c))
    close(embedding_algebra.difference(a, b).embedding, (na - nb)[:4], dtype)
    close(embedding_algebra.difference(b, c, scale=-2.5).embedding, -2.5 * (nb - nc), dtype)
    close(embedding_algebra.weighted_sum([a, b, c], [1, -0.5, 3]).embedding, na - 0.5 * nb + 3 * nc, dtype)
    close(embedding_algebra.product([a, b, c]).embedding, na * nb * nc, dtype)
    d = (na - nb)[:4]
    unit = d / np.linalg.norm(d, axis=1, keepdims=True)
    close(embedding_algebra.difference(a, b, normalize=True, scale=2).embedding, 2 * unit, dtype)
    assert all(torch.equal(x, y) for x, y in zip((a, b, c), before, strict=True))
    assert (
        embedding_algebra.weighted_sum([a, b, c], [1, 1, 1]).note
        == "Token counts 4, 2, 5: aligned to 5 by rows of zeros."
    )
    assert embedding_algebra.difference(a, a).note == ""


def test_normalize_leaves_zeros_and_scales_the_rest():
    a = rows(3)
    a[1] = 0
    out = embedding_algebra.normalize(a, 4.0).embedding
    assert torch.linalg.vector_norm(out, dim=1).tolist() == pytest.approx([4, 0, 4])
    torch.testing.assert_close(torch.cosine_similarity(out[0], a[0], dim=0), torch.tensor(1.0, dtype=torch.float64))


def test_results_never_share_memory_with_operands():
    a = rows(3)
    for result in (
        embedding_algebra.weighted_sum([a], [1.0]).embedding,
        embedding_algebra.product([a]).embedding,
        *embedding_algebra.interpolate([a, rows(3, 1)], 2).embeddings,
    ):
        result.zero_()
    assert torch.equal(a, rows(3))


def test_mixed_dtypes_are_promoted():
    assert (
        embedding_algebra.difference(rows(2, 0, torch.bfloat16), rows(2, 1, torch.float16)).embedding.dtype
        == torch.float32
    )


# paths


@pytest.mark.parametrize("method", ["linear", "spherical", "cubic"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_path_has_all_its_steps_and_passes_through_its_operands(method, dtype):
    operands = [rows(3, 0, dtype), rows(5, 1, dtype), rows(2, 2, dtype)]
    path = embedding_algebra.interpolate(operands, 9, method)
    assert path.positions == tuple(i / 4 for i in range(9))
    assert len(path.embeddings) == 9
    assert {x.shape for x in path.embeddings} == {(5, D)} and {x.dtype for x in path.embeddings} == {dtype}
    for k, operand in enumerate(operands):
        assert torch.equal(path.embeddings[4 * k], torch.from_numpy(full(operand, 5)).to(dtype))
    inner = embedding_algebra.interpolate(operands, 7, method, include_endpoints=False)
    assert inner.positions == path.positions[1:-1]
    assert all(torch.equal(x, y) for x, y in zip(inner.embeddings, path.embeddings[1:-1], strict=True))
    assert "aligned to 5" in path.note


@pytest.mark.parametrize("method", ["linear", "spherical"])
def test_a_position_between_two_prompts_equals_that_of_their_path(method):
    a, b = rows(3, 0), rows(5, 1)
    path = embedding_algebra.interpolate([a, b], 5, method)
    for share, expected in zip((0, 0.25, 0.5, 0.75, 1), path.embeddings, strict=True):
        assert torch.equal(embedding_algebra.between(a, b, share, method).embedding, expected)
    for share in (-0.1, 1.1, math.nan):
        with pytest.raises(RecipeError, match="a fraction from 0 to 1"):
            embedding_algebra.between(a, b, share, method)


def test_linear():
    a, b = rows(3), rows(3, 1)
    path = embedding_algebra.interpolate([a, b], 5)
    for i, x in enumerate(path.embeddings):
        np.testing.assert_allclose(x.numpy(), a.numpy() + i / 4 * (b - a).numpy(), atol=1e-15)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.floats(0.1, 10), st.integers(2, 9))
def test_spherical_is_the_great_circle(seed, scale, steps):
    a, b = rows(2, seed), scale * rows(2, seed + 1)
    path = embedding_algebra.interpolate([a, b], steps, "spherical")
    for x, t in zip(path.embeddings, path.positions, strict=True):
        for token in range(2):
            p, q = a[token].numpy(), b[token].numpy()
            norm_p, norm_q = np.linalg.norm(p), np.linalg.norm(q)
            omega = math.acos(np.clip(p @ q / norm_p / norm_q, -1, 1))
            direction = (math.sin((1 - t) * omega) * p / norm_p + math.sin(t * omega) * q / norm_q) / math.sin(omega)
            expected = ((1 - t) * norm_p + t * norm_q) * direction
            np.testing.assert_allclose(x[token].numpy(), expected, rtol=1e-8, atol=1e-10)


def test_spherical_degenerate_tokens():
    a = rows(5)
    b = torch.stack([torch.zeros(D), 2 * a[1], -3 * a[2], a[3] * (1 + 1e-15), torch.zeros(D)])
    a[4] = 0
    path = embedding_algebra.interpolate([a, b], 5, "spherical")
    for x, t in zip(path.embeddings, path.positions, strict=True):
        assert torch.isfinite(x).all()
        np.testing.assert_allclose(x[0], (1 - t) * a[0], atol=1e-14)  # toward padding: linear
        np.testing.assert_allclose(x[1], (1 + t) * a[1], rtol=1e-12)  # same direction: only the norm changes
        # opposite: rotates at constant speed with interpolated norm, never through zero
        assert float(x[2].norm()) == pytest.approx(float(a[2].norm()) * (1 + 2 * t))
        angle = math.acos(np.clip(float(x[2] @ a[2] / x[2].norm() / a[2].norm()), -1, 1))
        assert angle == pytest.approx(math.pi * t, abs=1e-7)
        np.testing.assert_allclose(x[3], a[3], rtol=1e-12)
        assert not x[4].any()
    again = embedding_algebra.interpolate([a, b], 5, "spherical")
    assert all(torch.equal(x, y) for x, y in zip(path.embeddings, again.embeddings, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [1, 2, 3, 64])
def test_spherical_between_opposites_in_every_dtype_and_dimension(dtype, dim):
    a = torch.randn(4, dim, generator=torch.Generator().manual_seed(0)).to(dtype)
    for x in embedding_algebra.interpolate([a, -a], 6, "spherical").embeddings:
        assert torch.isfinite(x).all()
        if dim > 1:
            ratio = torch.linalg.vector_norm(x.double(), dim=1) / torch.linalg.vector_norm(a.double(), dim=1)
            torch.testing.assert_close(ratio, torch.ones_like(ratio), rtol=4 * torch.finfo(dtype).eps, atol=0)


def test_cubic_is_catmull_rom():
    points = [rows(2, seed) for seed in range(4)]
    path = embedding_algebra.interpolate(points, 31, "cubic")
    ext = [2 * points[0] - points[1], *points, 2 * points[3] - points[2]]
    for x, position in zip(path.embeddings, path.positions, strict=True):
        k = min(int(position), 2)
        t = position - k
        p1, p2 = ext[k + 1], ext[k + 2]
        m1, m2 = (p2 - ext[k]) / 2, (ext[k + 3] - p1) / 2
        # the Hermite form with central differences as tangents
        expected = (
            (2 * t**3 - 3 * t**2 + 1) * p1
            + (t**3 - 2 * t**2 + t) * m1
            + (3 * t**2 - 2 * t**3) * p2
            + (t**3 - t**2) * m2
        )
        np.testing.assert_allclose(x, expected, atol=1e-13)


def test_cubic_through_evenly_spaced_points_is_straight_and_through_two_says_so():
    a, step = rows(2), rows(2, 1)
    straight = embedding_algebra.interpolate([a + i * step for i in range(4)], 10, "cubic")
    for x, position in zip(straight.embeddings, straight.positions, strict=True):
        np.testing.assert_allclose(x, a + position * step, atol=1e-13)
    two = embedding_algebra.interpolate([a, step], 4, "cubic")
    assert "straight line" in two.note
    np.testing.assert_allclose(two.embeddings[1], (2 * a + step) / 3, atol=1e-14)


def test_trim():
    a = rows(3)
    padded = torch.cat([a, torch.zeros(4, D)])
    assert torch.equal(embedding_algebra.trim(padded), a)
    assert embedding_algebra.trim(torch.zeros(4, D)).shape == (1, D)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: embedding_algebra.weighted_sum([], []), "no embedding"),
        (lambda: embedding_algebra.weighted_sum([rows(2)], [1, 2]), "1 embeddings have 2 weights"),
        (lambda: embedding_algebra.weighted_sum([rows(2)], [math.inf]), "finite number"),
        (lambda: embedding_algebra.weighted_sum([rows(2), torch.ones(2, D + 1)], [1, 1]), "different encoders"),
        (lambda: embedding_algebra.weighted_sum([rows(2, 0, torch.float16)], [1e6]), "the dtype.s maximum is 6.55e"),
        (lambda: embedding_algebra.interpolate([rows(2)], 5), "two or more"),
        (lambda: embedding_algebra.interpolate([rows(2), rows(2)], 1), "steps is 1"),
        (lambda: embedding_algebra.interpolate([rows(2), rows(2)], 2.0), "steps is 2.0"),  # type: ignore[arg-type]
        (lambda: embedding_algebra.interpolate([rows(2), rows(2)], 0, include_endpoints=False), "steps is 0"),
        (lambda: embedding_algebra.interpolate([rows(2), rows(2)], 3, "sperical"), "did you mean 'spherical'"),  # type: ignore[arg-type]
        (lambda: embedding_algebra.normalize(rows(2)[0]), "it should be a float tensor"),
    ],
)
def test_impossible_computations_are_refused(call, says):
    with pytest.raises(RecipeError, match=says):
        call()
