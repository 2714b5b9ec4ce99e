"""Where a partial denoising starts: the final latents of a take, a file of latents, or a video.

Everything is checked before any work: the file exists, its size is the recipe's, and its content is what a recorded
recipe names. The VAE is needed only to encode a video.

Shape suffixes: B batch, C channels, F frames, H, W pixels, T latent frames, h, w latent height and width.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from safetensors import SafetensorError

from wanscope.errors import RecipeError, TakeNotFound
from wanscope.recipe import InitSpec, VideoSpec
from wanscope.study.expand import size_of
from wanscope.take.disk import file_sha256
from wanscope.take.store import Take, latents_sha256
from wanscope.take.video import read_frames, video_facts
from wanscope.workspace import Workspace

if TYPE_CHECKING:
    from torch import Tensor

    from wanscope.wan.model import WanModel


@dataclass(frozen=True)
class Start:
    """A checked start. spec: with its hash filled in. path: the take's folder or the file."""

    spec: InitSpec
    kind: Literal["take", "latents", "video"]
    path: Path

    def latents(self, model: WanModel) -> Tensor:
        """Return the normalized latents, float32 [1, C, T, h, w]."""
        import torch

        if self.kind == "take":
            values_CThw = Take.open(self.path).final
        elif self.kind == "latents":
            values_CThw = _read_latents(self.path)
        else:
            return _encoded(self.path, model)
        return torch.from_numpy(np.ascontiguousarray(values_CThw, dtype=np.float32))[None]


def find_start(init: InitSpec, video: VideoSpec, latent_shape: tuple[int, ...], workspace: Workspace) -> Start:
    """Check `init` against the video to be made, and fill in its hash.

    latent_shape: (C, T, h, w) of the video to be made. Raises RecipeError or TakeNotFound.
    """
    if init.take is not None:
        take = Take.open(workspace.find_take(init.take))
        _require_shape(take.manifest.latent_shape, latent_shape, f"take {take.id}")
        start = Start(init, "take", take.folder)
        return _with_hash(start, take.manifest.latents_sha256)
    path = Path(os.path.expanduser(init.latents or init.video or ""))
    if not os.path.isfile(path):
        raise TakeNotFound(f"there is no file {path}", "init names it; paths are relative to the study file")
    if init.latents is not None:
        values_CThw = _read_latents(path)
        _require_shape(values_CThw.shape, latent_shape, str(path))
        return _with_hash(Start(init, "latents", path), latents_sha256(values_CThw))
    facts = video_facts(path)
    width, height, frames = size_of(video)
    if (facts["width"], facts["height"]) != (width, height) or facts["frames"] not in (0, frames):
        raise RecipeError(
            f"the video {path} does not fit",
            f"it has {facts['width']:.0f} x {facts['height']:.0f} pixels and {facts['frames']:.0f} frames, but the "
            f"video to be made has {width} x {height} pixels and {frames} frames",
            f"video: {{width: {facts['width']:.0f}, height: {facts['height']:.0f}}}",
        )
    return _with_hash(Start(init, "video", path), file_sha256(path))


def _with_hash(start: Start, found: str) -> Start:
    recorded = start.spec.sha256
    if recorded is not None and recorded != found:
        raise RecipeError(
            f"{start.path} is not what the recipe started from",
            f"its SHA-256 is {found[:16]}..., not {recorded[:16]}...",
        )
    return Start(start.spec.model_copy(update={"sha256": found}), start.kind, start.path)


def _read_latents(path: Path) -> np.ndarray:
    """Return latents, float32 [C, T, h, w], from a .npy file or a .safetensors file with one tensor.

    Raises RecipeError for any other file, and for values that are not finite.
    """
    try:
        if path.suffix == ".npy":
            values: Any = np.load(path, allow_pickle=False)
        elif path.suffix == ".safetensors":
            from safetensors.numpy import load_file

            tensors = load_file(path)
            if len(tensors) != 1:
                raise RecipeError(f"{path} contains {len(tensors)} tensors", "a file of latents has one")
            values = next(iter(tensors.values()))
        else:
            raise RecipeError(
                f"{path} is not a file of latents",
                "its name should end in .npy or .safetensors; a video is given as `init: {video: ...}`",
            )
    except (OSError, ValueError, SafetensorError) as error:
        raise RecipeError(f"{path} cannot be read as latents", str(error)) from None
    if values.ndim == 5 and values.shape[0] == 1:
        values = values[0]
    values = values.astype(np.float32)
    if not np.isfinite(values).all():
        raise RecipeError(f"{path} contains NaN or Inf", "denoising cannot start from them")
    return values


def _require_shape(have: tuple[int, ...], wanted: tuple[int, ...], what: str) -> None:
    if tuple(have) != tuple(wanted):
        raise RecipeError(
            f"{what} does not fit",
            f"its latents are {' x '.join(map(str, have))} (channels, frames, height, width), but those to be made are "
            f"{' x '.join(map(str, wanted))}. Use the same video size, and a model with the same VAE",
        )


def _encoded(path: Path, model: WanModel) -> Tensor:
    import torch

    from wanscope.wan.vae import encode

    frames_FHW3 = torch.from_numpy(read_frames(path))
    video_BCFHW = frames_FHW3.permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    return encode(model.vae, video_BCFHW).float().cpu()
