"""DoRA, LoHa and LoKr: every spelling against the formulas in float64 and against models that PEFT itself adapted."""

from __future__ import annotations

import copy
import json
from itertools import product

import pytest
import torch
from safetensors.torch import save_file

from helpers import layouts
from helpers.tiny import tiny_model
from wanscope.errors import ModelError
from wanscope.wan import lora

torch.set_num_threads(1)
MODULES = ["blocks.0.attn1.to_q", "blocks.1.attn2.to_out.0", "blocks.2.ffn.net.0.proj", "blocks.3.ffn.net.2"]
RANK = 4
BASES = {
    "comfy": lambda module: f"diffusion_model.{original(module)}",
    "lycoris": lambda module: "lycoris_" + original(module).replace(".", "_"),
    "kohya": lambda module: "lora_unet_" + original(module).replace(".", "_"),
    "peft": lambda module: f"base_model.model.{module}",
}


def original(module: str) -> str:
    return layouts.original_name(f"{module}.weight").removesuffix(".weight")


def forward(transformer) -> torch.Tensor:
    g = torch.Generator().manual_seed(1)
    dtype = transformer.patch_embedding.weight.dtype
    x, text = torch.randn(1, 16, 2, 4, 4, generator=g).to(dtype), torch.randn(1, 16, 32, generator=g).to(dtype)
    return transformer(x, torch.tensor([500.0]), text, return_dict=False)[0].double()


def close(a: torch.Tensor, b: torch.Tensor, bound: float = 1e-5) -> bool:
    return bool((a - b).abs().max() <= bound * b.abs().max())


def noise(*shape: int, seed: int) -> torch.Tensor:
    return 0.3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def matrices(kind: str, outputs: int, inputs: int, seed: int) -> dict[str, torch.Tensor]:
    """Return what one layer has in a file. The sides of LoKr's first matrix are 4 and 8, as LyCORIS' factors are."""
    pick = {
        "loha": {f"hada_w{i}_{x}": (outputs, RANK) if x == "a" else (RANK, inputs) for i in (1, 2) for x in "ab"},
        "lokr": {"lokr_w1": (4, 8), "lokr_w2": (outputs // 4, inputs // 8)},
        "lokr-2": {"lokr_w1": (4, 8), "lokr_w2_a": (outputs // 4, RANK), "lokr_w2_b": (RANK, inputs // 8)},
        "lokr-1": {"lokr_w1_a": (4, RANK), "lokr_w1_b": (RANK, 8), "lokr_w2": (outputs // 4, inputs // 8)},
        "lokr-both": {"lokr_w1_a": (4, RANK), "lokr_w1_b": (RANK, 8)}
        | {"lokr_w2_a": (outputs // 4, RANK), "lokr_w2_b": (RANK, inputs // 8)},
        "dora": {"lora_down.weight": (RANK, inputs), "lora_up.weight": (outputs, RANK), "dora_scale": (outputs, 1)},
    }[kind]
    made = {name: noise(*shape, seed=seed + i) for i, (name, shape) in enumerate(pick.items())}
    return made | ({"dora_scale": 1 + made["dora_scale"].abs()} if kind == "dora" else {})


def changed(kind: str, m: dict[str, torch.Tensor], weight: torch.Tensor, scale: float) -> torch.Tensor:
    """Return the layer's weight by the formula of the paper, in float64. scale: alpha / rank, and the user's weight."""
    m = {name: tensor.double() for name, tensor in m.items()}
    w = weight.double()
    if kind == "loha":
        return w + scale * (m["hada_w1_a"] @ m["hada_w1_b"]) * (m["hada_w2_a"] @ m["hada_w2_b"])
    if kind == "dora":
        v = w + scale * m["lora_up.weight"] @ m["lora_down.weight"]
        return m["dora_scale"] * v / v.norm(dim=1, keepdim=True)
    w1, w2 = (m[f"lokr_w{i}"] if f"lokr_w{i}" in m else m[f"lokr_w{i}_a"] @ m[f"lokr_w{i}_b"] for i in (1, 2))
    return w + scale * (w1[:, None, :, None] * w2[None, :, None, :]).reshape(w.shape)  # the Kronecker product


KINDS = ["loha", "lokr", "lokr-2", "lokr-1", "lokr-both", "dora"]


def write(path, kind: str, base: str, alpha: float | None = None):
    """Write a file and return {module: what it has}."""
    tensors, made = {}, {}
    for seed, module in enumerate(MODULES):
        layer = tiny_model().transformer.get_submodule(module)
        made[module] = matrices(kind, layer.out_features, layer.in_features, 100 * seed)
        for name, tensor in made[module].items():
            end = {"dora_scale": "lora_magnitude_vector"}.get(name, name) if base == "peft" else name
            end = end.replace("lora_down", "lora_A").replace("lora_up", "lora_B") if base == "peft" else end
            tensor = tensor.reshape(-1) if end == "lora_magnitude_vector" else tensor
            tensors[f"{BASES[base](module)}.{end}"] = tensor.contiguous()
        if alpha is not None:
            tensors[f"{BASES[base](module)}.alpha"] = torch.tensor(alpha)
    save_file(tensors, path)
    return made


def reference(kind: str, made, scale: float, transformer=None):
    transformer = copy.deepcopy(transformer or tiny_model().transformer).double()
    state = transformer.state_dict()
    for module, m in made.items():
        state[f"{module}.weight"] = changed(kind, m, state[f"{module}.weight"], scale)
    transformer.load_state_dict(state)
    return transformer.float()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("base", BASES)
def test_every_kind_and_spelling_equals_the_formula(kind, base, tmp_path):
    for alpha, weight in product((None, 1.5), (1.0, 0.7)):
        made = write(tmp_path / "l.safetensors", kind, base, alpha)
        # of two whole matrices there is no rank, and alpha does not count
        scale = weight * (1.0 if alpha is None or kind == "lokr" else alpha / RANK)
        model = tiny_model()
        base_forward = forward(model.transformer)
        lora.apply_all(model, [(tmp_path / "l.safetensors", weight)])
        assert close(forward(model.transformer), forward(reference(kind, made, scale)))
        assert not close(forward(model.transformer), base_forward, 1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_weight_0_changes_nothing(kind, tmp_path):
    write(tmp_path / "l.safetensors", kind, "comfy")
    model = tiny_model()
    before = forward(model.transformer)
    lora.apply_all(model, [(tmp_path / "l.safetensors", 0.0)])
    assert torch.equal(forward(model.transformer), before)


@pytest.mark.parametrize("kind", ["loha", "lokr", "lokr-2", "lokr-both"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_changes_are_within_2e_3_in_half_precision(kind, dtype, tmp_path):
    made = write(tmp_path / "l.safetensors", kind, "comfy", 1.5)
    model = tiny_model()
    model.transformer.to(dtype)
    lora.apply_all(model, [tmp_path / "l.safetensors"])
    for module, m in made.items():
        layer = model.transformer.get_submodule(module)
        (name,) = layer.scaling
        wanted = changed(kind, m, torch.zeros(layer.base_layer.weight.shape), 1.0 if kind == "lokr" else 1.5 / RANK)
        found = layer.get_delta_weight(name)
        assert found.dtype == dtype and (found.double() - wanted).norm() <= 2e-3 * wanted.norm()
    assert forward(model.transformer).isfinite().all()


@pytest.mark.parametrize("kinds", [*product(["loha", "lokr-2", "plain"], repeat=2), ("dora", "plain")], ids=str)
@pytest.mark.parametrize("at_once", [True, False])
def test_kinds_add_up_on_the_same_layers(kinds, at_once, tmp_path):
    """DoRA is last in the reference, because it normalizes the weight without other LoRAs."""
    files, wanted = [], tiny_model().transformer
    for i, kind in enumerate(kinds):
        path = tmp_path / f"{i}.safetensors"
        if kind == "plain":
            made = write(path, "dora", "comfy")
            tensors = {f"{BASES['comfy'](m)}.{n}": t for m, each in made.items() for n, t in each.items()}
            save_file({name: t for name, t in tensors.items() if "dora" not in name}, path)
            state = wanted.state_dict()
            for module, m in made.items():
                state[f"{module}.weight"] += 0.5 * m["lora_up.weight"] @ m["lora_down.weight"]
            wanted.load_state_dict(state)
        else:
            wanted = reference(kind, write(path, kind, "comfy"), 0.5, wanted)
        files.append((path, 0.5))
    model = tiny_model()
    for group in [files] if at_once else [[file] for file in files]:
        lora.apply_all(model, group)
    assert close(forward(model.transformer), forward(wanted))


def test_a_file_of_plain_and_dora_layers_and_differences(tmp_path):
    path = tmp_path / "l.safetensors"
    made = write(path, "dora", "comfy")
    tensors = {f"{BASES['comfy'](m)}.{n}": t.contiguous() for m, each in made.items() for n, t in each.items()}
    del tensors[f"{BASES['comfy'](MODULES[0])}.dora_scale"]
    tensors[f"{BASES['comfy'](MODULES[1])}.diff_b"] = noise(48, seed=9)
    loha = matrices("loha", 48, 48, 5)
    tensors |= {f"diffusion_model.blocks.3.self_attn.k.{name}": tensor for name, tensor in loha.items()}
    save_file(tensors, path)
    wanted = reference("dora", {module: made[module] for module in MODULES[1:]}, 1.0)
    wanted = reference("loha", {"blocks.3.attn1.to_k": loha}, 1.0, wanted)
    state = wanted.state_dict()
    state[f"{MODULES[0]}.weight"] += made[MODULES[0]]["lora_up.weight"] @ made[MODULES[0]]["lora_down.weight"]
    state[f"{MODULES[1]}.bias"] += noise(48, seed=9)
    wanted.load_state_dict(state)
    for first in (False, True):  # also on layers that are wrapped already
        model = tiny_model()
        if first:
            write(tmp_path / "zero.safetensors", "lokr", "comfy")
            lora.apply_all(model, [(tmp_path / "zero.safetensors", 0.0)])
        lora.apply_all(model, [path])
        assert close(forward(model.transformer), forward(wanted))


@pytest.mark.parametrize("kind", ["lora", "dora", "loha", "lokr"])
def test_files_that_peft_saved_give_the_model_that_peft_made(kind, tmp_path):
    from peft import LoHaConfig, LoKrConfig, LoraConfig, get_peft_model

    targets = [module.partition(".")[2].partition(".")[2] for module in MODULES]
    config = {
        "lora": lambda: LoraConfig(r=3, lora_alpha=6, target_modules=targets, init_lora_weights=False),
        "dora": lambda: LoraConfig(r=3, lora_alpha=6, target_modules=targets, init_lora_weights=False, use_dora=True),
        "loha": lambda: LoHaConfig(r=3, alpha=6, target_modules=targets, init_weights=False),
        "lokr": lambda: LoKrConfig(r=3, alpha=6, target_modules=targets, init_weights=False),
    }[kind]()
    torch.manual_seed(3)
    theirs = get_peft_model(tiny_model().transformer, config)  # type: ignore[arg-type]
    for name, parameter in theirs.named_parameters():
        if "magnitude" in name:
            parameter.data *= 1.3
    theirs.save_pretrained(str(tmp_path))
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] in ("LORA", "LOHA", "LOKR")
    model = tiny_model()
    before = forward(model.transformer)
    lora.apply_all(model, [tmp_path / "adapter_model.safetensors"])
    with torch.no_grad():
        wanted = forward(theirs.base_model.model)
    assert close(forward(model.transformer), wanted) and not close(wanted, before, 1e-3)


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"lokr_w1": (4, 8)}, "it has only lokr_w1"),
        ({"lokr_w1": (4, 8), "lokr_w2_a": (12, 2)}, "it has only"),
        ({"lokr_w1": (4, 8), "lokr_w2": (12, 6), "lokr_w2_a": (12, 2), "lokr_w2_b": (2, 6)}, "it has only"),
        ({"lokr_w1": (4, 8), "lokr_w2": (12, 5)}, r"a change of shape \(48, 40\), not \(48, 48\)"),
        ({"lokr_w1": (4, 8), "lokr_w2_a": (12, 2), "lokr_w2_b": (3, 6)}, "have no product"),
        ({"lokr_w1": (4, 8, 1), "lokr_w2": (12, 6)}, "matrices of shapes"),
        ({"hada_w1_a": (48, 2), "hada_w1_b": (2, 48)}, "it has only hada_w1_a, hada_w1_b"),
        ({"lora_A.weight": (2, 48), "lora_B.weight": (48, 2), "dora_scale": (1, 48)}, "not one per output"),
        ({"lora_A.weight": (2, 48), "lora_B.weight": (48, 2), "dora_scale": (96, 1)}, "not one per output"),
        ({"lokr_w1": (4, 8), "lokr_w2": (12, 6), "lokr_t2": (2, 2)}, "LoKr with a core tensor"),
        ({"lokr_w1": (4, 8), "lokr_w2": (12, 6), "dora_scale": (48, 1)}, "one of the two matrices is missing"),
    ],
)
def test_forms_that_are_not_read_are_refused_by_name(tensors, said, tmp_path):
    made = {f"diffusion_model.blocks.0.self_attn.q.{name}": noise(*shape, seed=1) for name, shape in tensors.items()}
    save_file(made, tmp_path / "l.safetensors")
    model = tiny_model()
    with pytest.raises(ModelError, match=said) as error:
        lora.apply_all(model, [tmp_path / "l.safetensors"])
    assert "attn1.to_q" in str(error.value) or "self_attn.q" in str(error.value)
    assert not hasattr(model.transformer, "peft_config")


@pytest.mark.parametrize("kind", ["loha", "lokr", "dora"])
def test_layers_outside_linear_ones_are_refused(kind, tmp_path):
    made = matrices(kind, 48, 16, 0)
    save_file(
        {f"patch_embedding.{name}": tensor.contiguous() for name, tensor in made.items()}, tmp_path / "l.safetensors"
    )
    with pytest.raises(ModelError, match="Conv3d layers are not supported"):
        lora.apply_all(tiny_model(), [tmp_path / "l.safetensors"])


@pytest.mark.parametrize(("weight", "notes"), [(1.0, 0), (0.5, 1), (0.0, 0)])
def test_what_the_weight_of_a_dora_means_is_said(weight, notes, tmp_path):
    write(tmp_path / "l.safetensors", "dora", "comfy")
    told = []
    lora.apply_all(tiny_model(), [(tmp_path / "l.safetensors", weight)], told.append)
    assert len([event for event in told if "before the norm" in event.text]) == notes
