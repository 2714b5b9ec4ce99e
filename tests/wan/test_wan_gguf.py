"""GGUF files written here with the gguf package: quantized, half and full precision, rearranged tensors."""

from __future__ import annotations

from types import SimpleNamespace

import gguf as gguf_library
import numpy as np
import pytest
import torch

from helpers import layouts
from helpers.tiny import tiny_transformer, transformer_config
from wanscope.errors import ModelError
from wanscope.wan import gguf, lora
from wanscope.wan.weights import align

torch.set_num_threads(1)
TYPES = gguf_library.GGMLQuantizationType


def make(kind: str = "2.1"):
    config = transformer_config(kind, blocks=1, heads=2, head_dim=128)
    return tiny_transformer({**config, "rope_max_seq_len": 1024}, seed=5)


def write(path, model, quant: TYPES, prefix: str = "", architecture: str = "wan", drop: str = "", rearrange: str = ""):
    """Write a file like ComfyUI-GGUF's converter, with float32 vectors; return {diffusers' name: value}."""
    writer = gguf_library.GGUFWriter(str(path), architecture)
    values = {}
    for name, tensor in model.state_dict().items():
        original = layouts.original_name(name)
        if original == drop:
            continue
        data, kind = tensor.numpy().astype(np.float32), TYPES.F32
        if tensor.ndim == 2 and tensor.shape[-1] % 32 == 0:
            kind = quant
        # rows that do not divide into blocks are stored flat, with their shape in the metadata
        if original == rearrange:
            writer.add_array(f"comfy.gguf.orig_shape.{prefix}{original}", [int(n) for n in data.shape])
            data = data.reshape(-1, 256)
        stored = gguf_library.quants.quantize(data, kind) if kind != TYPES.F32 else data
        values[name] = gguf_library.quants.dequantize(stored, kind).reshape(tensor.shape)
        writer.add_tensor(prefix + original, stored, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return {name: torch.from_numpy(np.array(value, dtype=np.float32)) for name, value in values.items()}


def forward(model):
    g = torch.Generator().manual_seed(1)
    x, text = torch.randn(1, 16, 2, 4, 4, generator=g), torch.randn(1, 8, 32, generator=g)
    return model(x, torch.tensor([500.0]), text, return_dict=False)[0]


@pytest.mark.parametrize("quant", [TYPES.Q8_0, TYPES.Q4_0, TYPES.F16, TYPES.BF16])
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_gguf_computes_with_the_dequantized_weights(tmp_path, quant, prefix):
    """The reference is the same model holding gguf's own dequantized values in float32."""
    reference = make()
    values = write(tmp_path / "x.gguf", reference, quant, prefix)
    reference.load_state_dict(values)
    loaded = gguf.load(tmp_path / "x.gguf", torch.float32)
    align(loaded)
    want, got = forward(reference), forward(loaded)
    assert (got - want).abs().max() <= 2e-3 * want.abs().max()  # diffusers' scales are half precision
    assert loaded.rope.freqs_cos.dtype == torch.float32
    assert loaded.dtype == torch.float32
    if quant == TYPES.Q4_0:
        assert (forward(make()) - want).abs().max() > 1e-2 * want.abs().max()  # the effect of quantization is visible


def test_quantized_weights_stay_small(tmp_path):
    write(tmp_path / "x.gguf", make(), TYPES.Q8_0)
    loaded = gguf.load(tmp_path / "x.gguf", torch.bfloat16)
    weight = loaded.blocks[0].ffn.net[0].proj.weight
    assert weight.dtype == torch.uint8 and weight.numel() == 512 * 256 // 32 * 34
    assert loaded.condition_embedder.time_embedder.linear_1.weight.dtype == torch.float32
    assert loaded.blocks[0].attn1.to_q.bias.dtype == torch.bfloat16
    assert loaded.dtype == torch.bfloat16  # what WanPipeline casts latents to


def test_config_and_rearranged_tensors(tmp_path):
    source = make()
    values = write(tmp_path / "x.gguf", source, TYPES.Q8_0, rearrange="patch_embedding.weight")
    assert gguf.describe(tmp_path / "x.gguf")["ffn_dim"] == 512
    source.load_state_dict(values)
    loaded = gguf.load(tmp_path / "x.gguf", torch.float32)
    assert torch.equal(loaded.patch_embedding.weight, source.patch_embedding.weight)


def test_other_kinds(tmp_path):
    write(tmp_path / "5b.gguf", make("5b"), TYPES.Q8_0)
    assert gguf.describe(tmp_path / "5b.gguf")["in_channels"] == 48
    write(tmp_path / "i2v.gguf", make("i2v"), TYPES.Q8_0)
    config = gguf.describe(tmp_path / "i2v.gguf")
    assert (config["in_channels"], config["image_dim"]) == (36, None)


def test_a_lora_on_quantized_weights(tmp_path):
    """The adapter is added to the dequantized layer: its contribution is its own product, which is not quantized."""
    write(tmp_path / "x.gguf", make(), TYPES.Q8_0)
    loaded = gguf.load(tmp_path / "x.gguf", torch.float32)
    align(loaded)
    layer = loaded.blocks[0].ffn.net[2]
    x = torch.randn(2, 512, generator=torch.Generator().manual_seed(3))
    before = layer(x)
    g = torch.Generator().manual_seed(4)
    down, up = torch.randn(2, 512, generator=g), torch.randn(256, 2, generator=g)
    key = "diffusion_model.blocks.0.ffn.2.lora_"
    layouts.save(tmp_path / "l.safetensors", {f"{key}down.weight": down, f"{key}up.weight": up})
    model = SimpleNamespace(transformer_2=None, experts=lambda: (loaded,), loras=(), variant=None)
    lora.apply_all(model, [(tmp_path / "l.safetensors", 0.5)])  # type: ignore[arg-type]
    after = loaded.blocks[0].ffn.net[2](x)
    want = 0.5 * (x @ down.T) @ up.T
    assert (after - before - want).abs().max() <= 1e-5 * want.abs().max()


def test_refusals(tmp_path):
    write(tmp_path / "a.gguf", make(), TYPES.Q8_0, drop="blocks.0.ffn.0.bias")
    with pytest.raises(ModelError, match=r"missing: blocks\.0\.ffn\.net\.0\.proj\.bias"):
        gguf.load(tmp_path / "a.gguf", torch.float32)
    write(tmp_path / "b.gguf", make(), TYPES.Q8_0, architecture="flux")
    with pytest.raises(ModelError, match="architecture is 'flux'"):
        gguf.describe(tmp_path / "b.gguf")
    (tmp_path / "c.gguf").write_bytes(b"GGUFnot really")
    with pytest.raises(ModelError, match="not a complete GGUF file"):
        gguf.describe(tmp_path / "c.gguf")
    data = (tmp_path / "a.gguf").read_bytes()
    (tmp_path / "d.gguf").write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelError, match="not a complete GGUF file"):
        gguf.load(tmp_path / "d.gguf", torch.float32)


@pytest.mark.parametrize(
    "quant", [TYPES[name] for name in gguf.SCALES if name in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")]
)
def test_a_nan_scale_is_refused_and_named(tmp_path, quant):
    """A NaN is written where gguf's own dequantization reads a scale."""
    path = tmp_path / "x.gguf"
    write(path, make(), quant)
    gguf.load(path, torch.float32)
    reader = gguf_library.GGUFReader(str(path), "r+")
    (tensor,) = [t for t in reader.tensors if t.name == "blocks.0.ffn.0.weight"]
    tensor.data.reshape(-1)[:2] = np.frombuffer(np.float16("nan").tobytes(), np.uint8)
    reader.data.flush()
    assert np.isnan(gguf_library.quants.dequantize(tensor.data, quant)).any()
    with pytest.raises(ModelError, match=r"blocks\.0\.ffn\.0\.weight has blocks whose scale is NaN"):
        gguf.load(path, torch.float32)


def test_the_places_of_scales_are_those_of_gguf():
    """A block of zeros with one scale set to NaN dequantizes to NaN, for each type that gguf can dequantize."""
    for name, offsets in gguf.SCALES.items():
        _, size = gguf_library.GGML_QUANT_SIZES[TYPES[name]]
        for offset in offsets:
            block = np.ones((1, size), np.uint8)
            block[0, offset : offset + 2] = np.frombuffer(np.float16("nan").tobytes(), np.uint8)
            assert np.isnan(gguf_library.quants.dequantize(block, TYPES[name])).any(), (name, offset)
            block[0, offset : offset + 2] = 1
            assert np.isfinite(gguf_library.quants.dequantize(block, TYPES[name])).all(), (name, offset)
