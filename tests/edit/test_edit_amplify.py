"""The amplifier against closed forms and a scan in NumPy: the target is met, or is shown to be out of reach."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wanscope.edit.amplify import MODES, amplify, boost
from wanscope.errors import RecipeError

D = 10
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def rows(tokens: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(tokens, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def full(x: torch.Tensor, tokens: int, pad: np.ndarray | None = None) -> np.ndarray:
    out = np.zeros((tokens, D)) + (0 if pad is None else pad)
    out[: len(x)] = x.double().numpy()
    return out


def pair(a: torch.Tensor, b: torch.Tensor, pad: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    n = max(len(a), len(b))
    return full(a, n, pad), full(b, n, pad)


def distance(a: np.ndarray, x: np.ndarray) -> float:
    return float(np.sqrt(((x - a) ** 2).sum() / (a**2).sum()))


def perpendicular(a: np.ndarray, d: np.ndarray) -> np.ndarray:
    """Return each row of d without its component along that row of a."""
    out = np.empty_like(d)
    for i in range(len(a)):
        direction = a[i] / np.linalg.norm(a[i]) if a[i].any() else a[i]
        out[i] = d[i] - direction * (direction @ d[i])
    return out


def line(a: np.ndarray, b: np.ndarray, mode: str, s: float, share: float = 0.3) -> np.ndarray:
    """Return a point on the line of a mode, by its definition."""
    d = b - a
    if mode == "push_apart":
        return a + s * d
    if mode == "orthogonalize":
        return a + s * perpendicular(a, d)
    most = np.argsort(-(d**2).sum(0), kind="stable")[: math.ceil(share * D)]
    weight = np.ones(D)
    weight[most] = s
    return a + d * weight


def kept(x: np.ndarray, a: np.ndarray, b: np.ndarray, tokens_a: int) -> np.ndarray:
    """Return x with each row scaled to the norm of a's row, or of b's where a has no such token."""
    out = x.copy()
    for i in range(len(x)):
        length = np.linalg.norm(a[i] if i < tokens_a else b[i])
        if np.linalg.norm(x[i]):
            out[i] = x[i] * length / np.linalg.norm(x[i])
    return out


@pytest.mark.parametrize(("tokens_a", "tokens_b"), [(4, 4), (5, 2), (2, 6)])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("target", [0.9, 1.5, 3.0])
def test_the_scale_has_a_closed_form_where_norms_are_free(mode, tokens_a, tokens_b, target):
    main, donor = rows(tokens_a), rows(tokens_b, 1)
    a, b = pair(main, donor)
    d, size = b - a, np.linalg.norm(a)
    if mode == "push_apart":
        s = target / distance(a, b)
    elif mode == "orthogonalize":
        s = target * size / np.linalg.norm(perpendicular(a, d))
    else:
        order = np.argsort(-(d**2).sum(0))
        top, rest = (d[:, order[:3]] ** 2).sum(), (d[:, order[3:]] ** 2).sum()
        if (target * size) ** 2 < rest:
            with pytest.raises(RecipeError, match=f"it reaches {math.sqrt(rest) / size:.3f} upward"):
                amplify(main, donor, target, mode)
            return
        s = math.sqrt(((target * size) ** 2 - rest) / top)
    found = amplify(main, donor, target, mode)
    assert found.scale == pytest.approx(s, rel=1e-9)
    np.testing.assert_allclose(found.embedding.numpy(), line(a, b, mode, s), atol=1e-9)
    assert found.before == pytest.approx(distance(a, b), rel=1e-12)
    assert found.after == pytest.approx(target, rel=1e-9)


@settings(max_examples=50, deadline=None)
@given(
    st.integers(1, 6),
    st.integers(1, 6),
    st.sampled_from(MODES),
    st.booleans(),
    st.floats(0.02, 3.0),
    st.sampled_from(DTYPES),
    st.integers(0, 10_000),
)
def test_the_target_is_met_after_casting_or_refused_with_the_range(tokens_a, tokens_b, mode, keep, target, dtype, seed):
    main, donor = rows(tokens_a, seed, dtype), 0.8 * rows(tokens_b, seed + 1, dtype) + 0.5
    before = main.clone(), donor.clone()
    a, b = pair(main, donor)
    scan = np.concatenate([np.linspace(0, 3, 121), np.geomspace(3, 1e6, 60)])
    curve = np.array([distance(a, kept(x, a, b, tokens_a) if keep else x) for x in (line(a, b, mode, s) for s in scan)])
    refusal = ""
    found = None
    try:
        found = amplify(main, donor, target, mode, keep_norm=keep)
    except RecipeError as error:
        refusal = str(error)
    assert torch.equal(main, before[0]) and torch.equal(donor, before[1])
    if found is None:
        assert "cannot be met" in refusal
        if "rounding" in refusal:  # ten numbers with eight bits cannot reach every difference
            assert dtype == torch.bfloat16
            return
        # no point on the line is near it (the scan may step over a jump, where there are none)
        assert np.abs(curve - target).min() > 1e-3
        ranges = re.findall(r"(\d+\.\d+) (?:to (\d+\.\d+)|upward)", refusal)
        assert ranges
        assert all(target < float(low) + 2e-3 or target > float(high or "inf") - 2e-3 for low, high in ranges)
        return
    assert found.embedding.dtype == dtype
    x = found.embedding.double().numpy()
    assert abs(distance(a, x) - target) <= 1e-3
    assert found.after == pytest.approx(distance(a, x), rel=1e-9)
    expected = line(a, b, mode, found.scale)
    expected = kept(expected, a, b, tokens_a) if keep else expected
    eps = torch.finfo(dtype).eps
    np.testing.assert_allclose(
        x, expected, rtol=2 * eps, atol=max(1e-7, eps * 1e-2) * float(np.abs(expected).max() + 1)
    )
    if keep:
        lengths = np.linalg.norm(np.vstack([a[:tokens_a], b[tokens_a:]]), axis=1)
        np.testing.assert_allclose(np.linalg.norm(x, axis=1), lengths, rtol=4 * eps + 1e-9)


def test_a_donor_can_be_brought_nearer():
    found = amplify(rows(4), rows(4, 1), 0.3)
    assert found.before > 1 and found.scale < 1
    assert found.after == pytest.approx(0.3)
    assert "brought nearer" in found.describe() and "moved apart" in amplify(rows(4), rows(4, 1), 3).describe()


def test_the_scale_nearest_to_the_donor_is_used():
    # with norms kept and a donor that lacks tokens, the far side of the jump at s = 1 may reach the target too
    main, donor = rows(6), rows(4, 1)
    present = amplify(main, donor, 1.0, keep_norm=True)
    a, b = pair(main, donor)
    near = [
        s
        for s in np.linspace(0.01, 0.999, 500)
        if abs(distance(a, kept(line(a, b, "push_apart", s), a, b, 6)) - 1.0) < 2e-3
    ]
    assert near and abs(present.scale - near[-1]) < 0.02


def test_equal_directions_with_norms_kept_differ_only_by_the_extra_tokens():
    main = rows(4)
    donor = torch.cat([1.5 * main, rows(2, 1)])
    cap = float(donor[4:].norm() / main.norm())
    for mode in ("push_apart", "orthogonalize"):
        with pytest.raises(RecipeError, match=f"it reaches {cap:.3f} to {cap:.3f}") as caught:
            amplify(main, donor, cap + 0.2, mode, keep_norm=True)
        assert "keep_norm: false reaches more" in str(caught.value)
        assert caught.value.fix == f"target: {cap:.3f}"
        assert amplify(main, donor, round(cap, 3), mode, keep_norm=True).after == pytest.approx(cap)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_directions_that_are_only_rounding_are_not_amplified(dtype):
    main = rows(4, 0, dtype)
    donor = 0.7 * main  # the same directions up to rounding
    for mode in ("push_apart", "orthogonalize"):
        with pytest.raises(RecipeError, match="cannot be met"):
            amplify(main, donor, 0.8, mode, keep_norm=True)
    with pytest.raises(RecipeError, match="is parallel to the main prompt's"):
        amplify(main, donor, 0.8, "orthogonalize")
    assert amplify(main, donor, 0.8).after == pytest.approx(0.8, abs=1e-3)


def test_equal_prompts_cannot_be_moved_apart():
    for mode in MODES:
        for keep in (False, True):
            with pytest.raises(RecipeError, match="does not differ from the main prompt"):
                amplify(rows(3), rows(3), 0.6, mode, keep_norm=keep)


def test_on_contexts_a_missing_token_is_the_pad_context():
    main, donor, pad = rows(5), rows(3, 1), rows(1, 2)[0]
    a, b = pair(main, donor, pad.numpy())
    found = amplify(main, donor, 1.3, pad_D=pad)
    assert found.before == pytest.approx(distance(a, b))
    np.testing.assert_allclose(found.embedding.numpy(), a + 1.3 / distance(a, b) * (b - a), atol=1e-9)
    found = amplify(donor, main, 0.7, "orthogonalize", keep_norm=True, pad_D=pad)
    lengths = torch.linalg.vector_norm(
        torch.cat([donor, main[3:]]), dim=1
    )  # tokens the main one lacks keep the donor's
    torch.testing.assert_close(torch.linalg.vector_norm(found.embedding, dim=1), lengths)


def test_share_of_the_dimensions():
    main, donor = rows(4), rows(4, 1)
    found = amplify(main, donor, 2.0, "maximize_diff", share=0.2)
    changed = (found.embedding != donor).any(0)
    most = torch.argsort((donor - main).square().sum(0), descending=True)[:2]
    assert sorted(changed.nonzero()[:, 0].tolist()) == sorted(most.tolist())
    assert amplify(main, donor, 2.0, "maximize_diff", share=1).scale == pytest.approx(amplify(main, donor, 2.0).scale)


def test_at_the_size_of_a_real_prompt():
    generator = torch.Generator().manual_seed(0)
    main = torch.randn(100, 4096, generator=generator).bfloat16()
    donor = (main[:80].float() + 0.1 * torch.randn(80, 4096, generator=generator)).bfloat16()
    for mode in MODES:
        found = amplify(main, donor, 0.6, mode)
        assert found.after == pytest.approx(0.6, abs=1e-3)


def test_a_dtype_too_coarse_for_the_target_is_named():
    one, two = torch.tensor([[1.0]], dtype=torch.bfloat16), torch.tensor([[2.0]], dtype=torch.bfloat16)
    assert amplify(one, two, 0.25).after == 0.25
    with pytest.raises(RecipeError, match=r"0\.303 cannot be met in bfloat16: the nearest .* is 0\.30"):
        amplify(one, two, 0.303)  # bfloat16 has 1.3047 and 1.2969
    assert amplify(one.float(), two.float(), 0.303).after == pytest.approx(0.303)


def test_plain_data():
    found = amplify(rows(2), rows(2, 1), 0.5)
    data = json.loads(json.dumps(found.as_data()))
    assert data == {
        "before": found.before,
        "after": found.after,
        "target": 0.5,
        "scale": found.scale,
        "mode": "push_apart",
        "keep_norm": False,
    }


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: amplify(rows(2), rows(2, 1), 60), "Try: 0.6"),
        (lambda: amplify(rows(2), rows(2, 1), 0), "above 0"),
        (lambda: amplify(rows(2), rows(2, 1), math.nan), "above 0"),
        (lambda: amplify(rows(2), rows(2, 1), 0.6, "orthogonalise"), "did you mean 'orthogonalize'"),  # type: ignore[arg-type]
        (lambda: amplify(rows(2), rows(2, 1), 0.6, "maximize_diff", share=0), "share is 0"),
        (lambda: amplify(torch.zeros(2, D), rows(2), 0.6), "main prompt is all zeros"),
        (lambda: amplify(rows(2), torch.ones(2, D + 1), 0.6), "the donor has 11 dimensions"),
        (lambda: boost(rows(2), rows(2, 1), -1), "the boost factor is -1"),
        (lambda: boost(rows(2), rows(2, 1), math.inf), "the boost factor is inf"),
        (lambda: boost(rows(2), rows(2, 1, torch.float16), 1e6), "overflows in float16"),
    ],
)
def test_invalid_values_are_refused(call, says):
    with pytest.raises(RecipeError, match=re.escape(says)):
        call()


# the projection booster


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("keep", [False, True])
def test_boost_multiplies_the_projected_difference(dtype, keep):
    main, donor, pad = rows(5, 0, dtype), rows(3, 1, dtype), rows(1, 2, dtype)[0]
    before = main.clone(), donor.clone(), pad.clone()
    a, b = pair(main, donor, pad.double().numpy())
    found = boost(main, donor, 10, keep_norm=keep, pad_D=pad)
    expected = a + 10 * (b - a)
    expected = kept(expected, a, b, 5) if keep else expected
    torch.testing.assert_close(
        found.context, torch.from_numpy(expected).to(dtype), rtol=2 * torch.finfo(dtype).eps, atol=1e-9
    )
    assert found.before == pytest.approx(distance(a, b))
    assert found.after == pytest.approx(distance(a, found.context.double().numpy()), rel=1e-6)
    if not keep:
        assert found.after == pytest.approx(10 * found.before, rel=0.01)
    assert all(torch.equal(x, y) for x, y in zip((main, donor, pad), before, strict=True))
    assert "10 times" in found.describe() and json.dumps(found.as_data())


@pytest.mark.parametrize("dtype", DTYPES)
def test_boost_by_one_equals_the_donor_bit_for_bit(dtype):
    main, donor = rows(3, 0, dtype), rows(4, 1, dtype)
    assert torch.equal(boost(main, donor, 1).context, donor)
    assert torch.equal(boost(main, donor, 0).context[:3], main)
