"""Plans whether and how a run fits into memory, before anything is loaded.

A run has three phases on the device: prompts are encoded, latents denoised, videos decoded. `plan_memory` adds up the
memory of each phase and chooses a placement: everything on the device (`none`), or transformer blocks that stay in host
memory and are moved to the device when they are needed (`offload`). What cannot fit is refused with the arithmetic. On
the CPU there is only one memory, and nothing to place.
"""

from __future__ import annotations

from dataclasses import dataclass

from wanscope.errors import MemoryPlanError
from wanscope.wan import footprint
from wanscope.wan.cost import BYTES
from wanscope.wan.download import size
from wanscope.wan.parameters import counts, outside_blocks
from wanscope.wan.variant import Variant, check_video

CONTEXT_BYTES = 1_000_000_000  # memory of CUDA, cuBLAS and cuDNN themselves, and fragmentation
HOST_RESERVE = 0.1  # share of the host's memory that is left to everything else
VAE_DTYPES = {"fp32": 4, "bf16": 2}  # bytes per value: float32 as published, bfloat16 where that does not fit
BLOCKS_ON_DEVICE = 2  # the running block, and the one that is being fetched


@dataclass(frozen=True)
class Phase:
    """The memory that one phase needs: (label, bytes) of each part."""

    name: str
    items: tuple[tuple[str, int], ...]

    @property
    def bytes(self) -> int:
        """The sum of all parts."""
        return sum(count for _, count in self.items)

    def __str__(self) -> str:
        parts = " + ".join(f"{label} {size(count)}" for label, count in self.items)
        return f"{self.name}: {parts} = {size(self.bytes)}"


@dataclass(frozen=True)
class MemoryPlan:
    """How a model is placed.

    phases: the memory needed on the device. host: what stays in host memory (nothing with `none`, unless the text
    encoder does not fit on the device). encoder_on_device: False where the text encoder alone is too large for the
    device; it then runs on the CPU. vae_dtype: bf16 where decoding in fp32 would not fit; the frames then differ
    slightly, but the latents do not.
    """

    placement: str
    phases: tuple[Phase, ...]
    host: Phase
    device_bytes: int | None
    host_bytes: int
    encoder_on_device: bool = True
    vae_dtype: str = "fp32"

    @property
    def peak_bytes(self) -> int:
        """The peak on the device, or in host memory for a run on the CPU."""
        return max(phase.bytes for phase in self.phases)

    @property
    def limit_bytes(self) -> int:
        """The memory that the phases have to fit into."""
        return self.host_bytes if self.device_bytes is None else self.device_bytes

    @property
    def fits(self) -> bool:
        """Whether all phases fit on the device, and the rest fits into host memory."""
        return self.peak_bytes <= self.limit_bytes and self.host.bytes <= self.host_bytes * (1 - HOST_RESERVE)

    def explain(self) -> str:
        """Return the arithmetic as text, with one line per phase."""
        where = "this machine has" if self.device_bytes is None else "the device has"
        lines = [str(phase) for phase in self.phases] + [f"{where} {size(self.limit_bytes)}"]
        if self.host.items:
            lines += [str(self.host), f"host memory is {size(self.host_bytes)}"]
        return "\n  ".join(["", *lines])


@dataclass(frozen=True)
class Weights:
    """Bytes of weights.

    experts: of each expert. outside_blocks: of the part of one expert that is outside its blocks. block: of one block.
    vae: in fp32.
    """

    experts: tuple[int, ...]
    outside_blocks: int
    block: int
    encoder: int
    vae: int


def weights_of(variant: Variant, dtype: str) -> Weights:
    """Return the bytes of weights, computed from the configs before anything is loaded."""
    e, c = BYTES[dtype], counts(variant)
    inside = c.transformer - outside_blocks(variant)
    return Weights(
        (c.transformer * e,) * variant.experts,
        (c.transformer - inside) * e,
        inside // variant.blocks * e,
        c.encoder * (4 if e == 4 else 2),
        c.vae * VAE_DTYPES["fp32"],
    )


def encoder_bytes(variant: Variant, weights: int) -> int:
    """Return the bytes needed to encode a prompt on a device with nothing else on it. weights: of the encoder."""
    return weights + footprint.encode_bytes(variant, 2) + CONTEXT_BYTES


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
    """Return the first placement that fits.

    width, height: in pixels. device_bytes: the GPU's memory; None on the CPU. mode: auto, none or offload. weights:
    those of a loaded model; by default they are computed from the configs. batch: 2 with batched guidance. Raises
    MemoryPlanError, with the arithmetic, where no placement of that mode fits.
    """
    check_video(variant, width, height, frames)
    weights = weights or weights_of(variant, dtype)

    def plans(width: int, height: int) -> list[MemoryPlan]:
        """Return all possible placements, the best first."""
        sizes = (variant, width, height, frames)
        if device_bytes is None:
            return [_on_cpu(sizes, dtype, weights, host_bytes, batch)]
        return [
            _on_device(sizes, dtype, weights, device_bytes, host_bytes, placement, vae_dtype, batch)
            for vae_dtype in VAE_DTYPES
            for placement in (("none", "offload") if mode == "auto" else (mode,))
        ]

    tried = plans(width, height)
    for plan in tried:
        if plan.fits:
            return plan
    smaller = (size for size in variant.sizes if size[0] * size[1] < width * height)
    fitting = next((size for size in smaller if any(plan.fits for plan in plans(*size))), None)
    raise _refusal(tried[-1], (variant, width, height, frames), mode, fitting)


Sizes = tuple[Variant, int, int, int]


def _activations(sizes: Sizes, dtype: str, vae_dtype: str, memory_bytes: int, batch: int) -> tuple[int, int]:
    """Return the bytes of activations in denoising, and in decoding with the chunk length that vae.decode chooses."""
    variant, width, height, frames = sizes
    denoise = footprint.denoise_bytes(variant, width, height, frames, BYTES[dtype], batch)
    vae, e = variant.vae_config(), VAE_DTYPES[vae_dtype]
    chunk = footprint.decode_chunk(vae, width, height, memory_bytes, e)
    return denoise, footprint.decode_bytes(vae, width, height, chunk, e)


def _on_cpu(sizes: Sizes, dtype: str, weights: Weights, host_bytes: int, batch: int) -> MemoryPlan:
    denoise, decode = _activations(sizes, dtype, "fp32", host_bytes, batch)
    decode += footprint.video_bytes(*sizes[1:])
    encode = footprint.encode_bytes(sizes[0], 4 if BYTES[dtype] == 4 else 2)
    held = (("transformer", sum(weights.experts)), ("VAE", weights.vae))
    phases = (
        Phase("encode prompts", (("text encoder", weights.encoder), ("activations", encode))),
        Phase("denoise", (*held, ("activations", denoise))),
        Phase("decode", (*held, ("activations and video", decode))),
    )
    return MemoryPlan("none", phases, Phase("host", ()), None, host_bytes)


def _on_device(
    sizes: Sizes,
    dtype: str,
    weights: Weights,
    device_bytes: int,
    host_bytes: int,
    placement: str,
    vae_dtype: str,
    batch: int,
) -> MemoryPlan:
    denoise, decode = _activations(sizes, dtype, vae_dtype, device_bytes, batch)
    vae = (f"VAE ({vae_dtype})", weights.vae * VAE_DTYPES[vae_dtype] // 4)
    encode = footprint.encode_bytes(sizes[0], 4 if BYTES[dtype] == 4 else 2)
    cuda = ("CUDA", CONTEXT_BYTES)
    phases = [Phase("encode prompts", (("text encoder", weights.encoder), ("activations", encode), cuda))]
    encoder_fits = phases[0].bytes <= device_bytes
    if not encoder_fits:
        phases = []
    label = "transformer" if len(weights.experts) == 1 else "two experts"
    if placement == "none":
        held = ((label, sum(weights.experts)), vae, cuda)
        phases.append(Phase("denoise", (*held, ("activations", denoise))))
        phases.append(Phase("decode", (*held, ("activations", decode))))
        host = Phase("host", () if encoder_fits else (("text encoder", weights.encoder),))
    else:
        moving = (
            (f"{BLOCKS_ON_DEVICE} blocks", BLOCKS_ON_DEVICE * weights.block),
            ("embeddings", weights.outside_blocks * len(weights.experts)),
        )
        phases.append(Phase("denoise", (*moving, vae, cuda, ("activations", denoise))))
        phases.append(Phase("decode", (*moving, vae, cuda, ("activations", decode))))
        host = Phase("host", ((label, sum(weights.experts)), ("text encoder", weights.encoder)))
    return MemoryPlan(placement, tuple(phases), host, device_bytes, host_bytes, encoder_fits, vae_dtype)


def _refusal(plan: MemoryPlan, sizes: Sizes, mode: str, fitting: tuple[int, int] | None) -> MemoryPlanError:
    variant, width, height, frames = sizes
    over = [phase.name for phase in plan.phases if phase.bytes > plan.limit_bytes]
    too_large = f"{' and '.join(over)} {'is' if len(over) == 1 else 'are'} too large"
    host_is_short = plan.peak_bytes <= plan.limit_bytes
    fix = ""
    if mode == "none" and plan.device_bytes is not None:
        fix = "--memory offload"
    elif fitting is not None:
        fix = f"--width {fitting[0]} --height {fitting[1]}"
    elif not host_is_short:
        too_large += "; use fewer frames, a smaller size or a smaller model"
        fix = "wanscope models"
    return MemoryPlanError(
        f"{variant.name} at {width}x{height}, {frames} frames does not fit into memory",
        ("host memory is too small" if host_is_short else too_large) + plan.explain(),
        fix,
    )
