"""Applies LoRA files to a Wan transformer, without silently leaving anything out.

Every tensor of the file is accounted for: low-rank pairs become PEFT adapters (through diffusers); `.diff`, `.diff_b`
and `.diff_m` (full differences of weights, biases and modulation, which diffusers drops with only a log line) are added
to the parameters; anything else is refused by name. Modules are found by the tail of a name, whatever prefixes a
trainer has put before it: `diffusion_model.*` (lightx2v, Kijai, ComfyUI), `lora_unet_*` (kohya, musubi),
`base_model.model.*` (PEFT), `transformer.*` and, for the low-noise expert, `transformer_2.*` (diffusers). LoKr, LoHa
and DoRA are refused.

An adapter adds weight * (alpha / rank) * up @ down; alpha equals the rank where the file does not give it.
"""

from __future__ import annotations

import json
import math
import os
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from wanscope import events
from wanscope.errors import ModelError
from wanscope.wan.experts import expert_of_name
from wanscope.wan.identity import file_hash
from wanscope.wan.model import Lora
from wanscope.wan.single_file import diffusers_names
from wanscope.wan.weights import listed, open_weights

if TYPE_CHECKING:
    from diffusers import WanTransformer3DModel

    from wanscope.wan.model import WanModel

EXPERTS = ("both", "high", "low")
# The end of a tensor's name says what it is. NAME is an adapter's: `lora_A.default.weight`.
DOWN = re.compile(r"[._]lora[._](?:A|down)(?:\.(?!weight$)[^.]+)?(?:\.weight)?$")
UP = re.compile(r"[._]lora[._](?:B|up)(?:\.(?!weight$)[^.]+)?(?:\.weight)?$")
UP_BIAS = re.compile(r"[._]lora[._](?:B|up)(?:\.(?!bias$)[^.]+)?\.bias$")
ALPHA = re.compile(r"[._](?:network_)?alpha$")
MODULATION = re.compile(r"\.modulation\.diff$|\.diff_m$")
DIFFERENCES = {".diff_b": "bias", ".diff": "weight"}
# What may stand before a module's name, with "_" for ".". Trainers nest them: `base_model.model.diffusion_model.`.
PREFIX = re.compile(r"(?:lora|lycoris|unet|base|model|diffusion|transformer|dit|denoiser|pipe|processor|module)_+")
LOW_NOISE = re.compile(r"(?:^|[._])transformer_2[._]")  # diffusers' name of the low-noise expert
COMPUTABLE = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
ROUNDING = 2e-3  # relative, of a whole matrix; that of bf16 is 1.1e-3
OTHER_KINDS = {
    ".lokr_": "LoKr",
    ".hada_": "LoHa",
    ".dora_scale": "DoRA",
    ".lora_magnitude_vector": "DoRA",
    ".lora_mid": "LoCon with a middle matrix",
    ".oft_": "OFT",
    ".glora_": "GLoRA",
}


@dataclass
class LoraTensors:
    """The content of a LoRA file, by diffusers' module names.

    down: [rank, inputs]. up: [outputs, rank]. deltas: full differences by parameter name, in the parameter's shape.
    """

    down: dict[str, torch.Tensor] = field(default_factory=dict)
    up: dict[str, torch.Tensor] = field(default_factory=dict)
    alpha: dict[str, float] = field(default_factory=dict)
    deltas: dict[str, torch.Tensor] = field(default_factory=dict)


def _original_modules(blocks: int) -> list[str]:
    """Return the original names of every layer that a LoRA can change."""
    attention = [f"self_attn.{x}" for x in "qkvo"] + [f"cross_attn.{x}" for x in (*"qkvo", "k_img", "v_img")]
    inside = [*attention, "ffn.0", "ffn.2", "norm3", *(f"{a}_attn.norm_{x}" for a in ("self", "cross") for x in "qk")]
    outside = ["time_embedding.0", "time_embedding.2", "text_embedding.0", "text_embedding.2", "time_projection.1"]
    outside += ["patch_embedding", "head.head", *(f"img_emb.proj.{i}" for i in (0, 1, 3, 4))]
    return [f"blocks.{i}.{name}" for i in range(blocks) for name in (*inside, "cross_attn.norm_k_img")] + outside


def _modules(transformer: WanTransformer3DModel) -> dict[str, str]:
    """Return {name in a file, with "_" for ".": diffusers' module name}, for the original and diffusers' names."""
    ours = [name for name, _ in transformer.named_modules() if name]
    original = {
        old.removesuffix(".weight"): new.removesuffix(".weight")
        for new, old in diffusers_names(f"{name}.weight" for name in _original_modules(len(transformer.blocks))).items()
    }
    known = {name: name for name in ours} | {old: new for old, new in original.items() if new in set(ours)}
    # Modulations are parameters of the blocks and of the model itself.
    known |= {f"blocks.{i}": f"blocks.{i}" for i in range(len(transformer.blocks))} | {"head": ""}
    return {name.replace(".", "_"): module for name, module in known.items()}


def parse(path: Path, transformer: WanTransformer3DModel, expert: str | None = None) -> LoraTensors:
    """Read everything in a LoRA file, under the transformer's names.

    expert: high or low for one of two experts. A file that has tensors for both (`transformer_2.` is the low-noise one)
    gives each expert its own. Raises ModelError, which names what cannot be used.
    """
    modules, result = _modules(transformer), LoraTensors()
    with open_weights(path) as file:
        for marker, kind in OTHER_KINDS.items():
            found = [name for name in file.names if marker in name]
            if found:
                raise ModelError(
                    f"{path} is not a plain LoRA",
                    f"it is a {kind} file ({listed(found)}), which is not supported. Use a LoRA export of the adapter",
                )
        names = file.names
        low = [name for name in names if LOW_NOISE.search(name)]
        if low and expert is not None:
            names = low if expert == "low" else [name for name in names if name not in set(low)]
        elif low:
            raise ModelError(
                f"{path} does not fit the model",
                f"{len(low)} of its tensors are for a second expert, which the model does not have: {listed(low)}",
            )
        unknown = [name for name in names if not _add_tensor(name, file.read(name), modules, result)]
        alphas = _alphas_of_metadata(file.metadata, result.down, path)
    if unknown:
        image = [name for name in unknown if "k_img" in name or "v_img" in name or "img_emb" in name]
        why = f"{len(unknown)} tensors do not belong to any layer of the model: {listed(unknown)}"
        if image and len(image) == len(unknown):
            why += ". They are for image tokens: the LoRA was made for an image-to-video model"
        raise ModelError(f"{path} does not fit the model", why)
    for module, value in alphas.items():
        result.alpha.setdefault(module, value)
    _check(path, transformer, result)
    return result


def _module_of(bare: str, modules: dict[str, str]) -> str | None:
    """Return the module that a name without its suffix means, whatever prefixes it has, or None."""
    name = LOW_NOISE.sub(".", bare).replace(".", "_").lstrip("_")
    while name not in modules:
        prefix = PREFIX.match(name)
        if prefix is None:
            return None
        name = name[prefix.end() :]
    return modules[name]


def _add_tensor(name: str, tensor: torch.Tensor, modules: dict[str, str], result: LoraTensors) -> bool:
    """Add one tensor to `result`. Return False where its name is not known."""
    for pattern, kind in ((DOWN, "down"), (UP, "up"), (ALPHA, "alpha"), (UP_BIAS, "bias"), (MODULATION, "modulation")):
        if (end := pattern.search(name)) is None:
            continue
        module = _module_of(name[: end.start()], modules)
        if module is None:
            return False
        if kind in ("down", "up"):
            getattr(result, kind)[module] = tensor
        elif kind == "alpha":
            result.alpha[module] = float(tensor.item())
        else:
            parameter = "bias" if kind == "bias" else "scale_shift_table"
            result.deltas[f"{module}.{parameter}".lstrip(".")] = tensor
        return True
    for suffix, parameter in DIFFERENCES.items():
        if name.endswith(suffix) and (module := _module_of(name.removesuffix(suffix), modules)) is not None:
            result.deltas[f"{module}.{parameter}".lstrip(".")] = tensor
            return True
    return False


def _alphas_of_metadata(metadata: dict[str, str], down: dict[str, torch.Tensor], path: Path) -> dict[str, float]:
    """Return the alpha of each module from the header that diffusers writes (`lora_adapter_metadata`)."""
    if "lora_adapter_metadata" not in metadata:
        return {}
    config = {key.removeprefix("transformer."): v for key, v in json.loads(metadata["lora_adapter_metadata"]).items()}
    if config.get("use_dora"):
        raise ModelError(
            f"{path} is not a plain LoRA", "its header says that it is a DoRA file, which is not supported"
        )
    patterns: dict[str, float] = config.get("alpha_pattern") or {}
    result = {}
    for module, tensor in down.items():
        alpha = next((a for p, a in patterns.items() if re.search(rf"(^|\.){p.lstrip('^')}$", module)), None)
        alpha = config.get("lora_alpha") if alpha is None else alpha
        if alpha is not None:
            rank = tensor.shape[0]
            result[module] = float(alpha) * (math.sqrt(rank) if config.get("use_rslora") else 1.0)
    return result


def _check(path: Path, transformer: WanTransformer3DModel, lora: LoraTensors) -> None:
    halves = sorted(set(lora.down) ^ set(lora.up))
    if halves:
        raise ModelError(f"{path} is not a complete LoRA", f"one of the two matrices is missing for {listed(halves)}")
    if not lora.down and not lora.deltas:
        raise ModelError(f"{path} is not a LoRA", "it contains no low-rank matrices and no differences of weights")
    wrong = []
    for name in lora.down:
        layer = transformer.get_submodule(name)
        layer = getattr(layer, "base_layer", layer)  # PEFT has wrapped it already
        if not isinstance(layer, nn.Linear):
            wrong.append(f"{name} (low-rank pairs for {type(layer).__name__} layers are not supported)")
        elif lora.down[name].shape[-1] != layer.in_features or lora.up[name].shape[0] != layer.out_features:
            wrong.append(f"{name} ({lora.down[name].shape[-1]} to {lora.up[name].shape[0]})")
    parameters = dict(transformer.named_parameters())
    for name, delta in lora.deltas.items():
        parameter = parameters.get(name, parameters.get(_wrapped(name)))
        if parameter is None or delta.numel() != parameter.numel() or not parameter.is_floating_point():
            wrong.append(f"{name} (a difference of shape {tuple(delta.shape)})")
    if wrong:
        raise ModelError(f"{path} does not fit the model", f"{len(wrong)} of its layers do not: {listed(wrong)}")


def _apply(transformer: WanTransformer3DModel, lora: LoraTensors, path: Path, weight: float, adapter: str) -> None:
    """Add one LoRA to a transformer as an unmerged PEFT adapter; full differences are added to the parameters."""
    state: dict[str, torch.Tensor] = {}
    for module, down in lora.down.items():
        scale = lora.alpha.get(module, down.shape[0]) / down.shape[0]
        state[f"{module}.lora_A.weight"] = _computable(down)
        state[f"{module}.lora_B.weight"] = _scaled(lora.up[module], scale)
    if state:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # several LoRAs are intended
            transformer.load_lora_adapter(state, prefix=None, adapter_name=adapter)  # type: ignore[arg-type]
        placed = {
            name
            for name, module in transformer.named_modules()
            if hasattr(module, "lora_A") and adapter in module.lora_A  # type: ignore[operator]
        }
        if placed != set(lora.down):
            missed = sorted(set(lora.down) ^ placed)
            raise ModelError(f"{path} was not applied completely", f"{len(missed)} layers differ: {listed(missed)}")
    parameters = dict(transformer.named_parameters())
    for name, delta in lora.deltas.items():
        parameter = parameters.get(name, parameters.get(_wrapped(name)))
        assert parameter is not None
        changed = parameter.detach().float() + weight * delta.float().reshape(parameter.shape).to(parameter.device)
        parameter.data = changed.to(parameter.dtype)


def _scaled(up: torch.Tensor, scale: float) -> torch.Tensor:
    """Return `up` times the scale, in the file's dtype, or in float32 where that dtype cannot hold the product.

    fp8 has 2 or 3 bits of mantissa and a narrow range, and small fp16 numbers lose bits below 2^-14.
    """
    product = up.float() * scale
    stored = product.to(up.dtype)
    if up.dtype in COMPUTABLE and (stored.float() - product).norm() <= ROUNDING * product.norm():
        return stored
    return product


def _computable(down: torch.Tensor) -> torch.Tensor:
    """Return `down` in a dtype that matrix products take: float32 instead of fp8."""
    return down if down.dtype in COMPUTABLE else down.float()


def _wrapped(name: str) -> str:
    """Return the parameter's name after PEFT has wrapped its layer."""
    module, _, parameter = name.rpartition(".")
    return f"{module}.base_layer.{parameter}"


def as_triple(lora: Any) -> tuple[Path, float, str | None]:
    """Return (path, weight, expert) of a path, a (path, weight[, expert]) tuple or a recipe's LoraSpec.

    The expert is None if it is not given. Raises ModelError for an expert other than both, high or low.
    """
    path, weight, expert = lora, 1.0, None
    if isinstance(lora, tuple):
        path, weight, *rest = (*lora, 1.0) if len(lora) == 1 else lora
        expert = rest[0] if rest else None
    elif not isinstance(lora, str | Path):
        path, weight, expert = lora.path, lora.weight, lora.expert
    if expert is not None and expert not in EXPERTS:
        raise ModelError(f"{expert!r} is not an expert", "a LoRA is for high, low or both")
    return Path(os.path.expanduser(path)), float(weight), expert


def apply_all(model: WanModel, loras: Iterable[Any], on_event: events.Listener = events.ignore) -> None:
    """Add LoRAs to a model's experts, in order, with their weights.

    On a model with two experts, a LoRA without an expert is applied to the one that its name says, or to both; a note
    reports which. Raises ModelError before anything is changed where a file does not fit.
    """
    applied: list[Lora] = []
    todo: list[tuple[WanTransformer3DModel, LoraTensors, Path, float, str]] = []
    for index, (path, weight, expert) in enumerate((as_triple(lora) for lora in loras), start=len(model.loras)):
        if model.transformer_2 is not None:
            expert = expert or expert_of_name(path.stem) or "both"
            where = "both experts" if expert == "both" else f"the {expert}-noise expert"
            on_event(events.Note(f"LoRA {path.name}: applied to {where}"))
        elif expert in ("high", "low"):
            raise ModelError(f"{path} is for the {expert}-noise expert", f"{model.variant.name} has only one expert")
        expert = expert or "both"
        targets = model.experts()
        targets = targets[:1] if expert == "high" else targets[1:] if expert == "low" else targets
        adapter = f"lora{index}"
        for transformer in targets:
            which = None if model.transformer_2 is None else "low" if transformer is model.transformer_2 else "high"
            todo.append((transformer, parse(path, transformer, which), path, weight, adapter))
        applied.append(Lora(str(path), weight, expert, file_hash(path), adapter))
    for transformer, lora, path, weight, adapter in todo:  # by now every file has been read and checked
        _apply(transformer, lora, path, weight, adapter)
    model.loras = (*model.loras, *applied)
    for transformer in model.experts():
        active = [lora for lora in model.loras if lora.adapter in getattr(transformer, "peft_config", {})]
        if active:
            transformer.set_adapters([lora.adapter for lora in active], [lora.weight for lora in active])
            transformer.requires_grad_(False)
