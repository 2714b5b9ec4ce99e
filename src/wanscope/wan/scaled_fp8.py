"""fp8 weights and their scales.

A scaled-fp8 file holds w / s in float8 with the scale s beside it; diffusers loads such a file without its scales and
gives wrong videos. Here every scale is applied, w = fp8 * s in float32, and a file whose scales cannot be told is
refused. Three layouts are in use, all from ComfyUI and its converters:

- `X.scale_weight` with a marker tensor `scaled_fp8` (2024 on), `X.scale_input` for activations
- `X.weight_scale` with a JSON `X.comfy_quant` per layer (late 2025 on), `X.input_scale` for activations
- the latter with the JSON in the header's `_quantization_metadata`

Scales of activations only matter to fp8 matrix products; here the weights are used in the model's own dtype, so they
are not needed. fp8 files without scales are plain casts and load as they are.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from wanscope.errors import ModelError
from wanscope.wan.weights import WeightFile, listed

MARKER = "scaled_fp8"
WEIGHT_SCALES = (".scale_weight", ".weight_scale")
INPUT_SCALES = (".scale_input", ".input_scale")
FORMAT = ".comfy_quant"
FP8 = ("F8_E4M3", "F8_E5M2")
FORMATS = ("float8_e4m3fn", "float8_e5m2")
FLOATS = ("F64", "F32", "F16", "BF16", *FP8)


@dataclass(frozen=True)
class Scales:
    """Which weight has which scale. `weights` are the file's other tensors, by name."""

    weights: tuple[str, ...]
    scale_of: dict[str, str] = field(default_factory=dict)

    @property
    def scaled(self) -> bool:
        return bool(self.scale_of)


def find_scales(file: WeightFile, ignore: tuple[str, ...] = ()) -> Scales:
    """Pair scales with weights. ModelError when one cannot be paired or its format is not known.

    ignore: names that are not weights (an embedded tokenizer, for one).
    """
    names = set(file.names)
    plain = [
        name
        for name in file.names
        if name not in (MARKER, *ignore) and not name.endswith((*WEIGHT_SCALES, *INPUT_SCALES, FORMAT))
    ]
    _check_formats(file)
    scale_of: dict[str, str] = {}
    for suffix in WEIGHT_SCALES:
        for scale in (name for name in file.names if name.endswith(suffix)):
            weight = scale.removesuffix(suffix) + ".weight"
            if weight not in names:
                raise _refused(file, f"the scale {scale} belongs to no weight")
            if weight in scale_of:
                raise _refused(file, f"{weight} has two scales")
            shape, rows = file.shape(scale), file.shape(weight)
            if shape not in ((), (1,), (1, 1), (rows[0],), (rows[0], 1)):
                raise _refused(file, f"the scale {scale} has the shape {shape}, neither one number nor one per row")
            scale_of[weight] = scale
    others = [name for name in plain if file.dtype(name) not in FLOATS]
    if others:
        kinds = ", ".join(sorted({file.dtype(name) for name in others}))
        raise _refused(file, f"{len(others)} weights are stored as {kinds}: {listed(others)}")
    unscaled = [name for name in plain if file.dtype(name) in FP8 and name not in scale_of]
    if unscaled and (scale_of or MARKER in names):
        raise _refused(file, f"{len(unscaled)} fp8 weights have no scale: {listed(unscaled)}")
    return Scales(tuple(plain), scale_of)


def _check_formats(file: WeightFile) -> None:
    formats: dict[str, str] = {}
    for name in file.names:
        if name.endswith(FORMAT):
            formats[name.removesuffix(FORMAT)] = _format_of(file, bytes(file.read(name).tolist()))
    if "_quantization_metadata" in file.metadata:
        try:
            layers = json.loads(file.metadata["_quantization_metadata"]).get("layers", {})
        except (json.JSONDecodeError, AttributeError):
            raise _refused(file, "its header names formats that cannot be read") from None
        formats |= {name: str(layer.get("format")) for name, layer in layers.items()}
    unknown = sorted({name for name in formats.values() if name not in FORMATS})
    if unknown:
        raise _refused(file, f"the format {', '.join(unknown)} is not known here; {', '.join(FORMATS)} are")


def _format_of(file: WeightFile, data: bytes) -> str:
    try:
        return str(json.loads(data.decode()).get("format"))
    except (UnicodeDecodeError, json.JSONDecodeError, AttributeError):
        raise _refused(file, "a layer's format cannot be read") from None


def _refused(file: WeightFile, why: str) -> ModelError:
    return ModelError(
        f"{file.path} is quantised in a way that would load wrong",
        why,
        "the fp16 or bf16 file of the same model, or its .gguf",
    )


def reader(file: WeightFile, scales: Scales) -> Callable[[str, torch.dtype], torch.Tensor]:
    """read(name, dtype): a weight with its scale applied in float32, then cast."""

    def read(name: str, dtype: torch.dtype) -> torch.Tensor:
        weight = file.read(name)
        if name not in scales.scale_of:
            return weight.to(dtype)
        scale = file.read(scales.scale_of[name]).float()
        per_row = scale.numel() > 1
        return (weight.float() * scale.reshape((-1,) + (1,) * (weight.ndim - 1) if per_row else ())).to(dtype)

    return read
