"""The loop: what it reports, what it calls, where it stops."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

import diffusers
import pytest
import torch
from diffusers import FirstBlockCacheConfig
from torch import Tensor

from helpers.tiny import TEXT_DIM, TEXT_LENGTH, tiny_model, video
from wanscope.errors import Interrupted, ModelError, NumericalError, RecipeError
from wanscope.recipe import SamplerSpec, VideoSpec
from wanscope.sample import Conditioning, Denoised, Moment, Observer, StepState, denoise, initial_noise
from wanscope.spec.solver_facts import facts, solver_names
from wanscope.wan.model import WanModel

STEPS = 5
# diffusers' own solvers: class, and its name for the shift.
SCHEDULERS = {
    "unipc": ("UniPCMultistepScheduler", "flow_shift"),
    "dpm++": ("DPMSolverMultistepScheduler", "flow_shift"),
    "euler": ("FlowMatchEulerDiscreteScheduler", "shift"),
    "heun": ("FlowMatchHeunDiscreteScheduler", "shift"),
}


class Log(Observer):
    def __init__(self) -> None:
        self.started: list[tuple[Tensor, tuple[float, ...]]] = []
        self.states: list[StepState] = []

    def start(self, latents: Tensor, sigmas: tuple[float, ...]) -> None:
        self.started.append((latents.clone(), sigmas))

    def step(self, state: StepState) -> None:
        self.states.append(state)


class Calls:
    """An `around_call` that records every moment."""

    def __init__(self) -> None:
        self.moments: list[Moment] = []
        self.open = 0

    @contextlib.contextmanager
    def __call__(self, moment: Moment) -> Iterator[None]:
        self.moments.append(moment)
        self.open += 1
        try:
            yield
        finally:
            self.open -= 1


def spec(model: WanModel, **values: Any) -> SamplerSpec:
    defaults = {"solver": "unipc", "steps": STEPS, "shift": 5.0, "guidance": 5.0}
    return SamplerSpec(**values).resolved(defaults, experts=len(model.experts()))


def text(seed: int = 0) -> Conditioning:
    generator = torch.Generator().manual_seed(seed)
    return Conditioning(*(torch.randn(n, TEXT_DIM, generator=generator) for n in (7, 4)))


def padded(tokens: Tensor) -> Tensor:
    return torch.nn.functional.pad(tokens, (0, 0, 0, TEXT_LENGTH - len(tokens)))[None]


def noise_for(model: WanModel, seed: int = 0) -> Tensor:
    kind = "5b" if model.expand_timesteps else "2.1"
    return initial_noise(model.latent_shape(VideoSpec(**video(kind))), seed)


def run(model: WanModel, sampler: SamplerSpec, **options: Any) -> Denoised:
    return denoise(model, options.pop("text", text()), sampler, options.pop("noise", noise_for(model)), **options)


@pytest.mark.parametrize("solver", solver_names())
def test_one_state_per_step_for_any_number_of_evaluations(solver: str):
    model, log, calls = tiny_model("2.2"), Log(), Calls()
    told: list[StepState] = []
    result = run(model, spec(model, solver=solver), observers=[log], around_call=calls, on_step=told.append)
    per_step = list(facts(solver).calls(STEPS))
    assert told == log.states
    assert [s.step for s in log.states] == list(range(STEPS))
    assert {s.steps for s in log.states} == {STEPS}
    assert [s.evaluations for s in log.states] == per_step
    assert result.evaluations == sum(per_step)
    assert len(calls.moments) == 2 * sum(per_step)
    (start, sigmas), *more = log.started
    assert not more
    assert torch.equal(start, noise_for(model))
    assert result.sigmas == sigmas
    assert [s.sigma for s in log.states] == list(sigmas[:-1])
    assert [s.sigma_next for s in log.states] == list(sigmas[1:])
    assert sigmas[0] == pytest.approx(1, abs=1e-3) and sigmas[-1] == 0
    assert torch.equal(log.states[-1].latents, result.latents)
    assert result.latents.dtype == torch.float32 and result.latents.isfinite().all()
    assert all(s.seconds > 0 for s in log.states) and result.seconds >= sum(s.seconds for s in log.states)


@pytest.mark.parametrize("solver", solver_names())
def test_denoised_is_the_prediction_of_the_first_evaluation(solver: str):
    """It is x - sigma v, v from the model by hand; and most solvers that evaluate once in the last step end on it."""
    model, log, conditioning = tiny_model("2.1"), Log(), text()
    result = run(model, spec(model, solver=solver, guidance=1.0), observers=[log], text=conditioning)
    tokens = padded(conditioning.cond)
    x = log.started[0][0]
    for state in log.states:
        t = torch.tensor([1000 * state.sigma])
        t = t.long() if solver in ("unipc", "dpm++") else t
        v = model.transformer(x, t, tokens, return_dict=False)[0]
        assert torch.allclose(state.denoised, x - state.sigma * v, atol=1e-5)
        x = state.latents
    if solver in ("euler", "heun", "dpm++", "res_multistep"):  # not UniPC, which corrects x first
        assert torch.allclose(log.states[-1].denoised, result.latents, atol=1e-5)


def test_moments_state_step_evaluation_branch_and_expert():
    model, calls = tiny_model("2.2"), Calls()
    run(model, spec(model, solver="heun"), around_call=calls)
    seen = [(m.step, m.evaluation, m.branches) for m in calls.moments]
    expected = [
        (step, evaluation, (branch,))
        for step in range(STEPS)
        for evaluation in range(1 if step == STEPS - 1 else 2)
        for branch in ("cond", "uncond")
    ]
    assert seen == expected
    assert all(m.expert == (0 if m.sigma >= 0.875 else 1) for m in calls.moments)
    assert calls.open == 0


def test_the_second_evaluation_of_a_step_may_be_of_the_other_expert():
    """Each evaluation's expert follows its own timestep."""
    model, calls = tiny_model("2.2"), Calls()
    run(model, spec(model, solver="res_2s", sigmas=(1.0, 0.9, 0.7, 0.3)), around_call=calls)
    experts = [[m.expert for m in calls.moments if m.step == step] for step in range(4)]
    assert experts == [[0, 0, 0, 0], [0, 0, 1, 1], [1] * 4, [1] * 4]


def test_batched_guidance_is_one_call_of_two_branches():
    model, calls, batches = tiny_model("2.1"), Calls(), []
    hook = model.transformer.register_forward_pre_hook(
        lambda _, args, kwargs: batches.append(len(kwargs["hidden_states"])), with_kwargs=True
    )
    run(model, spec(model, cfg_batched=True), around_call=calls)
    hook.remove()
    assert batches == [2] * STEPS
    assert [m.branches for m in calls.moments] == [("cond", "uncond")] * STEPS


def branches(model: WanModel, sampler: SamplerSpec) -> list[tuple[int, str]]:
    """Return (expert, context name) of each call that reached a transformer."""
    seen: list[tuple[int, str]] = []
    calls = Calls()
    hooks = [
        e.register_forward_pre_hook(lambda *_, i=i: seen.append((i, "+".join(calls.moments[-1].branches))))
        for i, e in enumerate(model.experts())
    ]
    run(model, sampler, around_call=calls)
    for hook in hooks:
        hook.remove()
    return seen


def test_guidance_of_exactly_one_skips_the_second_pass_for_each_expert():
    model = tiny_model("2.2")
    seen = branches(model, spec(model, guidance=5.0, guidance_2=1.0))
    assert {e for e, _ in seen} == {0, 1}
    assert [b for e, b in seen if e == 0] == ["cond", "uncond"] * (sum(e == 0 for e, _ in seen) // 2)
    assert {b for e, b in seen if e == 1} == {"cond"}
    assert {b for _, b in branches(model, spec(model, guidance=1.0))} == {"cond"}


def test_guidance_keyframes_reach_the_calls():
    model = tiny_model("2.1")
    calls = Calls()
    run(model, spec(model, guidance={0: 4.0, 3: 1.0, "interpolate": "step"}), around_call=calls)
    assert [(m.step, m.branches[0]) for m in calls.moments] == [
        *((step, branch) for step in range(3) for branch in ("cond", "uncond")),
        (3, "cond"),
        (4, "cond"),
    ]


@pytest.mark.parametrize("solver", ["unipc", "heun"])
def test_cache_contexts_are_the_pipelines(solver: str, monkeypatch: pytest.MonkeyPatch):
    model = tiny_model("2.2")
    seen: list[tuple[Any, ...]] = []
    for i, expert in enumerate(model.experts()):

        @contextlib.contextmanager
        def recorded(name: str, original: Any = expert.cache_context, i: int = i, **fields: Any) -> Iterator[None]:
            seen.append((i, name, fields))
            with original(name, **fields):
                yield

        monkeypatch.setattr(expert, "cache_context", recorded)
    run(model, spec(model, solver=solver))
    ours, seen[:] = list(seen), []
    pipe = model.to_pipeline()
    if solver == "heun":
        pipe.scheduler = diffusers.FlowMatchHeunDiscreteScheduler(shift=5.0)  # type: ignore[assignment]
    pipe.set_progress_bar_config(disable=True)
    pipe("a cat", "", 64, 64, 9, STEPS, max_sequence_length=TEXT_LENGTH, output_type="latent")
    assert ours == seen


@pytest.mark.parametrize("kind", ["2.1", "2.2", "5b"])
@pytest.mark.parametrize("solver", [name for name in solver_names() if name not in SCHEDULERS])
def test_solvers_without_a_pipeline_to_equal_run_on_every_kind(kind: str, solver: str):
    model = tiny_model(kind)
    latents = run(model, spec(model, solver=solver)).latents
    assert latents.isfinite().all()
    assert (latents - noise_for(model)).abs().mean() > 0.1


@pytest.mark.parametrize(("solver", "worst"), [("euler", 0.05), ("res_2s", 2e-3), ("res_multistep", 6e-3)])
def test_a_model_of_gaussian_videos_gives_the_exact_result(solver: str, worst: float):
    """The whole loop on a model whose answer is known: data N(0.7, 0.5^2) map noise z to 0.7 + 0.5 z."""
    model = tiny_model("2.1")

    def velocity(hidden_states: Tensor, timestep: Tensor, **_: Any) -> tuple[Tensor]:
        sigma = timestep.view(-1, 1, 1, 1, 1) / 1000
        gain = (1 - sigma) * 0.25 / ((1 - sigma) ** 2 * 0.25 + sigma**2)
        return ((hidden_states - 0.7 - gain * (hidden_states - (1 - sigma) * 0.7)) / sigma,)

    model.transformer.forward = velocity  # type: ignore[method-assign]
    sigmas = tuple(1 - i / 40 for i in range(40))
    noise = noise_for(model)
    got = run(model, spec(model, solver=solver, sigmas=sigmas, guidance=1.0), noise=noise).latents
    assert (got - (0.7 + 0.5 * noise)).square().mean().sqrt() < worst


@pytest.mark.parametrize("solver", solver_names())
def test_start_step_equals_the_scheduler_begun_there_by_hand(solver: str):
    model, log, first = tiny_model("2.1"), Log(), 2
    init, noise = torch.randn(noise_for(model).shape, generator=torch.Generator().manual_seed(9)), noise_for(model)
    sampler = spec(model, solver=solver, start_step=first)
    result = run(model, sampler, init_latents=init, observers=[log])
    assert [s.step for s in log.states] == [2, 3, 4]
    assert len(result.sigmas) == 4
    sigma = result.sigmas[0]
    start = (1 - sigma) * init + sigma * noise
    assert torch.equal(log.started[0][0], start)
    assert result.evaluations == sum(facts(solver).calls(STEPS)[first:])
    if solver not in SCHEDULERS:
        return  # no reference of diffusers'; test_solvers begins them anywhere
    name, shift = SCHEDULERS[solver]
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True} if shift == "flow_shift" else {}
    scheduler = getattr(diffusers, name)(**flow, **{shift: 5.0})
    scheduler.set_timesteps(STEPS)
    skipped = first * (2 if solver == "heun" else 1)
    scheduler.set_begin_index(skipped)
    conditioning, x = text(), start
    cond, uncond = (
        torch.nn.functional.pad(e, (0, 0, 0, TEXT_LENGTH - len(e)))[None]
        for e in (conditioning.cond, conditioning.uncond)
    )
    with torch.no_grad():
        for t in scheduler.timesteps[skipped:]:
            v, v_uncond = (model.transformer(x, t.expand(1), e, return_dict=False)[0] for e in (cond, uncond))
            x = scheduler.step(v_uncond + 5.0 * (v - v_uncond), t, x, return_dict=False)[0]
    assert torch.equal(result.latents, x)


@pytest.mark.parametrize("solver", solver_names())
def test_start_step_from_the_clean_video_of_the_same_noise_returns_near_it(solver: str):
    """A model that is certain of one video: noising it and denoising again gives it back."""
    model = tiny_model("2.1")
    target = torch.randn(noise_for(model).shape, generator=torch.Generator().manual_seed(1))
    model.transformer.forward = lambda hidden_states, timestep, **_: (  # type: ignore[method-assign]
        (hidden_states - target) / (current["sigma"]),
    )
    current: dict[str, float] = {}

    @contextlib.contextmanager
    def here(moment: Moment) -> Iterator[None]:
        current["sigma"] = moment.sigma
        yield

    result = run(
        model,
        spec(model, solver=solver, start_step=3),
        init_latents=target,
        noise=noise_for(model, 4),
        around_call=here,
    )
    assert (result.latents - target).abs().max() < 2e-5


def test_denoise_is_start_step():
    model, init = tiny_model("2.1"), noise_for(tiny_model("2.1"), 8)
    a, b = (run(model, spec(model, **v), init_latents=init) for v in ({"start_step": 2}, {"denoise": 0.6}))
    assert torch.equal(a.latents, b.latents)


def test_a_second_pass_may_be_another_models():
    first, second = tiny_model("2.1", seed=0), tiny_model("2.1", seed=5)
    base = run(first, spec(first)).latents
    again = run(second, spec(second, start_step=3), init_latents=base, noise=noise_for(second, 1)).latents
    assert again.isfinite().all() and not torch.equal(again, base)


@pytest.mark.parametrize(
    ("values", "init", "message"),
    [
        ({"start_step": 2}, None, "nothing to start from"),
        ({}, (16, 3, 8, 8), "pure noise"),
        ({"start_step": 2}, (16, 3, 8, 4), "initial latents have shape"),
    ],
)
def test_impossible_starts_are_refused(values: dict[str, Any], init: tuple[int, ...] | None, message: str):
    model = tiny_model("2.1")
    with pytest.raises(RecipeError, match=message):
        run(model, spec(model, **values), init_latents=None if init is None else torch.zeros(init))


def test_explicit_sigmas_below_one_start_from_an_init_at_step_0():
    model, init = tiny_model("2.1"), noise_for(tiny_model("2.1"), 8)
    log = Log()
    run(model, spec(model, solver="euler", sigmas=(0.6, 0.3)), init_latents=init[0], observers=[log])
    assert torch.allclose(log.started[0][0], 0.4 * init + 0.6 * noise_for(model), atol=1e-6)


def test_interrupt_between_steps_names_the_step():
    model, log = tiny_model("2.1"), Log()
    asked = itertools.count()
    with pytest.raises(Interrupted, match="before step 2 of 5"):
        run(model, spec(model), observers=[log], interrupt=lambda: next(asked) == 2)
    assert [s.step for s in log.states] == [0, 1]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("solver", ["unipc", "heun", "res_2s"])
def test_nan_and_inf_stop_the_run_and_name_the_step(solver: str, value: float):
    model, calls, log = tiny_model("2.1"), Calls(), Log()

    def spoil(*args: Any) -> Any:
        output = args[-1][0]
        if calls.moments[-1].step == 3:
            output = output.clone()
            output.view(-1)[5] = value
        return (output,)

    hook = model.transformer.register_forward_hook(spoil)
    with pytest.raises(NumericalError, match=r"after step 3 of 5, at sigma 0\.\d+") as caught:
        run(model, spec(model, solver=solver), around_call=calls, observers=[log])
    hook.remove()
    assert caught.value.fix
    assert [s.step for s in log.states] == [0, 1, 2]
    assert calls.open == 0


def test_nan_in_the_start_is_an_error_before_any_step():
    model, calls = tiny_model("2.1"), Calls()
    bad = noise_for(model)
    bad[0, 0, 0, 0, 0] = float("nan")
    with pytest.raises(NumericalError, match="before the first step"):
        run(model, spec(model), noise=bad, around_call=calls)
    with pytest.raises(NumericalError, match="initial latents"):
        run(model, spec(model, start_step=2), init_latents=bad, around_call=calls)
    assert not calls.moments


def test_impossible_runs_are_refused_before_any_call():
    model, calls = tiny_model("2.1"), Calls()
    with pytest.raises(RecipeError, match="no negative prompt"):
        run(model, spec(model), text=Conditioning(text().cond), around_call=calls)
    with pytest.raises(RecipeError, match=r"\[17, 32\].*up to 16 tokens"):
        run(model, spec(model), text=Conditioning(torch.zeros(17, TEXT_DIM), text().uncond), around_call=calls)
    with pytest.raises(RecipeError, match="not resolved"):
        run(model, SamplerSpec(solver="unipc"), around_call=calls)
    with pytest.raises(RecipeError, match="channels, frames"):
        initial_noise((2, 16, 3, 8, 8), 0)
    image_model = tiny_model("i2v")
    with pytest.raises(ModelError, match="cannot make a video from text"):
        run(image_model, spec(image_model), noise=torch.zeros(1, 16, 3, 8, 8), around_call=calls)
    assert not calls.moments
    assert run(model, spec(model, guidance=1.0), text=Conditioning(text().cond)).latents.isfinite().all()


def test_no_gradient_and_the_same_bits_again():
    model = tiny_model("2.2")
    for expert in model.experts():
        expert.requires_grad_(True)
    first, again = (run(model, spec(model)).latents for _ in range(2))
    assert not first.requires_grad
    assert torch.equal(first, again)


def test_a_step_cache_does_not_carry_over_from_an_earlier_run():
    model = tiny_model("2.1")
    model.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.5))
    first = run(model, spec(model)).latents
    assert torch.equal(run(model, spec(model)).latents, first)


def test_zero_star_holds_the_first_steps_still():
    model, log = tiny_model("2.1"), Log()
    run(model, spec(model, solver="euler", steps=20, zero_star=True), observers=[log])
    assert torch.equal(log.states[0].latents, noise_for(model))
    assert not torch.equal(log.states[1].latents, noise_for(model))


def test_skimming_changes_the_video_and_skimming_at_the_scale_does_not():
    model = tiny_model("2.1")
    plain = run(model, spec(model)).latents
    assert torch.equal(run(model, spec(model, skim=5.0)).latents, plain)
    assert not torch.equal(run(model, spec(model, skim=2.0)).latents, plain)
