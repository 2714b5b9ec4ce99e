"""The table of all Wan models. It does not import torch, because `wanscope --help` and the planner read it.

Sources: the configs and READMEs of the Wan 2.1 and 2.2 repositories (dims, boundary, shift, steps, guidance, sizes,
negative prompts) and the config.json files of the published models. Default sizes and samplers are those of the
official `generate.py`, or for the 1.3B those that its README recommends.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from wanscope.errors import ModelError, nearest
from wanscope.spec.settings import Keyframes
from wanscope.wan.constants import NEGATIVE_I2V, VAE_2_2, VAE_MARBLES
from wanscope.wan.variant import (
    Defaults,
    Encoder,
    Files,
    Variant,
    check_video,
    latent_shape,
    token_grid,
    with_configs,
)

MARBLES_WEIGHTS = Path(__file__).parents[1] / "marbles" / "weights"

__all__ = [
    "MARBLES_WEIGHTS",
    "VARIANTS",
    "Variant",
    "check_video",
    "from_configs",
    "latent_shape",
    "resolve",
    "token_grid",
]


_720P = ((1280, 720), (720, 1280), (832, 480), (480, 832))
_480P = ((832, 480), (480, 832))
_14B: dict[str, Any] = {"dim": 5120, "ffn_dim": 13824, "blocks": 40, "heads": 40}
_I2V: dict[str, Any] = {"in_channels": 36, "image_conditioned": True}
_NEEDS_IMAGE = (
    "makes videos from an image and a prompt: 16 noise, 4 mask and 16 condition channels{clip}. It can be loaded, but "
    "wanscope only makes videos from text so far; use the matching text-to-video model for that"
)


_MARBLES_GUIDANCE = Keyframes(keys=((1.0, 4.0), (0.93, 1.5)), interpolate="step", over="sigma")


def _marbles() -> Variant:
    """Return the tiny model that ships with the package, with the dims in its config files where those exist."""
    table = Variant(
        "marbles",
        "marbles, the tiny world",
        None,
        dim=144,
        ffn_dim=576,
        blocks=10,
        heads=4,
        text_dim=128,
        text_length=64,
        closed_vocabulary=True,
        dtype="float32",
        sizes=((128, 128),),
        vae=VAE_MARBLES,
        files=Files(encoder=(), vae=()),
        encoder=Encoder(d_model=128, d_ff=256, layers=2, heads=4, d_kv=32, vocab=256),
        # Early steps decide how many objects there are, where strong guidance helps; later it distorts their outlines.
        defaults=Defaults(128, 128, 17, 8, 20, guidance=(_MARBLES_GUIDANCE,), negative_prompt=""),
        scheduler_shift=5.0,
        note="ships with wanscope; knows shapes, colors and motions only",
    )
    if not (MARBLES_WEIGHTS / "model_index.json").exists():
        return table
    config = {
        part: json.loads((MARBLES_WEIGHTS / part / f"{file}.json").read_text())
        for part, file in (
            ("transformer", "config"),
            ("vae", "config"),
            ("text_encoder", "config"),
            ("tokenizer", "tokenizer_config"),
            ("scheduler", "scheduler_config"),
        )
    }
    return replace(
        with_configs(table, config["transformer"], config["vae"], config["text_encoder"]),
        text_length=config["tokenizer"]["model_max_length"],
        scheduler_shift=config["scheduler"].get("flow_shift", table.scheduler_shift),
    )


def _table() -> dict[str, Variant]:
    a14b = {**_14B, "experts": 2, "sizes": _720P}
    rows = [
        Variant(
            "wan2.1-t2v-1.3b",
            "Wan 2.1 text-to-video 1.3B",
            "Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
            dim=1536,
            ffn_dim=8960,
            blocks=30,
            heads=12,
            sizes=_480P,
            defaults=Defaults(832, 480, 81, 16, 50, shift=8.0, guidance=(6.0,)),
            files=Files(transformer=("wan2.1_t2v_1.3B_fp16.safetensors", "wan2.1_t2v_1.3B_bf16.safetensors")),
        ),
        Variant(
            "wan2.1-t2v-14b",
            "Wan 2.1 text-to-video 14B",
            "Wan-AI/Wan2.1-T2V-14B-Diffusers",
            **_14B,
            sizes=_720P,
            defaults=Defaults(1280, 720, 81, 16, 50),
            files=Files(transformer=("wan2.1_t2v_14B_fp16.safetensors", "wan2.1_t2v_14B_fp8_scaled.safetensors")),
        ),
        Variant(
            "wan2.1-i2v-14b-480p",
            "Wan 2.1 image-to-video 14B, 480p",
            "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers",
            **_14B,
            **_I2V,
            image_dim=1280,
            added_kv_dim=5120,
            sizes=_480P,
            defaults=Defaults(832, 480, 81, 16, 40, shift=3.0, negative_prompt=NEGATIVE_I2V),
            files=Files(transformer=("wan2.1_i2v_480p_14B_fp16.safetensors",)),
            note=_NEEDS_IMAGE.format(clip=", and 257 CLIP image tokens before the text tokens"),
        ),
        Variant(
            "wan2.1-i2v-14b-720p",
            "Wan 2.1 image-to-video 14B, 720p",
            "Wan-AI/Wan2.1-I2V-14B-720P-Diffusers",
            **_14B,
            **_I2V,
            image_dim=1280,
            added_kv_dim=5120,
            sizes=_720P[:2],
            defaults=Defaults(1280, 720, 81, 16, 40, negative_prompt=NEGATIVE_I2V),
            scheduler_shift=5.0,
            files=Files(transformer=("wan2.1_i2v_720p_14B_fp16.safetensors",)),
            note=_NEEDS_IMAGE.format(clip=", and 257 CLIP image tokens before the text tokens"),
        ),
        Variant(
            "wan2.2-t2v-a14b",
            "Wan 2.2 text-to-video A14B, two experts",
            "Wan-AI/Wan2.2-T2V-A14B-Diffusers",
            **a14b,
            boundary_ratio=0.875,
            defaults=Defaults(1280, 720, 81, 16, 40, shift=12.0, guidance=(4.0, 3.0)),
            files=Files(
                transformer=(
                    "wan2.2_t2v_high_noise_14B_fp16.safetensors",
                    "wan2.2_t2v_low_noise_14B_fp16.safetensors",
                )
            ),
        ),
        Variant(
            "wan2.2-i2v-a14b",
            "Wan 2.2 image-to-video A14B, two experts",
            "Wan-AI/Wan2.2-I2V-A14B-Diffusers",
            **a14b,
            **_I2V,
            boundary_ratio=0.9,
            defaults=Defaults(1280, 720, 81, 16, 40, guidance=(3.5, 3.5)),
            scheduler_shift=5.0,
            files=Files(
                transformer=(
                    "wan2.2_i2v_high_noise_14B_fp16.safetensors",
                    "wan2.2_i2v_low_noise_14B_fp16.safetensors",
                )
            ),
            note=_NEEDS_IMAGE.format(clip=""),
        ),
        Variant(
            "wan2.2-ti2v-5b",
            "Wan 2.2 text-or-image-to-video 5B",
            "Wan-AI/Wan2.2-TI2V-5B-Diffusers",
            dim=3072,
            ffn_dim=14336,
            blocks=30,
            heads=24,
            in_channels=48,
            out_channels=48,
            latent_channels=48,
            vae_stride=(4, 16, 16),
            vae=VAE_2_2,
            expand_timesteps=True,
            sizes=((1280, 704), (704, 1280)),
            defaults=Defaults(1280, 704, 121, 24, 50),
            scheduler_shift=5.0,
            files=Files(
                transformer=("wan2.2_ti2v_5B_fp16.safetensors",),
                vae=("wan2.2_vae.safetensors", "Wan2_2_VAE_bf16.safetensors"),
            ),
            note="from text; its image input is not used",
        ),
        _marbles(),
    ]
    return {row.name: row for row in rows}


VARIANTS: dict[str, Variant] = _table()


@cache
def _aliases() -> dict[str, str]:
    """Return {hub id in lower case: name of the variant}."""
    return {v.hub_id.lower(): v.name for v in VARIANTS.values() if v.hub_id}


def resolve(name: str) -> Variant:
    """Return the variant with that name or official hub id, ignoring case.

    Raises ModelError, which names the nearest one.
    """
    key = name.strip().lower()
    key = _aliases().get(key, key)
    if key in VARIANTS:
        return VARIANTS[key]
    raise ModelError(f"there is no model {name!r}", nearest(key, VARIANTS), "wanscope models")


def from_configs(
    name: str,
    transformer: dict[str, Any],
    vae: dict[str, Any],
    encoder: dict[str, Any] | None = None,
    *,
    experts: int = 1,
    boundary_ratio: float | None = None,
    expand_timesteps: bool = False,
    text_length: int = 512,
) -> Variant:
    """Return the variant that a folder's configs describe: a known one with the same dims, or else a new one.

    Two known variants can share all dims (2.1 I2V 480p and 720p). Then the words in `name` decide, and where they do
    not, the first one in the table is returned.
    """
    base = VARIANTS["wan2.2-ti2v-5b" if expand_timesteps else "wan2.1-t2v-1.3b"]
    found = with_configs(base, transformer, vae, encoder)
    shape = _shape(replace(found, experts=experts, expand_timesteps=expand_timesteps))
    same = [v for v in VARIANTS.values() if _shape(v) == shape and (v.text_length == text_length)]
    if same:
        words = _words(name)
        closest = max(same, key=lambda variant: len(words & _words(variant.name)))
        closest = replace(closest, rope_positions=found.rope_positions)
        return replace(closest, boundary_ratio=boundary_ratio) if experts == 2 else closest
    guidance = base.defaults.guidance * experts
    return replace(
        found,
        name=name,
        title=name,
        hub_id=None,
        experts=experts,
        boundary_ratio=boundary_ratio,
        expand_timesteps=expand_timesteps,
        text_length=text_length,
        sizes=(),
        files=replace(base.files, transformer=()),
        defaults=replace(base.defaults, guidance=guidance),
        note="dims read from its own configs",
    )


def with_scheduler(variant: Variant, scheduler: dict[str, Any]) -> Variant:
    """Return the variant with the solver and shift of a folder's own scheduler as its defaults.

    Where they are those of the published pipeline, the variant's defaults stay: these may differ from the published
    scheduler's shift, which a pipeline's caller is advised to set by resolution.
    """
    changes: dict[str, Any] = {}
    shift = scheduler.get("flow_shift", scheduler.get("shift"))
    if isinstance(shift, int | float) and (variant.hub_id is None or float(shift) != variant.scheduler_shift):
        changes["shift"] = float(shift)
    solver = SOLVERS.get(str(scheduler.get("_class_name")))
    if solver is not None and solver != variant.defaults.solver and solver != PUBLISHED_SOLVER:
        changes["solver"] = solver
    return replace(variant, defaults=replace(variant.defaults, **changes)) if changes else variant


# The solver of each class of scheduler that a folder may name (a test compares them with the registry).
SOLVERS = {
    "UniPCMultistepScheduler": "unipc",
    "FlowMatchEulerDiscreteScheduler": "euler",
    "FlowMatchHeunDiscreteScheduler": "heun",
    "DPMSolverMultistepScheduler": "dpm++",
}
PUBLISHED_SOLVER = "unipc"


def _words(name: str) -> set[str]:
    return set(re.split(r"[-_/. ]+", name.lower()))


def _shape(variant: Variant) -> tuple[Any, ...]:
    """Return what distinguishes two variants."""
    transformer = variant.transformer_config()
    del transformer["rope_max_seq_len"]  # it limits the size of videos, and no weight depends on it
    return (
        json.dumps(transformer, sort_keys=True),
        variant.latent_channels,
        variant.vae_stride,
        variant.experts,
        variant.expand_timesteps,
    )
