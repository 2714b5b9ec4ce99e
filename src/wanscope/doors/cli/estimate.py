"""How long takes will be: from earlier ones of this machine where the workspace has them, else from its speed.

The time of denoising is taken as proportional to FLOPs, that of decoding and writing to pixels.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wanscope.errors import DamagedTake
from wanscope.recipe import Recipe, VideoSpec
from wanscope.take.manifest import Manifest, environment, read_manifest
from wanscope.wan.cost import decode_flops, flops_per_video
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


@dataclass(frozen=True)
class Estimate:
    """seconds of one take, and what that rests on."""

    seconds: float
    basis: str


def flops_of(variant: Variant, recipe: Recipe) -> float:
    """FLOPs of all forwards of a take."""
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
    """The time of one take of `recipe` on `device`."""
    name = device_name(device)
    mine = [m for m in _latest(workspace) if _alike(m, variant, recipe, name)]
    if mine:
        return from_takes(variant, recipe, mine)
    flops = flops_of(variant, recipe)
    speed = matmul_flops(device, recipe.dtype)
    video = recipe.video
    assert video.width and video.height and video.frames
    decoding = decode_flops(variant.vae_config(), video.width, video.height, video.frames)
    decode_speed = DECODE_SHARE * (speed if recipe.dtype == "fp32" else matmul_flops(device, "fp32"))
    return Estimate(
        flops / (SHARE * speed) + decoding / decode_speed,
        "arithmetic, as the workspace has no earlier take of this model on this machine: "
        f"{flops_text(flops)} a take at {flops_text(SHARE * speed)}/s ({SHARE:.0%} of a matrix product timed just now) "
        f"and {flops_text(decoding)} to decode it at {flops_text(decode_speed)}/s ({DECODE_SHARE:.0%}); loading comes "
        "on top",
    )


def from_takes(variant: Variant, recipe: Recipe, manifests: Iterable[Manifest]) -> Estimate:
    """From what earlier takes of the same model on the same device took."""
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


def _alike(manifest: Manifest, variant: Variant, recipe: Recipe, device: str) -> bool:
    there = manifest.environment
    return (
        manifest.recipe.model.variant == variant.name
        and manifest.recipe.dtype == recipe.dtype
        and there.device == device
        and there.processor == environment(device, 1).processor
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
    """`1.2 PFLOP`."""
    for unit, scale in (("PFLOP", 1e15), ("TFLOP", 1e12), ("GFLOP", 1e9)):
        if flops >= scale:
            return f"{flops / scale:.3g} {unit}"
    return f"{flops / 1e6:.3g} MFLOP"


def device_name(device: torch.device) -> str:
    """As a take's environment has it."""
    if device.type != "cuda":
        return str(device)
    import torch

    return f"cuda {torch.cuda.get_device_name(device)}"


def matmul_flops(device: torch.device, dtype: str) -> float:
    """FLOP/s of a square matrix product, the best of a few; a fraction of a second."""
    import torch

    kinds: dict[str, Any] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    cuda = device.type == "cuda"
    n = 8192 if cuda else 768
    a = torch.ones(n, n, device=device, dtype=kinds[dtype])
    best = float("inf")
    for _ in range(4):
        began = time.perf_counter()
        torch.mm(a, a)
        if cuda:
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - began)
    return 2 * n**3 / best
