"""LoRA files: every layout equals merged weights, and nothing is dropped silently."""

from __future__ import annotations

import json
import re
from itertools import product

import pytest
import torch
from diffusers import WanPipeline
from safetensors.torch import load_file, save_file

from helpers import layouts
from helpers.tiny import tiny_model
from wanscope.errors import ModelError
from wanscope.wan import lora

torch.set_num_threads(1)
RANK = 3
INSIDE = [f"attn{a}.{x}" for a in (1, 2) for x in ("to_q", "to_k", "to_v", "to_out.0")] + [
    "ffn.net.0.proj",
    "ffn.net.2",
]


def pairs(model, seed: int = 0, modules: list[str] | None = None) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Return {diffusers' module: (down, up)} for every layer of every block."""
    g = torch.Generator().manual_seed(seed)
    names = modules or [f"blocks.{i}.{name}" for i in range(model.blocks) for name in INSIDE]
    result = {}
    for name in names:
        layer = model.transformer.get_submodule(name)
        down = 0.3 * torch.randn(RANK, layer.in_features, generator=g)
        result[name] = (down, 0.3 * torch.randn(layer.out_features, RANK, generator=g))
    return result


def original(module: str) -> str:
    return layouts.original_name(f"{module}.weight").removesuffix(".weight")


def write(path, lows, layout: str, alpha: float | None = None):
    tensors = {}
    for module, (down, up) in lows.items():
        if layout == "diffusers":
            base, a, b = f"transformer.{module}", "lora_A", "lora_B"
        elif layout == "kohya":
            base, a, b = "lora_unet_" + original(module).replace(".", "_"), "lora_down", "lora_up"
        elif layout == "peft":
            base, a, b = f"diffusion_model.{original(module)}", "lora_A", "lora_B"
        else:
            base, a, b = f"diffusion_model.{original(module)}", "lora_down", "lora_up"
        tensors |= {f"{base}.{a}.weight": down, f"{base}.{b}.weight": up}
        if alpha is not None:
            tensors[f"{base}.alpha"] = torch.tensor(alpha)
    save_file({k: v.contiguous() for k, v in tensors.items()}, path)
    return path


def forward(transformer) -> torch.Tensor:
    g = torch.Generator().manual_seed(1)
    x, text = torch.randn(1, 16, 2, 4, 4, generator=g), torch.randn(1, 16, 32, generator=g)
    return transformer(x, torch.tensor([500.0]), text, return_dict=False)[0]


def merged(kind: str, lows, scale: float, which: str = "transformer"):
    """Return the same model with W + scale * up @ down."""
    transformer = getattr(tiny_model(kind), which)
    state = transformer.state_dict()
    for module, (down, up) in lows.items():
        state[f"{module}.weight"] = (state[f"{module}.weight"].double() + scale * (up.double() @ down.double())).float()
    transformer.load_state_dict(state)
    return transformer


def close(a, b):
    return (a - b).abs().max() <= 1e-5 * b.abs().max()


@pytest.mark.parametrize("layout", ["diffusers", "kohya", "peft", "comfy"])
@pytest.mark.parametrize("alpha", [None, 1.5])
def test_every_layout_equals_merged_weights(tmp_path, layout, alpha):
    model = tiny_model()
    base = forward(model.transformer)
    lows = pairs(model)
    path = write(tmp_path / "l.safetensors", lows, layout, alpha)
    lora.apply_all(model, [(path, 0.7)])
    want = forward(merged("2.1", lows, 0.7 * (1.0 if alpha is None else alpha / RANK)))
    got = forward(model.transformer)
    assert close(got, want)
    assert not close(got, base)
    assert model.loras[0].weight == 0.7 and len(model.loras[0].sha256) == 64


@pytest.mark.parametrize("layout", ["kohya", "comfy"])
def test_agrees_with_diffusers_own_converter(tmp_path, layout):
    model = tiny_model()
    path = write(tmp_path / "l.safetensors", pairs(model), layout, alpha=float(RANK) * 2)
    theirs = WanPipeline.lora_state_dict(load_file(path))
    ours = lora.parse(path, model.transformer)
    assert {k.removeprefix("transformer.") for k in theirs} == {
        f"{m}.{x}.weight" for m in ours.down for x in ("lora_A", "lora_B")
    }
    for module in ours.down:
        product = theirs[f"transformer.{module}.lora_B.weight"] @ theirs[f"transformer.{module}.lora_A.weight"]
        scale = ours.alpha[module] / RANK
        assert torch.allclose(product, scale * ours.up[module] @ ours.down[module], rtol=1e-6)


def test_layers_outside_the_blocks(tmp_path):
    model = tiny_model()
    names = ["proj_out", "condition_embedder.time_proj"]
    names += [f"condition_embedder.{x}_embedder.linear_{i}" for x in ("time", "text") for i in (1, 2)]
    lows = pairs(model, modules=names)
    lora.apply_all(model, [write(tmp_path / "l.safetensors", lows, "comfy")])
    assert close(forward(model.transformer), forward(merged("2.1", lows, 1.0)))


@pytest.mark.parametrize("at_once", [True, False])
def test_two_loras_add_up(tmp_path, at_once):
    model = tiny_model()
    first, second = pairs(model, 1), pairs(model, 2)
    files = [write(tmp_path / f"{i}.safetensors", lows, "comfy") for i, lows in enumerate((first, second))]
    if at_once:
        lora.apply_all(model, [(files[0], 0.5), (files[1], -0.25)])
    else:
        lora.apply_all(model, [(files[0], 0.5)])
        lora.apply_all(model, [(files[1], -0.25)])
    assert [entry.adapter for entry in model.loras] == ["lora0", "lora1"]
    both = {
        m: (torch.cat([first[m][0], second[m][0]]), torch.cat([0.5 * first[m][1], -0.25 * second[m][1]], 1))
        for m in first
    }
    assert close(forward(model.transformer), forward(merged("2.1", both, 1.0)))


@pytest.mark.parametrize(
    ("expert", "changed"), [("high", (True, False)), ("low", (False, True)), ("both", (True, True))]
)
def test_experts(tmp_path, expert, changed):
    model = tiny_model("2.2")
    lows = pairs(model)
    lora.apply_all(model, [(write(tmp_path / "l.safetensors", lows, "comfy"), 1.0, expert)])
    for transformer, which, is_changed in zip(model.experts(), ("transformer", "transformer_2"), changed, strict=True):
        assert close(forward(transformer), forward(merged("2.2", lows if is_changed else {}, 1.0, which)))


def test_one_expert_has_no_low_noise_expert(tmp_path):
    model = tiny_model()
    path = write(tmp_path / "l.safetensors", pairs(model), "comfy")
    with pytest.raises(ModelError, match="only one expert"):
        lora.apply_all(model, [(path, 1.0, "low")])


def test_differences_of_weights_are_added(tmp_path):
    """`.diff`, `.diff_b` and `.diff_m` of lightx2v and CausVid files; diffusers drops all but the biases."""
    model, reference = tiny_model(), tiny_model().transformer
    lows = pairs(model)
    path = write(tmp_path / "l.safetensors", lows, "comfy")
    g = torch.Generator().manual_seed(9)
    state = reference.state_dict()
    names = {
        "blocks.0.norm3.diff": "blocks.0.norm2.weight",
        "blocks.0.norm3.diff_b": "blocks.0.norm2.bias",
        "blocks.1.self_attn.q.diff_b": "blocks.1.attn1.to_q.bias",
        "blocks.1.self_attn.norm_q.diff": "blocks.1.attn1.norm_q.weight",
        "blocks.2.diff_m": "blocks.2.scale_shift_table",
        "blocks.3.modulation.diff": "blocks.3.scale_shift_table",
        "head.diff_m": "scale_shift_table",
        "head.head.diff": "proj_out.weight",
        "patch_embedding.diff": "patch_embedding.weight",
    }
    tensors = load_file(path)
    for key, name in names.items():
        delta = 0.2 * torch.randn(state[name].shape, generator=g)
        tensors[f"diffusion_model.{key}"] = delta
        state[name] = state[name] + 0.7 * delta
    for module, (down, up) in lows.items():
        state[f"{module}.weight"] = state[f"{module}.weight"] + 0.7 * up @ down
    save_file(tensors, path)
    reference.load_state_dict(state)
    lora.apply_all(model, [(path, 0.7)])
    assert close(forward(model.transformer), forward(reference))


def test_alpha_in_diffusers_metadata(tmp_path):
    model = tiny_model()
    lows = pairs(model)
    path = write(tmp_path / "l.safetensors", lows, "diffusers")
    header = {"transformer.r": RANK, "transformer.lora_alpha": 6.0}
    save_file(load_file(path), path, {"lora_adapter_metadata": json.dumps(header)})
    lora.apply_all(model, [path])
    assert close(forward(model.transformer), forward(merged("2.1", lows, 2.0)))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("diffusion_model.blocks.0.self_attn.q.lokr_w1", "matrices of two kinds of LoRA"),
        ("diffusion_model.blocks.0.self_attn.q.hada_w1_a", "matrices of two kinds of LoRA"),
        ("diffusion_model.blocks.0.self_attn.norm_q.dora_scale", "one of the two matrices is missing"),
        ("diffusion_model.blocks.0.self_attn.q.dora_scale", "DoRA magnitudes of shape"),
        ("diffusion_model.blocks.0.self_attn.q.hada_t1", "LoHa with a core tensor"),
        ("diffusion_model.blocks.0.self_attn.q.lokr_t2", "LoKr with a core tensor"),
        ("diffusion_model.blocks.0.self_attn.q.lora_mid.weight", "LoCon with a middle matrix"),
        ("diffusion_model.blocks.0.self_attn.q.oft_blocks", "OFT"),
        ("diffusion_model.blocks.9.self_attn.q.lora_up.weight", "do not belong to any layer"),
        ("diffusion_model.blocks.0.cross_attn.k_img.lora_up.weight", "made for an image-to-video model"),
        ("diffusion_model.blocks.0.self_attn.q.set_weight", "do not belong to any layer"),
        ("diffusion_model.blocks.0.self_attn.norm_q.lora_up.weight", "one of the two matrices is missing"),
    ],
)
def test_what_cannot_be_applied_is_named(tmp_path, name, said):
    model = tiny_model()
    before = forward(model.transformer)
    path = write(tmp_path / "l.safetensors", pairs(model), "comfy")
    save_file(load_file(path) | {name: torch.zeros(4, 4)}, path)
    with pytest.raises(ModelError, match=said) as error:
        lora.apply_all(model, [path])
    by_layer = {"blocks.0.attn1.norm_q": "missing", "blocks.0.attn1.to_q": "kinds of LoRA|magnitudes"}
    named = next((layer for layer, words in by_layer.items() if re.search(words, said)), name)
    assert named in str(error.value)
    assert torch.equal(forward(model.transformer), before)


def test_wrong_sizes_and_pickles(tmp_path):
    model = tiny_model()
    path = write(tmp_path / "l.safetensors", pairs(model), "comfy")
    tensors = load_file(path)
    tensors["diffusion_model.blocks.0.ffn.0.lora_up.weight"] = torch.zeros(7, RANK)
    save_file(tensors, path)
    with pytest.raises(ModelError, match=r"blocks\.0\.ffn\.net\.0\.proj \(48 to 7\)"):
        lora.apply_all(model, [path])
    (tmp_path / "l.pt").write_bytes(b"\x80\x04.")
    with pytest.raises(ModelError, match="pickle"):
        lora.apply_all(model, [tmp_path / "l.pt"])
    with pytest.raises(ModelError, match="not an expert"):
        lora.apply_all(model, [(path, 1.0, "middle")])


# ---- spellings: prefixes x separators x names of the pair

PREFIXES = [
    *("", "transformer.", "diffusion_model.", "model.diffusion_model.", "base_model.model.", "unet.", "lora_unet_"),
    *("lora_unet__", "base_model.model.diffusion_model.", "base_model.model.transformer.", "dit."),
]
ENDS = [
    (".lora_A.weight", ".lora_B.weight"),
    (".lora_A.default.weight", ".lora_B.default.weight"),
    (".lora_A.my-style_2.weight", ".lora_B.my-style_2.weight"),
    (".lora_down.weight", ".lora_up.weight"),
    (".lora.down.weight", ".lora.up.weight"),
    ("_lora.down.weight", "_lora.up.weight"),
    (".lora_A", ".lora_B"),
]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_modules_are_found_by_the_tail_of_their_name(tmp_path, prefix):
    model = tiny_model()
    lows = pairs(model)
    path = tmp_path / "l.safetensors"
    for ends, names, dots in product(ENDS, (original, str), (True, False)):
        tensors = {}
        for module, (down, up) in lows.items():
            base = prefix + names(module)
            base = base if dots else base.replace(".", "_")
            tensors |= {base + ends[0]: down, base + ends[1]: up, f"{base}.alpha": torch.tensor(1.5)}
        save_file({k: v.contiguous() for k, v in tensors.items()}, path)
        found = lora.parse(path, model.transformer)
        assert set(found.down) == set(found.up) == set(lows) and set(found.alpha.values()) == {1.5}
        assert all(torch.equal(found.down[m], lows[m][0]) and torch.equal(found.up[m], lows[m][1]) for m in lows)


@pytest.mark.parametrize("prefix", ["strange.", "transformer_3.", "text_encoder."])
def test_another_prefix_is_refused_by_name(tmp_path, prefix):
    model = tiny_model()
    down, up = pairs(model)["blocks.0.attn1.to_q"]
    base = f"{prefix}blocks.0.attn1.to_q"
    save_file({f"{base}.lora_A.weight": down, f"{base}.lora_B.weight": up}, tmp_path / "l.safetensors")
    with pytest.raises(ModelError, match=f"2 tensors do not belong to any layer.*{base}"):
        lora.parse(tmp_path / "l.safetensors", model.transformer)


def test_a_file_for_both_experts_gives_each_its_own(tmp_path):
    """diffusers saves the low-noise expert's tensors under transformer_2."""
    model = tiny_model("2.2")
    high, low = pairs(model, 1), pairs(model, 2)
    tensors = {}
    for name, lows in (("transformer", high), ("transformer_2", low)):
        for module, (down, up) in lows.items():
            tensors |= {f"{name}.{module}.lora_A.weight": down, f"{name}.{module}.lora_B.weight": up}
    path = tmp_path / "l.safetensors"
    save_file({k: v.contiguous() for k, v in tensors.items()}, path)
    lora.apply_all(model, [path])
    for transformer, which, lows in zip(model.experts(), ("transformer", "transformer_2"), (high, low), strict=True):
        assert close(forward(transformer), forward(merged("2.2", lows, 1.0, which)))
    with pytest.raises(ModelError, match="for a second expert, which the model does not have: transformer_2"):
        lora.apply_all(tiny_model(), [path])


@pytest.mark.parametrize(
    ("name", "given", "changed", "said"),
    [
        ("style_HIGH_v1", None, (True, False), "the high-noise expert"),
        ("wan22-lownoise", None, (False, True), "the low-noise expert"),
        ("style", None, (True, True), "both experts"),
        ("style_HIGH_v1", "both", (True, True), "both experts"),
        ("style_HIGH_v1", "low", (False, True), "the low-noise expert"),
    ],
)
def test_a_lora_named_for_an_expert_goes_to_it_and_the_target_is_reported(tmp_path, name, given, changed, said):
    model, told = tiny_model("2.2"), []
    lows = pairs(model)
    path = write(tmp_path / f"{name}.safetensors", lows, "comfy")
    lora.apply_all(model, [path if given is None else (path, 1.0, given)], told.append)
    for transformer, which, is_changed in zip(model.experts(), ("transformer", "transformer_2"), changed, strict=True):
        assert close(forward(transformer), forward(merged("2.2", lows if is_changed else {}, 1.0, which)))
    assert [event.text for event in told] == [f"LoRA {name}.safetensors: applied to {said}"]
    assert model.loras[0].expert == ("both" if changed == (True, True) else "high" if changed[0] else "low")


# ---- numbers: dtype of the file x alpha x rank, against float64

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2]


ALPHAS = [None, 0.01, 1.0, 8.0, 300.0]


@pytest.mark.parametrize("model_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("rank", [2, 128])
@pytest.mark.parametrize("size", [1e-3, 0.3])
def test_the_change_of_a_layer_is_exact_for_every_dtype_and_alpha(tmp_path, model_dtype, dtype, rank, size):
    """Each layer has another alpha."""
    model = tiny_model()
    model.transformer.to(model_dtype)
    g = torch.Generator().manual_seed(rank)
    tensors, wanted = {}, {}
    for module, alpha in zip([f"blocks.0.{name}" for name in INSIDE], ALPHAS, strict=False):
        layer = model.transformer.get_submodule(module)
        down = (0.3 * torch.randn(rank, layer.in_features, generator=g)).to(dtype)
        up = (size * torch.randn(layer.out_features, rank, generator=g)).to(dtype)
        base = f"diffusion_model.{original(module)}"
        tensors |= {f"{base}.lora_down.weight": down, f"{base}.lora_up.weight": up}
        if alpha is not None:
            tensors[f"{base}.alpha"] = torch.tensor(alpha)
        wanted[module] = (rank if alpha is None else alpha) / rank * (up.double() @ down.double())
    save_file(tensors, tmp_path / "l.safetensors")
    lora.apply_all(model, [tmp_path / "l.safetensors"])
    for module, delta in wanted.items():
        wrapped = model.transformer.get_submodule(module)
        (adapter,) = wrapped.lora_A
        a, b = wrapped.lora_A[adapter].weight, wrapped.lora_B[adapter].weight
        found = wrapped.scaling[adapter] * (b.double() @ a.double())
        assert a.shape[0] == b.shape[1] == rank
        bound = 2e-3 if model_dtype == torch.float32 else 2.9e-3  # both matrices are rounded to bf16
        assert (found - delta).norm() <= bound * delta.norm()
    x = torch.randn(1, 16, 2, 4, 4, generator=g).to(model_dtype)
    text = torch.randn(1, 16, 32, generator=g).to(model_dtype)
    assert model.transformer(x, torch.tensor([500.0]), text, return_dict=False)[0].isfinite().all()
