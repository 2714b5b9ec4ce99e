"""The facts of every Wan model, in one table. No torch here: `wanscope --help` and the planner read this.

Sources: the configs and README of the Wan 2.1 and 2.2 repositories (dims, boundary, shift, steps, guidance, sizes,
negative prompts) and the model cards' config.json files. Default sizes and samplers are those of the official
`generate.py`; for the 1.3B those its README recommends.

Sizes are pixels, frames count video frames, and a latent has (channels, (frames - 1) / 4 + 1, height / stride,
width / stride) values.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from wanscope.errors import ModelError, RecipeError, nearest
from wanscope.wan.constants import (
    NEGATIVE,
    NEGATIVE_I2V,
    VAE_2_1,
    VAE_2_2,
    VAE_MARBLES,
)

MARBLES_WEIGHTS = Path(__file__).parents[1] / "marbles" / "weights"
MAX_PIXELS_A_SIDE = 8192
ROPE_POSITIONS = 1024


@dataclass(frozen=True)
class Defaults:
    """What a video of a variant is made with unless told otherwise. guidance: one number per expert, high noise
    first."""

    width: int
    height: int
    frames: int
    fps: int
    steps: int
    solver: str = "unipc"
    shift: float = 5.0
    guidance: tuple[float, ...] = (5.0,)
    negative_prompt: str = NEGATIVE

    def values(self) -> dict[str, Any]:
        """Flat, as a recipe resolves against it; `guidance_2` is there only for two experts."""
        flat = {k: getattr(self, k) for k in ("width", "height", "frames", "fps", "steps", "solver", "shift")}
        flat |= {"guidance": self.guidance[0], "negative": self.negative_prompt}
        return flat | ({"guidance_2": self.guidance[1]} if len(self.guidance) > 1 else {})


@dataclass(frozen=True)
class Files:
    """Names of single files in common use, for messages and for finding them in a folder."""

    transformer: tuple[str, ...] = ()
    encoder: tuple[str, ...] = ("umt5_xxl_fp16.safetensors", "umt5-xxl-enc-bf16.safetensors")
    vae: tuple[str, ...] = ("wan_2.1_vae.safetensors", "Wan2_1_VAE_bf16.safetensors")


@dataclass(frozen=True)
class Encoder:
    """Dims of the UMT5 text encoder (UMT5-XXL unless told otherwise)."""

    d_model: int = 4096
    d_ff: int = 10240
    layers: int = 24
    heads: int = 64
    d_kv: int = 64
    vocab: int = 256384
    buckets: int = 32
    max_distance: int = 128

    def config(self) -> dict[str, Any]:
        """Keyword arguments of `transformers.UMT5Config`."""
        return {
            "d_model": self.d_model,
            "d_ff": self.d_ff,
            "d_kv": self.d_kv,
            "num_layers": self.layers,
            "num_decoder_layers": self.layers,
            "num_heads": self.heads,
            "vocab_size": self.vocab,
            "relative_attention_num_buckets": self.buckets,
            "relative_attention_max_distance": self.max_distance,
            "dense_act_fn": "gelu_new",
            "feed_forward_proj": "gated-gelu",
            "is_gated_act": True,
            "layer_norm_epsilon": 1e-6,
            "dropout_rate": 0.1,
            "is_encoder_decoder": True,
            "use_cache": True,
            "tie_word_embeddings": False,
            "pad_token_id": 0,
            "eos_token_id": 1,
            "decoder_start_token_id": 0,
        }


@dataclass(frozen=True)
class Variant:
    """One Wan model. Dims as in the paper; `vae_stride` and `patch` are (frames, height, width)."""

    name: str
    title: str
    hub_id: str | None
    dim: int
    ffn_dim: int
    blocks: int
    heads: int
    defaults: Defaults
    in_channels: int = 16
    out_channels: int = 16
    text_dim: int = 4096
    text_length: int = 512
    freq_dim: int = 256
    patch: tuple[int, int, int] = (1, 2, 2)
    vae_stride: tuple[int, int, int] = (4, 8, 8)
    latent_channels: int = 16
    experts: int = 1
    boundary_ratio: float | None = None
    expand_timesteps: bool = False
    image_conditioned: bool = False
    image_dim: int | None = None
    added_kv_dim: int | None = None
    dtype: str = "bfloat16"
    sizes: tuple[tuple[int, int], ...] = ()
    files: Files = Files()
    encoder: Encoder = Encoder()
    vae: dict[str, Any] = field(default_factory=lambda: dict(VAE_2_1), hash=False)
    scheduler_shift: float = 3.0
    note: str = ""

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads

    @property
    def image_tokens(self) -> int:
        """Image tokens before the text tokens in the context: 257 on Wan 2.1 I2V, else none."""
        return 257 if self.image_dim is not None else 0

    @property
    def size_step(self) -> int:
        """Width and height are multiples of this: VAE stride times patch (16, or 32 on the 5B)."""
        return self.vae_stride[1] * self.patch[1]

    def transformer_config(self) -> dict[str, Any]:
        """Keyword arguments of `diffusers.WanTransformer3DModel`."""
        return {
            "patch_size": list(self.patch),
            "num_attention_heads": self.heads,
            "attention_head_dim": self.head_dim,
            "in_channels": self.in_channels,
            "out_channels": self.out_channels,
            "text_dim": self.text_dim,
            "freq_dim": self.freq_dim,
            "ffn_dim": self.ffn_dim,
            "num_layers": self.blocks,
            "cross_attn_norm": True,
            "qk_norm": "rms_norm_across_heads",
            "eps": 1e-6,
            "image_dim": self.image_dim,
            "added_kv_proj_dim": self.added_kv_dim,
            "rope_max_seq_len": ROPE_POSITIONS,
        }

    def vae_config(self) -> dict[str, Any]:
        """Keyword arguments of `diffusers.AutoencoderKLWan`."""
        return dict(self.vae)

    def scheduler_config(self) -> dict[str, Any]:
        """The scheduler the model's pipeline is published with; a recipe's own shift replaces `flow_shift`."""
        return {
            "_class_name": "UniPCMultistepScheduler",
            "num_train_timesteps": 1000,
            "prediction_type": "flow_prediction",
            "use_flow_sigmas": True,
            "flow_shift": self.scheduler_shift,
        }


_720P = ((1280, 720), (720, 1280), (832, 480), (480, 832))
_480P = ((832, 480), (480, 832))
_14B: dict[str, Any] = {"dim": 5120, "ffn_dim": 13824, "blocks": 40, "heads": 40}
_I2V: dict[str, Any] = {"in_channels": 36, "image_conditioned": True}
_NEEDS_IMAGE = (
    "makes videos from an image and a prompt: 16 noise, 4 mask and 16 condition channels{clip}. It loads, and edits "
    "and captures see its blocks, but wanscope makes videos from text alone so far; use the matching text-to-video "
    "model for that"
)


def _marbles() -> Variant:
    """The tiny model that ships with the package; its dims are read from its own config files where they are."""
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
        freq_dim=256,
        dtype="float32",
        sizes=((128, 128),),
        vae=VAE_MARBLES,
        files=Files(encoder=(), vae=()),
        encoder=Encoder(d_model=128, d_ff=256, layers=2, heads=4, d_kv=32, vocab=256),
        defaults=Defaults(128, 128, 17, 8, 20, negative_prompt=""),
        scheduler_shift=5.0,
        note="ships with wanscope; knows shapes, colors and motions only",
    )
    if not (MARBLES_WEIGHTS / "model_index.json").exists():
        return table
    return with_configs(table, *(_read(MARBLES_WEIGHTS, part) for part in ("transformer", "vae", "text_encoder")))


def _read(folder: Path, part: str) -> dict[str, Any]:
    return json.loads((folder / part / "config.json").read_text())


def with_configs(
    variant: Variant, transformer: dict[str, Any], vae: dict[str, Any], encoder: dict[str, Any] | None = None
) -> Variant:
    """`variant` with the dims of diffusers and transformers config files. Keys they leave out keep diffusers'
    defaults."""
    full_vae = {**VAE_2_1, **{k: v for k, v in vae.items() if not k.startswith("_") and k in _VAE_KEYS}}
    heads, head_dim = transformer.get("num_attention_heads", 40), transformer.get("attention_head_dim", 128)
    in_channels, out_channels = transformer.get("in_channels", 16), transformer.get("out_channels", 16)
    patch = tuple(transformer.get("patch_size", (1, 2, 2)))
    changes: dict[str, Any] = {
        "dim": heads * head_dim,
        "heads": heads,
        "ffn_dim": transformer.get("ffn_dim", 13824),
        "blocks": transformer.get("num_layers", 40),
        "in_channels": in_channels,
        "out_channels": out_channels or in_channels,
        "text_dim": transformer.get("text_dim", 4096),
        "freq_dim": transformer.get("freq_dim", 256),
        "patch": (patch[0], patch[1], patch[2]),
        "image_dim": transformer.get("image_dim"),
        "added_kv_dim": transformer.get("added_kv_proj_dim"),
        "image_conditioned": in_channels != (out_channels or in_channels),
        "vae": full_vae,
        "latent_channels": full_vae["z_dim"],
        "vae_stride": (
            full_vae["scale_factor_temporal"],
            full_vae["scale_factor_spatial"],
            full_vae["scale_factor_spatial"],
        ),
    }
    if encoder is not None:
        changes["encoder"] = Encoder(
            encoder["d_model"],
            encoder["d_ff"],
            encoder["num_layers"],
            encoder["num_heads"],
            encoder["d_kv"],
            encoder["vocab_size"],
            encoder.get("relative_attention_num_buckets", 32),
            encoder.get("relative_attention_max_distance", 128),
        )
    return replace(variant, **changes)


_VAE_KEYS = {*VAE_2_1, "decoder_base_dim", "attn_scales", "dropout"}


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
    """Hub ids, and names without the version where that is enough to tell."""
    return {v.hub_id.lower(): v.name for v in VARIANTS.values() if v.hub_id}


def resolve(name: str) -> Variant:
    """The variant of that name or official hub id, in any case. ModelError names the nearest one."""
    key = name.strip().lower()
    key = _aliases().get(key, key)
    if key in VARIANTS:
        return VARIANTS[key]
    raise ModelError(f"there is no model {name!r}", nearest(key, VARIANTS), "wanscope models")


def check_video(variant: Variant, width: int, height: int, frames: int) -> None:
    """RecipeError, naming the nearest legal values, unless the variant can make videos of this size."""
    stride, step = variant.vae_stride[0], variant.size_step
    if frames < 1 or frames % stride != 1:
        low = max((frames - 1) // stride * stride + 1, 1)
        near = f"{low} or {low + stride}" if frames > 0 else "1"
        raise RecipeError(f"{frames} frames cannot be made", f"Wan makes {stride}n + 1 frames", f"video.frames={near}")
    for side, pixels in (("width", width), ("height", height)):
        if pixels % step or not step <= pixels <= MAX_PIXELS_A_SIDE:
            low = min(max(pixels // step * step, step), MAX_PIXELS_A_SIDE)
            high = min(low + step, MAX_PIXELS_A_SIDE)
            near = str(low) if low in (pixels, high) or pixels < step else f"{low} or {high}"
            raise RecipeError(
                f"a {side} of {pixels} pixels cannot be made",
                f"{variant.title} takes multiples of {step}, from {step} to {MAX_PIXELS_A_SIDE}",
                f"video.{side}={near}",
            )
    grid = token_grid(variant, width, height, frames)
    for what, count, limit in zip(("frames", "height", "width"), grid, (ROPE_POSITIONS,) * 3, strict=True):
        if count > limit:
            raise RecipeError(
                f"{what} is too large", f"the model has positions for {limit} patches along it, not {count}"
            )


def latent_shape(variant: Variant, width: int, height: int, frames: int) -> tuple[int, int, int, int]:
    """(channels, latent frames, latent height, latent width) after `check_video`."""
    check_video(variant, width, height, frames)
    t, h, w = variant.vae_stride
    return variant.latent_channels, (frames - 1) // t + 1, height // h, width // w


def token_grid(variant: Variant, width: int, height: int, frames: int) -> tuple[int, int, int]:
    """Video tokens along (time, height, width)."""
    (t, h, w), (pt, ph, pw) = variant.vae_stride, variant.patch
    return ((frames - 1) // t + 1) // pt, height // h // ph, width // w // pw


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
    """The variant of a folder's configs: the known one whose dims are the same, else one of its own.

    Two known variants can share all dims (2.1 I2V 480p and 720p); `name` containing the variant's name or hub id
    decides, else the first of the table.
    """
    base = VARIANTS["wan2.2-ti2v-5b" if expand_timesteps else "wan2.1-t2v-1.3b"]
    found = with_configs(base, transformer, vae, encoder)
    shape = _shape(replace(found, experts=experts, expand_timesteps=expand_timesteps))
    same = [v for v in VARIANTS.values() if _shape(v) == shape and (v.text_length == text_length)]
    for variant in same:
        hub_name = (variant.hub_id or "").rpartition("/")[2].lower()
        if variant.name in name.lower() or (hub_name and hub_name.removesuffix("-diffusers") in name.lower()):
            return replace(variant, boundary_ratio=boundary_ratio) if experts == 2 else variant
    if same:
        return replace(same[0], boundary_ratio=boundary_ratio) if experts == 2 else same[0]
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
        files=Files(),
        defaults=replace(base.defaults, guidance=guidance),
        note="dims read from its own configs",
    )


def _shape(variant: Variant) -> tuple[Any, ...]:
    """What tells two variants apart."""
    transformer = variant.transformer_config()
    return (
        json.dumps(transformer, sort_keys=True),
        variant.latent_channels,
        variant.vae_stride,
        variant.experts,
        variant.expand_timesteps,
    )
