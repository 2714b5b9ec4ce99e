"""Fitting a model into memory: the sum first, then the placing.

A run has three phases on the device: prompts are encoded, latents denoised, videos decoded. `plan_memory` adds up each
one and chooses: everything on the device (`none`), or transformer blocks that wait in host memory and come to the
device as they are needed (`offload`, diffusers' group offload). What cannot fit is refused with the sum, before any
work. On the CPU there is one memory and nothing to place.

Order of a study: `place_encoder`, encode all prompts, `model.free_encoder()`, `place`, denoise and decode.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from wanscope.errors import MemoryPlanError
from wanscope.wan import footprint
from wanscope.wan.cost import BYTES
from wanscope.wan.download import size
from wanscope.wan.listing import counts
from wanscope.wan.variant import Variant, check_video

if TYPE_CHECKING:
    from torch import nn

    from wanscope.wan.model import WanModel

CONTEXT_BYTES = 1_000_000_000  # what CUDA, cuBLAS and cuDNN take for themselves, and fragmentation
HOST_RESERVE = 0.1  # of the host's memory, left to everything else
VAE_VALUE_BYTES = 4  # the VAE runs in float32
BLOCKS_ON_DEVICE = 2  # the running block and the one that is fetched meanwhile


@dataclass(frozen=True)
class Phase:
    """What one phase needs in one memory: (label, bytes) of each part."""

    name: str
    items: tuple[tuple[str, int], ...]

    @property
    def bytes(self) -> int:
        return sum(count for _, count in self.items)

    def __str__(self) -> str:
        parts = " + ".join(f"{label} {size(count)}" for label, count in self.items)
        return f"{self.name}: {parts} = {size(self.bytes)}"


@dataclass(frozen=True)
class MemoryPlan:
    """How a model is placed. `phases` are on the device; `host` is what waits in host memory (nothing with `none`).

    `encoder_on_device` is False where the text encoder alone is too large for the device; it then runs on the CPU.
    """

    placement: str
    phases: tuple[Phase, ...]
    host: Phase
    device_bytes: int | None
    host_bytes: int
    encoder_on_device: bool = True

    @property
    def peak_bytes(self) -> int:
        """Of the device (of the host's one memory on the CPU)."""
        return max(phase.bytes for phase in self.phases)

    def explain(self) -> str:
        """The sum, a line a phase."""
        where = "this machine has" if self.device_bytes is None else "the device has"
        have = self.host_bytes if self.device_bytes is None else self.device_bytes
        lines = [str(phase) for phase in self.phases] + [f"{where} {size(have)}"]
        if self.host.items:
            lines += [str(self.host), f"host memory is {size(self.host_bytes)}"]
        return "\n  ".join(["", *lines])


@dataclass(frozen=True)
class Weights:
    """Bytes of weights: of each expert, of the part of an expert outside its blocks, of one block, encoder, VAE."""

    experts: tuple[int, ...]
    outside_blocks: int
    block: int
    encoder: int
    vae: int


def weights_of(variant: Variant, dtype: str) -> Weights:
    """From the configs, before anything is loaded."""
    e, c = BYTES[dtype], counts(variant)
    inside = c.transformer - _outside_blocks(variant)
    return Weights(
        (c.transformer * e,) * variant.experts,
        (c.transformer - inside) * e,
        inside // variant.blocks * e,
        c.encoder * (4 if e == 4 else 2),
        c.vae * VAE_VALUE_BYTES,
    )


def _outside_blocks(v: Variant) -> int:
    """Parameters of the embeddings and the head."""
    p = v.patch[0] * v.patch[1] * v.patch[2]
    linear = [(v.in_channels * p, v.dim), (v.freq_dim, v.dim), (v.dim, v.dim), (v.dim, 6 * v.dim)]
    linear += [(v.text_dim, v.dim), (v.dim, v.dim), (v.dim, v.out_channels * p)]
    if v.image_dim is not None:
        linear += [(v.image_dim, v.image_dim), (v.image_dim, v.dim), (1, v.image_dim), (1, v.dim)]
    return sum(a * b + b for a, b in linear) + 2 * v.dim


def weights_in(model: WanModel) -> Weights:
    """As the loaded model has them (quantised weights count as they are stored)."""
    experts = model.experts()
    block = max(_bytes(block) for transformer in experts for block in transformer.blocks)
    whole = tuple(_bytes(transformer) for transformer in experts)
    inside = sum(_bytes(block) for block in experts[0].blocks)
    encoder = 0 if model.text_encoder is None else _bytes(model.text_encoder)
    return Weights(whole, whole[0] - inside, block, encoder, _bytes(model.vae))


def _bytes(module: nn.Module) -> int:
    seen = {id(p): p.numel() * p.element_size() for p in (*module.parameters(), *module.buffers())}
    return sum(seen.values())


def plan_memory(
    variant: Variant,
    dtype: str,
    width: int,
    height: int,
    frames: int,
    device_bytes: int | None,
    host_bytes: int,
    mode: str = "auto",
    *,
    weights: Weights | None = None,
    batch: int = 1,
) -> MemoryPlan:
    """How the model fits. device_bytes: the GPU's memory, None on the CPU. batch: 2 with batched guidance.

    MemoryPlanError, with the sum, when it does not fit as asked.
    """
    check_video(variant, width, height, frames)
    weights = weights or weights_of(variant, dtype)
    sizes = (variant, width, height, frames)
    if device_bytes is None:
        plan = _on_cpu(sizes, dtype, weights, host_bytes, batch)
        if plan.peak_bytes <= host_bytes:
            return plan
        raise _refusal(plan, sizes, "none")
    plans = {
        placement: _on_device(sizes, dtype, weights, device_bytes, host_bytes, placement, batch)
        for placement in (("none", "offload") if mode == "auto" else (mode,))
    }
    for plan in plans.values():
        host_limit = host_bytes * (1 - HOST_RESERVE)
        if plan.peak_bytes <= device_bytes and plan.host.bytes <= host_limit:
            return plan
    raise _refusal(list(plans.values())[-1], sizes, mode)


Sizes = tuple[Variant, int, int, int]


def _activations(sizes: Sizes, dtype: str, batch: int) -> tuple[int, int]:
    """Of denoising, and of decoding one latent frame at a time with the video."""
    variant, width, height, frames = sizes
    denoise = footprint.denoise_bytes(variant, width, height, frames, BYTES[dtype], batch)
    decode = footprint.decode_bytes(variant.vae_config(), width, height, 1, VAE_VALUE_BYTES)
    return denoise, decode + footprint.video_bytes(width, height, frames)


def _on_cpu(sizes: Sizes, dtype: str, weights: Weights, host_bytes: int, batch: int) -> MemoryPlan:
    denoise, decode = _activations(sizes, dtype, batch)
    encode = footprint.encode_bytes(sizes[0], 4 if BYTES[dtype] == 4 else 2)
    held = (("transformer", sum(weights.experts)), ("VAE", weights.vae))
    phases = (
        Phase("encode prompts", (("text encoder", weights.encoder), ("activations", encode))),
        Phase("denoise", (*held, ("activations", denoise))),
        Phase("decode", (*held, ("activations and video", decode))),
    )
    return MemoryPlan("none", phases, Phase("host", ()), None, host_bytes)


def _on_device(
    sizes: Sizes, dtype: str, weights: Weights, device_bytes: int, host_bytes: int, placement: str, batch: int
) -> MemoryPlan:
    denoise, decode = _activations(sizes, dtype, batch)
    encode = footprint.encode_bytes(sizes[0], 4 if BYTES[dtype] == 4 else 2)
    cuda = ("CUDA", CONTEXT_BYTES)
    phases = [Phase("encode prompts", (("text encoder", weights.encoder), ("activations", encode), cuda))]
    encoder_fits = phases[0].bytes <= device_bytes
    if not encoder_fits:
        phases = []
    label = "transformer" if len(weights.experts) == 1 else "two experts"
    if placement == "none":
        held = ((label, sum(weights.experts)), ("VAE", weights.vae), cuda)
        phases.append(Phase("denoise", (*held, ("activations", denoise))))
        phases.append(Phase("decode", (*held, ("activations and video", decode))))
        host = Phase("host", () if encoder_fits else (("text encoder", weights.encoder),))
    else:
        moving = (
            (f"{BLOCKS_ON_DEVICE} blocks", BLOCKS_ON_DEVICE * weights.block),
            ("embeddings", weights.outside_blocks * len(weights.experts)),
        )
        phases.append(Phase("denoise", (*moving, ("VAE", weights.vae), cuda, ("activations", denoise))))
        phases.append(Phase("decode", (*moving, ("VAE", weights.vae), cuda, ("activations and video", decode))))
        host = Phase("host", ((label, sum(weights.experts)), ("text encoder", weights.encoder)))
    return MemoryPlan(placement, tuple(phases), host, device_bytes, host_bytes, encoder_fits)


def _refusal(plan: MemoryPlan, sizes: Sizes, mode: str) -> MemoryPlanError:
    variant, width, height, frames = sizes
    have = plan.host_bytes if plan.device_bytes is None else plan.device_bytes
    worst = max(plan.phases, key=lambda phase: phase.bytes)
    host_is_short = plan.peak_bytes <= have
    fixes = ["memory: offload"] if mode == "none" and plan.device_bytes is not None else []
    smaller = [s for s in variant.sizes if s[0] * s[1] < width * height]
    if not host_is_short and smaller:
        fixes.append(f"video.width={smaller[-1][0]} video.height={smaller[-1][1]}")
    elif not host_is_short:
        fixes.append("fewer frames or a smaller size")
    return MemoryPlanError(
        f"{variant.name} at {width}x{height}, {frames} frames does not fit into memory",
        ("host memory is too small" if host_is_short else f"{worst.name} is too large") + plan.explain(),
        ", or ".join(fixes),
    )


@dataclass
class Capacity:
    """Total memory of a device, and what of the host's is free; bytes."""

    device_bytes: int | None
    host_bytes: int
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


def capacity(device: torch.device) -> Capacity:
    """What there is to fit into. On a GPU: its total less what other programs hold."""
    import psutil

    host = psutil.virtual_memory()
    if device.type != "cuda":
        return Capacity(None, host.total, device)
    free, _ = torch.cuda.mem_get_info(device)
    return Capacity(free + torch.cuda.memory_reserved(device), host.total, device)


def _move(module: nn.Module, device: torch.device) -> None:
    module.to(device)


def place_encoder(model: WanModel, plan: MemoryPlan | None = None) -> None:
    """Bring the text encoder to where it runs."""
    on_device = plan is None or plan.encoder_on_device
    _move(model.encoder(), model.device if on_device else torch.device("cpu"))


def place(model: WanModel, width: int, height: int, frames: int, *, batch: int = 1) -> MemoryPlan:
    """Bring transformer and VAE to where they run, for videos of this size; what is there already stays.

    The text encoder goes back to host memory first, unless it was freed. MemoryPlanError before anything moves.
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
    if model.text_encoder is not None and model.device.type != "cpu":
        _move(model.text_encoder, torch.device("cpu"))
        torch.cuda.empty_cache()
    if plan.placement == "offload":
        offload(model, model.device)
    else:
        for transformer in model.experts():
            _move(transformer, model.device)
    _move(model.vae, model.device)
    model.placed = plan.placement
    return plan


def offload(model: WanModel, device: torch.device) -> None:
    """Group offload of every expert: blocks come to `device` one by one, on a CUDA device with a stream that fetches
    the next one meanwhile. Does nothing where it is applied already."""
    if model.placed == "offload":
        return
    import psutil

    cuda = device.type == "cuda"
    # Pinned copies of all weights make the transfers fast; where they do not fit beside the weights, pin on the way.
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
