"""The facts about one Wan model: dims, strides, defaults. This module does not import torch.

Sizes are in pixels, and frames are video frames. Latents have the shape (channels, (frames - 1) / 4 + 1,
height / stride, width / stride).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from wanscope.errors import RecipeError
from wanscope.spec.settings import Keyframes
from wanscope.wan.constants import NEGATIVE, VAE_2_1

MAX_SIDE_PIXELS = 8192
ROPE_POSITIONS = 1024


@dataclass(frozen=True)
class Defaults:
    """The default settings of a variant. guidance: a number or keyframes for each expert, high noise first."""

    width: int
    height: int
    frames: int
    fps: int
    steps: int
    solver: str = "unipc"
    shift: float = 5.0
    guidance: tuple[float | Keyframes, ...] = (5.0,)
    negative_prompt: str = NEGATIVE

    def values(self) -> dict[str, Any]:
        """Return the defaults as a flat mapping, for resolving a recipe; it has `guidance_2` only for two experts."""
        flat = {k: getattr(self, k) for k in ("width", "height", "frames", "fps", "steps", "solver", "shift")}
        flat |= {"guidance": self.guidance[0], "negative": self.negative_prompt}
        return flat | ({"guidance_2": self.guidance[1]} if len(self.guidance) > 1 else {})


@dataclass(frozen=True)
class Files:
    """Common names of single files, for messages and for finding them in a folder."""

    transformer: tuple[str, ...] = ()
    encoder: tuple[str, ...] = ("umt5_xxl_fp16.safetensors", "umt5-xxl-enc-bf16.safetensors")
    vae: tuple[str, ...] = ("wan_2.1_vae.safetensors", "Wan2_1_VAE_bf16.safetensors")


@dataclass(frozen=True)
class Encoder:
    """Dims of the UMT5 text encoder; the defaults are those of UMT5-XXL."""

    d_model: int = 4096
    d_ff: int = 10240
    layers: int = 24
    heads: int = 64
    d_kv: int = 64
    vocab: int = 256384
    buckets: int = 32
    max_distance: int = 128

    def config(self) -> dict[str, Any]:
        """Return keyword arguments for `transformers.UMT5Config`."""
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
    """One Wan model. Dims as in the paper; `vae_stride` and `patch` are (frames, height, width).

    closed_vocabulary: whether the tokenizer knows only the words that the model was trained on, so that a prompt with
    any other word is refused.
    """

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
    closed_vocabulary: bool = False
    image_dim: int | None = None
    added_kv_dim: int | None = None
    dtype: str = "bfloat16"
    sizes: tuple[tuple[int, int], ...] = ()
    files: Files = Files()
    encoder: Encoder = Encoder()
    vae: dict[str, Any] = field(default_factory=lambda: dict(VAE_2_1), hash=False)
    scheduler_shift: float = 3.0
    rope_positions: int = ROPE_POSITIONS
    negative_note: str = ""  # why the default negative prompt is empty, if it had to be left out
    note: str = ""

    @property
    def head_dim(self) -> int:
        """The width of one attention head."""
        return self.dim // self.heads

    @property
    def image_tokens(self) -> int:
        """The number of image tokens before the text tokens in the context: 257 for Wan 2.1 I2V, else 0."""
        return 257 if self.image_dim is not None else 0

    @property
    def size_step(self) -> int:
        """Width and height are multiples of this: VAE stride times patch (16, or 32 for the 5B)."""
        return self.vae_stride[1] * self.patch[1]

    def transformer_config(self) -> dict[str, Any]:
        """Return keyword arguments for `diffusers.WanTransformer3DModel`."""
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
            "rope_max_seq_len": self.rope_positions,
        }

    def vae_config(self) -> dict[str, Any]:
        """Return keyword arguments for `diffusers.AutoencoderKLWan`."""
        return dict(self.vae)

    def scheduler_config(self) -> dict[str, Any]:
        """Return the config of the scheduler in the published pipeline; a recipe's shift replaces `flow_shift`."""
        return {
            "_class_name": "UniPCMultistepScheduler",
            "num_train_timesteps": 1000,
            "prediction_type": "flow_prediction",
            "use_flow_sigmas": True,
            "flow_shift": self.scheduler_shift,
        }


def with_configs(
    variant: Variant, transformer: dict[str, Any], vae: dict[str, Any], encoder: dict[str, Any] | None = None
) -> Variant:
    """Return `variant` with the dims in the configs of diffusers and transformers.

    Keys that the configs leave out have diffusers' defaults.
    """
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
        "rope_positions": transformer.get("rope_max_seq_len", ROPE_POSITIONS),
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


def check_video(variant: Variant, width: int, height: int, frames: int) -> None:
    """Check that the variant can make videos of this size, in pixels and frames.

    Raises RecipeError, which names the nearest possible values.
    """
    stride, step = variant.vae_stride[0], variant.size_step
    if frames < 1 or frames % stride != 1:
        low = max((frames - 1) // stride * stride + 1, 1)
        near = (low, low + stride) if frames > 0 else (1,)
        raise RecipeError(
            f"{frames} frames cannot be made",
            f"Wan makes {stride}n + 1 frames, such as {' or '.join(map(str, near))}",
            f"video.frames={min(near, key=lambda value: abs(value - frames))}",
        )
    for side, pixels in (("width", width), ("height", height)):
        if pixels % step or not step <= pixels <= MAX_SIDE_PIXELS:
            low = min(max(pixels // step * step, step), MAX_SIDE_PIXELS)
            high = min(low + step, MAX_SIDE_PIXELS)
            near = (low,) if low in (pixels, high) or pixels < step else (low, high)
            raise RecipeError(
                f"a {side} of {pixels} pixels cannot be made",
                f"{variant.title} takes multiples of {step} from {step} to {MAX_SIDE_PIXELS}, such as "
                f"{' or '.join(map(str, near))}",
                f"video.{side}={min(near, key=lambda value: abs(value - pixels))}",
            )
    grid = token_grid(variant, width, height, frames)
    for what, count in zip(("frames", "height", "width"), grid, strict=True):
        if count > variant.rope_positions:
            raise RecipeError(
                f"{what} is too large",
                f"the model has positions for {variant.rope_positions} patches in this direction, not {count}",
            )


def latent_shape(variant: Variant, width: int, height: int, frames: int) -> tuple[int, int, int, int]:
    """Return (channels, latent frames, latent height, latent width) of a video, after `check_video`.

    Raises RecipeError for a size that the variant cannot make.
    """
    check_video(variant, width, height, frames)
    t, h, w = variant.vae_stride
    return variant.latent_channels, (frames - 1) // t + 1, height // h, width // w


def token_grid(variant: Variant, width: int, height: int, frames: int) -> tuple[int, int, int]:
    """Return the number of video tokens along (time, height, width)."""
    (t, h, w), (pt, ph, pw) = variant.vae_stride, variant.patch
    return ((frames - 1) // t + 1) // pt, height // h // ph, width // w // pw
