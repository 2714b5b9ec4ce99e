"""LoRA files that are damaged, ambiguous or special: nothing is taken silently, and every number is exact."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from helpers.tiny import tiny_model
from wanscope.errors import ModelError
from wanscope.wan import lora
from wanscope.wan.experts import expert_of_lora
from wanscope.wan.lora_config import lora_hash

MODULE, RANK = "blocks.0.attn1.to_q", 3
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2, torch.float64]
MODELS = [torch.float32, torch.bfloat16, torch.float16]


def pair(module: str = MODULE, rank: int = RANK, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    layer = tiny_model().transformer.get_submodule(module)
    return torch.randn(rank, layer.in_features, generator=g), torch.randn(layer.out_features, rank, generator=g)


def save(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata)
    return path


def plain(base: str = f"diffusion_model.{MODULE}", **changes: torch.Tensor) -> dict[str, torch.Tensor]:
    down, up = pair()
    return {f"{base}.lora_down.weight": down, f"{base}.lora_up.weight": up} | {
        f"{base}.{name.replace('__', '.')}": tensor for name, tensor in changes.items()
    }


def change_of(model, module: str = MODULE, which: str = "transformer") -> torch.Tensor:
    """Return the change of a layer's weight in float64, from the PEFT layer's own matrices."""
    layer = getattr(model, which).get_submodule(module)
    if not hasattr(layer, "lora_A"):
        return torch.zeros(layer.weight.shape, dtype=torch.float64)
    return sum(
        layer.scaling[name] * (layer.lora_B[name].weight.double() @ layer.lora_A[name].weight.double())
        for name in layer.lora_A
    )


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


# ---- numbers: dtype of the model x dtype of the file x rank x alpha x size, against float64


@pytest.mark.parametrize("model_dtype", MODELS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_change_of_a_layer_is_near_that_in_float64(tmp_path, model_dtype, dtype):
    for rank, alpha, size in product((1, 4, 128), (None, 0.01, 1.0, 300.0), (1e-4, 1.0)):
        model = tiny_model()
        model.transformer.to(model_dtype)
        down, up = pair(rank=rank)
        down, up = (0.3 * down).to(dtype), (size * up).to(dtype)
        tensors = {f"{MODULE}.lora_down.weight": down, f"{MODULE}.lora_up.weight": up}
        if alpha is not None:
            tensors[f"{MODULE}.alpha"] = torch.tensor(alpha)
        lora.apply_all(model, [save(tmp_path / "l.safetensors", tensors)])
        wanted = (1.0 if alpha is None else alpha / rank) * (up.double() @ down.double())
        layer = model.transformer.get_submodule(MODULE)
        assert {p.dtype for p in layer.parameters()} == {model_dtype}
        if wanted.norm() > 0:  # fp8 has no 1e-4
            # A half-precision model rounds both matrices, as diffusers does: 1.7e-3 each in bf16.
            bound = 2e-3 if model_dtype == torch.float32 else 2.9e-3
            assert relative(change_of(model), wanted) <= bound, (rank, alpha, size)


# ---- what is ambiguous or damaged is refused by name


@pytest.mark.parametrize(
    "name",
    [
        f"transformer.{MODULE}.lora_A.weight",
        f"{MODULE}.lora_A.style.weight",
        "lora_unet_blocks_0_self_attn_q.lora_down",
    ],
)
def test_two_tensors_for_one_matrix_are_refused_by_name(tmp_path, name):
    path = save(tmp_path / "l.safetensors", {**plain(), name: pair()[0]})
    with pytest.raises(ModelError, match="more than one tensor") as error:
        lora.parse(path, tiny_model().transformer)
    assert name in str(error.value) and f"diffusion_model.{MODULE}.lora_down.weight" in str(error.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["lora_down.weight", "lora_up.weight", "alpha", "diff_b"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensors_that_are_not_numbers_are_refused_by_name(tmp_path, value, name, dtype):
    if (dtype == torch.float8_e4m3fn and value != value) or dtype != torch.float8_e4m3fn:
        tensors = plain(alpha=torch.tensor(1.0), diff_b=torch.zeros(48))
        full = f"diffusion_model.{MODULE}.{name}"
        tensors[full] = tensors[full].clone()
        tensors[full].view(-1)[-1] = value
        path = save(tmp_path / "l.safetensors", {k: v.to(dtype) for k, v in tensors.items()})
        with pytest.raises(ModelError, match="not numbers") as error:
            lora.apply_all(tiny_model(), [path])
        assert full in str(error.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lora_up__weight": torch.ones(48, RANK + 1)}, r"blocks\.0\.attn1\.to_q \(its ranks differ: 3 and 4\)"),
        ({"alpha": torch.ones(2)}, r"alpha of 2 values"),
        ({"alpha": torch.ones(0)}, r"alpha of 0 values"),
        ({"lora_up__weight": torch.ones(48, RANK, dtype=torch.int8)}, r"are not floating-point: .*lora_up\.weight"),
        ({"lora_up__weight": torch.ones(48), "lora_down__weight": torch.ones(48)}, "do not"),
        ({"lora_up__weight": torch.ones(48, 0), "lora_down__weight": torch.ones(0, 48)}, "do not"),
        ({"lora_up__scale_weight": torch.ones(1)}, "do not belong to any layer"),
    ],
)
def test_matrices_of_another_form_are_plain_errors(tmp_path, changes, said):
    model = tiny_model()
    with pytest.raises(ModelError, match=said):
        lora.apply_all(model, [save(tmp_path / "l.safetensors", plain(**changes))])
    assert not hasattr(model.transformer, "peft_config")


# ---- alpha outside the tensors


@pytest.mark.parametrize("which", ["transformer", "transformer_2"])
def test_each_expert_has_its_own_alpha_in_the_header(tmp_path, which):
    """diffusers writes one config for each of the two under its name."""
    down, up = pair()
    alphas = {"transformer": 6.0, "transformer_2": 1.5}
    tensors, header = {}, {}
    for name, alpha in alphas.items():
        tensors |= {f"{name}.{MODULE}.lora_A.weight": down.clone(), f"{name}.{MODULE}.lora_B.weight": up.clone()}
        header |= {f"{name}.r": RANK, f"{name}.lora_alpha": alpha}
    model = tiny_model("2.2")
    lora.apply_all(model, [save(tmp_path / "l.safetensors", tensors, {"lora_adapter_metadata": json.dumps(header)})])
    assert relative(change_of(model, which=which), alphas[which] / RANK * (up @ down)) < 1e-5


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({"r": RANK, "lora_alpha": 6}, 2.0),
        ({"r": RANK, "lora_alpha": RANK}, 1.0),
        ({"r": RANK, "lora_alpha": 6, "use_rslora": True}, 6 / RANK**0.5),
        ({"r": RANK, "lora_alpha": 6, "alpha_pattern": {"to_q": 1.5}}, 0.5),
        ({"r": 9, "lora_alpha": 1, "rank_pattern": {"blocks.0.attn1.to_q": RANK}}, 1 / RANK),
    ],
)
def test_pefts_own_folder_has_its_alpha_next_to_the_file(tmp_path, config, scale):
    """PEFT saves adapter_model.safetensors without alphas, and adapter_config.json with them."""
    down, up = pair()
    base = f"base_model.model.{MODULE}"
    path = save(tmp_path / "adapter_model.safetensors", {f"{base}.lora_A.weight": down, f"{base}.lora_B.weight": up})
    alone = lora_hash(path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", **config}))
    model = tiny_model()
    lora.apply_all(model, [path])
    assert relative(change_of(model), scale * (up @ down)) < 1e-5
    assert (lora_hash(path) == alone) == (scale == 1.0)  # the id covers what the loading reads
    assert model.loras[0].sha256 == lora_hash(path)
    # next to a file of another name, it belongs to something else
    other = save(tmp_path / "style.safetensors", {f"{base}.lora_A.weight": down, f"{base}.lora_B.weight": up})
    assert lora_hash(other) == alone
    model = tiny_model()
    lora.apply_all(model, [other])
    assert relative(change_of(model), up @ down) < 1e-5


def test_a_config_that_cannot_be_read_is_refused(tmp_path):
    path = save(tmp_path / "adapter_model.safetensors", plain())
    for text in ("{", "[]", '{"lora_alpha": "six"}', '{"lora_alpha": NaN}', '{"alpha_pattern": {"(": 1}}'):
        (tmp_path / "adapter_config.json").write_text(text)
        with pytest.raises(ModelError, match=r"adapter_config\.json"):
            lora.apply_all(tiny_model(), [path])
    header = {"lora_adapter_metadata": "{"}
    with pytest.raises(ModelError, match="header"):
        lora.apply_all(tiny_model(), [save(tmp_path / "l.safetensors", plain(), header)])


# ---- experts


@pytest.mark.parametrize("given", [None, "both", "low"])
def test_a_file_for_the_low_noise_expert_alone_goes_to_it(tmp_path, given):
    path = save(tmp_path / "l.safetensors", plain(f"transformer_2.{MODULE}"))
    model, told = tiny_model("2.2"), []
    lora.apply_all(model, [path if given is None else (path, 1.0, given)], told.append)
    assert change_of(model).norm() == 0 and change_of(model, which="transformer_2").norm() > 0
    assert [event.text for event in told] == ["LoRA l.safetensors: applied to the low-noise expert"]
    with pytest.raises(ModelError, match="all tensors in it are for the low-noise expert"):
        lora.apply_all(tiny_model("2.2"), [(path, 1.0, "high")])


@pytest.mark.parametrize(
    ("name", "expert"),
    [
        ("high/pytorch_lora_weights.safetensors", "high"),
        ("LOW_NOISE/pytorch_lora_weights.safetensors", "low"),
        ("high/style_low.safetensors", "low"),
        ("high quality/style.safetensors", None),
        ("high/more/style.safetensors", None),
    ],
)
def test_a_lora_is_named_for_an_expert_by_its_folder_too(name, expert, tmp_path):
    assert expert_of_lora(tmp_path / "loras" / name) == expert


@pytest.mark.parametrize("pattern", ["blocks.0.self_attn.q", "blocks.0.attn1.to_q", "to_q", "^blocks.0.self_attn.q"])
def test_patterns_name_modules_as_the_file_or_the_model_does(tmp_path, pattern):
    """Musubi and other trainers that use PEFT on the original model write the original names."""
    base = "base_model.model.blocks.0.self_attn.q"
    down, up = pair()
    path = save(tmp_path / "adapter_model.safetensors", {f"{base}.lora_A.weight": down, f"{base}.lora_B.weight": up})
    config = {"r": RANK, "lora_alpha": 30, "alpha_pattern": {pattern: 6}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    model = tiny_model()
    lora.apply_all(model, [path])
    assert relative(change_of(model), 6 / RANK * (up @ down)) < 1e-5
