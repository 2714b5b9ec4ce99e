"""Exporting the trained parts as a plain diffusers WanPipeline folder, and making a training folder from one.

The VAE and the transformer are stored as fp16 and run as fp32. The text encoder is stored as fp32, because
transformers loads an fp16 encoder as fp16 where diffusers expects fp32.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from transformers import AutoTokenizer, UMT5EncoderModel

from wanscope.marbles.train.denoiser import channel_statistics

SHIFT = 5.0


def export(folder: Path, target: Path) -> int:
    """Write `target` from the trained parts in `folder`; return its size in bytes.

    An older report there is removed: `wanscope validate marbles --out` scores the new weights.
    """
    vae: Any = AutoencoderKLWan.from_pretrained(folder / "vae")
    mean, std = channel_statistics(folder)
    vae.register_to_config(latents_mean=mean, latents_std=std)
    transformer: Any = WanTransformer3DModel.from_pretrained(folder / "transformer")
    scheduler: Any = UniPCMultistepScheduler(
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
    for config in staging.rglob("config.json"):  # diffusers records the parts' paths on this machine there
        facts = json.loads(config.read_text())
        if facts.pop("_name_or_path", None) is not None:
            config.write_text(json.dumps(facts, indent=2) + "\n")
    checkpoint = torch.load(folder / "denoiser.pt", map_location="cpu", weights_only=True)
    (staging / "training.json").write_text(json.dumps({"denoiser_steps": checkpoint["step"]}) + "\n")
    shutil.rmtree(target, ignore_errors=True)
    staging.rename(target)
    return sum(path.stat().st_size for path in target.rglob("*") if path.is_file())


def unpack(source: Path, folder: Path) -> None:
    """Make a training folder from packaged weights, so that training can continue without the old checkpoints.

    The optimizer's state is not packaged; its averages are rebuilt within a few dozen steps.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for kind, name in ((AutoencoderKLWan, "vae"), (WanTransformer3DModel, "transformer")):
        kind.from_pretrained(source / name).save_pretrained(folder / name)
    for name in ("text_encoder", "tokenizer"):
        shutil.copytree(source / name, folder / name, dirs_exist_ok=True)
    shutil.copy(source / "training.json", folder / "training.json")
