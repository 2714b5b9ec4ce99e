"""The legacy node that mixes initial noise from two seeds by a pattern in space or time.

Shape suffixes: T latent frames, h latent rows, w latent columns.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from wanscope.doors.comfy.base import Inputs, Node, choice, fraction, integer, node_output


class NoiseController(Node):
    TITLE = "Structured Noise"
    CATEGORY = "wanscope/sampling"
    DESCRIPTION = (
        "Mixes noise from two seeds by a pattern: inside the pattern the second seed has weight `pattern_strength`, "
        "and the mix has unit variance everywhere. WanVideo Sampler: connect it to `samples`, with "
        "`add_noise_to_samples` off and `denoise_strength` 1. KSampler (Advanced): set `add_noise` to disable and "
        "start at sigma 1. For models with 16 latent channels and 8 x 8 pixels per latent (all but Wan 2.2 5B)."
    )
    REQUIRED: ClassVar[Inputs] = {
        "width": integer(832, 64, 2048, "The video's size in pixels.", 8),
        "height": integer(480, 64, 2048, "The video's size in pixels.", 8),
        "frames": integer(81, 1, 200, "The video's number of frames; there are (frames - 1) / 4 + 1 latent frames."),
        "main_seed": integer(0, 0, 2**63 - 1, "Seed of the noise outside the pattern."),
        "injection_seed": integer(42, 0, 2**63 - 1, "Seed of the noise inside the pattern."),
        "noise_pattern": choice(
            ("uniform", "spatial_blocks", "temporal_blocks", "checkerboard", "radial"), "spatial_blocks", "The pattern."
        ),
        "pattern_strength": fraction(0.3, "The weight of the second noise inside the pattern."),
    }
    RETURN_TYPES = ("LATENT",)
    RETURN_NAMES = ("structured_noise",)

    def run(
        self,
        width: int,
        height: int,
        frames: int,
        main_seed: int,
        injection_seed: int,
        noise_pattern: str,
        pattern_strength: float,
    ) -> dict[str, Any]:
        shape = (1, 16, (frames - 1) // 4 + 1, height // 8, width // 8)
        main, other = (
            torch.randn(shape, generator=torch.Generator().manual_seed(s)) for s in (main_seed, injection_seed)
        )
        weight_Thw = pattern_strength * noise_pattern_mask(noise_pattern, shape[2:])
        mixed = torch.sqrt(1 - weight_Thw**2) * main + weight_Thw * other
        usage = (
            "WanVideo Sampler: connect to samples, add_noise_to_samples off, denoise_strength 1. "
            "KSampler (Advanced): add_noise disable."
        )
        return node_output(usage, {"samples": mixed})


def noise_pattern_mask(pattern: str, shape_Thw: tuple[int, ...]) -> Tensor:
    """Return the weight of the second noise [T, h, w], from 0 to 1, before `pattern_strength`."""
    T, h, w = shape_Thw
    t, y, x = torch.meshgrid(torch.arange(T), torch.arange(h), torch.arange(w), indexing="ij")
    if pattern == "uniform":
        return torch.ones(T, h, w)
    if pattern == "spatial_blocks":
        return ((y * 4 // h + x * 4 // w) % 2).float()
    if pattern == "temporal_blocks":
        return (t * 4 // T % 2).float()
    if pattern == "checkerboard":
        return ((y + x) % 2).float()
    radius = torch.sqrt(((y + 0.5) / h - 0.5) ** 2 + ((x + 0.5) / w - 0.5) ** 2)
    return (1 - 2 * radius).clamp(0, 1)
