"""Loads a UMT5 text encoder from a single safetensors file.

Two layouts are read: Wan's own (`umt5-xxl-enc-*`: `token_embedding.weight`, `blocks.0.attn.q.weight`) and the one that
ComfyUI repackages (`umt5_xxl_*`, with transformers' names), each either unscaled or as scaled fp8. ComfyUI's files
contain the tokenizer's SentencePiece model as the tensor `spiece_model`, which is then used.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from wanscope.errors import ModelError
from wanscope.wan import scaled_fp8
from wanscope.wan.weights import WeightFile, fill, listed, open_weights

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, UMT5EncoderModel

SHARED, TIED = "shared.weight", "encoder.embed_tokens.weight"
WAN_EMBEDDING = "token_embedding.weight"
SPIECE = "spiece_model"
PREFIXES = ("", "text_encoders.umt5xxl.transformer.", "umt5xxl.transformer.", "transformer.", "text_encoder.")

# Wan's names within a block, and those of transformers. Both feed-forwards are act(gate(x)) * fc1(x), then fc2.
BLOCK = {
    "norm1": "layer.0.layer_norm",
    "attn.q": "layer.0.SelfAttention.q",
    "attn.k": "layer.0.SelfAttention.k",
    "attn.v": "layer.0.SelfAttention.v",
    "attn.o": "layer.0.SelfAttention.o",
    "pos_embedding.embedding": "layer.0.SelfAttention.relative_attention_bias",
    "norm2": "layer.1.layer_norm",
    "ffn.gate.0": "layer.1.DenseReluDense.wi_0",
    "ffn.fc1": "layer.1.DenseReluDense.wi_1",
    "ffn.fc2": "layer.1.DenseReluDense.wo",
}


def transformers_name(name: str) -> str:
    """Return transformers' name of a tensor in Wan's layout, or the name itself where it is not one of Wan's."""
    if name == WAN_EMBEDDING:
        return SHARED
    if name == "norm.weight":
        return "encoder.final_layer_norm.weight"
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)\.weight", name)
    if match and match[2] in BLOCK:
        return f"encoder.block.{match[1]}.{BLOCK[match[2]]}.weight"
    return name


def _names(file: WeightFile, scales: scaled_fp8.Scales) -> dict[str, str]:
    """Return {transformers' name: name in the file}, with the tied embedding under its first name only."""
    names = {transformers_name(name): name for name in scales.weights}
    if SHARED not in names and TIED in names:
        names[SHARED] = names[TIED]
    names.pop(TIED, None)
    if SHARED not in names:
        raise ModelError(
            f"{file.path} is not a UMT5 text encoder",
            f"it has neither {WAN_EMBEDDING} (Wan's layout) nor {SHARED} (transformers'); it has {listed(file.names)}",
        )
    return names


def _config(file: WeightFile, names: dict[str, str]) -> dict[str, Any]:
    def shape(name: str) -> tuple[int, ...]:
        if name not in names:
            raise ModelError(f"{file.path} is not a UMT5 text encoder", f"it has no tensor {name}")
        return file.shape(names[name])

    first = "encoder.block.0"
    vocab, d_model = shape(SHARED)
    buckets, heads = shape(f"{first}.layer.0.SelfAttention.relative_attention_bias.weight")
    inner = shape(f"{first}.layer.0.SelfAttention.q.weight")[0]
    layers = max(int(name.split(".")[2]) for name in names if name.startswith("encoder.block.")) + 1
    return {
        "vocab_size": vocab,
        "d_model": d_model,
        "d_kv": inner // heads,
        "d_ff": shape(f"{first}.layer.1.DenseReluDense.wi_0.weight")[0],
        "num_layers": layers,
        "num_decoder_layers": layers,
        "num_heads": heads,
        "relative_attention_num_buckets": buckets,
        "relative_attention_max_distance": 128,
        "feed_forward_proj": "gated-gelu",
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
    }


def load(path: Path, dtype: torch.dtype) -> UMT5EncoderModel:
    """Load the encoder in a file on the CPU in `dtype`. Raises ModelError where it is not a complete UMT5 encoder."""
    from transformers import UMT5Config, UMT5EncoderModel

    with open_weights(path) as file:
        file.strip(PREFIXES, SHARED)
        scales = scaled_fp8.find_scales(file, ignore=(SPIECE,))
        names = _names(file, scales)
        config = UMT5Config(**_config(file, names))
        read = scaled_fp8.reader(file, scales)
        encoder = fill(
            lambda: UMT5EncoderModel(config),
            {name: file.shape(old) for name, old in names.items()},
            lambda name, target: read(names[name], target),
            dtype,
            what=str(path),
            tied={TIED: SHARED},
        )
    encoder.tie_weights()
    return encoder


def has_tokenizer(path: Path) -> bool:
    """Return whether an encoder file contains its tokenizer."""
    with open_weights(path) as file:
        return any(name.endswith(SPIECE) for name in file.all_names)


def sentencepiece_in(path: Path) -> bytes | None:
    """Return the serialized SentencePiece model in a ComfyUI encoder file, or None where it has none."""
    with open_weights(path) as file:
        file.strip(PREFIXES, SHARED)
        if SPIECE not in file.names:
            return None
        return bytes(file.read(SPIECE).to(torch.uint8).tolist())


def tokenizer_in(path: Path, text_length: int) -> PreTrainedTokenizerBase | None:
    """Return transformers' tokenizer for the SentencePiece model in an encoder file, or None where it has none.

    text_length: the tokenizer's limit in tokens. Raises ModelError where the model cannot be read.
    """
    data = sentencepiece_in(path)
    if data is None:
        return None
    from transformers import T5Tokenizer

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "spiece.model").write_bytes(data)
        with readable_tokenizer(path):
            return T5Tokenizer.from_pretrained(folder, model_max_length=text_length, extra_ids=0)


@contextmanager
def readable_tokenizer(path: Path) -> Iterator[None]:
    """Raise ModelError, with what to install, where the block cannot read the tokenizer inside an encoder file."""
    try:
        yield
    except (ImportError, ValueError, OSError) as error:
        raise ModelError(
            f"the tokenizer inside {path} cannot be read",
            str(error).strip().split("\n")[0],
            "pip install sentencepiece protobuf",
        ) from None
