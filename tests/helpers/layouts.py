"""Tiny models written in the layouts of published files. The name tables map diffusers' and transformers'
names to the original ones and are written here by hand, so that the loaders' own tables are checked against them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

COMFY = "model.diffusion_model."

TRANSFORMER_OUTSIDE = {
    "patch_embedding.": "patch_embedding.",
    "condition_embedder.time_embedder.linear_1.": "time_embedding.0.",
    "condition_embedder.time_embedder.linear_2.": "time_embedding.2.",
    "condition_embedder.text_embedder.linear_1.": "text_embedding.0.",
    "condition_embedder.text_embedder.linear_2.": "text_embedding.2.",
    "condition_embedder.time_proj.": "time_projection.1.",
    "condition_embedder.image_embedder.norm1.": "img_emb.proj.0.",
    "condition_embedder.image_embedder.ff.net.0.proj.": "img_emb.proj.1.",
    "condition_embedder.image_embedder.ff.net.2.": "img_emb.proj.3.",
    "condition_embedder.image_embedder.norm2.": "img_emb.proj.4.",
    "proj_out.": "head.head.",
}
TRANSFORMER_BLOCK = {
    "attn1.to_out.0.": "self_attn.o.",
    "attn2.to_out.0.": "cross_attn.o.",
    "attn2.add_k_proj.": "cross_attn.k_img.",
    "attn2.add_v_proj.": "cross_attn.v_img.",
    "attn2.norm_added_k.": "cross_attn.norm_k_img.",
    **{f"attn1.to_{x}.": f"self_attn.{x}." for x in "qkv"},
    **{f"attn2.to_{x}.": f"cross_attn.{x}." for x in "qkv"},
    **{f"attn1.norm_{x}.": f"self_attn.norm_{x}." for x in "qk"},
    **{f"attn2.norm_{x}.": f"cross_attn.norm_{x}." for x in "qk"},
    "norm2.": "norm3.",
    "ffn.net.0.proj.": "ffn.0.",
    "ffn.net.2.": "ffn.2.",
}
ENCODER_BLOCK = {
    "layer.0.layer_norm.": "norm1.",
    "layer.0.SelfAttention.relative_attention_bias.": "pos_embedding.embedding.",
    **{f"layer.0.SelfAttention.{x}.": f"attn.{x}." for x in "qkvo"},
    "layer.1.layer_norm.": "norm2.",
    "layer.1.DenseReluDense.wi_0.": "ffn.gate.0.",
    "layer.1.DenseReluDense.wi_1.": "ffn.fc1.",
    "layer.1.DenseReluDense.wo.": "ffn.fc2.",
}


def original_name(name: str) -> str:
    """The original name of a transformer's tensor."""
    if name == "scale_shift_table":
        return "head.modulation"
    if not name.startswith("blocks."):
        start = next(key for key in TRANSFORMER_OUTSIDE if name.startswith(key))
        return TRANSFORMER_OUTSIDE[start] + name.removeprefix(start)
    _, index, rest = name.split(".", 2)
    if rest == "scale_shift_table":
        return f"blocks.{index}.modulation"
    start = next(key for key in TRANSFORMER_BLOCK if rest.startswith(key))
    return f"blocks.{index}.{TRANSFORMER_BLOCK[start]}{rest.removeprefix(start)}"


def original_encoder_name(name: str) -> str | None:
    """Wan's name of a UMT5 tensor; None for the tied copy of the embedding."""
    fixed = {"shared.weight": "token_embedding.weight", "encoder.final_layer_norm.weight": "norm.weight"}
    if name in fixed or name == "encoder.embed_tokens.weight":
        return fixed.get(name)
    _, _, index, rest = name.split(".", 3)
    start = next(key for key in ENCODER_BLOCK if rest.startswith(key))
    return f"blocks.{index}.{ENCODER_BLOCK[start]}{rest.removeprefix(start)}"


def original_vae_name(name: str, nested: bool, resnets: int = 2) -> str:
    """The original name of a VAE's tensor. nested: the 2.2 VAE's layout. resnets: of an encoder block."""
    for side in ("encoder", "decoder"):
        fixed = {
            f"{side}.conv_in.": f"{side}.conv1.",
            f"{side}.norm_out.": f"{side}.head.0.",
            f"{side}.conv_out.": f"{side}.head.2.",
            f"{side}.mid_block.resnets.0.": f"{side}.middle.0.",
            f"{side}.mid_block.attentions.0.": f"{side}.middle.1.",
            f"{side}.mid_block.resnets.1.": f"{side}.middle.2.",
        }
        for start, new in fixed.items():
            if name.startswith(start):
                return new + _residual(name.removeprefix(start))
    if name.startswith("quant_conv."):
        return name.replace("quant_conv.", "conv1.")
    if name.startswith("post_quant_conv."):
        return name.replace("post_quant_conv.", "conv2.")
    side, blocks, index, rest = name.split(".", 3)
    way = "downsamples" if blocks == "down_blocks" else "upsamples"
    if not nested and side == "encoder":
        return f"{side}.{way}.{index}.{_residual(rest)}"
    depth = resnets + (side == "decoder")
    if rest.startswith(("upsamplers.0.", "upsampler.", "downsampler.")):
        inner, rest = depth, rest.removeprefix("upsamplers.0.").removeprefix("upsampler.").removeprefix("downsampler.")
    else:
        _, inner, rest = rest.split(".", 2)
    if nested:
        return f"{side}.{way}.{index}.{way}.{inner}.{_residual(rest)}"
    return f"{side}.{way}.{int(index) * (depth + 1) + int(inner)}.{_residual(rest)}"


def _residual(rest: str) -> str:
    pairs = {"norm1.": "residual.0.", "conv1.": "residual.2.", "norm2.": "residual.3.", "conv2.": "residual.6."}
    for start, new in {**pairs, "conv_shortcut.": "shortcut."}.items():
        if rest.startswith(start):
            return new + rest.removeprefix(start)
    return rest


def save(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> Path:
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path, metadata)
    return path


def save_transformer(path: Path, model: torch.nn.Module, prefix: str = "", dtype: torch.dtype | None = None) -> Path:
    state = model.state_dict()
    return save(path, {prefix + original_name(k): v.to(dtype or v.dtype) for k, v in state.items()})


def save_encoder(path: Path, model: torch.nn.Module, layout: str = "wan") -> Path:
    state = model.state_dict()
    if layout == "comfy":
        tied = "encoder.embed_tokens.weight"
        return save(path, {k: v for k, v in state.items() if k != tied})
    return save(path, {n: v for k, v in state.items() if (n := original_encoder_name(k)) is not None})


def save_vae(path: Path, model: torch.nn.Module, nested: bool) -> Path:
    return save(path, {original_vae_name(k, nested): v for k, v in model.state_dict().items()})


def to_scaled_fp8(
    tensors: dict[str, torch.Tensor], layout: str = "scale_weight", rows: bool = False
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], dict[str, str]]:
    """Quantise the matrices as ComfyUI's converters do: fp8 = w / s with s = max|w| / 448.

    layout: scale_weight (marker tensor), comfy_quant (a JSON tensor a layer) or metadata (JSON in the header). rows:
    one scale a row. Returns the file's tensors, the values that they stand for (float64), and the header.
    """
    out: dict[str, torch.Tensor] = {}
    values: dict[str, torch.Tensor] = {}
    layers: dict[str, Any] = {}
    for name, tensor in tensors.items():
        if tensor.ndim != 2 or not name.endswith(".weight") or "embedding" in name or name == "shared.weight":
            out[name], values[name] = tensor, tensor.double()
            continue
        amax = tensor.abs().amax(dim=1, keepdim=True) if rows else tensor.abs().max()
        scale = (amax / 448).float()
        out[name] = (tensor.float() / scale).to(torch.float8_e4m3fn)
        values[name] = out[name].double() * scale.double()
        base = name.removesuffix(".weight")
        if layout == "scale_weight":
            out[f"{base}.scale_weight"] = scale
            out[f"{base}.scale_input"] = torch.tensor(1.0)
        else:
            out[f"{base}.weight_scale"] = scale
            out[f"{base}.input_scale"] = torch.tensor(1.0)
            layers[base] = {"format": "float8_e4m3fn"}
        if layout == "comfy_quant":
            data = json.dumps(layers[base]).encode()
            out[f"{base}.comfy_quant"] = torch.tensor(list(data), dtype=torch.uint8)
    if layout == "scale_weight":
        out["scaled_fp8"] = torch.zeros(0, dtype=torch.float8_e4m3fn)
    header = {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": layers})}
    return out, values, header if layout == "metadata" else {}
