"""Transformers from single files: the same bits as the source model, the right config, nothing dropped."""

from __future__ import annotations

import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file

from helpers import layouts
from helpers.tiny import tiny_transformer, transformer_config
from wanscope.errors import ModelError
from wanscope.wan import single_file
from wanscope.wan.weights import align

torch.set_num_threads(1)


def make(kind: str = "2.1", blocks: int = 2) -> WanTransformer3DModel:
    config = transformer_config(kind, blocks=blocks, heads=2, head_dim=128)
    return tiny_transformer({**config, "rope_max_seq_len": 1024}, seed=5)


def load(path, dtype=torch.float32):
    """The transformer, aligned as load() does on the CPU."""
    loaded, scaled = single_file.load(path, dtype)
    align(loaded)
    return loaded, scaled


def forward(model: WanTransformer3DModel, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    g = torch.Generator().manual_seed(1)
    config = model.config
    x = torch.randn(1, config["in_channels"], 2, 4, 4, generator=g).to(dtype)
    text = torch.randn(1, 512 if config["image_dim"] else 8, config["text_dim"], generator=g).to(dtype)
    image = torch.randn(1, 3, config["image_dim"], generator=g).to(dtype) if config["image_dim"] else None
    if config["in_channels"] == 48:
        return model(x, torch.full((1, 8), 500.0), text, return_dict=False)[0]
    return model(x, torch.tensor([500.0]), text, image, return_dict=False)[0]


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "diffusion_model."])
def test_original_layout_gives_the_same_bits(tmp_path, prefix):
    source = make()
    loaded, scaled = load(layouts.save_transformer(tmp_path / "x.safetensors", source, prefix))
    assert not scaled
    assert torch.equal(forward(loaded), forward(source))


@pytest.mark.parametrize("kind", ["2.1", "5b", "i2v", "i2v-2.1"])
def test_config_is_read_from_shapes(tmp_path, kind):
    """diffusers takes a 5B and a 2.2 image-to-video file for the 2.1 image-to-video 14B."""
    source = make(kind)
    path = layouts.save_transformer(tmp_path / "x.safetensors", source)
    config = single_file.describe(path)
    want = {k: v for k, v in source.config.items() if k in config}
    assert {**config, "patch_size": tuple(config["patch_size"])} == {**want, "patch_size": tuple(want["patch_size"])}
    loaded, _ = load(path)
    assert torch.equal(forward(loaded), forward(source))


def test_bits_do_not_depend_on_where_the_header_ends(tmp_path):
    """Weights mapped from files whose headers differ in length lie at other addresses; aligned, they compute alike."""
    source = make()
    state = {layouts.original_name(k): v for k, v in source.state_dict().items()}
    for length in range(3):
        path = layouts.save(tmp_path / f"{length}.safetensors", state, {"note": "x" * 8 * length})
        assert torch.equal(forward(load(path)[0]), forward(source))


def test_bf16_is_loaded_as_from_pretrained_does(tmp_path):
    """RoPE tables and the modules that diffusers keeps in float32 stay in float32."""
    source = make()
    source.save_pretrained(tmp_path / "folder")
    reference = WanTransformer3DModel.from_pretrained(tmp_path / "folder", torch_dtype=torch.bfloat16)
    align(reference)
    loaded, _ = load(layouts.save_transformer(tmp_path / "x.safetensors", source), torch.bfloat16)
    assert loaded.rope.freqs_cos.dtype == torch.float32
    assert torch.equal(loaded.rope.freqs_cos, source.rope.freqs_cos)
    have, want = loaded.state_dict(), reference.state_dict()
    assert {k: v.dtype for k, v in have.items()} == {k: v.dtype for k, v in want.items()}
    assert torch.equal(forward(loaded, torch.bfloat16), forward(reference, torch.bfloat16))


def test_diffusers_layout_with_and_without_its_config(tmp_path):
    source = make()
    source.save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    assert torch.equal(forward(load(file)[0]), forward(source))
    (tmp_path / "config.json").unlink()
    assert torch.equal(forward(load(file)[0]), forward(source))


@pytest.mark.parametrize("layout", ["scale_weight", "comfy_quant", "metadata"])
@pytest.mark.parametrize("rows", [False, True])
def test_scaled_fp8_is_dequantized(tmp_path, layout, rows):
    source = make()
    state = {layouts.original_name(k): v for k, v in source.state_dict().items()}
    tensors, values, header = layouts.to_scaled_fp8(state, layout, rows)
    assert any(v.dtype == torch.float8_e4m3fn for v in tensors.values())
    prefixed = {layouts.COMFY + k: v for k, v in tensors.items()}
    path = layouts.save(tmp_path / "x.safetensors", prefixed, header)
    loaded, scaled = single_file.load(path, torch.float32)
    assert scaled
    got = {layouts.original_name(k): v for k, v in loaded.state_dict().items()}
    for name, value in values.items():
        error = (got[name].double() - value).abs().max() / value.abs().max().clamp(min=1e-30)
        assert error <= 2**-23, name


def test_diffusers_itself_drops_the_scales(tmp_path):
    """Why this module exists: the day this fails, diffusers can do it itself."""
    source = make()
    state = {layouts.original_name(k): v for k, v in source.state_dict().items()}
    tensors, values, _ = layouts.to_scaled_fp8(state)
    layouts.save(tmp_path / "x.safetensors", tensors)
    source.save_config(tmp_path / "config")
    wrong = WanTransformer3DModel.from_single_file(
        str(tmp_path / "x.safetensors"), config=str(tmp_path / "config"), torch_dtype=torch.float32
    )
    weight = wrong.state_dict()["blocks.0.ffn.net.0.proj.weight"].double()
    assert (weight - values["blocks.0.ffn.0.weight"]).abs().max() > 1


def scaled(tmp_path, **changes):
    state = {layouts.original_name(k): v for k, v in make(blocks=1).state_dict().items()}
    tensors, _, header = layouts.to_scaled_fp8(state, changes.pop("layout", "scale_weight"))
    for name, tensor in changes.items():
        key = name.replace("__", ".")
        if tensor is None:
            tensors.pop(key)
        else:
            tensors[key] = tensor
    return layouts.save(tmp_path / "x.safetensors", tensors, header)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"blocks__0__ffn__0__scale_weight": None}, "have no scale: blocks.0.ffn.0.weight"),
        ({"blocks__0__nothing__scale_weight": torch.tensor(1.0)}, "has no weight"),
        ({"blocks__0__ffn__0__scale_weight": torch.ones(7)}, "not a single number or one per row"),
        ({"blocks__0__ffn__0__weight_scale": torch.tensor(2.0)}, "two scales"),
        ({"blocks__0__ffn__0__weight": torch.zeros(512, 256, dtype=torch.int8)}, "stored as I8"),
        (
            {"layout": "comfy_quant", "blocks__0__ffn__0__comfy_quant": torch.tensor([*b'{"format": "nvfp4"}'])},
            "nvfp4 is not known",
        ),
        ({"layout": "comfy_quant", "blocks__0__ffn__0__comfy_quant": torch.tensor([255, 1])}, "format cannot be read"),
    ],
)
def test_ambiguous_scales_are_refused(tmp_path, changes, said):
    changes = {
        k: v.to(torch.uint8) if k.endswith("comfy_quant") and hasattr(v, "to") else v for k, v in changes.items()
    }
    with pytest.raises(ModelError, match="quantized in a way that is not supported") as error:
        single_file.load(scaled(tmp_path, **changes), torch.float32)
    assert said in str(error.value)


def test_unscaled_fp8_is_a_plain_cast(tmp_path):
    source = make(blocks=1)
    state = {layouts.original_name(k): v for k, v in source.state_dict().items()}
    tensors = {k: v.to(torch.float8_e4m3fn) if v.ndim == 2 else v for k, v in state.items()}
    loaded, scales = single_file.load(layouts.save(tmp_path / "x.safetensors", tensors), torch.float32)
    assert not scales
    weight = loaded.state_dict()["blocks.0.attn1.to_q.weight"]
    assert torch.equal(weight, state["blocks.0.self_attn.q.weight"].to(torch.float8_e4m3fn).float())


def test_missing_extra_and_misshapen_tensors_are_named(tmp_path):
    path = layouts.save_transformer(tmp_path / "x.safetensors", make(blocks=1))
    state = load_file(path)
    state["blocks.0.extra.weight"] = torch.zeros(3)
    state.pop("blocks.0.ffn.2.bias")
    state["head.head.bias"] = torch.zeros(5)
    with pytest.raises(ModelError) as error:
        single_file.load(layouts.save(tmp_path / "y.safetensors", state), torch.float32)
    text = str(error.value)
    assert "would be dropped: blocks.0.extra.weight" in text
    assert "missing: blocks.0.ffn.net.2.bias" in text
    assert "proj_out.bias is (5,)" in text


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("vace_blocks.0.after_proj.bias", "VACE"),
        ("face_adapter.x", "Animate"),
        ("img_emb.emb_pos", "first-and-last-frame"),
    ],
)
def test_related_architectures_are_refused(tmp_path, name, said):
    state = {layouts.original_name(k): v for k, v in make(blocks=1).state_dict().items()}
    with pytest.raises(ModelError, match=said):
        single_file.describe(layouts.save(tmp_path / "x.safetensors", {**state, name: torch.zeros(2)}))


def test_other_files_are_refused(tmp_path):
    with pytest.raises(ModelError, match="not a Wan transformer"):
        single_file.describe(layouts.save(tmp_path / "a.safetensors", {"something.weight": torch.zeros(2)}))
    state = {layouts.COMFY + layouts.original_name(k): v for k, v in make(blocks=1).state_dict().items()}
    state["first_stage_model.conv1.weight"] = torch.zeros(2)
    with pytest.raises(ModelError, match="more than a transformer"):
        single_file.describe(layouts.save(tmp_path / "b.safetensors", state))
    (tmp_path / "c.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0 not one")
    with pytest.raises(ModelError, match="is not a safetensors file"):
        single_file.describe(tmp_path / "c.safetensors")
    with pytest.raises(ModelError, match="there is no file"):
        single_file.describe(tmp_path / "d.safetensors")


def test_truncated_file_is_refused(tmp_path):
    path = layouts.save_transformer(tmp_path / "x.safetensors", make(blocks=1))
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ModelError, match="is incomplete"):
        single_file.load(path, torch.float32)
