"""Files that are something else than their name says get the right words; sharded files are read as one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers import layouts
from helpers.tiny import tiny_pipeline, tiny_transformer, transformer_config
from wanscope.errors import ModelError
from wanscope.wan import encoder_file, gguf, locate, single_file, vae_file
from wanscope.wan.load import identify, load
from wanscope.wan.weights import open_weights

CONFIG = {**transformer_config("2.1", blocks=1, heads=2, head_dim=128), "rope_max_seq_len": 1024}


def whole(path: Path) -> Path:
    return layouts.save_transformer(path, tiny_transformer(CONFIG, seed=7), layouts.COMFY)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"GGUF\x03\x00\x00\x00" + bytes(100), "it is a GGUF file; rename it"),
        (b"PK\x03\x04" + bytes(100), "it is a zip file, which pickled PyTorch weights are"),
        (b"\x80\x02}q\x00." + bytes(100), "it is a pickle"),
        (b"version https://example.org/spec/v1\noid sha256:12\nsize 9\n", "a pointer of Git LFS"),
        (b"\n<!doctype html><html>", "it is a web page"),
        (bytes(range(200)), "is not a safetensors file"),
        (b"{}", "is not a safetensors file"),
    ],
)
@pytest.mark.parametrize(
    "read",
    [
        single_file.describe,
        lambda path: encoder_file.load(path, torch.float32),
        lambda path: vae_file.load(path, torch.float32),
        lambda path: open_weights(path).__enter__(),
    ],
)
def test_what_a_file_is_instead_is_said(content: bytes, said: str, read, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=said) as error:
        read(path)
    assert ("download it again" in str(error.value)) == (content == b"")


@pytest.mark.parametrize("kept", [5, 100, 0.5, 0.999])
def test_only_a_truncated_file_is_worth_downloading_again(kept: float, tmp_path: Path) -> None:
    path = whole(tmp_path / "x.safetensors")
    data = path.read_bytes()
    size = int(kept if kept > 1 else kept * len(data))
    path.write_bytes(data[:size])
    with pytest.raises(ModelError) as error:
        single_file.describe(path)
    if size > 8:
        assert "is incomplete" in str(error.value) and f"{size:,} of " in str(error.value)
        assert "download it again" in str(error.value)
    else:
        assert "is not a safetensors file" in str(error.value)


def test_a_file_whose_content_does_not_fit_its_header_is_not_called_truncated(tmp_path: Path) -> None:
    path = whole(tmp_path / "x.safetensors")
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(ModelError, match="its header does not describe its content"):
        single_file.describe(path)


def test_a_truncated_and_a_wrong_gguf(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(whole(tmp_path / "x.safetensors").read_bytes())
    with pytest.raises(ModelError, match="is not a GGUF file"):
        gguf.describe(path)
    path.write_bytes(b"GGUF\x03\x00\x00\x00" + b"\x07")
    with pytest.raises(ModelError, match=r"not a complete GGUF file.*download it again"):
        gguf.describe(path)


# ---- shards


def sharded(folder: Path, count: int = 3, index: bool = True) -> list[Path]:
    tensors = load_file(whole(folder / "whole.safetensors"))
    (folder / "whole.safetensors").unlink()
    names = [f"wan-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)]
    where = {name: names[i % count] for i, name in enumerate(sorted(tensors))}
    for file in names:
        save_file({name: tensors[name] for name in where if where[name] == file}, folder / file)
    if index:
        (folder / "wan.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return [folder / name for name in names]


@pytest.mark.parametrize("index", [True, False])
def test_a_sharded_transformer_is_read_from_any_of_its_files(index: bool, tmp_path: Path) -> None:
    tiny_pipeline(blocks=1, heads=2, head_dim=128).save_pretrained(tmp_path / "parts")
    parts = dict.fromkeys(("encoder", "vae", "tokenizer"), tmp_path / "parts")
    files = sharded(tmp_path, index=index)
    want = tiny_transformer(CONFIG, seed=7).state_dict()
    identities = set()
    for path in files:
        model = load(path, device="cpu", **parts)
        assert all(torch.equal(value, want[name]) for name, value in model.transformer.state_dict().items())
        assert identify(path, **parts)[1] == model.identity
        identities.add(model.identity["transformer"])
    assert len(identities) == 1
    # a change of another shard is a change of the model
    tensors = load_file(files[-1])
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, files[-1])
    assert identify(files[0], **parts)[1]["transformer"] not in identities


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    files = sharded(tmp_path)
    files[1].unlink()
    with pytest.raises(ModelError, match=r"is shard 1 of 3, and 1 of 3 files are missing.*wan-00002-of-00003"):
        locate.describe(files[0])


# ---- folders and parts


@pytest.mark.parametrize("expert", ["", "high_noise_model"])
def test_an_original_repository_gets_the_right_words(expert: str, tmp_path: Path) -> None:
    folder = tmp_path / expert
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"_class_name": "WanModel", "dim": 5120}))
    (folder / "diffusion_pytorch_model-00001-of-00006.safetensors").touch()
    (tmp_path / "Wan2.1_VAE.pth").touch()
    with pytest.raises(ModelError, match="layout of Wan's original repositories") as error:
        locate.locate(tmp_path)
    assert "-Diffusers" in str(error.value) and "diffusion_pytorch_model-00001-of-00006.safetensors" in error.value.fix
    assert "--vae" in error.value.fix and "--text-encoder" in error.value.fix


def test_a_gguf_text_encoder_is_refused_with_what_to_give(tmp_path: Path) -> None:
    (tmp_path / "umt5-xxl-encoder-Q5_K_M.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match="of GGUF files, only transformers are read") as error:
        locate.locate(whole(tmp_path / "x.safetensors"), encoder=tmp_path / "umt5-xxl-encoder-Q5_K_M.gguf")
    assert error.value.fix.startswith("--text-encoder umt5")


def test_a_checkpoint_of_everything_is_refused_by_what_it_has(tmp_path: Path) -> None:
    tensors = load_file(whole(tmp_path / "x.safetensors"))
    tensors |= {"first_stage_model.encoder.conv1.weight": torch.ones(2), "cond_stage_model.x": torch.ones(2)}
    save_file(tensors, tmp_path / "all.safetensors")
    with pytest.raises(ModelError, match=r"contains more than a transformer.*cond_stage_model"):
        locate.describe(tmp_path / "all.safetensors")


def test_missing_parts_name_the_options_that_give_them(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="contains only a transformer") as error:
        load(whole(tmp_path / "x.safetensors"), device="cpu")
    for option in ("--text-encoder PATH", "--vae PATH", "--tokenizer PATH", "encoder=PATH", "vae=PATH"):
        assert option in error.value.fix
