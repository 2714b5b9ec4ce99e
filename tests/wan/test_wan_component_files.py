"""Text encoders and VAEs from single files: the same bits as their source, plain and scaled fp8."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import load_file
from transformers import UMT5Config, UMT5EncoderModel

from helpers import layouts
from helpers.tiny import encoder_config
from wanscope.errors import ModelError
from wanscope.wan import encoder_file, vae_file
from wanscope.wan.constants import VAE_2_1, VAE_2_2
from wanscope.wan.weights import align

torch.set_num_threads(1)
IDS = torch.tensor([[5, 9, 4, 1, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 0, 0]])


def encoder(seed: int = 3) -> UMT5EncoderModel:
    # The distance cannot be read from any tensor's shape; every UMT5 has 128.
    config = UMT5Config(**{**encoder_config(), "relative_attention_max_distance": 128})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = UMT5EncoderModel(config)
    return model.eval().requires_grad_(False)


def hidden(model: UMT5EncoderModel) -> torch.Tensor:
    return model(IDS, MASK).last_hidden_state


@pytest.mark.parametrize("layout", ["wan", "comfy"])
def test_encoder_gives_the_same_bits(tmp_path, layout):
    source = encoder()
    loaded = encoder_file.load(layouts.save_encoder(tmp_path / "e.safetensors", source, layout), torch.float32)
    align(loaded)
    assert torch.equal(hidden(loaded), hidden(source))
    assert loaded.shared.weight is loaded.encoder.embed_tokens.weight


@pytest.mark.parametrize("layout", ["wan", "comfy"])
@pytest.mark.parametrize("scales", ["scale_weight", "comfy_quant"])
def test_scaled_fp8_encoder(tmp_path, layout, scales):
    plain = layouts.save_encoder(tmp_path / "plain.safetensors", encoder(), layout)
    tensors, values, _ = layouts.to_scaled_fp8(load_file(plain), scales)
    assert sum(v.dtype == torch.float8_e4m3fn for v in tensors.values()) >= 14
    loaded = encoder_file.load(layouts.save(tmp_path / "e.safetensors", tensors), torch.bfloat16)
    state = loaded.state_dict()
    for name, value in values.items():
        got = state[encoder_file.transformers_name(name)].double()
        assert (got - value).abs().max() <= 2**-8 * value.abs().max(), name


def test_encoder_file_problems(tmp_path):
    tensors = load_file(layouts.save_encoder(tmp_path / "e.safetensors", encoder()))
    tensors.pop("blocks.1.ffn.fc1.weight")
    with pytest.raises(ModelError, match=r"missing: encoder\.block\.1\.layer\.1\.DenseReluDense\.wi_1"):
        encoder_file.load(layouts.save(tmp_path / "f.safetensors", tensors), torch.float32)
    with pytest.raises(ModelError, match="not a UMT5 text encoder"):
        encoder_file.load(layouts.save(tmp_path / "g.safetensors", {"x": torch.zeros(1)}), torch.float32)
    tensors = load_file(tmp_path / "e.safetensors") | {"blocks.0.attn.q.bias": torch.zeros(32)}
    with pytest.raises(ModelError, match=r"dropped: blocks\.0\.attn\.q\.bias"):
        encoder_file.load(layouts.save(tmp_path / "h.safetensors", tensors), torch.float32)


def test_no_tokenizer_in_a_plain_encoder_file(tmp_path):
    path = layouts.save_encoder(tmp_path / "e.safetensors", encoder())
    assert not encoder_file.has_tokenizer(path)
    assert encoder_file.tokenizer_in(path, 16) is None


def test_tokenizer_inside_the_encoder_file(tmp_path):
    """ComfyUI's files carry the SentencePiece model as a tensor of bytes."""
    sentencepiece = pytest.importorskip("sentencepiece")
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(["a red circle moves left", "a blue square stays still", "the cat and the dog"] * 30))
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(tmp_path / "m"),
        vocab_size=27,
        minloglevel=2,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
    )
    data = (tmp_path / "m.model").read_bytes()
    plain = load_file(layouts.save_encoder(tmp_path / "plain.safetensors", encoder(), "comfy"))
    path = layouts.save(
        tmp_path / "e.safetensors", plain | {"spiece_model": torch.tensor(list(data), dtype=torch.uint8)}
    )
    assert encoder_file.has_tokenizer(path)
    tokenizer = encoder_file.tokenizer_in(path, 16)
    assert tokenizer is not None and tokenizer.model_max_length == 16
    reference = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "m.model"))
    text = "a red cat moves left"
    assert tokenizer(text)["input_ids"] == [*reference.encode(text), 1]
    align(loaded := encoder_file.load(path, torch.float32))
    assert torch.equal(hidden(loaded), hidden(encoder()))


def vae(config: dict, seed: int = 3) -> AutoencoderKLWan:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoencoderKLWan(**config).eval().requires_grad_(False)


SMALL_2_1 = {**VAE_2_1, "base_dim": 4}
SMALL_2_2 = {**VAE_2_2, "base_dim": 4, "decoder_base_dim": 6}


@pytest.mark.parametrize(("config", "nested"), [(SMALL_2_1, False), (SMALL_2_2, True)])
@pytest.mark.parametrize("prefix", ["", "vae."])
def test_vae_gives_the_same_bits(tmp_path, config, nested, prefix):
    source = vae(config)
    plain = load_file(layouts.save_vae(tmp_path / "plain.safetensors", source, nested))
    path = layouts.save(tmp_path / "v.safetensors", {prefix + k: v for k, v in plain.items()})
    loaded = vae_file.load(path, torch.float32)
    align(loaded)
    assert {k: v for k, v in loaded.config.items() if k in config} == dict(source.config) | config
    z = torch.randn(1, config["z_dim"], 2, 2, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(loaded.decode(z).sample, source.decode(z).sample)
    side = 2 * config["scale_factor_spatial"]
    x = torch.rand(1, 3, 5, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert torch.equal(loaded.encode(x).latent_dist.mean, source.encode(x).latent_dist.mean)


def test_vae_in_diffusers_layout(tmp_path):
    source = vae(SMALL_2_2)
    path = layouts.save(tmp_path / "v.safetensors", source.state_dict())
    align(loaded := vae_file.load(path, torch.float32))
    z = torch.randn(1, 48, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(loaded.decode(z).sample, source.decode(z).sample)


def test_vae_file_problems(tmp_path):
    with pytest.raises(ModelError, match="not a Wan VAE"):
        vae_file.load(layouts.save(tmp_path / "a.safetensors", {"x": torch.zeros(1)}), torch.float32)
    tensors = load_file(layouts.save_vae(tmp_path / "b.safetensors", vae(SMALL_2_1), False))
    tensors["conv2.weight"] = torch.zeros(7, 7, 1, 1, 1)
    with pytest.raises(ModelError, match="7 latent channels"):
        vae_file.load(layouts.save(tmp_path / "c.safetensors", tensors), torch.float32)
    tensors = load_file(tmp_path / "b.safetensors")
    tensors.pop("encoder.middle.1.proj.bias")
    with pytest.raises(ModelError, match=r"missing: encoder\.mid_block\.attentions\.0\.proj\.bias"):
        vae_file.load(layouts.save(tmp_path / "d.safetensors", tensors), torch.float32)
