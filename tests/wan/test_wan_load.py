"""load(): every kind of spec, the parts that belong together, and clear refusals."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers import layouts
from helpers.tiny import KINDS, tiny_folder, tiny_model, tiny_pipeline, tiny_transformer, transformer_config, video
from wanscope import events
from wanscope.errors import ModelError
from wanscope.wan import locate, text, variants
from wanscope.wan.constants import VAE_2_1
from wanscope.wan.load import identify, load, pick_device

torch.set_num_threads(1)


def latents(model, seed: int = 0) -> torch.Tensor:
    pipe = model.to_pipeline()
    pipe.set_progress_bar_config(disable=True)
    size = video()
    return pipe(
        "a red circle moves left",
        negative_prompt="",
        width=size["width"],
        height=size["height"],
        num_frames=size["frames"],
        num_inference_steps=3,
        max_sequence_length=model.text_length,
        generator=torch.Generator().manual_seed(seed),
        output_type="latent",
    ).frames


@pytest.mark.parametrize("kind", ["2.1", "2.2", "5b"])
def test_a_folder_gives_the_same_bits_as_the_model_that_was_saved(tmp_path, kind):
    folder = tiny_folder(tmp_path / "m", kind)
    loaded = load(folder, device="cpu")
    assert loaded.dtype == torch.float32 and loaded.blocks == 4
    assert len(loaded.experts()) == (2 if kind == "2.2" else 1)
    assert loaded.boundary_ratio == (0.875 if kind == "2.2" else None)
    assert loaded.expand_timesteps is (kind == "5b")
    assert loaded.text_length == 16
    assert torch.equal(latents(loaded), latents(tiny_model(kind)))


@pytest.mark.parametrize("kind", [k for k in KINDS if k.startswith("i2v")])
def test_image_models_load_and_state_what_they_need(tmp_path, kind):
    model = load(tiny_folder(tmp_path / "m", kind), device="cpu")
    assert model.variant.image_conditioned and model.variant.in_channels == 36
    assert model.variant.image_tokens == (257 if kind == "i2v-2.1" else 0)
    with pytest.raises(ModelError, match="cannot make a video from text"):
        model.require_text_only()
    tiny_model().require_text_only()


def test_events_and_identity(tmp_path):
    folder = tiny_folder(tmp_path / "m")
    seen: list[events.Event] = []
    model = load(str(folder), device="cpu", on_event=seen.append)
    assert [type(event) for event in seen] == [events.ModelLoading, events.ModelReady]
    assert seen[1].dtype == "fp32"
    assert set(model.identity) == {"transformer", "vae", "text_encoder", "tokenizer"}
    assert identify(folder)[1] == model.identity
    moved = shutil.copytree(folder, tmp_path / "elsewhere")
    assert identify(moved)[1] == model.identity
    other = identify(tiny_folder(tmp_path / "other", seed=1))[1]
    assert other["transformer"] != model.identity["transformer"] and other["tokenizer"] == model.identity["tokenizer"]


def single(tmp_path, kind: str = "2.1", experts: int = 1):
    """Write a transformer file, an encoder folder, a VAE file and a tokenizer; return them as load's arguments."""
    config = {**transformer_config(kind, blocks=1, heads=2, head_dim=128), "rope_max_seq_len": 1024}
    pipe = tiny_pipeline("5b" if kind == "5b" else "2.1", blocks=1, heads=2, head_dim=128)
    pipe.vae = type(pipe.vae)(
        **(
            {
                **dict(pipe.vae.config),
                "dim_mult": [1, 2, 4, 4],
                "num_res_blocks": 2,
                "base_dim": 4,
                "decoder_base_dim": 4,
            }
        )
    ).eval()
    pipe.save_pretrained(tmp_path / "parts")
    names = ["x.safetensors"] if experts == 1 else ["w_high_noise.safetensors", "w_low_noise.safetensors"]
    files = [
        layouts.save_transformer(tmp_path / name, tiny_transformer(config, seed=7 + i), layouts.COMFY)
        for i, name in enumerate(names)
    ]
    vae = layouts.save_vae(tmp_path / "vae.safetensors", pipe.vae, nested=kind == "5b")
    return files, {"encoder": tmp_path / "parts", "vae": vae, "tokenizer": tmp_path / "parts"}


def test_a_single_file_with_its_parts_given(tmp_path):
    files, parts = single(tmp_path)
    model = load(files[0], device="cpu", **parts)
    assert model.dtype == torch.float32 and not model.expand_timesteps
    state = {layouts.COMFY + layouts.original_name(k): v for k, v in model.transformer.state_dict().items()}
    assert all(torch.equal(state[k], v) for k, v in load_file(files[0]).items())
    assert latents(model).isfinite().all()
    assert model.scheduler_config["_class_name"] == "UniPCMultistepScheduler"


def test_two_experts_as_two_files_in_either_order(tmp_path):
    files, parts = single(tmp_path, experts=2)
    for spec in (tuple(files), f"{files[1]} + {files[0]}"):
        model = load(spec, device="cpu", **parts)
        assert model.boundary_ratio == 0.875
        high = load_file(files[0])[f"{layouts.COMFY}head.head.bias"]
        assert torch.equal(model.transformer.proj_out.bias, high)
        assert latents(model).isfinite().all()
    with pytest.raises(ModelError, match="the low-noise file is needed as well"):
        load(files[0], device="cpu", **parts)


def test_a_5b_file_is_taken_for_a_5b(tmp_path):
    files, parts = single(tmp_path, "5b")
    model = load(files[0], device="cpu", **parts)
    assert model.expand_timesteps and model.variant.vae_stride == (4, 16, 16)
    assert latents(model).isfinite().all()


def test_the_encoder_of_a_single_file_may_be_a_file(tmp_path):
    files, parts = single(tmp_path)
    folder = load(files[0], device="cpu", **parts)
    encoder = layouts.save_encoder(tmp_path / "umt5.safetensors", folder.encoder())
    model = load(files[0], device="cpu", **{**parts, "encoder": encoder})
    # The tiny encoder's longest distance is 20, a file's is UMT5's 128: neighbors have the same bias in both.
    a, b = (text.encode(m, ["red"])[0] for m in (folder, model))
    assert torch.equal(a, b)


def test_what_a_lone_file_needs_is_listed(tmp_path):
    files, _ = single(tmp_path)
    with pytest.raises(ModelError, match="contains only a transformer") as error:
        load(files[0], device="cpu")
    for word in ("encoder=", "vae=", "tokenizer="):
        assert word in str(error.value)


def test_parts_next_to_the_file_are_found(tmp_path):
    """ComfyUI's folders: models/diffusion_models/x, models/text_encoders/umt5..., models/vae/wan_2.1_vae..."""
    files, parts = single(tmp_path)
    models = tmp_path / "models"
    for name in ("diffusion_models", "text_encoders", "vae"):
        (models / name).mkdir(parents=True)
    file = shutil.move(files[0], models / "diffusion_models" / "x.safetensors")
    shutil.move(parts["vae"], models / "vae" / "wan_2.1_vae.safetensors")
    encoder = tiny_model().encoder()
    layouts.save_encoder(models / "text_encoders" / "umt5_xxl_fp16.safetensors", encoder, "comfy")
    notes: list[events.Event] = []
    model = load(file, device="cpu", tokenizer=parts["tokenizer"], on_event=notes.append)
    assert torch.equal(model.encoder().shared.weight, encoder.shared.weight)
    said = "\n".join(event.text for event in notes if isinstance(event, events.Note))
    assert "umt5_xxl_fp16.safetensors" in said and "wan_2.1_vae.safetensors" in said


def test_variants_are_recognized_by_dims_and_names(tmp_path):
    def named(name: str, like: str, count: int = 1) -> str:
        v = variants.VARIANTS[like]
        return locate._variant_of_files([tmp_path / name] * count, v.transformer_config()).name

    assert named("a.safetensors", "wan2.1-t2v-1.3b") == "wan2.1-t2v-1.3b"
    assert named("a.safetensors", "wan2.1-t2v-14b") == "wan2.1-t2v-14b"
    assert named("a.safetensors", "wan2.2-t2v-a14b", 2) == "wan2.2-t2v-a14b"
    assert named("a.safetensors", "wan2.2-i2v-a14b", 2) == "wan2.2-i2v-a14b"
    assert named("a.safetensors", "wan2.2-ti2v-5b") == "wan2.2-ti2v-5b"
    assert named("wan2.1_i2v_720p_14B.safetensors", "wan2.1-i2v-14b-480p") == "wan2.1-i2v-14b-720p"
    assert named("wan2.1_i2v_480p_14B.safetensors", "wan2.1-i2v-14b-720p") == "wan2.1-i2v-14b-480p"


def test_parts_that_do_not_belong_together(tmp_path):
    files, parts = single(tmp_path)
    (tmp_path / "five").mkdir()
    _, other = single(tmp_path / "five", "5b")
    with pytest.raises(ModelError, match="VAE does not fit"):
        load(files[0], device="cpu", **{**parts, "vae": other["vae"]})
    wide = tiny_pipeline()
    config = wide.text_encoder.config.to_dict() | {"d_model": 40}
    big = type(wide.text_encoder)(type(wide.text_encoder.config)(**config))
    big.save_pretrained(tmp_path / "big")
    with pytest.raises(ModelError, match="has 40 values per token"):
        load(files[0], device="cpu", **{**parts, "encoder": tmp_path / "big"})


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".ckpt"])
def test_pickles_are_never_opened(tmp_path, suffix):
    path = tmp_path / f"wan2.1_t2v_1.3B{suffix}"
    path.write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path / "owned").encode() + b"'\ntR.")
    with pytest.raises(ModelError, match="pickle") as error:
        load(path, device="cpu")
    assert "as safetensors, such as wan2.1_t2v_1.3B" in str(error.value)
    files, parts = single(tmp_path)
    with pytest.raises(ModelError, match=r"umt5_xxl_fp16\.safetensors"):
        load(files[0], device="cpu", **{**parts, "encoder": path})
    with pytest.raises(ModelError, match="pickle"):
        load(tiny_folder(tmp_path / "m"), device="cpu", loras=[path])
    assert not (tmp_path / "owned").exists()


def test_a_folder_with_pickled_weights_is_refused(tmp_path):
    folder = tiny_folder(tmp_path / "m")
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), folder / "transformer" / "diffusion_pytorch_model.bin")
    weights.unlink()
    with pytest.raises(ModelError, match=r"transformer/diffusion_pytorch_model\.bin is a pickle"):
        load(folder, device="cpu")


def test_a_folder_with_missing_weights_is_refused(tmp_path):
    """diffusers and transformers fill them with random numbers and say so in a log line."""
    folder = tiny_folder(tmp_path / "m")
    for part, name in (
        ("transformer", "blocks.0.attn1.to_q.weight"),
        ("text_encoder", "encoder.block.0.layer.0.SelfAttention.q.weight"),
        ("vae", "decoder.conv_in.weight"),
    ):
        file = next((folder / part).glob("*.safetensors"))
        whole = load_file(file)
        save_file({k: v for k, v in whole.items() if k != name}, file, {"format": "pt"})
        with pytest.raises(ModelError, match="does not contain all weights") as error:
            load(folder, device="cpu")
        assert name in str(error.value)
        save_file(whole, file, {"format": "pt"})


def test_a_folder_with_more_weights_than_its_config_is_refused(tmp_path):
    folder = tiny_folder(tmp_path / "m")
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    save_file(load_file(file) | {"blocks.4.ffn.net.2.bias": torch.zeros(48)}, file, {"format": "pt"})
    with pytest.raises(ModelError, match=r"dropped: blocks\.4\.ffn\.net\.2\.bias"):
        load(folder, device="cpu")


def test_broken_folders(tmp_path):
    folder = tiny_folder(tmp_path / "m")
    with pytest.raises(ModelError, match="a single component, not a complete model"):
        load(folder / "transformer", device="cpu")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"model_index\.json"):
        load(tmp_path / "empty", device="cpu")
    shards = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "text_encoder" / "model.safetensors.index.json").write_text(json.dumps(shards))
    with pytest.raises(ModelError, match=r"model-00001-of-00002\.safetensors"):
        load(folder, device="cpu")
    config = folder / "transformer" / "config.json"
    config.write_text(config.read_text().replace("WanTransformer3DModel", "WanVACETransformer3DModel"))
    (folder / "text_encoder" / "model.safetensors.index.json").unlink()
    with pytest.raises(ModelError, match="its transformer is a WanVACETransformer3DModel"):
        load(folder, device="cpu")


def test_unknown_names(tmp_path):
    with pytest.raises(ModelError, match=r"did you mean 'wan2\.1-t2v-14b'"):
        load("wan2.1-t2v-14", device="cpu")
    with pytest.raises(ModelError, match="there is no model at"):
        load("./nowhere", device="cpu")
    with pytest.raises(ModelError, match="there is no file"):
        load(tmp_path / "x.safetensors", device="cpu")
    with pytest.raises(ModelError, match="not a device"):
        load("marbles", device="gpu0")
    with pytest.raises(ModelError, match="not a dtype"):
        load(tiny_folder(tmp_path / "m"), device="cpu", dtype="fp8")
    with pytest.raises(ModelError, match="memory mode 'lots'"):
        load("marbles", memory="lots")
    with pytest.raises(ModelError, match="no LoRA file"):
        load("marbles", device="cpu", loras=[("gone.safetensors", 1.0)])
    with pytest.raises(ModelError, match="no text encoder at"):
        load(tiny_folder(tmp_path / "n"), device="cpu", encoder="./gone")


def test_dtype_and_loras_reach_the_model(tmp_path):
    folder = tiny_folder(tmp_path / "m")
    state = {
        "diffusion_model.blocks.0.self_attn.q.lora_down.weight": torch.ones(1, 48),
        "diffusion_model.blocks.0.self_attn.q.lora_up.weight": torch.ones(48, 1),
    }
    save_file(state, tmp_path / "l.safetensors")
    model = load(folder, device="cpu", dtype="bf16", loras=[(tmp_path / "l.safetensors", 0.5)])
    assert model.dtype == model.transformer.dtype == torch.bfloat16
    assert model.transformer.blocks[0].scale_shift_table.dtype == torch.float32
    assert model.transformer.rope.freqs_cos.dtype == torch.float32
    assert model.encoder().dtype == torch.bfloat16 and model.vae.dtype == torch.float32
    assert [entry.weight for entry in model.loras] == [0.5]
    plain = load(folder, device="cpu", dtype="bf16")
    assert not torch.equal(latents(model), latents(plain))
    assert model.identity == plain.identity  # LoRAs are identified by model.loras


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu():
    with pytest.raises(ModelError, match="not available"):
        pick_device("cuda")
    assert pick_device("auto") == torch.device("cpu")


def test_vae_defaults_are_diffusers():
    from diffusers import AutoencoderKLWan

    with torch.device("meta"):
        own = dict(AutoencoderKLWan().config)
    assert {k: own[k] for k in VAE_2_1} == VAE_2_1
