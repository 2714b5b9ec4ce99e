"""Reads fp8 weights and applies their scales.

A scaled-fp8 file stores w / s in float8 together with the scale s. diffusers loads such a file without its scales,
which gives wrong videos. Here every scale is applied, w = fp8 * s in float32, and a file whose scales cannot be
identified is refused. Three layouts are in use, all from ComfyUI and its converters:

- `X.scale_weight` with a marker tensor `scaled_fp8` (2024 on), `X.scale_input` for activations
- `X.weight_scale` with a JSON `X.comfy_quant` per layer (late 2025 on), `X.input_scale` for activations
- the second one with the JSON in the header's `_quantization_metadata`

Scales of activations matter only for fp8 matrix products. Here the weights are converted to the model's dtype, so they
are ignored. fp8 files without scales are plain casts and are loaded as they are.
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
    """The names of a file's weights, and the name of each scaled weight's scale.

    weights: all tensors that are not scales or formats.
    """

    weights: tuple[str, ...]
    scale_of: dict[str, str] = field(default_factory=dict)

    @property
    def scaled(self) -> bool:
        """Whether any weight has a scale."""
        return bool(self.scale_of)


def find_scales(file: WeightFile, ignore: tuple[str, ...] = ()) -> Scales:
    """Pair scales with weights.

    ignore: names of tensors that are not weights, such as an embedded tokenizer. Raises ModelError where a scale cannot
    be paired or its format is not known.
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
                raise _refused(file, f"the scale {scale} has no weight")
            if weight in scale_of:
                raise _refused(file, f"{weight} has two scales")
            shape, rows = file.shape(scale), file.shape(weight)
            if shape not in ((), (1,), (1, 1), (rows[0],), (rows[0], 1)):
                raise _refused(file, f"the scale {scale} has the shape {shape}, not a single number or one per row")
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
            raise _refused(file, "the quantization formats in its header cannot be read") from None
        formats |= {name: str(layer.get("format")) for name, layer in layers.items()}
    unknown = sorted({name for name in formats.values() if name not in FORMATS})
    if unknown:
        raise _refused(file, f"the format {', '.join(unknown)} is not known; known: {', '.join(FORMATS)}")


def _format_of(file: WeightFile, data: bytes) -> str:
    try:
        return str(json.loads(data.decode()).get("format"))
    except (UnicodeDecodeError, json.JSONDecodeError, AttributeError):
        raise _refused(file, "a layer's format cannot be read") from None


def _refused(file: WeightFile, why: str) -> ModelError:
    return ModelError(
        f"{file.path} is quantized in a way that is not supported",
        f"{why}. Use the fp16, bf16 or .gguf file of the same model",
    )


def reader(file: WeightFile, scales: Scales) -> Callable[[str, torch.dtype], torch.Tensor]:
    """Return a function read(name, dtype) that returns a weight, scaled in float32 and then cast to `dtype`.

    A scale is a single number or has one value per row; the weight keeps its shape.
    """

    def read(name: str, dtype: torch.dtype) -> torch.Tensor:
        weight = file.read(name)
        if name not in scales.scale_of:
            return weight.to(dtype)
        scale = file.read(scales.scale_of[name]).float()
        per_row = scale.numel() > 1
        return (weight.float() * scale.reshape((-1,) + (1,) * (weight.ndim - 1) if per_row else ())).to(dtype)

    return read
