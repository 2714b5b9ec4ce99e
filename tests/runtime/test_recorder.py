"""Recorded maps against the full softmax in float64 of the same queries and keys, on tiny models of every kind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.recording import check_compiled_twice, copied
from helpers.tiny import KINDS, tiny_model, video
from wanscope.analysis.attention import concentration
from wanscope.capture.attention_plan import AttentionPlan, ModelFacts, plan_attention
from wanscope.capture.attention_sink import FOLDERS, AttentionSink, Seen
from wanscope.capture.moments import Moment
from wanscope.edit.plan import EditPlan
from wanscope.edit.planned_texts import PlannedText
from wanscope.errors import NumericalError, WorkError
from wanscope.recipe import SamplerSpec, VideoSpec
from wanscope.runtime.diffusers.recorder import AttentionRecorder
from wanscope.runtime.diffusers.session import attach
from wanscope.sample.conditioning import Conditioning
from wanscope.sample.loop import denoise, initial_noise
from wanscope.sample.plan_edits import passes_of
from wanscope.spec.capture import AttentionCapture
from wanscope.take.attention_maps import Attention
from wanscope.wan.model import WanModel
from wanscope.wan.text import encode

PROMPT = "a red circle moves"
HEADS, BLOCKS, STEPS = 4, 4, 3
SAMPLER = SamplerSpec(solver="unipc", steps=STEPS, shift=5.0, guidance=5.0)


@contextmanager
def recording(
    model: WanModel, recorder: AttentionRecorder, sampler: SamplerSpec = SAMPLER, longer: int = 0
) -> Iterator[Any]:
    """Return the context of the loop's calls: a session without edits whose longest text has `longer` more tokens."""
    plan = recorder.plan
    text = PlannedText(torch.zeros(plan.real, 32), frozenset())
    main: dict[Any, PlannedText] = {"cond": text, "uncond": text}
    passes = passes_of(model, sampler)
    empty = EditPlan((), passes, model.blocks, model.text_length, plan.grid, main, plan.real + longer)
    with attach(model, empty, recorder) as session:
        yield session.around_call


def planned(model: WanModel, kind: str = "2.1", **spec: Any) -> AttentionPlan:
    shape = model.latent_shape(VideoSpec(**video(kind), fps=8))
    grid = (shape[1], shape[2] // 2, shape[3] // 2)
    facts = ModelFacts(BLOCKS, HEADS, STEPS, 0, grid, model.text_length)
    spec = {"tokens": ["red circle", "moves"], **spec}
    return plan_attention(AttentionCapture(**spec), model.tokenizer, PROMPT, "a cat", [], facts)


def conditioning(model: WanModel) -> Conditioning:
    return Conditioning(*encode(model, [PROMPT, "a cat"]))


def sampled(model: WanModel, kind: str = "2.1", sampler: SamplerSpec = SAMPLER, around_call: Any = None):
    noise = initial_noise(model.latent_shape(VideoSpec(**video(kind), fps=8)), 1)
    return denoise(model, conditioning(model), sampler, noise, around_call=around_call).latents


def captured(
    model: WanModel, folder: Path, kind: str = "2.1", sampler: SamplerSpec = SAMPLER, longer: int = 0, **spec: Any
):
    """Return (latents, {measure: maps}, all arguments of a reduce function) of a whole run."""
    seen: list[Seen] = []
    sink = AttentionSink(planned(model, kind, **spec), folder, lambda s: seen.append(copied(s)))
    recorder = AttentionRecorder(sink, model.device, model.dtype)
    with recording(model, recorder, sampler, longer) as around_call:
        latents = sampled(model, kind, sampler, around_call)
    sink.finish()
    maps: dict[str, Any] = {m: Attention.open(folder, m) for m, n in FOLDERS.items() if (folder / n).exists()}
    return latents, maps, seen


class Watcher:
    """Records inputs and projections of every cross-attention of a model with its own processors."""

    def __init__(self, model: WanModel) -> None:
        self.calls: list[dict[str, torch.Tensor]] = []
        self.handles = []
        for transformer in model.experts():
            for block in transformer.blocks:
                attn, found = block.attn2, {}
                self.handles += [
                    attn.norm_q.register_forward_hook(lambda m, a, out, found=found: found.update(q=out)),
                    attn.norm_k.register_forward_hook(lambda m, a, out, found=found: found.update(k=out)),
                    attn.to_v.register_forward_hook(lambda m, a, out, found=found: found.update(v=out)),
                    attn.to_q.register_forward_hook(lambda m, a, out, found=found: found.update(hidden=a[0])),
                    attn.register_forward_hook(lambda m, a, out, found=found: self.calls.append(dict(found))),
                ]

    def close(self) -> None:
        for handle in self.handles:
            handle.remove()


def full_map(call: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the full map [B, H, Q, L] in float64."""
    q, k = (call[name].double().unflatten(2, (HEADS, -1)) for name in "qk")
    return torch.softmax(torch.einsum("bqhk,blhk->bhql", q, k) * q.shape[-1] ** -0.5, -1)


def expected(call: dict[str, torch.Tensor], plan: AttentionPlan, row: int = 0) -> torch.Tensor:
    """Return the probabilities of each row [H, R, Q] in float64."""
    full = full_map(call)[row]
    sums = [full[..., list(r.columns)] if r.kind != "pad" else full[..., plan.real :] for r in plan.rows]
    return torch.stack([x.sum(-1) for x in sums], 1)


def own_calls(model: WanModel, kind: str, sampler: SamplerSpec = SAMPLER) -> tuple[torch.Tensor, list[dict]]:
    watcher = Watcher(model)
    try:
        return sampled(model, kind, sampler), watcher.calls
    finally:
        watcher.close()


@pytest.mark.parametrize("kind", ["2.1", "2.2", "5b"])
def test_maps_equal_the_full_softmax_and_the_video_is_bit_for_bit_the_same(kind: str, tmp_path: Path) -> None:
    model = tiny_model(kind)
    latents, calls = own_calls(model, kind)
    recorded, maps, seen = captured(model, tmp_path, kind)
    assert torch.equal(recorded, latents)
    plan = planned(model, kind)
    assert [row.name for row in plan.rows] == ["red circle", "moves", "red", "circle", "pad"]
    assert maps["probability"].shape == (STEPS, *plan.map_shape)
    stored = maps["probability"][:].reshape(STEPS, BLOCKS, len(plan.rows), -1)
    cond = [calls[i * BLOCKS : (i + 1) * BLOCKS] for i in range(0, 2 * STEPS, 2)]  # cond goes before uncond
    assert len(calls) == 2 * STEPS * BLOCKS
    for step in range(STEPS):
        for block in range(BLOCKS):
            truth = expected(cond[step][block], plan).mean(0).numpy()
            exact = seen[step * BLOCKS + block]
            assert (exact.step, exact.block, exact.expert) == (step, block, int(kind == "2.2" and exact.sigma < 0.875))
            assert np.abs(exact.maps.reshape(truth.shape) - truth).max() <= 5e-6
            assert np.abs(stored[step, block] - truth).max() <= 5e-4


@pytest.mark.parametrize("kind", KINDS)
def test_a_single_call_of_every_kind_is_recorded(kind: str, tmp_path: Path) -> None:
    model = tiny_model(kind)
    transformer, text = model.transformer, torch.zeros(1, model.text_length, 32)
    real = planned(model, kind).real
    text[:, :real] = torch.randn(1, real, 32, generator=torch.Generator().manual_seed(2))
    inputs: dict[str, Any] = {
        "hidden_states": torch.randn(1, transformer.config["in_channels"], 3, 8, 8, generator=torch.manual_seed(0)),
        "timestep": torch.full((1, 48) if kind == "5b" else (1,), 500.0),
        "encoder_hidden_states": text,
    }
    if kind == "i2v-2.1":
        inputs["encoder_hidden_states_image"] = torch.randn(1, 257, 20, generator=torch.manual_seed(1))
    grid = (3, 4, 4)
    facts = ModelFacts(BLOCKS, HEADS, 1, 0, grid, model.text_length)
    spec = AttentionCapture(tokens=["red"], heads="all", keep="nothing")
    plan = plan_attention(spec, model.tokenizer, PROMPT, "", [], facts)
    watcher = Watcher(model)
    with torch.no_grad():
        before = transformer(**inputs).sample
    watcher.close()
    seen: list[Seen] = []
    sink = AttentionSink(plan, tmp_path, lambda s: seen.append(copied(s)))
    recorder = AttentionRecorder(sink, model.device, model.dtype)
    with recording(model, recorder) as around_call, around_call(Moment(0, 1, 0, ("cond",), 0, 0.5)), torch.no_grad():
        after = transformer(**inputs).sample
    sink.finish()
    assert torch.equal(before, after)
    for block in range(BLOCKS):
        truth = expected(watcher.calls[block], plan).numpy()
        assert np.abs(seen[block].maps.reshape(truth.shape) - truth).max() <= 5e-6
    assert not any(tmp_path.iterdir())  # keep: nothing


def test_heads_measures_and_branches(tmp_path: Path) -> None:
    model = tiny_model("2.1")
    _, calls = own_calls(model, "2.1")
    _, maps, _ = captured(
        model, tmp_path, heads=[1, 3], blocks="2-3", steps=[2], measures=["probability", "contribution"]
    )
    plan = planned(model)
    assert maps["probability"].shape == maps["contribution"].shape == (1, 2, 2, 5, 3, 4, 4)
    call = calls[4 * BLOCKS + 3]
    truth = expected(call, plan)
    assert np.abs(maps["probability"][0, 1].reshape(2, 5, -1) - truth[[1, 3]].numpy()).max() <= 5e-4

    attn = model.transformer.blocks[3].attn2
    weight = attn.to_out[0].weight.double().unflatten(1, (HEADS, -1))  # [D, H, K]
    values = call["v"][0].double().unflatten(1, (HEADS, -1))
    given = torch.einsum("hql,lhk,dhk->hqld", full_map(call)[0], values, weight)
    columns = [list(row.columns) if row.kind != "pad" else list(range(plan.real, 16)) for row in plan.rows]
    by_head = torch.stack([given[:, :, c].sum(2).norm(dim=-1) for c in columns], 1)
    relative = np.abs(maps["contribution"][0, 1].reshape(2, 5, -1) - by_head[[1, 3]].numpy()) / by_head.max().item()
    assert relative.max() <= 1e-3

    _, maps, _ = captured(model, tmp_path / "mean", measures=["contribution"], steps="2", blocks="3")
    together = torch.stack([given[:, :, c].sum((0, 2)).norm(dim=-1) for c in columns])
    assert np.abs(maps["contribution"][0, 0].reshape(5, -1) - together.numpy()).max() <= 1e-3 * together.max().item()

    _, maps, _ = captured(model, tmp_path / "uncond", tokens="all", branch="uncond", steps="0", blocks="1")
    other = full_map(calls[BLOCKS + 1])[0].mean(0)
    names = [row.name for row in planned(model, tokens="all", branch="uncond").rows]
    assert names == ["a", "cat", "</s>", "pad"]
    assert np.abs(maps["probability"][0, 0].reshape(4, -1)[:3] - other[:, :3].T.numpy()).max() <= 5e-4


def test_padding_is_counted_completely_next_to_a_longer_text(tmp_path: Path) -> None:
    model = tiny_model("2.1")
    measures = ["probability", "contribution"]
    _, maps, _ = captured(model, tmp_path / "own", measures=measures)
    _, beside, _ = captured(model, tmp_path / "beside", longer=5, measures=measures)
    for measure in measures:
        assert np.abs(maps[measure][:].astype(float) - beside[measure][:]).max() <= 1e-3


def test_gramcol_is_a_column_of_each_frame_s_gram_matrix(tmp_path: Path) -> None:
    model = tiny_model("2.1")
    _, calls = own_calls(model, "2.1")
    _, maps, _ = captured(model, tmp_path, measures=["gramcol"], steps="1", blocks="2")
    call, plan = calls[2 * BLOCKS + 2], planned(model)
    share = expected(call, plan).mean(0).numpy().reshape(5, 3, 16)
    state = call["hidden"][0].double().numpy().reshape(3, 16, -1)
    found = maps["gramcol"][0, 0].reshape(5, 3, 16)
    for row in range(5):
        for frame in range(3):
            gram = state[frame] @ state[frame].T
            norms = np.sqrt(np.diag(gram))
            peak = share[row, frame].argmax()
            assert np.abs(found[row, frame] - gram[peak] / (norms * norms[peak])).max() <= 1e-3


def test_batched_guidance_records_the_branch_s_own_sample(tmp_path: Path) -> None:
    model = tiny_model("2.1")
    batched = SAMPLER.model_copy(update={"cfg_batched": True})
    latents, calls = own_calls(model, "2.1", batched)
    for i, branch in enumerate(("cond", "uncond")):
        recorded, maps, _ = captured(model, tmp_path / branch, "2.1", batched, tokens="all", branch=branch)
        assert torch.equal(recorded, latents) and len(calls) == STEPS * BLOCKS
        truth = full_map(calls[-1])[i].mean(0).T.numpy()
        count = maps["probability"].shape[2] - 1
        assert np.abs(maps["probability"][-1, -1].reshape(count + 1, -1)[:count] - truth[:count]).max() <= 5e-4


def test_all_evaluations_are_recorded_only_on_request(tmp_path: Path) -> None:
    model = tiny_model("2.1")
    heun = SamplerSpec(solver="heun", steps=STEPS, shift=5.0, guidance=1.0)
    _, first, _ = captured(model, tmp_path / "first", "2.1", heun)
    _, every, _ = captured(model, tmp_path / "all", "2.1", heun, evaluations="all")
    pairs = [[0, 0], [0, 1], [1, 0], [1, 1], [2, 0]]
    assert every["probability"].array.attrs["evaluations"] == pairs and every["probability"].shape[0] == 5
    assert first["probability"].array.attrs["evaluations"] == [[0, 0], [1, 0], [2, 0]]
    assert np.array_equal(first["probability"][:], every["probability"][:][[0, 2, 4]])


def unread(model: WanModel, block: int, tokens: list[int], far: float) -> None:
    """Give all queries of a block a common component, and the keys of these tokens one in the opposite direction."""
    attn = model.transformer.blocks[block].attn2
    asked, told = attn.norm_q.forward, attn.norm_k.forward

    def keys(x: torch.Tensor) -> torch.Tensor:
        k_BLHK = told(x).unflatten(2, (HEADS, -1))
        k_BLHK = k_BLHK - k_BLHK.mean(-1, keepdim=True)
        k_BLHK[:, tokens] -= far / (5 * k_BLHK.shape[-1] ** 0.5)
        return k_BLHK.flatten(2)

    attn.norm_q.forward = lambda x: asked(x) + 5
    attn.norm_k.forward = keys


@pytest.mark.parametrize("reduced", [False, True], ids=["on the device", "on the host"])
def test_words_with_very_little_attention_keep_their_precision(reduced: bool, tmp_path: Path) -> None:
    """Values below 6e-8, the smallest fp16 number, keep fp16's relative precision, in sums and in maps."""
    model = tiny_model("2.1")
    plan = planned(model, blocks="1", steps="0")
    row = [r.name for r in plan.rows].index("moves")
    unread(model, 1, list(plan.rows[row].columns), 22.0)
    _, calls = own_calls(model, "2.1")
    sink = AttentionSink(plan, tmp_path, (lambda seen: None) if reduced else None)
    recorder = AttentionRecorder(sink, model.device, model.dtype)
    with recording(model, recorder) as around_call:
        sampled(model, around_call=around_call)
    sink.finish()
    truth = expected(calls[1], plan).mean(0).numpy()
    assert 0 < truth[row].max() < 2.0**-25  # it would all round to zero
    found = Attention.open(tmp_path, "probability")[0, 0].reshape(truth.shape).astype(np.float64)
    for name, mine, true in zip(plan.rows, found, truth, strict=True):
        assert np.abs(mine - true).max() <= 2.0**-10 * true.max(), name
        assert mine.mean() == pytest.approx(true.mean(), rel=1e-3)
    assert concentration(found.reshape(-1, *plan.grid))[row] == pytest.approx(
        concentration(truth.reshape(-1, *plan.grid))[row], abs=1e-3
    )


def test_running_means_are_the_means_of_the_maps(tmp_path: Path) -> None:
    model = tiny_model("2.1")
    _, whole, _ = captured(model, tmp_path / "maps")
    _, mean, _ = captured(model, tmp_path / "mean", keep="mean")
    rows = [0, 1, 4]  # words and padding; a word's single tokens are left out of means
    assert mean["probability"].shape == (1, BLOCKS, 3, 3, 4, 4)
    assert np.abs(mean["probability"][0] - whole["probability"][:].astype(float).mean(0)[:, rows]).max() <= 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_models(dtype: torch.dtype, tmp_path: Path) -> None:
    model = tiny_model("2.1", dtype=dtype)
    latents, calls = own_calls(model, "2.1")
    recorded, _, seen = captured(model, tmp_path)
    assert torch.equal(recorded, latents)
    plan = planned(model)
    for block in range(BLOCKS):
        truth = expected(calls[block], plan).mean(0).numpy()
        assert np.abs(seen[block].maps.reshape(truth.shape) - truth).max() <= 2e-4


def test_compiled_blocks_record_the_same_and_are_compiled_once(tmp_path: Path) -> None:
    model = tiny_model("2.1")
    measures = ["probability", "contribution", "gramcol"]
    latents, eager, _ = captured(model, tmp_path / "eager", measures=measures)

    def recorded(run: str) -> None:
        again, maps, _ = captured(model, tmp_path / run, measures=measures)
        assert torch.equal(again, latents)
        for measure in measures:
            assert np.array_equal(maps[measure][:], eager[measure][:])

    check_compiled_twice(model, lambda: sampled(model), latents, recorded)


@pytest.mark.parametrize("how", ["offloaded", "fp8"])
def test_offloaded_and_cast_blocks_record_the_same(how: str, tmp_path: Path) -> None:
    model = tiny_model("2.1")
    measures = ["probability", "contribution", "gramcol"]
    if how == "offloaded":
        _, there, _ = captured(model, tmp_path / "there", measures=measures)
        model.transformer.enable_group_offload(
            onload_device=torch.device("cpu"), offload_type="block_level", num_blocks_per_group=1, use_stream=False
        )
    else:
        model.transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
        there = None
    latents, calls = own_calls(model, "2.1")
    recorded, maps, seen = captured(model, tmp_path / "there too", measures=measures)
    assert torch.equal(recorded, latents)
    if there is not None:
        for measure in measures:
            assert np.array_equal(maps[measure][:], there[measure][:])
    truth = expected(calls[0], planned(model)).mean(0).numpy()
    assert np.abs(seen[0].maps.reshape(truth.shape) - truth).max() <= 5e-6


def test_the_model_is_unchanged_afterwards_even_after_an_error(tmp_path: Path) -> None:
    model = tiny_model("2.1")

    def processors() -> list[Any]:
        return [block.attn2.processor for block in model.transformer.blocks]

    before = processors()

    def fails(seen: Seen) -> None:
        raise KeyError("mine")

    sink = AttentionSink(planned(model), tmp_path, fails)
    recorder = AttentionRecorder(sink, model.device, model.dtype)
    with pytest.raises(KeyError, match="mine"), recording(model, recorder) as around_call:
        sampled(model, around_call=around_call)
    sink.close()
    assert processors() == before and not recorder.active


def test_a_block_that_does_not_run_and_padding_that_differs_are_errors(tmp_path: Path) -> None:
    model = tiny_model("2.1")
    sink = AttentionSink(planned(model), tmp_path)
    recorder = AttentionRecorder(sink, model.device, model.dtype)

    @torch.no_grad()
    def call(text: torch.Tensor) -> None:
        with recording(model, recorder) as around_call, around_call(Moment(0, STEPS, 0, ("cond",), 0, 1.0)):
            model.transformer(torch.zeros(1, 16, 3, 8, 8), torch.zeros(1), text)

    padded = torch.zeros(1, model.text_length, 32)
    call(padded)
    attn = model.transformer.blocks[1].attn2
    attn.forward = lambda hidden_states, *rest, **more: torch.zeros_like(hidden_states)
    with pytest.raises(WorkError, match="block 1 was recorded 0 times"):
        call(padded)
    del attn.forward
    with pytest.raises(NumericalError, match="padding"):
        call(torch.randn(padded.shape, generator=torch.Generator().manual_seed(0)))
    sink.close()
