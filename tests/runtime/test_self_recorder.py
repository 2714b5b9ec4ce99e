"""Recorded rows of self-attention against the full softmax in float64, on tiny models of every kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.edited import NEGATIVE, PROMPT, encoded
from helpers.recording import check_compiled_twice, copied
from helpers.tiny import tiny_model, video
from wanscope.capture.attention_plan import AttentionPlan, ModelFacts, plan_attention, plan_self_attention
from wanscope.capture.attention_sink import AttentionSink, Seen
from wanscope.edit.edits import Skip
from wanscope.edit.plan import EditPlan
from wanscope.edit.planned_texts import PlannedText
from wanscope.errors import RecipeError
from wanscope.recipe import SamplerSpec, VideoSpec
from wanscope.runtime.diffusers.recorder import AttentionRecorder
from wanscope.runtime.diffusers.self_recorder import SelfAttentionRecorder, rotated
from wanscope.runtime.diffusers.session import attach
from wanscope.sample.conditioning import Conditioning
from wanscope.sample.loop import denoise, initial_noise
from wanscope.sample.plan_edits import edit_plan, passes_of
from wanscope.spec.capture import AttentionCapture, SelfAttentionCapture
from wanscope.take.attention_maps import Attention
from wanscope.wan.model import WanModel
from wanscope.wan.text import encode

HEADS, BLOCKS, STEPS = 4, 4, 3
SAMPLER = SamplerSpec(solver="unipc", steps=STEPS, shift=5.0, guidance=5.0)
POSITIONS = [[0, 0, 0], [0.5, 0.5], [1, 0.3, 1]]


def planned(model: WanModel, kind: str = "2.1", **spec: Any) -> AttentionPlan:
    shape = model.latent_shape(VideoSpec(**video(kind), fps=8))
    grid = (shape[1], shape[2] // 2, shape[3] // 2)
    facts = ModelFacts(BLOCKS, HEADS, STEPS, 0, grid, model.text_length)
    return plan_self_attention(SelfAttentionCapture(**{"positions": POSITIONS, **spec}), facts)


def sampled(model: WanModel, kind: str = "2.1", sampler: SamplerSpec = SAMPLER, around_call: Any = None):
    noise = initial_noise(model.latent_shape(VideoSpec(**video(kind), fps=8)), 1)
    texts = Conditioning(*encode(model, ["a red circle moves", "a cat"]))
    return denoise(model, texts, sampler, noise, around_call=around_call).latents


def captured(model: WanModel, folder: Path, kind: str = "2.1", sampler: SamplerSpec = SAMPLER, **spec: Any):
    """Return (latents, maps, all arguments of a reduce function) of a whole run."""
    seen: list[Seen] = []
    sink = AttentionSink(planned(model, kind, **spec), folder, lambda s: seen.append(copied(s)))
    recorder = SelfAttentionRecorder(sink, model.device)
    text = PlannedText(torch.zeros(5, 32), frozenset())
    main: dict[Any, PlannedText] = {"cond": text, "uncond": text}
    empty = EditPlan((), passes_of(model, sampler), model.blocks, model.text_length, sink.plan.grid, main, 5)
    with attach(model, empty, self_capture=recorder) as session:
        latents = sampled(model, kind, sampler, session.around_call)
    sink.finish()
    return latents, Attention.open(folder, "self"), seen


class Watcher:
    """Records normed queries and keys of every self-attention with the model's own processors, and the rotations."""

    def __init__(self, model: WanModel) -> None:
        self.calls: list[dict[str, Any]] = []
        self.handles = []
        for transformer in model.experts():
            for block in transformer.blocks:
                attn, found = block.attn1, {}
                self.handles += [
                    attn.norm_q.register_forward_hook(lambda m, a, out, found=found: found.update(q=out)),
                    attn.norm_k.register_forward_hook(lambda m, a, out, found=found: found.update(k=out)),
                    attn.register_forward_hook(
                        lambda m, a, out, found=found: self.calls.append({**found, "rotary": a[3]})
                    ),
                ]

    def close(self) -> None:
        for handle in self.handles:
            handle.remove()


def own_calls(model: WanModel, kind: str = "2.1", sampler: SamplerSpec = SAMPLER) -> tuple[torch.Tensor, list[dict]]:
    watcher = Watcher(model)
    try:
        return sampled(model, kind, sampler), watcher.calls
    finally:
        watcher.close()


def full_map(call: dict[str, Any]) -> torch.Tensor:
    """Return the full map [B, H, Q, Q] in float64; the rotation is a product of complex numbers."""
    cos, sin = (part.double()[..., 0::2] for part in call["rotary"])
    turn = torch.complex(cos, sin)

    def turned(x: torch.Tensor) -> torch.Tensor:
        pairs = torch.view_as_complex(x.double().unflatten(2, (HEADS, -1)).unflatten(-1, (-1, 2)).contiguous())
        return torch.view_as_real(pairs * turn).flatten(-2)

    q, k = turned(call["q"]), turned(call["k"])
    return torch.softmax(torch.einsum("bqhk,buhk->bhqu", q, k) * q.shape[-1] ** -0.5, -1)


def tokens(plan: AttentionPlan) -> list[int]:
    return [row.columns[0] for row in plan.rows]


@pytest.mark.parametrize("kind", ["2.1", "2.2", "5b"])
def test_rows_equal_the_full_softmax_and_the_video_is_bit_for_bit_the_same(kind: str, tmp_path: Path) -> None:
    model = tiny_model(kind)
    latents, calls = own_calls(model, kind)
    recorded, maps, seen = captured(model, tmp_path, kind)
    assert torch.equal(recorded, latents)
    plan = planned(model, kind)
    assert maps.names == ("x0 y0 t0", "x0.5 y0.5 t0.5", "x1 y0.3 t1") and maps.shape == (STEPS, *plan.map_shape)
    frames, rows, columns = plan.grid
    assert tokens(plan) == [
        0,
        ((frames // 2) * rows + rows // 2) * columns + columns // 2,
        ((frames - 1) * rows + int(0.3 * rows)) * columns + columns - 1,
    ]
    for step in range(STEPS):
        for block in range(BLOCKS):  # cond goes before uncond
            truth = full_map(calls[2 * step * BLOCKS + block])[0, :, tokens(plan)].mean(0).numpy()
            exact = seen[step * BLOCKS + block]
            assert (exact.step, exact.block, exact.measure) == (step, block, "self")
            assert np.abs(exact.maps.reshape(truth.shape) - truth).max() <= 5e-6
            assert np.abs(maps[step, block].reshape(truth.shape) - truth).max() <= 2.0**-10 * truth.max()


def test_heads_blocks_steps_branches_and_batches(tmp_path: Path) -> None:
    model = tiny_model("2.1")
    batched = SAMPLER.model_copy(update={"cfg_batched": True})
    latents, calls = own_calls(model, sampler=batched)
    plan = planned(model)
    for i, branch in enumerate(("cond", "uncond")):
        recorded, maps, _ = captured(
            model, tmp_path / branch, sampler=batched, heads=[1, 3], blocks="2-3", steps=[2], branch=branch
        )
        assert torch.equal(recorded, latents)
        assert maps.shape == (1, 2, 2, 3, *plan.grid) and maps.dims[2] == "head"
        truth = full_map(calls[2 * BLOCKS + 3])[i, [1, 3]][:, tokens(plan)].numpy()
        assert np.abs(maps[0, 1].reshape(truth.shape) - truth).max() <= 2.0**-10


def test_means_are_the_means_of_the_maps(tmp_path: Path) -> None:
    model = tiny_model("2.1")
    _, whole, _ = captured(model, tmp_path / "maps")
    _, mean, _ = captured(model, tmp_path / "mean", keep="mean")
    assert mean.shape[0] == 1 and np.abs(mean[0] - whole[:].mean(0)).max() <= 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_models(dtype: torch.dtype, tmp_path: Path) -> None:
    model = tiny_model("2.1", dtype=dtype)
    latents, calls = own_calls(model)
    recorded, _, seen = captured(model, tmp_path)
    assert torch.equal(recorded, latents)
    # The keys are rounded to the model's dtype after the rotation, those of the reference are not.
    plan, coarse = planned(model), 4 * torch.finfo(dtype).eps
    for block in range(BLOCKS):
        truth = full_map(calls[block])[0, :, tokens(plan)].mean(0).numpy()
        assert np.abs(seen[block].maps.reshape(truth.shape) - truth).max() <= coarse


def test_compiled_and_offloaded_blocks_record_the_same(tmp_path: Path) -> None:
    model = tiny_model("2.1")
    latents, eager, _ = captured(model, tmp_path / "eager")

    def again(run: str) -> None:
        recorded, maps, _ = captured(model, tmp_path / run)
        assert torch.equal(recorded, latents) and np.array_equal(maps[:], eager[:])

    check_compiled_twice(model, lambda: sampled(model), latents, again)

    model = tiny_model("2.1")
    model.transformer.enable_group_offload(
        onload_device=torch.device("cpu"), offload_type="block_level", num_blocks_per_group=1, use_stream=False
    )
    recorded, maps, _ = captured(model, tmp_path / "offloaded")
    assert torch.equal(recorded, latents) and np.array_equal(maps[:], eager[:])


def test_the_model_is_unchanged_afterwards(tmp_path: Path) -> None:
    model = tiny_model("2.1")
    before = [block.attn1.processor for block in model.transformer.blocks]
    captured(model, tmp_path)
    assert [block.attn1.processor for block in model.transformer.blocks] == before


def test_the_rotation_is_an_isometry() -> None:
    x = torch.randn(1, 6, 2, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    angle = torch.randn(1, 6, 1, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    cos, sin = (part.repeat_interleave(2, -1) for part in (angle.cos(), angle.sin()))
    assert torch.allclose(rotated(x, cos, sin).norm(dim=-1), x.norm(dim=-1))
    assert torch.allclose(rotated(rotated(x, cos, sin), cos, -sin), x)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"blocks": "4"}, "capture.self_attention.blocks: there is no block 4"),
        ({"heads": [4]}, "capture.self_attention.heads names head 4"),
        ({"steps": "9"}, "capture.self_attention.steps: there is no step 9"),
    ],
)
def test_what_cannot_be_recorded_is_refused(spec: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        planned(tiny_model("2.1"), **spec)
    assert said in str(caught.value)


@pytest.mark.parametrize("part", ["block", "cross_attention"])
@pytest.mark.parametrize("branch", ["uncond", "both"])
def test_maps_are_missing_only_if_no_branch_of_a_batch_runs(part: Any, branch: Any, tmp_path: Path) -> None:
    model = tiny_model("2.1")
    sampler = SAMPLER.model_copy(update={"cfg_batched": True})
    edits = [Skip(blocks="1", part=part, branch=branch)]
    plan = edit_plan(model, edits, encoded(model, edits), sampler, VideoSpec(**video(), fps=8))
    facts = ModelFacts(BLOCKS, HEADS, STEPS, 0, plan.grid, model.text_length)
    words = plan_attention(AttentionCapture(tokens=("circle",)), model.tokenizer, PROMPT, NEGATIVE, [], facts)
    sinks = [AttentionSink(words, tmp_path), AttentionSink(planned(model), tmp_path)]
    texts = Conditioning(*encode(model, [PROMPT, NEGATIVE]))

    def run(*recorders: Any) -> torch.Tensor:
        noise = initial_noise(model.latent_shape(VideoSpec(**video(), fps=8)), 1)
        cross, itself = recorders or (None, None)
        with attach(model, plan, cross, self_capture=itself) as session:
            latents = denoise(model, texts, sampler, noise, around_call=session.around_call).latents
        session.verify()
        return latents

    plain = run()
    recorded = run(
        AttentionRecorder(sinks[0], model.device, model.dtype), SelfAttentionRecorder(sinks[1], model.device)
    )
    assert torch.equal(recorded, plain)
    for sink, measure in zip(sinks, ("probability", "self"), strict=True):
        sink.finish()
        absent = np.isnan(Attention.open(tmp_path, measure)[:]).all((0, 2, 3, 4, 5))
        gone = branch == "both" and (part == "block" or measure == "probability")
        assert absent.tolist() == [False, gone, False, False]
