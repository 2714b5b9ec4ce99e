"""Tiny random Wan models of every kind, the same for the same seed, for tests. A forward takes milliseconds.

    model = tiny_model("2.2", seed=3)      # kinds: 2.1, 2.2, 5b, i2v, i2v-2.1, i2v-2.2
    folder = tiny_folder(tmp_path, "5b")   # the same, saved as a diffusers folder

Sizes: every kind makes WIDTH x HEIGHT x FRAMES videos; `video(kind)` gives such a size as keyword arguments.
"""

from __future__ import annotations

import io
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from wanscope.wan.constants import VAE_2_1, VAE_2_2
from wanscope.wan.model import WanModel

KINDS = ("2.1", "2.2", "5b", "i2v", "i2v-2.1", "i2v-2.2")  # 2.2: two experts, as A14B has; 2.1 I2V has image tokens
TEXT_LENGTH = 16
TEXT_DIM = 32

WORD_LIST = (
    "a an the red green blue cyan yellow magenta white black gray circle square triangle star moves stays still left "
    "right up down above below on over background large small and of two women men cat dog person beach night in at"
)
WORDS = WORD_LIST.split()


def video(kind: str = "2.1") -> dict[str, int]:
    """Return a small valid size: 4 x 4 tokens by 3 latent frames (2 x 2 tokens with the 5B's coarser VAE)."""
    return {"width": 64, "height": 64, "frames": 9}


@lru_cache(maxsize=8)
def tiny_tokenizer(text_length: int = TEXT_LENGTH) -> PreTrainedTokenizerFast:
    """Return a Unigram tokenizer like UMT5's: `▁word` pieces for WORDS, else letters, </s> at the end, <pad> = 0."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -100.0), ("▁", -5.0)]
    pieces += [(f"▁{word}", -2.0 - 0.01 * i) for i, word in enumerate(WORDS)]
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:;!?'\"()[]|@-_/\\"
    pieces += [(letter, -6.0) for letter in letters]
    backend = Tokenizer(models.Unigram(pieces, unk_id=2, byte_fallback=False))
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=text_length,
    )


def tiny_sentencepiece(**options: Any) -> bytes:
    """A small SentencePiece model as a file's content, with T5's first pieces (<pad>, </s>, <unk>), normalized as
    usual (nmt_nfkc). options: of sentencepiece's trainer."""
    import sentencepiece

    lines = ["a red circle moves left", "a blue square stays still", "the cat and the dog", "Ein großer Bär, öde 12.5%"]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(  # type: ignore[attr-defined]
        sentence_iterator=iter(lines * 30),
        model_writer=model,
        vocab_size=60,
        hard_vocab_limit=False,
        minloglevel=2,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        **options,
    )
    return model.getvalue()


def encoder_config(text_dim: int = TEXT_DIM, layers: int = 2) -> dict[str, Any]:
    return {
        "vocab_size": len(tiny_tokenizer()),
        "d_model": text_dim,
        "d_kv": 8,
        "d_ff": 2 * text_dim,
        "num_layers": layers,
        "num_decoder_layers": layers,
        "num_heads": 4,
        "relative_attention_num_buckets": 8,
        "relative_attention_max_distance": 20,
        "feed_forward_proj": "gated-gelu",
        "dropout_rate": 0.0,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
    }


def transformer_config(kind: str = "2.1", *, blocks: int = 4, heads: int = 4, head_dim: int = 12) -> dict[str, Any]:
    channels = 48 if kind == "5b" else 16
    config: dict[str, Any] = {
        "patch_size": (1, 2, 2),
        "num_attention_heads": heads,
        "attention_head_dim": head_dim,
        "in_channels": 36 if kind.startswith("i2v") else channels,
        "out_channels": channels,
        "text_dim": TEXT_DIM,
        "freq_dim": 16,
        "ffn_dim": 2 * heads * head_dim,
        "num_layers": blocks,
        "rope_max_seq_len": 64,
    }
    if kind == "i2v-2.1":
        config |= {"image_dim": 20, "added_kv_proj_dim": heads * head_dim}
    return config


def vae_config(kind: str = "2.1") -> dict[str, Any]:
    full = VAE_2_2 if kind == "5b" else VAE_2_1
    return {**full, "base_dim": 8, "decoder_base_dim": 8, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}


def tiny_transformer(config: dict[str, Any], seed: int = 0) -> WanTransformer3DModel:
    """Return a transformer with random weights on which text, time and position have a visible effect."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = WanTransformer3DModel(**config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("norm_q.weight") or name.endswith("norm_k.weight"):
                    parameter.add_(0.1 * torch.randn(parameter.shape))
                elif name.endswith("scale_shift_table"):
                    parameter.mul_(0.5)
    return model.eval().requires_grad_(False)


def _cast(model: WanTransformer3DModel, dtype: torch.dtype) -> WanTransformer3DModel:
    """Cast like from_pretrained(torch_dtype=...): modules that diffusers keeps in float32 stay."""
    for name, parameter in model.named_parameters():
        if not any(part in name.split(".") for part in model._keep_in_fp32_modules or ()):
            parameter.data = parameter.data.to(dtype)
    return model


def tiny_pipeline(
    kind: str = "2.1",
    *,
    seed: int = 0,
    blocks: int = 4,
    heads: int = 4,
    head_dim: int = 12,
    text_length: int | None = None,
    boundary_ratio: float = 0.875,
    dtype: torch.dtype = torch.float32,
) -> WanPipeline:
    if kind not in KINDS:
        raise ValueError(f"{kind!r} is not one of {KINDS}")
    text_length = text_length or (512 if kind == "i2v-2.1" else TEXT_LENGTH)
    config = transformer_config(kind, blocks=blocks, heads=heads, head_dim=head_dim)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = UMT5EncoderModel(UMT5Config(**encoder_config()))
        vae = AutoencoderKLWan(**vae_config(kind))
    two = kind in ("2.2", "i2v-2.2")
    return WanPipeline(
        tokenizer=tiny_tokenizer(text_length),  # type: ignore[arg-type]
        text_encoder=encoder.eval().requires_grad_(False),  # type: ignore[arg-type]
        vae=vae.eval().requires_grad_(False),
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0),  # type: ignore[arg-type]
        transformer=_cast(tiny_transformer(config, seed + 1), dtype),
        transformer_2=_cast(tiny_transformer(config, seed + 2), dtype) if two else None,
        boundary_ratio=boundary_ratio if two else None,
        expand_timesteps=kind == "5b",
    )


def tiny_model(kind: str = "2.1", **options: Any) -> WanModel:
    """Return a tiny random WanModel; options as in `tiny_pipeline`."""
    return WanModel.from_pipeline(tiny_pipeline(kind, **options), name=f"tiny-{kind}")


def tiny_folder(path: Path, kind: str = "2.1", **options: Any) -> Path:
    """Save the same model in diffusers' folder layout at `path` and return the path."""
    tiny_pipeline(kind, **options).save_pretrained(path, safe_serialization=True)
    return path
