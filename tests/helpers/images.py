"""Tiny models of the I2V kinds, made callable by wanscope's loop, which samples from text alone.

Every call of their transformers gets one image: its latents are concatenated to the video's (16 + 20 channels), and for
the 2.1 kind 257 image tokens come before the text. What edits do does not depend on how the image is passed in.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

from helpers.tiny import KINDS, tiny_model
from wanscope.wan.model import WanModel

IMAGE_KINDS = tuple(kind for kind in KINDS if kind.startswith("i2v"))


class WithImage(WanTransformer3DModel):
    """A transformer that is given the same image in every call. seed: of the image."""

    seed = 1

    def forward(self, hidden_states: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, **more: Any) -> Any:
        batch, _, *size = hidden_states.shape
        generator = torch.Generator().manual_seed(self.seed)
        beside = torch.randn(1, self.config["in_channels"] - hidden_states.shape[1], *size, generator=generator)
        tokens = torch.randn(1, 257, self.config["image_dim"] or 1, generator=generator)
        image = tokens.to(hidden_states).expand(batch, -1, -1) if self.config["image_dim"] else None
        both = torch.cat([hidden_states, beside.to(hidden_states).expand(batch, -1, -1, -1, -1)], 1)
        more |= {"encoder_hidden_states_image": image}
        return super().forward(both, timestep, encoder_hidden_states, **more)  # type: ignore[arg-type]


def image_model(kind: str, seed: int = 0) -> WanModel:
    """Return a tiny model of an I2V kind with its image."""
    model = tiny_model(kind, seed=seed)
    for transformer in model.experts():
        transformer.__class__ = WithImage
    model.variant = replace(model.variant, image_conditioned=False)
    return model
