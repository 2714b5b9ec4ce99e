"""Rule 1: with no edits the latents equal those of diffusers.WanPipeline bit for bit. Where the pipeline makes other
passes, the reference is written out by hand (DEFINITIONS, "Identity")."""

from __future__ import annotations

import contextlib
from typing import Any

import diffusers
import pytest
import torch
from diffusers import WanPipeline

from helpers.tiny import tiny_model, tiny_pipeline, video
from wanscope.recipe import SamplerSpec, VideoSpec
from wanscope.sample import Conditioning, Observer, denoise, initial_noise
from wanscope.sample.solvers import solver_class
from wanscope.sample.solvers.diffusers_solver import DiffusersSolver
from wanscope.spec.solver_facts import solver_names
from wanscope.wan.load import load
from wanscope.wan.model import WanModel
from wanscope.wan.text import encode
from wanscope.wan.variants import MARBLES_WEIGHTS

PROMPT, NEGATIVE, SEED, SHIFT = "a red circle moves left", "gray night", 7, 5.0
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": SHIFT}
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "unipc": ("UniPCMultistepScheduler", FLOW),
    "euler": ("FlowMatchEulerDiscreteScheduler", {"shift": SHIFT}),
    "heun": ("FlowMatchHeunDiscreteScheduler", {"shift": SHIFT}),
    "dpm++": ("DPMSolverMultistepScheduler", FLOW),
}
KINDS = ("2.1", "2.2", "5b")


def spec(model: WanModel, **values: Any) -> SamplerSpec:
    defaults = {"solver": "unipc", "steps": 5, "shift": SHIFT, "guidance": 5.0}
    return SamplerSpec(**values).resolved(defaults, experts=len(model.experts()))


def test_every_solver_of_diffusers_is_compared_with_the_pipeline() -> None:
    of_diffusers = {name for name in solver_names() if issubclass(solver_class(name), DiffusersSolver)}
    assert of_diffusers == set(SCHEDULERS)


def scheduler(solver: str) -> Any:
    """Return diffusers' own scheduler, built only from its public arguments."""
    name, arguments = SCHEDULERS[solver]
    return getattr(diffusers, name)(**arguments)


def ours(model: WanModel, size: dict[str, int], sampler: SamplerSpec, **options: Any) -> torch.Tensor:
    """Return wanscope's latents, with its own text encoding, noise and loop."""
    noise = initial_noise(model.latent_shape(VideoSpec(**size)), SEED)
    return denoise(model, Conditioning(*encode(model, [PROMPT, NEGATIVE])), sampler, noise, **options).latents


@torch.no_grad()
def pipeline_embeddings(model: WanModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cond and uncond [1, N, D] with padding, as the pipeline encodes them."""
    return model.to_pipeline().encode_prompt(PROMPT, NEGATIVE, max_sequence_length=model.text_length)


def theirs(pipe: WanPipeline, model: WanModel, size: dict[str, int], steps: int, **arguments: Any) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    return pipe(
        PROMPT,
        NEGATIVE,
        size["height"],
        size["width"],
        size["frames"],
        steps,
        generator=torch.Generator().manual_seed(SEED),
        max_sequence_length=model.text_length,
        output_type="latent",
        **arguments,
    ).frames


def pipelines(model: WanModel, size: dict[str, int], solver: str, steps: int, **arguments: Any) -> torch.Tensor:
    """Return diffusers' latents with the same components."""
    pipe = model.to_pipeline()
    pipe.scheduler = scheduler(solver)
    return theirs(pipe, model, size, steps, **arguments)


@pytest.mark.parametrize("guidance", [5.0, 1.0])
@pytest.mark.parametrize("solver", SCHEDULERS)
@pytest.mark.parametrize("kind", KINDS)
def test_latents_equal_the_pipelines_bit_for_bit(kind: str, solver: str, guidance: float):
    model, size = tiny_model(kind, seed=3), video(kind)
    expected = pipelines(model, size, solver, 5, guidance_scale=guidance)
    got = ours(model, size, spec(model, solver=solver, guidance=guidance))
    assert got.dtype == torch.float32
    assert torch.equal(got, expected)


@pytest.mark.parametrize("solver", SCHEDULERS)
def test_also_in_bf16_where_most_schedulers_round_the_latents(solver: str):
    model, size = tiny_model("2.2", dtype=torch.bfloat16), video("2.2")
    assert model.transformer.dtype == torch.bfloat16
    got = ours(model, size, spec(model, solver=solver))
    assert torch.equal(got, pipelines(model, size, solver, 5, guidance_scale=5.0).float())


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("solver", SCHEDULERS)
def test_also_on_a_gpu(solver: str, dtype: torch.dtype):
    model, size = WanModel.from_pipeline(tiny_pipeline("2.2", dtype=dtype).to("cuda")), video("2.2")
    assert model.device.type == "cuda"
    got = ours(model, size, spec(model, solver=solver))
    assert torch.equal(got, pipelines(model, size, solver, 5, guidance_scale=5.0).float())


@pytest.mark.parametrize(
    ("solver", "steps"), [*((solver, steps) for solver in SCHEDULERS for steps in (1, 2)), ("unipc", 20)]
)
def test_also_for_few_and_many_steps(solver: str, steps: int):
    model, size = tiny_model("2.2"), video("2.2")
    got = ours(model, size, spec(model, solver=solver, steps=steps))
    assert torch.equal(got, pipelines(model, size, solver, steps, guidance_scale=5.0))


def test_both_experts_ran_in_these_tests():
    """Otherwise the two-expert comparisons would show less than they claim."""
    model = tiny_model("2.2")
    for solver in SCHEDULERS:
        experts: list[int] = []
        with_experts = {"around_call": lambda m, seen=experts: (seen.append(m.expert), contextlib.nullcontext())[1]}
        ours(model, video("2.2"), spec(model, solver=solver), **with_experts)
        assert set(experts) == {0, 1}, solver


@pytest.mark.parametrize("scales", [(5.0, 1.0), (1.0, 5.0), (4.0, 3.0), (0.5, 5.0), (0.0, 0.0)])
def test_guidance_decided_once_equals_the_pipeline_also_for_unequal_experts(scales: tuple[float, float]):
    model, size = tiny_model("2.2"), video("2.2")
    sampler = spec(model, guidance=scales[0], guidance_2=scales[1], cfg_per_expert=False)
    expected = pipelines(model, size, "unipc", 5, guidance_scale=scales[0], guidance_scale_2=scales[1])
    assert torch.equal(ours(model, size, sampler), expected)


def test_guidance_per_expert_equals_the_pipeline_where_both_are_on():
    model, size = tiny_model("2.2"), video("2.2")
    expected = pipelines(model, size, "unipc", 5, guidance_scale=4.0, guidance_scale_2=3.0)
    assert torch.equal(ours(model, size, spec(model, guidance=4.0, guidance_2=3.0)), expected)


@torch.no_grad()
def by_hand(model: WanModel, size: dict[str, int], scales: tuple[float, float], steps: int = 5) -> torch.Tensor:
    """A two-expert UniPC run with guidance off at exactly 1 for each expert by itself, written out."""
    unipc = scheduler("unipc")
    unipc.set_timesteps(steps)
    cond, uncond = pipeline_embeddings(model)
    x = torch.randn(
        (1, *model.latent_shape(VideoSpec(**size))), generator=torch.Generator().manual_seed(SEED), dtype=torch.float32
    )
    for t in unipc.timesteps:
        expert, scale = (model.transformer, scales[0]) if t >= 875 else (model.transformer_2, scales[1])
        v = expert(x, t.expand(1), cond, return_dict=False)[0]
        if scale != 1:
            v_uncond = expert(x, t.expand(1), uncond, return_dict=False)[0]
            v = v_uncond + scale * (v - v_uncond)
        x = unipc.step(v, t, x, return_dict=False)[0]
    return x


@pytest.mark.parametrize("scales", [(5.0, 1.0), (1.0, 5.0), (1.0, 1.0), (0.0, 0.5)])
def test_guidance_per_expert_equals_the_reference_by_hand(scales: tuple[float, float]):
    model, size = tiny_model("2.2"), video("2.2")
    got = ours(model, size, spec(model, guidance=scales[0], guidance_2=scales[1]))
    assert torch.equal(got, by_hand(model, size, scales))


def test_per_expert_guidance_differs_from_deciding_once():
    model, size = tiny_model("2.2"), video("2.2")
    per_expert = ours(model, size, spec(model, guidance=1.0, guidance_2=5.0))
    once = ours(model, size, spec(model, guidance=1.0, guidance_2=5.0, cfg_per_expert=False))
    assert (per_expert - once).abs().max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_batched_guidance_equals_two_calls_to_1e_5(kind: str):
    model, size = tiny_model(kind), video(kind)
    batched = ours(model, size, spec(model, cfg_batched=True))
    assert (batched - pipelines(model, size, "unipc", 5, guidance_scale=5.0)).abs().max() <= 1e-5


def test_observing_changes_no_bit():
    class Copies(Observer):
        def __init__(self) -> None:
            self.seen: list[torch.Tensor] = []

        def start(self, latents: torch.Tensor, sigmas: tuple[float, ...]) -> None:
            self.seen.append(latents.clone())

        def step(self, state: Any) -> None:
            self.seen.append(state.latents.clone())

    model, size, copies = tiny_model("2.2"), video("2.2"), Copies()
    watched = ours(model, size, spec(model), observers=[copies], around_call=lambda _: contextlib.nullcontext())
    assert torch.equal(watched, pipelines(model, size, "unipc", 5, guidance_scale=5.0))
    assert len(copies.seen) == 6
    assert torch.equal(copies.seen[-1], watched)


def test_padded_and_trimmed_embeddings_are_the_same():
    model, size = tiny_model("2.1"), video("2.1")
    noise = initial_noise(model.latent_shape(VideoSpec(**size)), SEED)
    trimmed, padded = encode(model, [PROMPT, NEGATIVE]), pipeline_embeddings(model)
    assert all(t.ndim == 2 and len(t) < model.text_length for t in trimmed)
    runs = [denoise(model, Conditioning(*each), spec(model), noise).latents for each in (trimmed, padded)]
    assert torch.equal(*runs)


def test_the_noise_equals_the_pipelines():
    model, size = tiny_model("5b"), video("5b")
    shape = model.latent_shape(VideoSpec(**size))
    drawn = model.to_pipeline().prepare_latents(
        1, shape[0], size["height"], size["width"], size["frames"], torch.float32, torch.device("cpu"),
        torch.Generator().manual_seed(2**63 - 1),
    )  # fmt: skip
    assert torch.equal(initial_noise(shape, 2**63 - 1), drawn)


@pytest.fixture(scope="module")
def marbles() -> tuple[WanModel, WanPipeline]:
    """Return the packaged model as loaded by wanscope and by plain diffusers."""
    return load("marbles", device="cpu"), WanPipeline.from_pretrained(MARBLES_WEIGHTS, local_files_only=True)


@pytest.mark.parametrize("guidance", [4.0, 1.0])
@pytest.mark.parametrize("solver", SCHEDULERS)
def test_marbles(solver: str, guidance: float, marbles: tuple[WanModel, WanPipeline]):
    (model, plain), size = marbles, {"width": 128, "height": 128, "frames": 17}
    plain.scheduler = scheduler(solver)
    expected = theirs(plain, model, size, 3, guidance_scale=guidance)
    assert torch.equal(ours(model, size, spec(model, solver=solver, guidance=guidance, steps=3)), expected)
