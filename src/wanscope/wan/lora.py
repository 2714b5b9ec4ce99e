"""Applies LoRA files to a Wan transformer, without silently leaving anything out.

Every tensor of the file is accounted for: low-rank pairs, DoRA, LoHa and LoKr become PEFT adapters (lora_layers.py);
`.diff`, `.diff_b` and `.diff_m` (full differences of weights, biases and modulation, which diffusers drops with only a
log line) are added to the parameters; anything else is refused by name. lora_names.py lists the spellings.

An adapter adds weight * (alpha / rank) * up @ down. Where no tensor gives alpha, it is that of the trainer's config
(lora_config.py), or else the rank.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from wanscope import events
from wanscope.errors import ModelError
from wanscope.wan import lora_layers
from wanscope.wan.experts import OTHER, expert_of_lora
from wanscope.wan.lora_config import lora_hash, read_config, scale_of
from wanscope.wan.lora_layers import base_layer, is_loha
from wanscope.wan.lora_names import DIFFERENCES, LOW_NOISE, NOT_READ, module_of, modules_of, what_is
from wanscope.wan.model import Lora
from wanscope.wan.weights import is_finite, listed, open_weights

if TYPE_CHECKING:
    from diffusers import WanTransformer3DModel

    from wanscope.wan.model import WanModel

EXPERTS = ("both", "high", "low")
LOHA = {f"hada_w{i}_{x}" for i in (1, 2) for x in "ab"}
LOKR = [{f"lokr_w{i}"} for i in (1, 2)], [{f"lokr_w{i}_a", f"lokr_w{i}_b"} for i in (1, 2)]


@dataclass
class LoraTensors:
    """The content of a LoRA file, by diffusers' module names.

    down: [rank, inputs]. up: [outputs, rank]. deltas: full differences by parameter name, in the parameter's shape.
    magnitude: of DoRA, [outputs]. factors: {module: {name of a matrix of LoHa or LoKr: matrix}}. names: {module: its
    name in the file}. whole_scale: of a LoKr of two whole matrices, where the trainer's config gives it.
    """

    down: dict[str, torch.Tensor] = field(default_factory=dict)
    up: dict[str, torch.Tensor] = field(default_factory=dict)
    alpha: dict[str, float] = field(default_factory=dict)
    deltas: dict[str, torch.Tensor] = field(default_factory=dict)
    magnitude: dict[str, torch.Tensor] = field(default_factory=dict)
    factors: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    whole_scale: dict[str, float] = field(default_factory=dict)

    @property
    def empty(self) -> bool:
        """Whether there is nothing for this expert."""
        return not (self.down or self.up or self.deltas or self.factors)

    def rank(self, module: str) -> int | None:
        """Return the rank by which a module's alpha is divided, or None for a LoKr of two whole matrices."""
        if module in self.down:
            return self.down[module].shape[0]
        matrices = self.factors[module]
        inner = ("hada_w1_b", "lokr_w2_b", "lokr_w1_b")
        return next((matrices[name].shape[0] for name in inner if name in matrices), None)

    def scale(self, module: str) -> float:
        """Return alpha / rank; 1 where there is no alpha, and for a LoKr of two whole matrices, as in LyCORIS."""
        rank = self.rank(module)
        return self.alpha.get(module, rank) / rank if rank else self.whole_scale.get(module, 1.0)


def parse(path: Path, transformer: WanTransformer3DModel, expert: str | None = None) -> LoraTensors:
    """Read everything in a LoRA file, under the transformer's names.

    expert: high or low for one of two experts. A file that has tensors for both (`transformer_2.` is the low-noise one)
    gives each expert its own; the result is empty for the high-noise one where all are for the other. Raises
    ModelError, which names what cannot be used.
    """
    modules, result = modules_of(transformer), LoraTensors()
    with open_weights(path) as file:
        for marker, kind in NOT_READ.items():
            found = [name for name in file.names if marker in name]
            if found:
                raise ModelError(
                    f"{path} is not a kind of LoRA that can be read",
                    f"it is a {kind} file ({listed(found)}). Use a LoRA export of the adapter",
                )
        names = file.names
        low = [name for name in names if LOW_NOISE.search(name)]
        if low and expert is not None:
            names = low if expert == "low" else [name for name in names if name not in set(low)]
            if not names:
                return result
        elif low:
            raise ModelError(
                f"{path} does not fit the model",
                f"{len(low)} of its tensors are for a second expert, which the model does not have: {listed(low)}",
            )
        tensors = {name: file.read(name) for name in names}
        config, where = read_config(path, file.metadata, "low" if low and expert == "low" else None)
    _check_values(path, tensors)
    _add_tensors(path, tensors, modules, result)
    for module in (*result.down, *result.factors):
        own = config.get("r")
        rank = result.rank(module) or (own if isinstance(own, int) else 0)
        scale = scale_of(config, (result.names[module], module), rank, where) if rank > 0 else None
        if scale is not None and result.rank(module):
            result.alpha.setdefault(module, scale * rank)
        elif scale is not None:
            result.whole_scale[module] = scale
    _check(path, transformer, result)
    return result


def _check_values(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    integers = [name for name, tensor in tensors.items() if not tensor.is_floating_point() and tensor.numel() != 1]
    if integers:
        raise ModelError(
            f"{path} is stored in a way that is not supported",
            f"{len(integers)} of its tensors are not floating-point: {listed(integers)}",
        )
    broken = [name for name, tensor in tensors.items() if not is_finite(tensor)]
    if broken:
        raise ModelError(
            f"{path} contains weights that are not numbers",
            f"{len(broken)} of its tensors have NaN or infinite values: {listed(broken)}",
        )


def _add_tensors(path: Path, tensors: dict[str, torch.Tensor], modules: dict[str, str], result: LoraTensors) -> None:
    """Add all tensors to `result`. Raises ModelError for names that are not known, and for two of the same meaning."""
    unknown: list[str] = []
    seen: dict[tuple[str, str, str], str] = {}
    for name, tensor in tensors.items():
        what = what_is(name)
        module = None if what is None else module_of(what[1], modules)
        if what is None or module is None:
            unknown.append(name)
            continue
        kind, bare, factor = what
        if (other := seen.setdefault((kind, module, factor), name)) != name:
            raise ModelError(
                f"{path} has more than one tensor for the same matrix",
                f"{other} and {name} both belong to {module}. Save each LoRA to a file of its own",
            )
        _add_tensor(path, name, (kind, module, factor), tensor, result)
        if kind in ("down", "factor"):
            result.names[module] = bare
    if unknown:
        image = [name for name in unknown if "k_img" in name or "v_img" in name or "img_emb" in name]
        why = f"{len(unknown)} tensors do not belong to any layer of the model: {listed(unknown)}"
        if image and len(image) == len(unknown):
            why += ". They are for image tokens: the LoRA was made for an image-to-video model"
        raise ModelError(f"{path} does not fit the model", why)


def _add_tensor(path: Path, name: str, what: tuple[str, str, str], tensor: torch.Tensor, result: LoraTensors) -> None:
    kind, module, factor = what
    if kind in ("down", "up", "magnitude"):
        getattr(result, kind)[module] = tensor
    elif kind == "factor":
        result.factors.setdefault(module, {})[factor] = tensor
    elif kind == "alpha":
        if tensor.numel() != 1:
            raise ModelError(f"{path} cannot be used", f"{name} is an alpha of {tensor.numel()} values, not of one")
        result.alpha[module] = float(tensor.item())
    else:
        parameter = {"bias": "bias", "modulation": "scale_shift_table"}.get(kind) or DIFFERENCES[factor]
        key = f"{module}.{parameter}".lstrip(".")
        if key in result.deltas:
            raise ModelError(f"{path} has more than one tensor for the same matrix", f"{name} is another one of {key}")
        result.deltas[key] = tensor


def _check(path: Path, transformer: WanTransformer3DModel, lora: LoraTensors) -> None:
    halves = sorted(set(lora.down) ^ set(lora.up) | set(lora.magnitude) - set(lora.down))
    if halves:
        raise ModelError(f"{path} is not a complete LoRA", f"one of the two matrices is missing for {listed(halves)}")
    if lora.empty:
        raise ModelError(f"{path} is not a LoRA", "it contains no low-rank matrices and no differences of weights")
    both = sorted(set(lora.down) & set(lora.factors))
    if both:
        raise ModelError(f"{path} cannot be used", f"it has matrices of two kinds of LoRA for {listed(both)}")
    wrong = [
        f"{module}{why}"
        for module in (*lora.down, *lora.factors)
        if (why := _misfit(base_layer(transformer, module), module, lora))
    ]
    for name, delta in lora.deltas.items():
        parameter = _parameter(transformer, name)
        if parameter is None or delta.numel() != parameter.numel() or not parameter.is_floating_point():
            wrong.append(f"{name} (a difference of shape {tuple(delta.shape)})")
    if wrong:
        raise ModelError(f"{path} does not fit the model", f"{len(wrong)} of its layers do not: {listed(wrong)}")


def _misfit(layer: Any, module: str, lora: LoraTensors) -> str:
    """Return why the matrices for a layer do not fit it, or ""."""
    if not isinstance(layer, nn.Linear):
        return f" (low-rank pairs for {type(layer).__name__} layers are not supported)"
    special = module in lora.factors or module in lora.magnitude
    if special and not layer.weight.is_floating_point():
        return " (DoRA, LoHa and LoKr need a layer that is not quantized)"
    if module in lora.factors:
        return _misfit_of_factors(layer, lora.factors[module])
    down, up = lora.down[module], lora.up[module]
    if down.ndim != 2 or up.ndim != 2 or 0 in (*down.shape, *up.shape):
        return f" (matrices of shapes {tuple(down.shape)} and {tuple(up.shape)})"
    if down.shape[1] != layer.in_features or up.shape[0] != layer.out_features:
        return f" ({down.shape[-1]} to {up.shape[0]})"
    if down.shape[0] != up.shape[1]:
        return f" (its ranks differ: {down.shape[0]} and {up.shape[1]})"
    magnitude = lora.magnitude.get(module)
    if magnitude is not None and tuple(magnitude.shape) not in ((layer.out_features,), (layer.out_features, 1)):
        # LyCORIS' older form has one number per input, which PEFT does not read.
        return f" (DoRA magnitudes of shape {tuple(magnitude.shape)}, not one per output)"
    return ""


def _misfit_of_factors(layer: nn.Linear, matrices: dict[str, torch.Tensor]) -> str:
    names, shapes = set(matrices), [tuple(matrix.shape) for matrix in matrices.values()]
    complete = names == LOHA or all(
        (whole <= names and not product & names) or (product <= names and not whole & names)
        for whole, product in zip(*LOKR, strict=True)
    )
    if not complete or (names != LOHA and names & LOHA):
        return f" (it has only {listed(list(names))})"
    if any(len(shape) != 2 or 0 in shape for shape in shapes):
        return f" (matrices of shapes {listed([str(shape) for shape in shapes])})"
    try:
        with torch.device("meta"):
            empty = {name: torch.empty(matrix.shape) for name, matrix in matrices.items()}
            first, second = (
                empty[f"{kind}_w{i}"] if f"{kind}_w{i}" in empty else empty[f"{kind}_w{i}_a"] @ empty[f"{kind}_w{i}_b"]
                for kind in ("hada" if names == LOHA else "lokr",)
                for i in (1, 2)
            )
            shape = tuple((first * second if names == LOHA else torch.kron(first, second)).shape)
    except RuntimeError:
        return f" (matrices of shapes {listed([str(shape) for shape in shapes])} have no product)"
    wanted = (layer.out_features, layer.in_features)
    return "" if shape == wanted else f" (a change of shape {shape}, not {wanted})"


def _parameter(transformer: WanTransformer3DModel, name: str) -> torch.Tensor | None:
    """Return a parameter by its name in the model without adapters."""
    module, _, parameter = name.rpartition(".")
    return getattr(base_layer(transformer, module), parameter, None)


def _apply(transformer: WanTransformer3DModel, lora: LoraTensors, path: Path, weight: float, adapter: str) -> None:
    """Add one LoRA to a transformer as unmerged PEFT adapters; full differences are added to the parameters.

    The adapters are called `adapter` with, after a hyphen, their kind.
    """
    pairs = {m: (down, lora_layers.scaled(lora.up[m], lora.scale(m))) for m, down in lora.down.items()}
    plain = {module: pair for module, pair in pairs.items() if module not in lora.magnitude}
    dora = {module: pair for module, pair in pairs.items() if module in lora.magnitude}
    placed: set[str] = set()
    if plain:
        placed |= lora_layers.place_pairs(transformer, plain, adapter)
    if dora and weight:  # at weight 0, PEFT would still set the norm of each row
        magnitudes = {module: lora.magnitude[module].reshape(-1) for module in dora}
        placed |= lora_layers.place_pairs(transformer, dora, f"{adapter}-dora", magnitudes)
    for kind in ("loha", "lokr"):
        factors = {m: matrices for m, matrices in lora.factors.items() if is_loha(matrices) == (kind == "loha")}
        if factors:
            name = f"{adapter}-{kind}"
            lora_layers.place_factors(transformer, factors, {m: lora.scale(m) for m in factors}, name)
            placed |= set(lora_layers.wrapped_layers(transformer, name))
    wanted = {*plain, *(dora if weight else ()), *lora.factors}
    if placed != wanted:
        missed = sorted(wanted ^ placed)
        raise ModelError(f"{path} was not applied completely", f"{len(missed)} layers differ: {listed(missed)}")
    for name, delta in lora.deltas.items():
        parameter = _parameter(transformer, name)
        assert parameter is not None
        changed = parameter.detach().float() + weight * delta.float().reshape(parameter.shape).to(parameter.device)
        parameter.data = changed.to(parameter.dtype)


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

    On a model with two experts, a LoRA without an expert is applied to the one that its name says, or to both; one
    whose tensors are all for the low-noise expert, to that. A note reports which. Raises ModelError before anything is
    changed where a file does not fit.
    """
    applied: list[Lora] = []
    todo: list[tuple[WanTransformer3DModel, LoraTensors, Path, float, str]] = []
    for index, (path, weight, expert) in enumerate((as_triple(lora) for lora in loras), start=len(model.loras)):
        if model.transformer_2 is not None:
            expert = expert or expert_of_lora(path) or "both"
        elif expert in ("high", "low"):
            raise ModelError(f"{path} is for the {expert}-noise expert", f"{model.variant.name} has only one expert")
        expert, adapter = expert or "both", f"lora{index}"
        parsed = _parse_for(model, path, expert)
        if model.transformer_2 is not None:
            reached = next(iter(parsed)) if len(parsed) == 1 else "both"
            where = "both experts" if reached == "both" else f"the {reached}-noise expert"
            on_event(events.Note(f"LoRA {path.name}: applied to {where}"))
        if weight not in (0, 1) and any(lora.magnitude for lora in parsed.values()):
            on_event(events.Note(f"LoRA {path.name}: of a DoRA, the weight {weight:g} scales the pair before the norm"))
        for which, lora in parsed.items():
            transformer = model.experts()[EXPERTS.index(which) - 1]
            todo.append((transformer, lora, path, weight, adapter))
        applied.append(Lora(str(path), weight, expert, lora_hash(path), adapter))
    for transformer, lora, path, weight, adapter in todo:  # by now every file has been read and checked
        _apply(transformer, lora, path, weight, adapter)
    model.loras = (*model.loras, *applied)
    weights = {lora.adapter: lora.weight for lora in model.loras}
    for transformer in model.experts():
        active = [name for name in getattr(transformer, "peft_config", {}) if name.split("-")[0] in weights]
        if active:
            transformer.set_adapters(active, [weights[name.split("-")[0]] for name in active])
            transformer.requires_grad_(False)


def _parse_for(model: WanModel, path: Path, expert: str) -> dict[str, LoraTensors]:
    """Return {expert: tensors} of the experts that a file changes; `high` is also the only expert of a model."""
    if model.transformer_2 is None:
        return {"high": parse(path, model.experts()[0])}
    experts: dict[str, Any] = dict(zip(("high", "low"), model.experts(), strict=True))
    wanted = [expert] if expert != "both" else list(experts)
    parsed = {which: parse(path, experts[which], which) for which in wanted}
    found = {which: lora for which, lora in parsed.items() if not lora.empty}
    if not found:
        other = OTHER["high" if expert == "high" else "low"]
        raise ModelError(
            f"{path} has nothing for the {expert}-noise expert", f"all tensors in it are for the {other}-noise expert"
        )
    return found
