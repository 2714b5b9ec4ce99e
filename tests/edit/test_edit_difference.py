"""Differences of prompts against float64 arithmetic in NumPy, and their invariances."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wanscope.edit.difference import Thresholds, measure_difference, project, relative_l2, render_difference
from wanscope.errors import RecipeError

D, C = 12, 7


def rows(tokens: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(tokens, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def projection(seed: int = 5) -> torch.nn.Sequential:
    """Like Wan's text_embedder: linear, GELU, linear."""
    torch.manual_seed(seed)
    layers = torch.nn.Sequential(torch.nn.Linear(D, 9), torch.nn.GELU(approximate="tanh"), torch.nn.Linear(9, C))
    return layers.double()


def by_numpy(a: np.ndarray, b: np.ndarray, pad: np.ndarray) -> dict[str, float]:
    """Return the figures by their definition, row by row."""
    n = max(len(a), len(b))
    a_full = np.array([a[i] if i < len(a) else pad for i in range(n)])
    b_full = np.array([b[i] if i < len(b) else pad for i in range(n)])
    dot = sum(float(x @ y) for x, y in zip(a_full, b_full, strict=True))
    norm_a, norm_b = (math.sqrt(sum(float(x @ x) for x in m)) for m in (a_full, b_full))
    d = b_full - a_full
    return {
        "relative_l2": math.sqrt(float((d**2).sum())) / norm_a,
        "cosine": 1 - dot / norm_a / norm_b,
        "norm_ratio": norm_b / norm_a,
    }


@pytest.mark.parametrize(("tokens_a", "tokens_b"), [(5, 5), (6, 3), (2, 9)])
def test_raw_and_projected_agree_with_the_definition(tokens_a, tokens_b):
    a, b, layers = rows(tokens_a), rows(tokens_b, 1), projection()
    found = measure_difference(a, b, layers, text_length=16)
    a64, b64 = a.double(), b.double()
    with torch.no_grad():
        contexts = [layers(x).numpy() for x in (a64, b64, torch.zeros(1, D, dtype=torch.float64))]
    cases = [
        (found.raw, a64.numpy(), b64.numpy(), np.zeros(D)),
        (found.projected, contexts[0], contexts[1], contexts[2][0]),
    ]
    for space, na, nb, pad in cases:
        assert space is not None
        for name, value in by_numpy(na, nb, pad).items():
            assert getattr(space.matrix, name) == pytest.approx(value, rel=1e-12), name
        for name, value in by_numpy(na.mean(0)[None], nb.mean(0)[None], pad).items():
            assert getattr(space.pooled, name) == pytest.approx(value, rel=1e-11), name
        n = max(tokens_a, tokens_b)
        a_full = np.array([na[i] if i < tokens_a else pad for i in range(n)])
        b_full = np.array([nb[i] if i < tokens_b else pad for i in range(n)])
        d = b_full - a_full
        for token in space.tokens:
            i = token.token
            assert token.share == pytest.approx((d[i] ** 2).sum() / (d**2).sum())
            assert (token.in_a, token.in_b) == (i < tokens_a, i < tokens_b)
            if (a_full[i] != 0).any():
                assert token.relative_l2 == pytest.approx(np.linalg.norm(d[i]) / np.linalg.norm(a_full[i]))
            else:
                assert token.relative_l2 is None
        order = np.argsort(-(d**2).sum(0))
        assert [x.dimension for x in space.dimensions] == order[:10].tolist()
        assert space.dimensions[0].rms == pytest.approx(np.sqrt((d[:, order[0]] ** 2).mean()))
        assert space.legacy.percent_changed == pytest.approx((np.abs(d) > 0.01).sum() / (16 * d.shape[1]))
        assert space.legacy.cap == n / 16


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 5), st.integers(0, 5), st.integers(0, 100))
def test_padding_changes_nothing(tokens_a, tokens_b, pad_a, pad_b, seed):
    a, b, layers = rows(tokens_a, seed), rows(tokens_b, seed + 1), projection()
    plain = measure_difference(a, b, layers)
    longer_a, longer_b = torch.cat([a, torch.zeros(pad_a, D)]), torch.cat([b, torch.zeros(pad_b, D)])
    assert measure_difference(longer_a, longer_b, layers) == plain


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.floats(0.001, 1000), st.integers(0, 100))
def test_a_common_scale_changes_nothing_but_the_legacy_figure(tokens_a, tokens_b, scale, seed):
    a, b = rows(tokens_a, seed, torch.float64), rows(tokens_b, seed + 1, torch.float64)
    one, other = measure_difference(a, b).raw, measure_difference(a * scale, b * scale).raw
    for level in ("matrix", "pooled"):
        for name in ("relative_l2", "cosine", "norm_ratio"):
            before, after = (getattr(getattr(space, level), name) for space in (one, other))
            assert after == pytest.approx(before, rel=1e-9, abs=1e-12)
    assert [t.share for t in other.tokens] == pytest.approx([t.share for t in one.tokens])


def test_the_legacy_figure_has_its_two_defects():
    a, b = rows(5), rows(4, 1)
    big = measure_difference(100 * a, 100 * b).raw.legacy
    small = measure_difference(a / 1e4, b / 1e4).raw.legacy
    assert small.percent_changed == 0  # scale
    assert 0.9 * big.cap < big.percent_changed <= big.cap == 5 / 512  # padding
    assert "scale" in big.note and "padding" in big.note and "5 real tokens of 512" in big.note


def test_which_figures_are_symmetric():
    a, b = rows(5), rows(3, 1)
    there, back = measure_difference(a, b).raw.matrix, measure_difference(b, a).raw.matrix
    assert there.cosine == pytest.approx(back.cosine, rel=1e-12)
    assert there.norm_ratio and back.norm_ratio and there.relative_l2 and back.relative_l2
    assert there.norm_ratio == pytest.approx(1 / back.norm_ratio)
    # the distance is the same, divided by two different norms
    assert there.relative_l2 == pytest.approx(back.relative_l2 * there.norm_ratio)


def test_equal_and_nearly_equal_prompts():
    a = rows(4)
    same = measure_difference(a, a.clone(), projection())
    assert same.raw.matrix.relative_l2 == 0 and same.raw.matrix.cosine == 0 and same.raw.matrix.norm_ratio == 1
    assert "the same" in same.advice
    near = a.double() * (1 + 1e-9)
    near[0, 0] += 1e-9
    found = measure_difference(a.double(), near).raw.matrix
    assert found.cosine is not None and 0 < found.cosine < 1e-17  # 1 - cos would give 0 or 2e-16
    assert measure_difference(a, 3 * a).raw.matrix.relative_l2 == pytest.approx(2)


def test_low_precision_inputs_are_measured_as_they_are():
    a, b = rows(5, 0, torch.bfloat16), rows(5, 1, torch.bfloat16)
    found = measure_difference(a, b).raw.matrix
    expected = by_numpy(a.double().numpy(), b.double().numpy(), np.zeros(D))
    assert found.relative_l2 == pytest.approx(expected["relative_l2"], rel=1e-12)
    half = projection().bfloat16()  # the projection gets rows in its own dtype
    assert measure_difference(rows(5), rows(4, 1), half).projected is not None


def test_relative_l2_is_the_figure_of_the_matrix():
    a, b, layers = rows(5), rows(3, 1), projection()
    found = measure_difference(a, b, layers)
    assert relative_l2(a, b) == found.raw.matrix.relative_l2
    pad = project(torch.zeros(1, D), layers)[0]
    assert found.projected is not None
    assert relative_l2(project(a, layers), project(b, layers), pad) == found.projected.matrix.relative_l2


def test_plain_data_and_text():
    found = measure_difference(rows(9), rows(4, 1), projection())
    data = json.loads(json.dumps(found.as_data(), allow_nan=False))
    assert data["raw"]["matrix"]["relative_l2"] == found.raw.matrix.relative_l2
    assert data["tokens_a"] == 9 and len(data["raw"]["tokens"]) == 9
    text = render_difference(found)
    assert f"{found.raw.matrix.relative_l2:.4f}" in text
    assert found.raw.legacy.note in text and found.advice in text
    assert "only in A" in text and "projected" in text
    named = render_difference(found, tokens=9, pieces_a=list("abcdefghi"), pieces_b=list("axyz"))
    assert "0 a (" in named and "1 b|x (" in named and "8 i (" in named
    assert "projected" not in render_difference(measure_difference(rows(9), rows(4, 1))).splitlines()[1]


def test_advice():
    a = rows(8)
    d = rows(8, 1)
    thresholds = Thresholds(0.3, 0.6, "made up")
    for size, word in ((0.1, "small"), (0.45, "moderate"), (0.9, "large")):
        b = a + d * (size * float(a.norm() / d.norm()))
        advice = measure_difference(a, b, thresholds=thresholds).advice
        assert word in advice and "made up" in advice and f"{size:.2f}" in advice and "`mix`" not in advice
    assert "`mix`" in measure_difference(a, d[:3]).advice
    assert "`mix`" not in measure_difference(a, d[:4]).advice
    # the projected figures decide if they are known
    advice = measure_difference(a, d, lambda x: x * 0 + 1 + 0.01 * x).advice
    assert "small" in advice and "projected" in advice


@pytest.mark.parametrize(
    ("a", "b", "says"),
    [
        (rows(3), torch.ones(3, D + 1), "different encoders"),
        (torch.zeros(3, D), rows(3), "embedding A is all zeros"),
        (rows(3), rows(0), "embedding B is empty"),
        (rows(3), rows(3)[None], "it should be a float tensor"),
        (rows(3), rows(3) * math.nan, "contains NaN or Inf"),
        (rows(3).long(), rows(3), "it should be a float tensor"),
        (rows(3), [1, 2], "embedding B is list"),
        (rows(513), rows(3), "the model reads 512"),
    ],
)
def test_impossible_comparisons_are_refused(a, b, says):
    with pytest.raises(RecipeError, match=says):
        measure_difference(a, b)


def test_a_projection_gives_one_row_per_token():
    with pytest.raises(RecipeError, match="one row per token"):
        measure_difference(rows(3), rows(3, 1), lambda x: x.mean(0, keepdim=True))
