"""How long takes will take: from earlier takes on this machine where the workspace has them, else from its speed.

The time of denoising is taken as proportional to FLOPs, that of decoding and writing to pixels.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wanscope.errors import DamagedTake
from wanscope.recipe import Recipe, VideoSpec
from wanscope.take.manifest import Manifest, processor, read_manifest
from wanscope.wan import doctor
from wanscope.wan.cost import decode_flops, flops_per_video
from wanscope.wan.parameters import counts
from wanscope.wan.variant import Variant
from wanscope.workspace import Workspace

if TYPE_CHECKING:
    import torch

LOOKED_AT = 50  # of the workspace's takes, the latest
NEAR = 2.0  # takes within this factor of the FLOPs are preferred to others
# Wan's forward reaches about this share of what a large matrix product reaches: 14B at 480p ran at 365 TFLOP/s on an
# H100 (diffusers 0.33, eager), a product of bf16 matrices at about 700.
SHARE = 0.5
# The VAE's convolutions reach less: of marbles' on two CPU cores a third of what its forwards do there.
DECODE_SHARE = 0.17
# Of one expert. Above this, a video takes days on a CPU; the smallest Wan has 1.4 billion, marbles 2.6 million.
GPU_PARAMETERS = 500_000_000


@dataclass(frozen=True)
class Estimate:
    """seconds of one take, and what that rests on. None where there is no estimate: `basis` then says why."""

    seconds: float | None
    basis: str


def flops_of(variant: Variant, recipe: Recipe) -> float:
    """Return the FLOPs of all transformer forwards of a take."""
    video, sampler = recipe.video, recipe.sampler
    assert video.width and video.height and video.frames and sampler.solver
    guided = any(value is not None and value != 1 for value in (sampler.guidance, sampler.guidance_2))
    return flops_per_video(
        variant,
        video.width,
        video.height,
        video.frames,
        solver=sampler.solver,
        steps=(sampler.steps or 0) - sampler.start_step,
        branches=2 if guided else 1,
    )


def estimate(workspace: Workspace, variant: Variant, recipe: Recipe, device: torch.device) -> Estimate:
    """Estimate the time of one take of `recipe` on `device`, in seconds."""
    from wanscope.wan.load import device_name

    name, cpu = device_name(device), processor()
    mine = [m for m in _latest(workspace) if _alike(m, variant, recipe, name, cpu)]
    if mine:
        return from_takes(variant, recipe, mine)
    if device.type == "cpu" and counts(variant).transformer > GPU_PARAMETERS:
        return Estimate(None, without_gpu(variant))
    return from_speed(variant, recipe, device, cpu if device.type == "cpu" else name)


def without_gpu(variant: Variant) -> str:
    """Explain why a model that needs a GPU has no estimate, with what `wanscope doctor` says about this machine."""
    found = [check for check in (doctor.torch_build(), doctor.gpu()) if check.fix] or [doctor.gpu()]
    told = "; ".join(f"{check.name}: {check.detail}" + (f" (do: {check.fix})" if check.fix else "") for check in found)
    return f"{variant.title} needs a GPU, and this would run on the CPU. wanscope doctor says: {told}"


def from_speed(variant: Variant, recipe: Recipe, device: torch.device, model: str) -> Estimate:
    """Estimate from FLOPs and the speed of matrix products on `device`, whose model name is `model`."""
    from wanscope.wan.speed import matmul_flops

    flops = flops_of(variant, recipe)
    speed = matmul_flops(device, recipe.dtype, model)
    video = recipe.video
    assert video.width and video.height and video.frames
    decoding = decode_flops(variant.vae_config(), video.width, video.height, video.frames)
    decode_speed = DECODE_SHARE * (speed if recipe.dtype == "fp32" else matmul_flops(device, "fp32", model))
    return Estimate(
        flops / (SHARE * speed) + decoding / decode_speed,
        "arithmetic, as the workspace has no earlier take of this model on this machine: "
        f"{flops_text(flops)} per take at {flops_text(SHARE * speed)}/s ({SHARE:.0%} of a matrix product, "
        f"timed once on this machine) and {flops_text(decoding)} to decode it at {flops_text(decode_speed)}/s "
        f"({DECODE_SHARE:.0%}); "
        "loading comes on top",
    )


def from_takes(variant: Variant, recipe: Recipe, manifests: Iterable[Manifest]) -> Estimate:
    """Estimate from the times of earlier takes of the same model on the same device."""
    wanted = flops_of(variant, recipe)
    known = [(flops_of(variant, manifest.recipe), manifest) for manifest in manifests]
    near = [(flops, m) for flops, m in known if wanted / NEAR <= flops <= wanted * NEAR]
    used = near or known
    a_flop = statistics.median(m.seconds["denoise"] / flops for flops, m in used)
    a_pixel = statistics.median((m.seconds["total"] - m.seconds["denoise"]) / _pixels(m.recipe.video) for _, m in used)
    scaled = "" if near else ", scaled by FLOPs: theirs were much shorter or longer"
    return Estimate(
        a_flop * wanted + a_pixel * _pixels(recipe.video),
        f"{len(used)} earlier take{'s'[: len(used) != 1]} of this model on this machine{scaled}; loading comes on top",
    )


def _alike(manifest: Manifest, variant: Variant, recipe: Recipe, device: str, cpu: str) -> bool:
    there = manifest.environment
    return (
        manifest.recipe.model.variant == variant.name
        and manifest.recipe.dtype == recipe.dtype
        and there.device == device
        and there.processor == cpu
        and {"denoise", "total"} <= set(manifest.seconds)
    )


def _latest(workspace: Workspace) -> list[Manifest]:
    folders = sorted((workspace.take_folder(take) for take in workspace.take_ids()), key=lambda p: p.stat().st_mtime)
    found = []
    for folder in folders[-LOOKED_AT:]:
        try:
            found.append(read_manifest(folder))
        except DamagedTake:
            continue  # says nothing about time; `wanscope takes` shows it
    return found


def _pixels(video: VideoSpec) -> int:
    return (video.width or 0) * (video.height or 0) * (video.frames or 0)


def flops_text(flops: float) -> str:
    """Format a number of FLOPs, such as `1.2 PFLOP`."""
    for unit, scale in (("PFLOP", 1e15), ("TFLOP", 1e12), ("GFLOP", 1e9)):
        if flops >= scale:
            return f"{flops / scale:.3g} {unit}"
    return f"{flops / 1e6:.3g} MFLOP"
