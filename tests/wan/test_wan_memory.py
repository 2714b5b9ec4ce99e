"""The plan's sums on invented machines, and placement on the CPU without changing a bit."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.tiny import tiny_model, video
from wanscope import events
from wanscope.errors import MemoryPlanError, RecipeError
from wanscope.wan import memory_plan, placement
from wanscope.wan import vae as wan_vae
from wanscope.wan.listing import counts
from wanscope.wan.memory_plan import plan_memory
from wanscope.wan.variants import VARIANTS

torch.set_num_threads(1)
GB = 1_000_000_000
SMALL, BIG = VARIANTS["wan2.1-t2v-1.3b"], VARIANTS["wan2.1-t2v-14b"]
P480, P720 = (832, 480, 81), (1280, 720, 81)


def test_everything_on_a_large_gpu():
    plan = plan_memory(BIG, "bf16", *P720, 80 * GB, 128 * GB)
    assert plan.placement == "none" and plan.encoder_on_device and not plan.host.items
    assert {phase.name for phase in plan.phases} == {"encode prompts", "denoise", "decode"}
    assert 28.6 * GB < plan.peak_bytes < 80 * GB


@pytest.mark.parametrize(
    ("variant", "size", "device", "placement"),
    [
        (SMALL, P480, 24, "none"),
        (BIG, P480, 80, "none"),
        (BIG, P480, 24, "offload"),
        (BIG, P720, 24, "offload"),
        (VARIANTS["wan2.2-t2v-a14b"], P720, 80, "none"),
        (VARIANTS["wan2.2-t2v-a14b"], P720, 48, "offload"),
        (VARIANTS["wan2.2-ti2v-5b"], (1280, 704, 121), 24, "none"),
        (VARIANTS["wan2.2-ti2v-5b"], (1280, 704, 121), 48, "none"),
        (VARIANTS["wan2.2-t2v-a14b"], P480, 24, "offload"),
        (VARIANTS["marbles"], (128, 128, 17), 4, "none"),
    ],
)
def test_auto_chooses(variant, size, device, placement):
    assert plan_memory(variant, "bf16", *size, device * GB, 128 * GB).placement == placement


def test_the_vae_runs_in_bf16_where_fp32_does_not_fit():
    v = VARIANTS["wan2.2-ti2v-5b"]
    size = 1280, 704, 121
    assert plan_memory(v, "bf16", *size, 48 * GB, 64 * GB).vae_dtype == "fp32"
    plan = plan_memory(v, "bf16", *size, 24 * GB, 64 * GB)
    assert (plan.vae_dtype, plan.placement) == ("bf16", "none")
    assert "VAE (bf16)" in plan.explain()


def test_offload_keeps_two_blocks_and_the_embeddings():
    plan = plan_memory(BIG, "bf16", *P480, 80 * GB, 128 * GB, "offload")
    denoise = dict(next(phase for phase in plan.phases if phase.name == "denoise").items)
    block = 2 * (14_288_000_000 / 40)
    assert denoise["2 blocks"] == pytest.approx(2 * block, rel=0.02)
    assert dict(plan.host.items)["transformer"] == 2 * counts(BIG).transformer


def test_the_parts_of_a_transformer_add_up():
    for variant in VARIANTS.values():
        w = memory_plan.weights_of(variant, "bf16")
        assert w.outside_blocks + variant.blocks * w.block == w.experts[0] == 2 * counts(variant).transformer


def test_an_encoder_too_large_for_the_device_stays_on_the_host():
    plan = plan_memory(SMALL, "bf16", *P480, 12 * GB, 32 * GB)
    assert not plan.encoder_on_device and ("text encoder", 2 * counts(SMALL).encoder) in plan.host.items


def test_a_model_that_cannot_fit_is_refused_with_the_sum():
    with pytest.raises(MemoryPlanError) as error:
        plan_memory(BIG, "bf16", *P720, 12 * GB, 128 * GB)
    text = str(error.value)
    assert "wan2.1-t2v-14b at 1280x720, 81 frames does not fit" in text
    assert "activations" in text and "the device has 12.0 GB" in text and "VAE (bf16) 253.8 MB" in text
    assert error.value.fix == "--width 832 --height 480"  # which fits
    assert plan_memory(BIG, "bf16", *P480, 12 * GB, 128 * GB).placement == "offload"
    with pytest.raises(MemoryPlanError, match="--memory offload"):
        plan_memory(BIG, "bf16", *P480, 24 * GB, 128 * GB, "none")
    with pytest.raises(MemoryPlanError, match="host memory is too small"):
        plan_memory(VARIANTS["wan2.2-t2v-a14b"], "bf16", *P480, 24 * GB, 32 * GB)
    with pytest.raises(MemoryPlanError, match=r"this machine has 8\.0 GB"):
        plan_memory(SMALL, "fp32", *P480, None, 8 * GB)


def test_sizes_are_checked_first():
    with pytest.raises(RecipeError, match="80 frames cannot be made"):
        plan_memory(BIG, "bf16", 832, 480, 80, 80 * GB, 128 * GB)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(list(VARIANTS.values())),
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(0, 30),
    st.integers(2, 200),
    st.sampled_from(["auto", "none", "offload"]),
)
def test_a_plan_fits_and_a_refusal_shows_more_than_there_is(variant, width, height, n, device, mode):
    size = width * variant.size_step, height * variant.size_step, 4 * n + 1
    try:
        plan = plan_memory(variant, "bf16", *size, device * GB, 64 * GB, mode)
    except MemoryPlanError:
        with pytest.raises(MemoryPlanError, match="the device has"):  # less memory cannot help
            plan_memory(variant, "bf16", *size, (device - 1) * GB, 64 * GB, mode)
        return
    assert plan.peak_bytes <= device * GB and plan.host.bytes <= 64 * GB
    assert mode in ("auto", plan.placement)
    for phase in plan.phases:
        assert phase.bytes == sum(count for _, count in phase.items) > 0


def forward(transformer) -> torch.Tensor:
    g = torch.Generator().manual_seed(1)
    x, text = torch.randn(1, 16, 2, 4, 4, generator=g), torch.randn(1, 16, 32, generator=g)
    return transformer(x, torch.tensor([500.0]), text, return_dict=False)[0]


def test_group_offload_changes_no_bit():
    """On the CPU, without streams: the same hooks that run on a GPU."""
    model = tiny_model("2.2")
    before = [forward(transformer) for transformer in model.experts()]
    placement.offload(model, torch.device("cpu"))
    assert model.placed == "offload"
    assert all(torch.equal(forward(t), b) for t, b in zip(model.experts(), before, strict=True))
    placement.offload(model, torch.device("cpu"))  # a second time: nothing is hooked twice
    assert all(torch.equal(forward(t), b) for t, b in zip(model.experts(), before, strict=True))


def test_placing_with_offload_is_reported_once(monkeypatch):
    """The plan for a GPU, executed on the CPU."""
    model = tiny_model()
    before = forward(model.transformer)
    plan = plan_memory(BIG, "bf16", *P480, 24 * GB, 128 * GB, "offload")
    monkeypatch.setattr(placement, "plan_memory", lambda *_, **__: plan)
    notes: list[events.Event] = []
    for _ in range(2):
        placement.place(model, **video(), on_event=notes.append)
    assert model.placed == "offload" and torch.equal(forward(model.transformer), before)
    assert [event.text for event in notes] == ["transformer blocks are offloaded to host memory: 39.9 GB"]  # type: ignore


@pytest.mark.parametrize(("device_bytes", "where"), [(None, "meta"), (12 * GB, "meta"), (GB, "cpu")])
def test_the_encoder_goes_to_the_device_if_it_fits(monkeypatch, device_bytes, where):
    model = tiny_model()
    model.device = torch.device("meta")  # represents a GPU
    monkeypatch.setattr(placement, "capacity", lambda device: placement.Capacity(device_bytes, 64 * GB))
    placement.place_encoder(model)
    assert model.encoder().device.type == where


def test_placing_on_the_cpu():
    model = tiny_model()
    before = forward(model.transformer)
    placement.place_encoder(model)
    model.free_encoder()
    plan = placement.place(model, **video())
    assert plan.placement == model.placed == "none" and plan.device_bytes is None
    assert torch.equal(forward(model.transformer), before)


def test_placing_refuses_before_anything_moves(monkeypatch):
    model = tiny_model()
    monkeypatch.setattr(placement, "capacity", lambda device: placement.Capacity(None, 1000))
    with pytest.raises(MemoryPlanError, match=r"this machine has 1\.0 kB"):
        placement.place(model, **video())
    assert model.placed is None


def test_weights_in_a_loaded_model():
    model = tiny_model("2.2")
    w = placement.weights_in(model)
    parameters = sum(p.numel() for p in model.transformer.parameters())
    rope = sum(b.numel() for b in model.transformer.buffers())
    assert w.experts == (4 * (parameters + rope),) * 2
    assert w.outside_blocks + model.blocks * w.block == w.experts[0]
    assert w.encoder > 0
    model.free_encoder()
    assert placement.weights_in(model).encoder == 0


def test_the_vae_in_bf16_and_back(monkeypatch):
    model = tiny_model()
    original = model.vae
    plans = iter(["bf16", "bf16", "fp32"])
    plan = plan_memory(model.variant, "fp32", 64, 64, 9, None, GB)
    monkeypatch.setattr(placement, "plan_memory", lambda *_, **__: dataclasses.replace(plan, vae_dtype=next(plans)))
    notes: list[events.Event] = []
    latents = torch.randn(1, 16, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    want = wan_vae.decode(model.vae, latents)
    for _ in range(2):
        placement.place(model, **video(), on_event=notes.append)
        assert model.vae.dtype == torch.bfloat16 and model.vae is not original
    rough = wan_vae.decode(model.vae, latents)
    assert rough.dtype == torch.float32 and 0 < (rough - want).abs().max() < 0.1
    assert len(notes) == 2 and "bf16" in notes[0].text  # type: ignore[attr-defined]
    placement.place(model, **video())
    assert model.vae is original and torch.equal(wan_vae.decode(model.vae, latents), want)


@pytest.mark.gpu
def test_group_offload_on_a_gpu_changes_no_bit():
    device = torch.device("cuda")
    resident, offloaded = tiny_model(), tiny_model()
    resident.device = offloaded.device = device
    resident.memory, offloaded.memory = "none", "offload"
    x, text = torch.randn(1, 16, 2, 4, 4, device=device), torch.randn(1, 16, 32, device=device)
    results = []
    for model in (resident, offloaded):
        model.free_encoder()
        assert placement.place(model, **video()).placement == model.memory
        results.append(model.transformer(x, torch.tensor([500.0], device=device), text, return_dict=False)[0])
    assert torch.equal(*results)
