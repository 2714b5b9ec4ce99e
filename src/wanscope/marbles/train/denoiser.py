"""Training the marbles transformer: flow matching on cached latents, with caption dropout and averaged weights.

The data: scenes drawn from the seed, rendered, encoded once by the VAE and stored as fp16. Captions are drawn anew at
each step. Training starts on the first 9 frames of each clip (the VAE is causal, so their latents are a prefix),
continues with windows around the object and with whole clips, and ends on a mixture of kinds of batches, which
alternate step by step.

Text is padded to 512 with zeros exactly as Wan does. Because all pad tokens are equal, cross-attention in training
represents them by fewer columns, with their number as a log bias (mathematically equal to the full softmax).

Shape suffixes: N clips, B batch, Z latent channels, T latent frames, h, w latent height and width, L tokens,
D encoder width, H heads, K head width, Q queries, F frames, W and H pixels of videos.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from transformers import AutoTokenizer, UMT5EncoderModel

from wanscope.marbles import world
from wanscope.marbles.train.checkpoint import Checkpoint
from wanscope.marbles.train.ghosts import Ghosts
from wanscope.marbles.train.optim import Average, Muon, set_lr
from wanscope.marbles.train.text import TEXT_LENGTH
from wanscope.wan.vae import encode_moments

CONFIG: dict[str, Any] = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 4,
    "attention_head_dim": 36,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": 128,
    "freq_dim": 128,
    "ffn_dim": 576,
    "num_layers": 10,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "rope_max_seq_len": 256,
}
PAIR_SHARE = 0.6


@dataclass(frozen=True)
class Kind:
    """A kind of batch: clips of `frames` latent frames, cropped to `window` latent cells per side.

    pairs: whether clips with two objects are included. ghosts: the share of whole clips that show a ghost (see
    ghosts.py); with ghosts, half of the clips have one object.
    """

    frames: int
    window: int
    batch: int
    pairs: bool
    ghosts: float = 0.0


@dataclass(frozen=True)
class Stage:
    """A stage of the training: `steps` steps that alternate between `kinds` of batches, at the learning rate `lr`."""

    steps: int
    kinds: tuple[Kind, ...]
    lr: float

    def kind(self, step: int) -> Kind:
        """Return the kind of batch at `step`, counted from the beginning of the training."""
        return self.kinds[step % len(self.kinds)]


WHOLE = Kind(frames=5, window=16, batch=12, pairs=True)
START = Kind(frames=3, window=16, batch=16, pairs=True)
# Windows around the single object have a third of the tokens and everything that is hard: most of the learning is here.
OBJECT = Kind(frames=3, window=10, batch=48, pairs=False)
STILL = Kind(frames=1, window=8, batch=180, pairs=False)
FRAMES = Kind(frames=1, window=16, batch=60, pairs=True)
SHORT = Kind(frames=3, window=16, batch=20, pairs=True)
MIXED = (WHOLE, FRAMES, SHORT, OBJECT)
WHOLE_HAUNTED, SHORT_HAUNTED = replace(WHOLE, ghosts=0.5), replace(SHORT, ghosts=0.5)

# The schedule of the packaged weights. Above a rate of about 0.005 the loss stops falling once colors are learned, so a
# new training should go down to 0.004 at step 2,400. A single frame is enough to learn shapes, so later stages mix
# kinds. Before stages had ghosts (WHOLE_HAUNTED), 9 of 40 videos had an extra object. There were 4,250 clips up to step
# 6,600, 6,750 up to 10,300, then 9,000. The last stage, with no steps, is used when a training is continued beyond the
# table: its kinds of batches have about the same number of cells.
STAGES = (
    Stage(2400, (START,), lr=0.02),
    Stage(900, (OBJECT,), lr=0.02),
    Stage(700, (OBJECT,), lr=0.004),
    Stage(2600, (WHOLE,), lr=0.004),
    Stage(300, (WHOLE, STILL, WHOLE, OBJECT), lr=0.004),
    Stage(7300, MIXED, lr=0.004),
    Stage(3100, (WHOLE_HAUNTED, replace(FRAMES, ghosts=0.5), SHORT_HAUNTED, OBJECT), lr=0.004),
    Stage(1700, (WHOLE_HAUNTED, STILL, SHORT_HAUNTED, OBJECT), lr=0.004),
    Stage(1400, (WHOLE_HAUNTED, STILL, WHOLE, OBJECT, FRAMES, SHORT_HAUNTED), lr=0.004),
    Stage(0, (WHOLE_HAUNTED, replace(STILL, batch=240), WHOLE, OBJECT, FRAMES, SHORT_HAUNTED), lr=0.004),
)
LOG_EVERY = 19  # not a multiple of the number of kinds in a stage, so that each kind is logged
COMPILED_SHAPES = 32
CAPTION_DROPOUT = 0.1
GHOST_SIGMA = 0.5
TRAIN_SHIFT = 3.0
CAPTION_TOKENS = 40  # the same length for all, so that compiled blocks are not compiled again


def scene_of(seed: int, index: int) -> world.Scene:
    """Return the scene of training clip `index`; held-out combinations never occur."""
    rng = np.random.default_rng([seed, 11, index])
    return world.sample_scene(rng, 2 if rng.random() < PAIR_SHARE else 1, held_out=False)


SceneOf = Callable[[int, int], world.Scene]  # from a seed and a clip's index


def encode_set(
    folder: Path, clips: int, *, seed: int = 0, device: str = "cpu", part: int = 250, scenes: SceneOf = scene_of
) -> None:
    """Write latent means of training clips to `latents/NNNNNN.npy`, fp16 [part, Z, T, h, w]; resumes where it stopped.

    part: clips per file. scenes: the scene of a seed and a clip's index.
    """
    vae: Any = AutoencoderKLWan.from_pretrained(folder / "vae")
    vae.eval().to(device)
    out = folder / "latents"
    out.mkdir(exist_ok=True)
    for first in range(0, clips, part):
        path = out / f"{first:06d}.npy"
        if path.exists():
            continue
        rows = []
        for index in range(first, min(first + part, clips)):
            clip = world.render(scenes(seed, index))
            video = torch.from_numpy(clip.video).permute(3, 0, 1, 2)[None].float().to(device) / 127.5 - 1
            with torch.no_grad(), torch.autocast(device, torch.bfloat16):
                mean = encode_moments(vae, video)[:, : vae.config.z_dim]
            rows.append(mean[0].float().cpu().numpy().astype(np.float16))
        np.save(path.with_suffix(".tmp.npy"), np.stack(rows))
        path.with_suffix(".tmp.npy").replace(path)


def load_set(folder: Path) -> np.ndarray:
    """Return the latents that `encode_set` wrote, fp16 [N, Z, T, h, w]."""
    parts = sorted(path for path in (folder / "latents").glob("??????.npy"))
    return np.concatenate([np.load(path) for path in parts])


def channel_statistics(folder: Path, *, seed: int = 0, clips: int = 64) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of each channel of *sampled* latents, for the VAE's config.

    The variance of the posterior is included: an uninformative channel has a wide posterior that the decoder has
    learned to ignore, and scaling its mean to unit variance would make the transformer model something invisible.
    """
    path = folder / "latents" / "statistics.json"
    if not path.exists():
        vae = AutoencoderKLWan.from_pretrained(folder / "vae").eval()
        means, variances = [], []
        for index in range(clips):
            video = torch.from_numpy(world.render(scene_of(seed, index)).video).permute(3, 0, 1, 2)[None]
            with torch.no_grad():
                mean, log_variance = encode_moments(vae, video.float() / 127.5 - 1).chunk(2, dim=1)
            means.append(mean[0])
            variances.append(log_variance[0].exp())
        mean_NZThw, variance_NZThw = torch.stack(means), torch.stack(variances)
        total = mean_NZThw.var((0, 2, 3, 4)) + variance_NZThw.mean((0, 2, 3, 4))
        figures = {"mean": mean_NZThw.mean((0, 2, 3, 4)).tolist(), "std": total.sqrt().tolist()}
        path.write_text(json.dumps(figures))
    figures = json.loads(path.read_text())
    return figures["mean"], figures["std"]


class TrainingAttention:
    """Explicit attention, which is faster to train on CPUs than the fused one. For training only.

    Where `bias_B1L` is set (cross-attention), the last columns represent the pad tokens of a context of 512: the bias
    is 0 on real tokens and log(pads / columns that represent them) on the rest.
    """

    _attention_backend = None
    _parallel_config = None

    def __init__(self) -> None:
        self.bias_B1L: torch.Tensor | None = None

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, rotary_emb=None):
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = attn.norm_q(attn.to_q(hidden_states)), attn.norm_k(attn.to_k(source)), attn.to_v(source)
        q_BHQK, k_BHLK, v_BHLK = (x.unflatten(2, (attn.heads, -1)).transpose(1, 2) for x in (query, key, value))
        if rotary_emb is not None:
            # The order of components may differ from Wan's, as long as query and key agree.
            cos, sin = (x[..., 0::2].transpose(1, 2) for x in rotary_emb)
            q_BHQK, k_BHLK = _rotated(q_BHQK, cos, sin), _rotated(k_BHLK, cos, sin)
        scores = (q_BHQK * q_BHQK.shape[-1] ** -0.5).to(v_BHLK.dtype) @ k_BHLK.to(v_BHLK.dtype).mT
        if self.bias_B1L is not None:
            scores = scores + self.bias_B1L[:, None].to(scores.dtype)
        out = scores.softmax(-1).to(v_BHLK.dtype) @ v_BHLK
        return attn.to_out[0](out.transpose(1, 2).flatten(2, 3))


def _rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    a, b = x.to(cos.dtype).unflatten(-1, (-1, 2)).unbind(-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


class Captions:
    """Contexts of captions, computed by the frozen encoder."""

    def __init__(self, folder: Path, device: str) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
        self.encoder: Any = UMT5EncoderModel.from_pretrained(folder / "text_encoder")
        self.encoder.eval().to(device)
        self.device = device

    def __call__(self, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return contexts [B, L + 1, D], zero beyond the real tokens, and the bias [B, 1, L + 1]."""
        tokens = self.tokenizer(texts, padding="max_length", max_length=CAPTION_TOKENS, return_tensors="pt")
        tokens = tokens.to(self.device)
        with torch.no_grad():
            states = self.encoder(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
        real = F.pad(tokens.attention_mask, (0, 1)).bool()
        context = F.pad(states, (0, 0, 0, 1)) * real[..., None]
        count = real.sum(1, keepdim=True)
        pads = torch.log((TEXT_LENGTH - count) / (real.shape[1] - count).float())
        return context, torch.where(real, 0.0, pads)[:, None]


def noised(
    x0_BZThw: torch.Tensor, generator: torch.Generator, shown_BZThw: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return x_t = (1 - sigma) x0 + sigma eps, the velocity (x_t - x0) / sigma, and sigma [B].

    sigma is drawn from the shifted schedule. shown_BZThw: what x_t shows instead of x0 where sigma is at least
    GHOST_SIGMA; the velocity still leads to x0.
    """
    u = torch.rand(len(x0_BZThw), generator=generator)
    sigma_B = TRAIN_SHIFT * u / (1 + (TRAIN_SHIFT - 1) * u)
    eps = torch.randn(x0_BZThw.shape, generator=generator)
    s = sigma_B.view(-1, 1, 1, 1, 1).to(x0_BZThw.device)
    eps = eps.to(x0_BZThw.device)
    x_t, velocity = (1 - s) * x0_BZThw + s * eps, eps - x0_BZThw
    if shown_BZThw is not None:
        wrong = (s >= GHOST_SIGMA) * (1 - s) * (shown_BZThw - x0_BZThw)
        x_t, velocity = x_t + wrong, velocity + wrong / s.clamp(min=GHOST_SIGMA)
    return x_t, velocity, sigma_B.to(x0_BZThw.device)


def stage_of(step: int, stages: Sequence[Stage] | None = None) -> Stage:
    """Return the stage of a step; the last stage for steps beyond the table."""
    stages = stages or STAGES
    edge = 0
    for stage in stages:
        edge += stage.steps
        if step < edge:
            return stage
    return stages[-1]


def window_start(scene: world.Scene, frames: int, window: int, rng: np.random.Generator) -> tuple[int, int]:
    """Draw a window of `window` latent cells per side; return its top and left cell.

    The window contains everything that the first object covers in `frames` latent frames.
    """
    thing, pixel_frames = scene.things[0], 4 * (frames - 1) + 1
    half_width, above, below = world.half_extents(thing.shape, thing.radius)
    path = thing.path(pixel_frames)
    starts = []
    for low, high, cells in (
        (path[:, 1].min() - above, path[:, 1].max() + below, world.HEIGHT // 8),
        (path[:, 0].min() - half_width, path[:, 0].max() + half_width, world.WIDTH // 8),
    ):
        last = min(int(low // 8), cells - window)  # a window that starts here or before contains the low end
        first = max(0, math.ceil(high / 8) - window)
        starts.append(int(rng.integers(min(first, last), max(first, last) + 1)))
    return starts[0], starts[1]


def draw(
    latents_NZThw: np.ndarray,
    scenes: list[world.Scene],
    kind: Kind,
    rng: np.random.Generator,
    ghosts: Ghosts | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None, list[str]]:
    """Draw a batch: latents [B, Z, T, window, window], what the noised ones show instead (same shape), and captions.

    Some captions are empty. Without ghosts the second value is None.
    """
    singles = [i for i, scene in enumerate(scenes) if len(scene.things) == 1]
    index = rng.integers(len(scenes), size=kind.batch) if kind.pairs else rng.choice(singles, size=kind.batch)
    if ghosts is not None and kind.ghosts and kind.pairs:
        index[: kind.batch // 2] = rng.choice(singles, size=kind.batch // 2)
    parts, shown, texts = [], [], []
    for i in index:
        top, left = (0, 0)
        if kind.window < latents_NZThw.shape[-1]:
            top, left = window_start(scenes[i], kind.frames, kind.window, rng)
        window = latents_NZThw[i, :, : kind.frames, top : top + kind.window, left : left + kind.window]
        parts.append(window.astype(np.float32))
        haunted = ghosts(i, rng) if ghosts is not None and rng.random() < kind.ghosts else None
        shown.append(parts[-1] if haunted is None else haunted[:, : kind.frames].astype(np.float32))
        texts.append("" if rng.random() < CAPTION_DROPOUT else world.caption(scenes[i], rng))
    return torch.from_numpy(np.stack(parts)), torch.from_numpy(np.stack(shown)) if kind.ghosts else None, texts


def train(
    folder: Path,
    steps: int,
    decay: int,
    *,
    seed: int = 0,
    device: str = "cpu",
    save_every: int = 100,
    compiled: bool = False,
    scenes_of: SceneOf = scene_of,
    config: dict[str, Any] | None = None,
    stages: Sequence[Stage] | None = None,
) -> None:
    """Train up to `steps`, resuming from `denoiser.pt`; write `transformer/` (the averaged weights).

    Where there is no `denoiser.pt` but an unpacked `transformer/` (see export.py), training starts from its weights and
    step. decay: over how many steps the learning rate falls at the end. compiled: needs a C++ compiler and saves about
    a sixth of the time on two cores. scenes_of: the clips' scenes. config, stages: for another model than the packaged
    one.
    """
    latents = load_set(folder)
    scenes = [scenes_of(seed, i) for i in range(len(latents))]
    stages = stages or STAGES
    ghosts = Ghosts(latents, scenes) if any(kind.ghosts for stage in stages for kind in stage.kinds) else None
    mean, std = (torch.tensor(x).view(1, -1, 1, 1, 1).to(device) for x in channel_statistics(folder, seed=seed))
    captions = Captions(folder, device)
    torch.manual_seed(seed)
    model: Any = WanTransformer3DModel(**(config or CONFIG))
    model.to(device)
    average = Average(model, 0.998)
    attention = TrainingAttention()
    for block in model.blocks:
        block.attn1.set_processor(TrainingAttention())
        block.attn2.set_processor(attention)
        if compiled:
            block.compile()
    if compiled:
        # One graph per kind of batch; a single graph with dynamic shapes is slower on a CPU.
        settings: Any = torch._dynamo.config
        settings.automatic_dynamic_shapes, settings.cache_size_limit = False, COMPILED_SHAPES
    optimizer = Muon(model, stages[0].lr)
    checkpoint = Checkpoint(folder / "denoiser.pt", model, average, optimizer)
    start = checkpoint.resume(device)
    unpacked = folder / "training.json"
    if not checkpoint.path.exists() and unpacked.exists():
        weights = WanTransformer3DModel.from_pretrained(folder / "transformer").state_dict()
        model.load_state_dict(weights)
        average.model.load_state_dict(weights)
        start = json.loads(unpacked.read_text())["denoiser_steps"]
    for step in range(start, steps):
        stage = stage_of(step, stages)
        kind = stage.kind(step)
        rng = np.random.default_rng([seed, 13, step])
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        x0, shown, texts = draw(latents, scenes, kind, rng, ghosts)
        x0 = (x0.to(device) - mean) / std
        shown = None if shown is None else (shown.to(device) - mean) / std
        x_t, velocity, sigma_B = noised(x0, generator, shown)
        context, attention.bias_B1L = captions(texts)
        set_lr(optimizer, stage.lr, step, 100, steps, decay)
        with torch.autocast(device, torch.bfloat16):
            out = model(x_t, sigma_B * 1000, context, return_dict=False)[0]
        error_B = (out.float() - velocity).square().mean((1, 2, 3, 4))
        value = error_B.mean()
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        average.update(model)
        if step % LOG_EVERY == 0 or step == steps - 1:
            high = error_B[sigma_B > 0.8]
            row = {
                "step": step,
                "frames": kind.frames,
                "window": kind.window,
                "seconds": round(checkpoint.seconds, 1),
                "mse": value.item(),
            }
            row["mse_high_noise"] = float(high.mean().detach()) if len(high) else None
            with (folder / "denoiser.jsonl").open("a") as out_file:
                out_file.write(json.dumps(row) + "\n")
        if checkpoint.due(step, steps, save_every):
            checkpoint.save(step)
            average.model.save_pretrained(folder / "transformer")
