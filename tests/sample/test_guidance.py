"""Guidance against formulas written out one element at a time."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from wanscope.recipe import SamplerSpec
from wanscope.sample.guidance import Guidance, optimized_scale, skimmed, zero_init_steps

SHAPE = (1, 3, 2, 4, 4)


def guidance(experts: int = 1, **values: object) -> Guidance:
    defaults = {"solver": "unipc", "steps": 20, "shift": 5.0, "guidance": 5.0}
    return Guidance(SamplerSpec(**values).resolved(defaults, experts=experts))


def three(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Return cond, uncond and x."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(SHAPE, generator=generator, dtype=torch.float64) for _ in range(3))  # type: ignore[return-value]


def combined(made: Guidance, scale: float, step: int = 9, sigma: float = 0.6, seed: int = 0) -> Tensor:
    cond, uncond, x = three(seed)
    return made.combine(cond, uncond, scale=scale, step=step, x=x, sigma=sigma)


def test_exactly_one_is_off_for_each_expert_and_all_else_is_guided():
    made = guidance(2, guidance=5.0, guidance_2=1.0)
    assert made.scale(3, 0) == 5.0
    assert made.scale(3, 1) is None
    for value in (0.0, 0.5, 0.999, 1.001):
        assert guidance(guidance=value).scale(0, 0) == value
    assert guidance(guidance=1).scale(0, 0) is None
    assert not guidance(2, guidance=1.0, guidance_2=1.0).needs_uncond(2)
    assert guidance(2, guidance=1.0, guidance_2=5.0).needs_uncond(2)


def test_decided_once_as_the_pipeline_does():
    for first, second, on in ((5.0, 1.0, True), (1.0, 5.0, False), (0.5, 5.0, False), (1.01, 0.5, True)):
        made = guidance(2, guidance=first, guidance_2=second, cfg_per_expert=False)
        assert [made.scale(0, 0), made.scale(0, 1)] == ([first, second] if on else [None, None])


def test_decided_once_does_not_lose_keyframes_that_begin_at_one():
    keys = {0: 1.0, 10: 6.0, "interpolate": "step"}
    made = guidance(guidance=keys, cfg_per_expert=False)
    assert (made.scale(0, 0), made.scale(10, 0)) == (1.0, 6.0)
    per_step = guidance(guidance=keys)
    assert (per_step.scale(0, 0), per_step.scale(10, 0)) == (None, 6.0)


def test_keyframes_over_sigma_mean_the_same_in_a_run_of_any_length():
    spec = SamplerSpec(guidance={1.0: 8, 0.9: 1, "interpolate": "step", "over": "sigma"})
    for steps in (5, 20):
        defaults = {"solver": "euler", "steps": steps, "shift": 5.0, "guidance": 5.0}
        sigmas = [5 * u / (1 + 4 * u) for u in (1 - i / steps for i in range(steps))]
        made = Guidance(spec.resolved(defaults), sigmas)
        assert [made.scale(i, 0) for i in range(steps)] == [8.0 if sigma > 0.9 else None for sigma in sigmas]
        assert made.needs_uncond(1)


@pytest.mark.parametrize(
    ("interpolate", "expected"),
    [("linear", 6.5 - 3 * 0.25), ("step", 6.5), ("cosine", 6.5 - 3 * (1 - math.cos(math.pi * 0.25)) / 2)],
)
def test_keyframes(interpolate: str, expected: float):
    made = guidance(guidance={4: 6.5, 12: 3.5, "interpolate": interpolate})
    assert made.scale(0, 0) == made.scale(4, 0) == 6.5
    assert made.scale(6, 0) == pytest.approx(expected, abs=1e-12)
    assert made.scale(12, 0) == made.scale(19, 0) == 3.5


def test_plain_guidance_stays_in_the_models_dtype():
    cond, uncond, x = (a.bfloat16() for a in three())
    v = guidance().combine(cond, uncond, scale=5.0, step=0, x=x, sigma=0.5)
    assert v.dtype == torch.bfloat16
    assert torch.equal(v, uncond + 5.0 * (cond - uncond))


def skimmed_by_hand(c: float, u: float, w: float, k: float, x: float) -> tuple[float, float]:
    """The node's single-scale rule on clean predictions, one element, as its author states it."""

    def sign(a: float) -> int:
        return (a > 0) - (a < 0)

    def one(this: float, other: float) -> float:
        high = x - ((x - other) + w * ((x - this) - (x - other)))
        low = x - ((x - other) + k * ((x - this) - (x - other)))
        same_difference = sign(this - other) == sign(this)
        same_after = sign(this) == sign(this * w - other * (w - 1))
        deviates = sign(high) == sign(high - x)
        return this - (high - low) / w if same_difference and same_after and deviates else this

    u = one(u, c)
    return one(c, u), u


@pytest.mark.parametrize("skim", [0.0, 1.0, 3.0, 7.0])
@pytest.mark.parametrize("sigma", [1.0, 0.6, 0.02])
def test_skimming_equals_the_rule_element_by_element(skim: float, sigma: float):
    cond, uncond, x = three(4)
    scale = 8.0
    v_cond, v_uncond = skimmed(cond, uncond, scale, skim, x, sigma)
    changed = 0
    for i in range(cond.numel()):
        xi, vc, vu = (float(a.flatten()[i]) for a in (x, cond, uncond))
        c, u = skimmed_by_hand(xi - sigma * vc, xi - sigma * vu, scale, skim, xi)
        assert xi - sigma * float(v_cond.flatten()[i]) == pytest.approx(c, abs=1e-12)
        assert xi - sigma * float(v_uncond.flatten()[i]) == pytest.approx(u, abs=1e-12)
        changed += float(v_cond.flatten()[i]) != vc or float(v_uncond.flatten()[i]) != vu
    assert 0 < changed < cond.numel()


@pytest.mark.parametrize("skim", [5.0, 5.5, 50.0])
def test_skimming_at_or_above_the_scale_changes_no_bit(skim: float):
    assert torch.equal(combined(guidance(skim=skim), 5.0), combined(guidance(), 5.0))


def test_skimming_never_takes_the_guided_prediction_past_plain_guidance():
    """Where cond was skimmed, the guided prediction equals that of the lower scale with the same branches."""
    cond, uncond, x = three(2)
    scale, skim, sigma = 9.0, 3.0, 0.7
    v_cond, v_uncond = skimmed(cond, uncond, scale, skim, x, sigma)
    burnt = v_cond != cond
    guided = v_uncond + scale * (v_cond - v_uncond)
    low = v_uncond + skim * (cond - v_uncond)
    assert burnt.any()
    assert torch.allclose(guided[burnt], low[burnt], atol=1e-12)
    plain = x - sigma * (uncond + scale * (cond - uncond))
    both = (v_uncond == uncond) & burnt
    assert both.any()
    assert ((x - sigma * guided)[both].abs() <= plain[both].abs()).all()


def test_optimized_scale_is_the_least_squares_one():
    cond, uncond, _ = three(3)
    s = optimized_scale(cond, uncond)
    best = torch.linalg.lstsq(uncond.view(-1, 1), cond.view(-1, 1)).solution
    assert s.shape == (1, 1, 1, 1, 1)
    assert float(s) == pytest.approx(float(best), rel=1e-8)
    assert float(optimized_scale(2.5 * uncond, uncond)) == pytest.approx(2.5, rel=1e-8)
    assert float(optimized_scale(cond, torch.zeros_like(cond))) == 0.0


def test_zero_star_by_hand():
    cond, uncond, _ = three()
    c, u = cond.flatten().tolist(), uncond.flatten().tolist()
    s = sum(a * b for a, b in zip(c, u, strict=True)) / sum(b * b for b in u)
    expected = [s * b + 5.0 * (a - s * b) for a, b in zip(c, u, strict=True)]
    got = combined(guidance(zero_star=True), 5.0)
    assert got.flatten().tolist() == pytest.approx(expected, abs=2e-5)  # computed in float32


def test_zero_star_leaves_the_latents_alone_in_the_first_4_percent():
    assert [zero_init_steps(n) for n in (4, 12, 20, 40, 50, 100)] == [0, 0, 1, 2, 2, 4]
    made = guidance(zero_star=True)
    assert not combined(made, 5.0, step=0).any()
    assert combined(made, 5.0, step=1).any()


def test_zero_star_then_skimming():
    cond, uncond, x = (a.float() for a in three(6))
    both = guidance(zero_star=True, skim=2.0).combine(cond, uncond, scale=6.0, step=9, x=x, sigma=0.5)
    rescaled = optimized_scale(cond, uncond) * uncond
    c, u = skimmed(cond, rescaled, 6.0, 2.0, x, 0.5)
    assert torch.equal(both, u + 6.0 * (c - u))
