"""The planner's upper bounds against a count of live tensors in the real code, without data (meta device)."""

from __future__ import annotations

import weakref

import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from diffusers.models.transformers import transformer_wan
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from wanscope.wan import footprint
from wanscope.wan import vae as wan_vae
from wanscope.wan.variants import VARIANTS, latent_shape

torch.set_num_threads(1)


class LiveBytes(TorchDispatchMode):
    """Counts bytes of storages made inside, and their peak."""

    def __init__(self):
        super().__init__()
        self.live: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.live:
                    self.live[storage._cdata] = storage.nbytes()
                    weakref.finalize(storage, self.live.pop, storage._cdata, None)
                    self.peak = max(self.peak, sum(self.live.values()))
        return out


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("wan2.1-t2v-1.3b", (832, 480, 81)),
        ("wan2.1-t2v-14b", (1280, 720, 81)),
        ("wan2.2-ti2v-5b", (1280, 704, 121)),
        ("marbles", (128, 128, 17)),
    ],
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("batch", [1, 2])
def test_denoising(monkeypatch, name, size, dtype, batch):
    # Fused attention holds no matrix; on the meta device torch would count the unfused one.
    monkeypatch.setattr(transformer_wan, "dispatch_attention_fn", lambda q, *_, **__: torch.empty_like(q))
    v = VARIANTS[name]
    with torch.device("meta"):
        model = WanTransformer3DModel(**v.transformer_config() | {"num_layers": 2})
        _, t, h, w = latent_shape(v, *size)
        for parameter_name, p in model.named_parameters():
            if not any(part in parameter_name.split(".") for part in model._keep_in_fp32_modules or ()):
                p.data = p.data.to(dtype)
        x = torch.zeros(batch, v.in_channels, t, h, w, dtype=dtype)
        text = torch.zeros(batch, v.text_length, v.text_dim, dtype=dtype)
        time = torch.zeros(batch, t * h * w // 4) if v.expand_timesteps else torch.zeros(batch)
    counter = LiveBytes()
    with torch.no_grad(), counter:
        model(x, time, text)
    bound = footprint.denoise_bytes(v, *size, dtype.itemsize, batch)
    assert counter.peak <= bound <= 1.6 * counter.peak, (counter.peak / 1e9, bound / 1e9)


@pytest.mark.parametrize("name", ["wan2.1-t2v-14b", "wan2.2-ti2v-5b", "marbles"])
@pytest.mark.parametrize("chunk", [1, 3])
def test_decoding(name, chunk):
    v = VARIANTS[name]
    width = height = 64 if name == "marbles" else 256
    frames = 9 if chunk == 1 else 13
    with torch.device("meta"):
        vae = AutoencoderKLWan(**v.vae_config())
        latents = torch.zeros(1, *latent_shape(v, width, height, frames))
    counter = LiveBytes()
    with torch.no_grad(), counter:
        wan_vae.decode_raw(vae, latents, chunk)
    bound = footprint.decode_bytes(v.vae_config(), width, height, chunk, 4)
    bound += footprint.video_bytes(width, height, frames)
    assert counter.peak <= bound <= 1.6 * counter.peak, (counter.peak / 1e9, bound / 1e9)


def test_encoding():
    from transformers import UMT5Config, UMT5EncoderModel

    v = VARIANTS["wan2.1-t2v-14b"]
    with torch.device("meta"):
        encoder = UMT5EncoderModel(UMT5Config(**v.encoder.config() | {"num_layers": 2})).to(torch.bfloat16)
        ids = torch.zeros(1, 512, dtype=torch.long)
    counter = LiveBytes()
    with torch.no_grad(), counter:
        encoder(ids, torch.ones(1, 1, 512, 512, device="meta", dtype=torch.bool))
    bound = footprint.encode_bytes(v, 2)
    assert counter.peak <= bound <= 1.6 * counter.peak, (counter.peak / 1e9, bound / 1e9)
