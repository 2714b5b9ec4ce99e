"""Training the marbles VAE: single frames first, then 9-frame crops around the objects, then whole clips.

The loss is L1 in -1..1, with more weight on the objects and a rim around them, plus a small KL term. Training can be
resumed: the checkpoint has weights, averages, optimizer and step, and the data of step n is drawn from (seed, n).

Shape suffixes: B batch, C color channels, F frames, H and W pixels.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan

from wanscope.marbles import world
from wanscope.marbles.train.checkpoint import Checkpoint
from wanscope.marbles.train.optim import Average, Muon, set_lr
from wanscope.wan.vae import decode_raw, encode_moments

CONFIG: dict[str, Any] = {
    "base_dim": 32,
    "z_dim": 16,
    "dim_mult": [1, 2, 2],
    "num_res_blocks": 1,
    "temperal_downsample": [True, True],
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_temporal": 4,
    "scale_factor_spatial": 8,
}

# (name, share of all steps, frames, crop in pixels, batch)
STAGES = (("frames", 0.06, 1, 64, 16), ("crops", 0.82, 9, 64, 4), ("whole", 0.12, 17, 128, 1))
OBJECT_WEIGHT = 6.0
KL_WEIGHT = 5e-4


def stage_of(step: int, total: int) -> tuple[str, int, int, int]:
    """Return the stage of a step: its name, frames, crop in pixels and batch size."""
    edge = 0.0
    for name, share, frames, crop, batch in STAGES:
        edge += share
        if step < round(edge * total):
            return name, frames, crop, batch
    return STAGES[-1][0], *STAGES[-1][2:]


def _crop(clip: world.Clip, crop: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return a square window around an object (one time in six: anywhere) and the objects' cover inside it.

    The shapes are [F, crop, crop, C] and [F, crop, crop].
    """
    cover = clip.masks.max(axis=1)
    if crop >= world.WIDTH:
        return clip.video, cover
    if rng.random() < 1 / 6:
        cx, cy = rng.uniform(0, world.WIDTH), rng.uniform(0, world.HEIGHT)
    else:
        path = clip.paths[:, rng.integers(clip.paths.shape[1])]
        cx, cy = path[rng.integers(len(path))] + rng.uniform(-20, 20, 2)
    left = int(np.clip(cx - crop / 2, 0, world.WIDTH - crop))
    top = int(np.clip(cy - crop / 2, 0, world.HEIGHT - crop))
    window = (slice(None), slice(top, top + crop), slice(left, left + crop))
    return clip.video[window], cover[window]


def batch(seed: int, step: int, frames: int, crop: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return videos [B, C, F, H, W] in -1..1 and the objects' cover [B, 1, F, H, W]; determined by (seed, step)."""
    rng = np.random.default_rng([seed, step])
    videos, covers = [], []
    for _ in range(size):
        scene = world.sample_scene(rng, objects=1 if rng.random() < 0.5 else 2, held_out=False)
        start = int(rng.integers(world.FRAMES - frames + 1))
        clip = world.render(scene, start + frames)
        clip = world.Clip(scene, clip.video[start:], clip.masks[start:], clip.paths[start:])
        video, cover = _crop(clip, crop, rng)
        videos.append(video)
        covers.append(cover)
    video_BCFHW = torch.from_numpy(np.stack(videos)).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
    return video_BCFHW, torch.from_numpy(np.stack(covers))[:, None]


def loss(vae: AutoencoderKLWan, video_BCFHW: torch.Tensor, cover_B1FHW: torch.Tensor) -> tuple[torch.Tensor, dict]:
    """Return the loss, a scalar, and its figures (L1, KL, PSNR in dB)."""
    mean, log_variance = encode_moments(vae, video_BCFHW).float().chunk(2, dim=1)
    log_variance = log_variance.clamp(-20, 10)
    latents = mean + torch.randn_like(mean) * torch.exp(0.5 * log_variance)
    out = decode_raw(vae, latents).float()
    rim = F.max_pool3d(cover_B1FHW, (1, 7, 7), stride=1, padding=(0, 3, 3))
    weight = 1 + OBJECT_WEIGHT * rim
    error = (out - video_BCFHW).abs()
    reconstruction = (error * weight).mean() / weight.mean()
    kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
    mse = (out.detach().clamp(-1, 1) - video_BCFHW).square().mean() / 4
    figures = {"l1": reconstruction.item(), "kl": kl.item(), "psnr": -10 * float(torch.log10(mse + 1e-12))}
    return reconstruction + KL_WEIGHT * kl, figures


def _channels_last(model: torch.nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, torch.nn.Conv3d):
            module.weight.data = module.weight.data.to(memory_format=torch.channels_last_3d)


def train(
    folder: Path,
    steps: int,
    decay: int,
    *,
    seed: int = 0,
    lr: float = 0.02,
    device: str = "cpu",
    save_every: int = 200,
) -> None:
    """Train up to `steps` in `folder`, resuming from its checkpoint; write `vae/` (the averaged weights).

    decay: over how many steps the learning rate falls at the end.
    """
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    vae: Any = AutoencoderKLWan(**CONFIG)
    vae.to(device)
    _channels_last(vae)
    average = Average(vae, 0.998)
    optimizer = Muon(vae, lr)
    checkpoint, log = Checkpoint(folder / "vae.pt", vae, average, optimizer, part="vae"), folder / "vae.jsonl"
    for step in range(checkpoint.resume(device), steps):
        name, frames, crop, size = stage_of(step, steps)
        video, cover = batch(seed, step, frames, crop, size)
        torch.manual_seed(seed * 1_000_003 + step)
        set_lr(optimizer, lr, step, 100, steps, decay)
        with torch.autocast(device, torch.bfloat16):
            value, figures = loss(vae, video.to(device), cover.to(device))
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        average.update(vae)
        if step % 20 == 0 or step == steps - 1:
            row = {"step": step, "stage": name, "seconds": round(checkpoint.seconds, 1), **figures}
            with log.open("a") as out:
                out.write(json.dumps(row) + "\n")
        if checkpoint.due(step, steps, save_every):
            checkpoint.save(step)
            average.model.save_pretrained(folder / "vae")
