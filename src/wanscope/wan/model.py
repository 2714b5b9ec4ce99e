"""A loaded Wan model: its components, and the facts about them that the rest of wanscope needs.

The text encoder is needed only at the start: prompts are encoded first, then `free_encoder` releases its memory and the
transformer is placed (see placement.py).
"""

from __future__ import annotations

import copy
import gc
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch

from wanscope.errors import ModelError
from wanscope.wan import variants
from wanscope.wan.identity import module_hash
from wanscope.wan.tokenizer import DEFAULT_TEXT_LENGTH, text_length_of
from wanscope.wan.variants import Variant

if TYPE_CHECKING:
    from diffusers import AutoencoderKLWan, WanPipeline, WanTransformer3DModel
    from transformers import PreTrainedTokenizerBase, UMT5EncoderModel

IMAGE_TEXT_LENGTH = 512  # diffusers' attention processor has it hardcoded where image tokens are


class Size(Protocol):
    """Anything with a video's size in pixels and frames, such as a recipe's VideoSpec."""

    @property
    def width(self) -> int | None: ...
    @property
    def height(self) -> int | None: ...
    @property
    def frames(self) -> int | None: ...


@dataclass(frozen=True)
class Lora:
    """A LoRA as it was applied. expert: both, high or low. sha256: of its file. adapter: its name in PEFT."""

    path: str
    weight: float
    expert: str
    sha256: str
    adapter: str


@dataclass
class WanModel:
    """One Wan model, ready to encode, denoise and decode.

    `transformer` is the high-noise expert of Wan 2.2 and `transformer_2` the low-noise one; on one-expert models the
    latter is None. `identity` maps each component to a SHA-256 of its weights (identity.py). `dtype` is the
    transformer's. `text_length` is how many tokens a prompt may have; shorter ones are padded with zeros up to it.
    """

    variant: Variant
    transformer: WanTransformer3DModel
    vae: AutoencoderKLWan
    tokenizer: PreTrainedTokenizerBase
    text_encoder: UMT5EncoderModel | None
    scheduler_config: dict[str, Any]
    transformer_2: WanTransformer3DModel | None = None
    boundary_ratio: float | None = None
    expand_timesteps: bool = False
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    text_length: int = DEFAULT_TEXT_LENGTH
    identity: dict[str, str] = field(default_factory=dict)
    loras: tuple[Lora, ...] = ()
    description: str = ""
    spec: str = ""  # the argument of `load`, so that a recipe can name it; "" for a model made from a pipeline
    memory: str = "auto"  # the requested mode: auto, none or offload
    placed: str | None = None  # the actual placement: none or offload; None before placement.place
    vae_original: AutoencoderKLWan | None = None  # in fp32, while `vae` is a bf16 copy

    def __post_init__(self) -> None:
        if (self.transformer_2 is None) != (self.boundary_ratio is None):
            raise ModelError(
                "the model's two experts are not completely specified",
                "boundary_ratio and transformer_2 are needed together, and one of them is missing",
            )
        if self.variant.image_tokens and self.text_length != IMAGE_TEXT_LENGTH:
            raise ModelError(
                f"a text length of {self.text_length} is not possible",
                f"models with image tokens take {IMAGE_TEXT_LENGTH} text tokens",
            )

    @property
    def blocks(self) -> int:
        """The number of transformer blocks (of each expert)."""
        return len(self.transformer.blocks)

    def experts(self) -> tuple[WanTransformer3DModel, ...]:
        """Return the transformers, high noise first."""
        return (self.transformer,) if self.transformer_2 is None else (self.transformer, self.transformer_2)

    def latent_shape(self, video: Size) -> tuple[int, int, int, int]:
        """Return (channels, latent frames, latent height, latent width) of a video.

        Sizes that are None are the variant's own. Raises RecipeError for a size that the model cannot make.
        """
        own = self.variant.defaults
        return variants.latent_shape(
            self.variant, video.width or own.width, video.height or own.height, video.frames or own.frames
        )

    def encoder(self) -> UMT5EncoderModel:
        """Return the text encoder. Raises ModelError after it was freed."""
        if self.text_encoder is None:
            raise ModelError(
                "the text encoder has been freed",
                "its memory is released before the transformer is placed. Encode all prompts before free_encoder(), or "
                "load the model again",
            )
        return self.text_encoder

    def free_encoder(self) -> None:
        """Drop the text encoder and release its memory."""
        self.text_encoder = None
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def require_text_only(self) -> None:
        """Raise ModelError for a model that needs an image: it can be loaded, but not make videos from text alone."""
        if self.variant.image_conditioned:
            raise ModelError(f"{self.variant.name} cannot make a video from text", self.variant.note, "wanscope models")

    def to_pipeline(self) -> WanPipeline:
        """Return a diffusers pipeline on the same components (shared), with its own copy of the scheduler."""
        import diffusers

        config = copy.deepcopy(self.scheduler_config)
        scheduler = getattr(diffusers, config.get("_class_name", "UniPCMultistepScheduler")).from_config(config)
        return diffusers.WanPipeline(
            tokenizer=self.tokenizer,  # type: ignore[arg-type]
            text_encoder=self.text_encoder,  # type: ignore[arg-type]
            vae=self.vae,
            scheduler=scheduler,
            transformer=self.transformer,
            transformer_2=self.transformer_2,
            boundary_ratio=self.boundary_ratio,
            expand_timesteps=self.expand_timesteps,
        )

    @classmethod
    def from_pipeline(
        cls,
        pipe: WanPipeline,
        *,
        name: str = "custom",
        text_length: int | None = None,
        identity: dict[str, str] | None = None,
    ) -> WanModel:
        """Return a WanModel on the components of a diffusers WanPipeline (shared, not copied).

        text_length: by default the tokenizer's own limit, but at most 512. identity: {component: SHA-256}; by default
        every component's weights are hashed from memory. Raises ModelError for a pipeline without a transformer.
        """
        parts = {k: getattr(pipe, k) for k in ("transformer", "transformer_2", "vae", "text_encoder", "tokenizer")}
        if parts["transformer"] is None:
            raise ModelError("the pipeline has no transformer", "its high-noise expert is missing")
        text_length = text_length or text_length_of(parts["tokenizer"])
        encoder = parts["text_encoder"]
        variant = variants.from_configs(
            name,
            dict(parts["transformer"].config),
            dict(parts["vae"].config),
            encoder.config.to_dict() if encoder is not None else None,
            experts=1 if parts["transformer_2"] is None else 2,
            boundary_ratio=pipe.config["boundary_ratio"],
            expand_timesteps=bool(pipe.config["expand_timesteps"]),
            text_length=text_length,
        )
        if identity is None:
            modules = {k: v for k, v in parts.items() if isinstance(v, torch.nn.Module)}
            identity = {k: module_hash(v) for k, v in modules.items()}
        return cls(
            variant=variant,
            scheduler_config={"_class_name": type(pipe.scheduler).__name__, **pipe.scheduler.config},
            boundary_ratio=pipe.config["boundary_ratio"],
            expand_timesteps=bool(pipe.config["expand_timesteps"]),
            device=parts["transformer"].device,
            dtype=parts["transformer"].dtype,
            text_length=text_length,
            identity=identity,
            description=f"{variant.title} from a diffusers pipeline",
            **parts,
        )
