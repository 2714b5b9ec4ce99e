"""Loads a transformer from a GGUF file: weights stay quantized in memory and are dequantized layer by layer.

diffusers reads the tensors and runs the quantized layers. This module adds the config, read from the tensors' shapes;
the original shapes of rearranged tensors (`comfy.gguf.orig_shape.*`, which ComfyUI-GGUF's converter writes and
diffusers ignores); a check that every tensor is used; and dequantized tensors for layers that are not linear.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from wanscope.errors import ModelError
from wanscope.wan.file_kinds import unreadable
from wanscope.wan.single_file import PREFIXES, config_of, diffusers_names
from wanscope.wan.weights import check_names

if TYPE_CHECKING:
    from diffusers import WanTransformer3DModel

TEXT_ENCODERS = ("t5", "t5encoder", "umt5")
ARCHITECTURE = "wan"
ORIGINAL_SHAPE = "comfy.gguf.orig_shape."


def _reader(path: Path):
    from gguf import GGUFReader

    if not os.path.isfile(path):
        raise ModelError(f"there is no file {path}")
    try:
        reader = GGUFReader(path)
    except (ValueError, OSError, IndexError, KeyError) as error:
        raise unreadable(path, error) from None
    field = reader.get_field("general.architecture")
    architecture = str(field.contents()) if field is not None else "unknown"
    if architecture in TEXT_ENCODERS:
        raise ModelError(
            f"{path} is a text encoder", "the transformer is needed here; text encoders in GGUF files are not read"
        )
    if architecture != ARCHITECTURE:
        raise ModelError(f"{path} is not a Wan transformer", f"its header says the architecture is {architecture!r}")
    return reader


def _shapes(reader) -> dict[str, tuple[int, ...]]:
    """Return {name: shape} in torch's order (GGUF's is reversed), with the original shape of rearranged tensors."""
    shapes = {tensor.name: tuple(int(n) for n in reversed(tensor.shape)) for tensor in reader.tensors}
    for name in shapes:
        field = reader.get_field(ORIGINAL_SHAPE + name)
        if field is not None:
            shapes[name] = tuple(int(n) for n in field.contents())
    return shapes


def _without_prefix(shapes: dict[str, tuple[int, ...]]) -> dict[str, str]:
    """Return {name without the file's prefix: name in the file}."""
    prefix = next((p for p in PREFIXES if f"{p}patch_embedding.weight" in shapes), "")
    return {name.removeprefix(prefix): name for name in shapes}


def describe(path: Path) -> dict[str, Any]:
    """Return the config of a GGUF transformer, read from its header alone.

    Raises ModelError where the file is not a complete Wan transformer.
    """
    shapes = _shapes(_reader(path))
    files = _without_prefix(shapes)
    return config_of(files, lambda name: shapes[files[name]], str(path))


def load(path: Path, dtype: torch.dtype) -> WanTransformer3DModel:
    """Load the transformer in a GGUF file on the CPU. dtype: the dtype in which it computes.

    Raises ModelError where a tensor is missing, is left over or has another shape.
    """
    from diffusers import GGUFQuantizationConfig, WanTransformer3DModel
    from diffusers.models.model_loading_utils import load_gguf_checkpoint

    shapes = _shapes(_reader(path))
    files = _without_prefix(shapes)
    config = config_of(files, lambda name: shapes[files[name]], str(path))
    names = diffusers_names(files)
    with torch.device("meta"):
        empty = WanTransformer3DModel(**config)
    want = {name: tuple(tensor.shape) for name, tensor in empty.state_dict().items()}
    check_names({name: shapes[files[old]] for name, old in names.items()}, want, str(path))
    try:
        tensors = load_gguf_checkpoint(str(path))
    except ValueError as error:
        raise ModelError(f"{path} cannot be loaded", str(error).split("\n")[0]) from None
    linear = {f"{name}.weight" for name, module in empty.named_modules() if isinstance(module, nn.Linear)}
    state = {
        name: _tensor(tensors.pop(files[old]), want[name], name in linear, files[old], path)
        for name, old in names.items()
    }
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps({"_class_name": "WanTransformer3DModel", **config}))
        transformer = WanTransformer3DModel.from_single_file(
            state,  # type: ignore[arg-type]
            config=folder,
            quantization_config=GGUFQuantizationConfig(compute_dtype=dtype),
            torch_dtype=dtype,
            local_files_only=True,
        )
    empty_names = [name for name, tensor in transformer.state_dict().items() if tensor.device.type == "meta"]
    if empty_names:
        raise ModelError(f"{path} was not loaded completely", f"{len(empty_names)} tensors are still empty")
    return transformer.eval().requires_grad_(False)


def _tensor(tensor: torch.Tensor, shape: tuple[int, ...], linear: bool, name: str, path: Path) -> torch.Tensor:
    from diffusers.quantizers.gguf.utils import GGML_QUANT_SIZES, GGUFParameter, dequantize_gguf_tensor

    if not isinstance(tensor, GGUFParameter):
        return tensor.reshape(shape)
    block, size = GGML_QUANT_SIZES[tensor.quant_type]  # type: ignore[attr-defined]
    rows = (*tensor.shape[:-1], tensor.shape[-1] // size * block)
    if linear and rows == shape:
        if not _scales_are_finite(tensor, size):
            raise ModelError(
                f"{path} contains weights that are not numbers",
                f"{name} has blocks whose scale is NaN or infinite. The file is damaged",
            )
        return tensor
    values = dequantize_gguf_tensor(tensor)
    if values.numel() != int(torch.Size(shape).numel()):
        raise ModelError(
            f"{path} cannot be loaded", f"{name} has {values.numel()} values, which do not fit the shape {shape}"
        )
    return values.as_subclass(torch.Tensor).reshape(shape)


# Bytes from the start of a quantized block to its fp16 scales, by ggml's name of the type (ggml-common.h).
SCALES = {
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q8_0": (0,),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "IQ4_NL": (0,),
    "IQ4_XS": (0,),
}


def _scales_are_finite(tensor: torch.Tensor, size: int) -> bool:
    """Return whether the fp16 scales of all blocks of a quantized tensor are finite. size: of a block, in bytes."""
    kind = tensor.quant_type.name  # type: ignore[attr-defined]
    blocks = tensor.as_subclass(torch.Tensor).reshape(-1, size)
    scales = [blocks[:, at : at + 2].contiguous().view(torch.float16) for at in SCALES.get(kind, ())]
    return all(bool(torch.isfinite(scale).all()) for scale in scales)
