"""Loads a transformer from a single safetensors file in the original, the ComfyUI-repackaged or diffusers' layout.

The config is read from the tensors' shapes. (diffusers guesses it from two of them, and mistakes the 5B and Wan 2.2's
image-to-video files for the 2.1 image-to-video 14B.) No shape depends on the number of heads, which is dim / 128 in
every Wan model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wanscope.errors import ModelError
from wanscope.wan import scaled_fp8
from wanscope.wan.variant import ROPE_POSITIONS
from wanscope.wan.weights import WeightFile, fill, listed, open_weights

if TYPE_CHECKING:
    import torch
    from diffusers import WanTransformer3DModel

HEAD_DIM = 128
PREFIXES = ("model.diffusion_model.", "diffusion_model.", "model.", "")
ORIGINAL, DIFFUSERS = "head.modulation", "condition_embedder.time_embedder.linear_1.weight"

# Models that share Wan's blocks but need inputs that a text-to-video loop does not provide.
DERIVED_MODELS = {
    "vace_blocks.": "VACE",
    "motion_encoder.": "Animate",
    "face_adapter.": "Animate",
    "control_adapter.": "Fun Camera",
    "ref_conv.": "Fun Control",
    "audio_proj.": "a speech-driven model",
    "casual_audio_encoder.": "S2V",
    "img_emb.emb_pos": "first-and-last-frame (FLF2V)",
}

Shape = Callable[[str], tuple[int, ...]]


def diffusers_names(names: Iterable[str]) -> dict[str, str]:
    """Return {diffusers' name: original name} of a transformer's tensors, from diffusers' own table."""
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

    return convert_wan_transformer_to_diffusers({name: name for name in names})


def config_of(names: Iterable[str], shape: Shape, where: str) -> dict[str, Any]:
    """Return keyword arguments for WanTransformer3DModel, read from tensors in the original layout.

    shape: returns a tensor's shape by name. where: the file's name, for errors. Raises ModelError where the tensors are
    not those of a Wan transformer.
    """
    names = set(names)
    _refuse_derived_models(names, where)
    try:
        dim, in_channels, *patch = shape("patch_embedding.weight")
        ffn_dim = shape("blocks.0.ffn.0.weight")[0]
        text_dim = shape("text_embedding.0.weight")[1]
        freq_dim = shape("time_embedding.0.weight")[1]
        out_values = shape("head.head.weight")[0]
    except KeyError as error:
        raise ModelError(f"{where} is not a Wan transformer", f"it has no tensor {error.args[0]}") from None
    if dim % HEAD_DIM:
        raise ModelError(f"{where} is not a Wan transformer", f"its width {dim} is not a multiple of {HEAD_DIM}")
    blocks = {int(name.split(".")[1]) for name in names if name.startswith("blocks.")}
    image_dim = shape("img_emb.proj.0.weight")[0] if "img_emb.proj.0.weight" in names else None
    return {
        "patch_size": patch,
        "num_attention_heads": dim // HEAD_DIM,
        "attention_head_dim": HEAD_DIM,
        "in_channels": in_channels,
        "out_channels": out_values // math.prod(patch),
        "text_dim": text_dim,
        "freq_dim": freq_dim,
        "ffn_dim": ffn_dim,
        "num_layers": max(blocks) + 1,
        "cross_attn_norm": "blocks.0.norm3.weight" in names,
        "qk_norm": "rms_norm_across_heads",
        "eps": 1e-6,
        "image_dim": image_dim,
        "added_kv_proj_dim": dim if "blocks.0.cross_attn.k_img.weight" in names else None,
        "rope_max_seq_len": ROPE_POSITIONS,
    }


def _refuse_derived_models(names: set[str], where: str) -> None:
    for start, kind in DERIVED_MODELS.items():
        found = [name for name in names if name.startswith(start)]
        if found:
            raise ModelError(
                f"{where} is a model derived from Wan: {kind}",
                f"wanscope only makes videos from text, and this model's {listed(found)} need other inputs",
                "wanscope models",
            )


@dataclass(frozen=True)
class Contents:
    """The content of a transformer file: its fp8 scales, the config, and whether it uses the original names."""

    scales: scaled_fp8.Scales
    config: dict[str, Any]
    original: bool

    def names(self) -> dict[str, str]:
        """Return {diffusers' name: name in the file}."""
        weights = self.scales.weights
        return diffusers_names(weights) if self.original else {name: name for name in weights}


def _contents(file: WeightFile) -> Contents:
    file.strip(PREFIXES, "patch_embedding.weight")
    if file.others:
        raise ModelError(
            f"{file.path} contains more than a transformer",
            f"{len(file.others)} tensors are not part of it: {listed(file.others)}. Use separate files for the "
            "transformer, the text encoder and the VAE",
        )
    scales = scaled_fp8.find_scales(file)
    if ORIGINAL in scales.weights:
        original = {name: name for name in scales.weights}
    elif DIFFUSERS in scales.weights:
        original = _as_original(scales.weights)
    else:
        raise ModelError(
            f"{file.path} is not a Wan transformer",
            f"it has neither {ORIGINAL} (original layout) nor {DIFFUSERS} (diffusers); it has {listed(file.names)}",
        )
    config = config_of(original, lambda name: file.shape(original[name]), str(file.path))
    config_file = file.path.parent / "config.json"
    if ORIGINAL not in scales.weights and config_file.exists():  # it has the number of heads
        config |= {k: v for k, v in json.loads(config_file.read_text()).items() if k in config}
    return Contents(scales, config, ORIGINAL in scales.weights)


def _as_original(names: Iterable[str]) -> dict[str, str]:
    """Return {original name: diffusers' name} of the tensors that determine the config, for diffusers' layout."""
    pairs = {
        "patch_embedding.weight": "patch_embedding.weight",
        "text_embedding.0.weight": "condition_embedder.text_embedder.linear_1.weight",
        "time_embedding.0.weight": "condition_embedder.time_embedder.linear_1.weight",
        "head.head.weight": "proj_out.weight",
        "img_emb.proj.0.weight": "condition_embedder.image_embedder.norm1.weight",
        "img_emb.emb_pos": "condition_embedder.image_embedder.pos_embed",
        "blocks.0.ffn.0.weight": "blocks.0.ffn.net.0.proj.weight",
        "blocks.0.norm3.weight": "blocks.0.norm2.weight",
        "blocks.0.cross_attn.k_img.weight": "blocks.0.attn2.add_k_proj.weight",
    }
    same = tuple(start for start in DERIVED_MODELS if start.endswith("."))
    blocks = {name.split(".")[1] for name in names if name.startswith("blocks.")}
    return (
        {original: ours for original, ours in pairs.items() if ours in names}
        | {f"blocks.{i}.modulation": f"blocks.{i}.scale_shift_table" for i in blocks}
        | {name: name for name in names if name.startswith(same)}
    )


def describe(path: Path) -> dict[str, Any]:
    """Return the config of a transformer file, read from its header alone.

    Raises ModelError where the file is not a Wan transformer.
    """
    with open_weights(path) as file:
        return _contents(file).config


def load(path: Path, dtype: torch.dtype) -> tuple[WanTransformer3DModel, bool]:
    """Load the transformer in a file on the CPU, and return it with whether fp8 scales were applied.

    dtype: of the weights, except those that diffusers keeps in float32. Raises ModelError where a tensor is missing, is
    left over or has another shape.
    """
    from diffusers import WanTransformer3DModel

    with open_weights(path) as file:
        contents = _contents(file)
        names = contents.names()
        read = scaled_fp8.reader(file, contents.scales)
        transformer = fill(
            lambda: WanTransformer3DModel(**contents.config),
            {name: file.shape(old) for name, old in names.items()},
            lambda name, target: read(names[name], target),
            dtype,
            what=str(path),
            keep_fp32=tuple(WanTransformer3DModel._keep_in_fp32_modules or ()),
        )
    return transformer, contents.scales.scaled
