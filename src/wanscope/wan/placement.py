"""Moves a model to where memory_plan.py decided that it runs.

A study calls, in this order: `place_encoder`, encoding all prompts, `model.free_encoder()`, `place`, denoising and
decoding. Offloading is diffusers' group offload.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from wanscope import events
from wanscope.wan.download import size
from wanscope.wan.memory_plan import MemoryPlan, Weights, encoder_bytes, plan_memory

if TYPE_CHECKING:
    from torch import nn

    from wanscope.wan.model import WanModel


def weights_in(model: WanModel) -> Weights:
    """Return the bytes of a loaded model's weights; quantized weights count as they are stored."""
    experts = model.experts()
    block = max(_bytes(block) for transformer in experts for block in transformer.blocks)
    whole = tuple(_bytes(transformer) for transformer in experts)
    inside = sum(_bytes(block) for block in experts[0].blocks)
    encoder = 0 if model.text_encoder is None else _bytes(model.text_encoder)
    return Weights(whole, whole[0] - inside, block, encoder, _bytes(model.vae_original or model.vae))


def _bytes(module: nn.Module) -> int:
    seen = {id(p): p.numel() * p.element_size() for p in (*module.parameters(), *module.buffers())}
    return sum(seen.values())


@dataclass
class Capacity:
    """The memory that a model has to fit into, in bytes.

    device_bytes: the GPU's total less what other programs use; None on the CPU. host_bytes: the host's total.
    """

    device_bytes: int | None
    host_bytes: int
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


def capacity(device: torch.device) -> Capacity:
    """Return the memory of this machine and the device."""
    import psutil

    host = psutil.virtual_memory()
    if device.type != "cuda":
        return Capacity(None, host.total, device)
    free, _ = torch.cuda.mem_get_info(device)
    return Capacity(free + torch.cuda.memory_reserved(device), host.total, device)


def _move(module: nn.Module, device: torch.device) -> None:
    module.to(device)


def place_encoder(model: WanModel, plan: MemoryPlan | None = None) -> None:
    """Move the text encoder to where it runs: the device, or the CPU where it alone does not fit on the device."""
    if plan is None:
        limit = capacity(model.device).device_bytes
        on_device = limit is None or encoder_bytes(model.variant, weights_in(model).encoder) <= limit
    else:
        on_device = plan.encoder_on_device
    _move(model.encoder(), model.device if on_device else torch.device("cpu"))


def place(
    model: WanModel,
    width: int,
    height: int,
    frames: int,
    *,
    batch: int = 1,
    on_event: events.Listener = events.ignore,
) -> MemoryPlan:
    """Move transformer and VAE to where they run for videos of this size, in pixels and frames; return the plan.

    The text encoder is moved back to host memory first, unless it was freed. batch: 2 with batched guidance. A Note
    tells where blocks are offloaded or the VAE runs in bf16. Raises MemoryPlanError before anything is moved.
    """
    have = capacity(model.device)
    dtype = "fp32" if model.dtype == torch.float32 else "bf16"
    mode = "offload" if model.placed == "offload" and model.memory == "auto" else model.memory
    plan = plan_memory(
        model.variant,
        dtype,
        width,
        height,
        frames,
        have.device_bytes,
        have.host_bytes,
        mode,
        weights=weights_in(model),
        batch=batch,
    )
    is_new = plan.placement != model.placed
    if model.text_encoder is not None and model.device.type != "cpu":
        _move(model.text_encoder, torch.device("cpu"))
        torch.cuda.empty_cache()
    if plan.placement == "offload":
        offload(model, model.device)
    else:
        for transformer in model.experts():
            _move(transformer, model.device)
    _set_vae_dtype(model, torch.float32 if plan.vae_dtype == "fp32" else torch.bfloat16)
    _move(model.vae, model.device)
    if plan.placement == "offload" and is_new:
        on_event(events.Note(f"transformer blocks are offloaded to host memory: {size(plan.host.bytes)}"))
    if plan.vae_dtype == "bf16":
        on_event(events.Note("the VAE decodes in bf16, because it does not fit into memory in fp32"))
    model.placed = plan.placement
    return plan


def _set_vae_dtype(model: WanModel, dtype: torch.dtype) -> None:
    """Switch the VAE to that dtype. The float32 original stays in host memory, for a later, smaller video."""
    if dtype == torch.float32:
        model.vae, model.vae_original = model.vae_original or model.vae, None
    elif model.vae_original is None:
        model.vae_original = model.vae
        _move(model.vae_original, torch.device("cpu"))
        model.vae = copy.deepcopy(model.vae_original)
        for tensor in (*model.vae.parameters(), *model.vae.buffers()):
            tensor.data = tensor.data.to(dtype)


def offload(model: WanModel, device: torch.device) -> None:
    """Apply group offload to every expert, unless it is applied already.

    Blocks are moved to `device` one by one; on a CUDA device, a stream fetches the next block during the current one.
    """
    if model.placed == "offload":
        return
    import psutil

    cuda = device.type == "cuda"
    # Pinned copies of all weights make transfers fast. Where they do not fit in addition to the weights, each block is
    # pinned when it is transferred.
    tight = sum(weights_in(model).experts) > 0.7 * psutil.virtual_memory().available
    for transformer in model.experts():
        _move(transformer, torch.device("cpu"))
        transformer.enable_group_offload(
            onload_device=device,
            offload_device=torch.device("cpu"),
            offload_type="block_level",
            num_blocks_per_group=1,
            use_stream=cuda,
            low_cpu_mem_usage=cuda and tight,
        )
    model.placed = "offload"
