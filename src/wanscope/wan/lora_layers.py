"""Puts the matrices of a LoRA into a transformer, as PEFT layers that stay apart from the weights.

    LoRA   W + w * up @ down
    DoRA   m * (W + w * up @ down) / |W + w * up @ down|, the norm of each row (doi 10.48550/arXiv.2402.09353)
    LoHa   W + w * (w1_a @ w1_b) * (w2_a @ w2_b), elementwise (doi 10.48550/arXiv.2108.06098)
    LoKr   W + w * kron(w1, w2), each whole or as a product (doi 10.48550/arXiv.2309.14859)

w is the weight that the user gives. alpha / rank is in the matrices.

A layer computes in the dtype of its weight. In bf16, rounding both matrices of a pair changes their product by about
2.4e-3, as it does in diffusers.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from diffusers import WanTransformer3DModel

COMPUTABLE = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
ROUNDING = 2e-3  # relative, of a whole matrix; rounding one to bf16 makes 1.7e-3
ROUNDING_BOTH = 2.9e-3  # of the product, in bf16

Pairs = Mapping[str, tuple[torch.Tensor, torch.Tensor]]
Factors = Mapping[str, Mapping[str, torch.Tensor]]


def base_layer(transformer: nn.Module, module: str) -> Any:
    """Return a module by its name, or the layer inside where PEFT has wrapped it."""
    layer: Any = transformer.get_submodule(module) if module else transformer
    while hasattr(layer, "base_layer"):
        layer = layer.base_layer
    return layer


def computes_in(layer: Any) -> torch.dtype:
    """Return the dtype that adapters of a layer have; float32 for quantized ones."""
    return layer.weight.dtype if layer.weight.dtype in COMPUTABLE else torch.float32


def scaled(up: torch.Tensor, scale: float) -> torch.Tensor:
    """Return `up` times the scale, in the file's dtype, or in float32 where that dtype cannot hold the product.

    fp8 has 2 or 3 bits of mantissa and a narrow range, and small fp16 numbers lose bits below 2^-14.
    """
    product = up.float() * scale
    stored = product.to(up.dtype)
    if up.dtype in COMPUTABLE and (stored.float() - product).norm() <= ROUNDING * product.norm():
        return stored
    return product


def fitted(down: torch.Tensor, up: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a pair in a layer's dtype whose product is that of the given pair, up to the rounding of both matrices.

    down: [rank, inputs]. up: [outputs, rank], scaled. Usual matrices are cast as diffusers casts them, so that takes
    have the same bits; numbers that the dtype's range cuts off are brought into it first.
    """
    if dtype.itemsize > 2:
        return down.to(torch.float32) if down.dtype not in COMPUTABLE else down, up
    if _lost(down, dtype) ** 2 + _lost(up, dtype) ** 2 > ROUNDING_BOTH**2:
        # Powers of two change no bit of a mantissa, and bring both to the middle of the dtype's range.
        power = torch.round(torch.log2((up.double().norm() / down.double().norm()).clamp(2.0**-120, 2.0**120)) / 2)
        if power.isfinite():
            down, up = down.double() * 2**power, up.double() * 2**-power
    return down.to(dtype), up.to(dtype)


def _lost(matrix: torch.Tensor, dtype: torch.dtype) -> float:
    """Return the relative change of a matrix, in its norm, when it is rounded to a dtype."""
    exact = matrix.double()
    return float((matrix.to(dtype).double() - exact).norm() / exact.norm().clamp_min(torch.finfo(torch.float64).tiny))


def place_pairs(
    transformer: WanTransformer3DModel, pairs: Pairs, adapter: str, magnitudes: Mapping[str, torch.Tensor] | None = None
) -> set[str]:
    """Add low-rank pairs (down, up) as one adapter, and return the modules that have it now.

    magnitudes: m of DoRA for each module, [outputs].
    """
    state: dict[str, torch.Tensor] = {}
    for module, (down, up) in pairs.items():
        layer = base_layer(transformer, module)
        down, up = fitted(down, up, computes_in(layer))
        state |= {f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up}
        if magnitudes:
            state[f"{module}.lora_magnitude_vector"] = magnitudes[module].to(computes_in(layer))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # several LoRAs are intended
        transformer.load_lora_adapter(state, prefix=None, adapter_name=adapter)  # type: ignore[arg-type]
    return {
        name.removesuffix(".base_layer")
        for name, module in transformer.named_modules()
        if adapter in getattr(module, "lora_A", ())
    }


def place_factors(
    transformer: WanTransformer3DModel, factors: Factors, scales: Mapping[str, float], adapter: str
) -> None:
    """Add LoHa or LoKr matrices as one adapter. factors: {module: {hada_w1_a: ..., or lokr_w1: ...}}."""
    for module, matrices in factors.items():
        parent, _, child = module.rpartition(".")
        layer = _layer(transformer.get_submodule(module), matrices, scales[module], adapter)
        setattr(transformer.get_submodule(parent), child, layer)
    configs = getattr(transformer, "peft_config", None) or {}
    configs[adapter] = _config(next(iter(factors.values())))
    transformer.peft_config = configs  # type: ignore[assignment]
    transformer._hf_peft_config_loaded = True


def is_loha(matrices: Mapping[str, Any]) -> bool:
    """Return whether matrices are those of LoHa, and not of LoKr."""
    return any(name.startswith("hada_") for name in matrices)


def _config(matrices: Mapping[str, torch.Tensor]) -> Any:
    from peft import LoHaConfig, LoKrConfig

    return LoHaConfig(r=1, alpha=1) if is_loha(matrices) else LoKrConfig(r=1, alpha=1)


@cache
def _layer_classes() -> tuple[Any, Any]:
    """Return PEFT's layers for LoHa and LoKr, with the change computed in the matrices' float32 and rounded once.

    The product with the input is taken in the dtype of the layer's weight.
    """
    from peft.tuners.loha.layer import Linear as LoHaLinear
    from peft.tuners.lokr.layer import Linear as LoKrLinear

    class LoHa(LoHaLinear):
        def get_delta_weight(self, adapter_name: str, **options: Any) -> torch.Tensor:
            return super().get_delta_weight(adapter_name, **options).to(computes_in(self.get_base_layer()))

    class LoKr(LoKrLinear):
        def get_delta_weight(self, adapter_name: str, **options: Any) -> torch.Tensor:
            return super().get_delta_weight(adapter_name, **options).to(computes_in(self.get_base_layer()))

    return LoHa, LoKr


def _layer(inside: nn.Module, matrices: Mapping[str, torch.Tensor], scale: float, adapter: str) -> nn.Module:
    """Return PEFT's LoHa or LoKr layer around a layer, which may be one of PEFT's already."""
    cls = _layer_classes()[0 if is_loha(matrices) else 1]
    layer = cls(inside, adapter_name=adapter, config=_config(matrices), r=1, alpha=1.0)
    for name in layer.adapter_layer_names:  # PEFT has filled those of its own choice
        parameters = getattr(layer, name)
        if adapter in parameters:
            del parameters[adapter]
        if name in matrices:
            device = base_layer(layer, "").weight.device
            parameters[adapter] = nn.Parameter(matrices[name].float().to(device), requires_grad=False)
    layer.alpha[adapter] = layer.scaling[adapter] = scale  # PEFT divides alpha by the rank, which is 1 here
    return layer


def wrapped_layers(transformer: nn.Module, adapter: str) -> Iterator[str]:
    """Yield the names of the modules that an adapter changes."""
    for name, module in transformer.named_modules():
        if adapter in getattr(module, "scaling", ()):
            yield name.removesuffix(".base_layer")
