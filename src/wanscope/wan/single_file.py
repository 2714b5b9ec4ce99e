"""A transformer from one safetensors file: the original and the ComfyUI-repackaged layout, and diffusers' own.

The config is read from the tensors' shapes. (diffusers guesses it from two of them, and takes the 5B and Wan 2.2's
image-to-video files for the 2.1 image-to-video 14B.) The number of heads is not in any shape: it is dim / 128, as in
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

# Wan's relatives share its blocks and need inputs that a text-to-video loop does not give.
RELATIVES = {
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
    """{diffusers' name: original name} of a transformer's tensors, by diffusers' own table."""
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

    return convert_wan_transformer_to_diffusers({name: name for name in names})


def config_of(names: Iterable[str], shape: Shape, where: str) -> dict[str, Any]:
    """Keyword arguments of WanTransformer3DModel from tensors in the original layout."""
    names = set(names)
    _refuse_relatives(names, where)
    try:
        dim, in_channels, *patch = shape("patch_embedding.weight")
        ffn_dim = shape("blocks.0.ffn.0.weight")[0]
        text_dim = shape("text_embedding.0.weight")[1]
        freq_dim = shape("time_embedding.0.weight")[1]
        out_values = shape("head.head.weight")[0]
    except KeyError as error:
        raise ModelError(f"{where} is not a Wan transformer", f"it has no tensor {error.args[0]}") from None
    if dim % HEAD_DIM:
        raise ModelError(f"{where} is not a Wan transformer", f"its width {dim} is no multiple of {HEAD_DIM}")
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


def _refuse_relatives(names: set[str], where: str) -> None:
    for start, kind in RELATIVES.items():
        found = [name for name in names if name.startswith(start)]
        if found:
            raise ModelError(
                f"{where} is a relative of Wan: {kind}",
                f"wanscope makes videos from text alone so far, and this model's {listed(found)} need more",
                "wanscope models",
            )


@dataclass(frozen=True)
class Contents:
    """What a transformer file holds: its fp8 scales, the config, and whether its names are the original ones."""

    scales: scaled_fp8.Scales
    config: dict[str, Any]
    original: bool

    def names(self) -> dict[str, str]:
        """{diffusers' name: name in the file}."""
        weights = self.scales.weights
        return diffusers_names(weights) if self.original else {name: name for name in weights}


def _contents(file: WeightFile) -> Contents:
    file.strip(PREFIXES, "patch_embedding.weight")
    if file.others:
        raise ModelError(
            f"{file.path} holds more than a transformer",
            f"{len(file.others)} tensors lie outside it: {listed(file.others)}",
            "the transformer, text encoder and VAE as separate files",
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
    beside = file.path.parent / "config.json"
    if ORIGINAL not in scales.weights and beside.exists():  # it knows the number of heads
        config |= {k: v for k, v in json.loads(beside.read_text()).items() if k in config}
    return Contents(scales, config, ORIGINAL in scales.weights)


def _as_original(names: Iterable[str]) -> dict[str, str]:
    """{original name: diffusers' name} of the tensors that tell the config, for files in diffusers' layout."""
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
    same = tuple(start for start in RELATIVES if start.endswith("."))
    blocks = {name.split(".")[1] for name in names if name.startswith("blocks.")}
    return (
        {original: ours for original, ours in pairs.items() if ours in names}
        | {f"blocks.{i}.modulation": f"blocks.{i}.scale_shift_table" for i in blocks}
        | {name: name for name in names if name.startswith(same)}
    )


def describe(path: Path) -> dict[str, Any]:
    """The config of a transformer file, from its header alone."""
    with open_weights(path) as file:
        return _contents(file).config


def load(path: Path, dtype: torch.dtype) -> tuple[WanTransformer3DModel, bool]:
    """The transformer of a file, on the CPU, in `dtype` (what diffusers keeps in float32 stays so), and whether its
    fp8 scales were applied."""
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
