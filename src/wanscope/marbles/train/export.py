"""Putting the trained parts together as a plain diffusers WanPipeline folder.

The VAE and the transformer are stored as fp16 and run as fp32. The text encoder stays fp32 in its file, because
transformers loads an fp16 encoder as fp16 where diffusers expects fp32.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from transformers import AutoTokenizer, UMT5EncoderModel

from wanscope.marbles.train.denoiser import channel_statistics

SHIFT = 5.0


def export(folder: Path, target: Path) -> int:
    """Write `target` from the trained parts in `folder`; returns its size in bytes."""
    vae = AutoencoderKLWan.from_pretrained(folder / "vae")
    mean, std = channel_statistics(folder)
    vae.register_to_config(latents_mean=mean, latents_std=std)
    transformer = WanTransformer3DModel.from_pretrained(folder / "transformer")
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=SHIFT
    )
    pipeline = WanPipeline(
        tokenizer=AutoTokenizer.from_pretrained(folder / "tokenizer"),
        text_encoder=UMT5EncoderModel.from_pretrained(folder / "text_encoder"),
        transformer=transformer.to(torch.float16),
        vae=vae.to(torch.float16),
        scheduler=scheduler,
    )
    staging = target.with_name(target.name + ".partial")
    shutil.rmtree(staging, ignore_errors=True)
    pipeline.save_pretrained(staging)
    for name in ("report.json", "report.md"):
        if (target / name).exists():
            shutil.copy(target / name, staging / name)
    shutil.rmtree(target, ignore_errors=True)
    staging.rename(target)
    return sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
