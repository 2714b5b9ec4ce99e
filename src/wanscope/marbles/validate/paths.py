"""Denoising runs that keep only the path, for `validate trajectories` and the rarity script.

A walk has the Gram matrix of the start and the increments (float64, computed while sampling), the statistics of every
state, and the final latents; nothing is decoded. Walks are stored in a folder under a hash of everything that
determines them, so that an interrupted run can be resumed and no walk is made twice.

Shape suffixes: K states, C channels, T latent frames, h and w latent height and width.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wanscope.analysis.latent_path import LatentPath
from wanscope.analysis.latent_statistics import LatentStatistics, latent_statistics
from wanscope.capture.moments import Observer, StepState
from wanscope.capture.path_gram import PathGram
from wanscope.recipe import SamplerSpec, VideoSpec
from wanscope.wan.variants import resolve

if TYPE_CHECKING:
    from torch import Tensor

    from wanscope.wan.model import WanModel

_STATISTICS = tuple(field.name for field in fields(LatentStatistics))


@dataclass(frozen=True)
class Walk:
    """The path of one denoising run.

    gram: float64 [K, K]. sigmas: [K]. final_CThw: float32. statistics: of every state. tokens: how many the prompt has.
    """

    gram: np.ndarray
    sigmas: np.ndarray
    final_CThw: np.ndarray
    statistics: tuple[LatentStatistics, ...]
    tokens: int

    @property
    def path(self) -> LatentPath:
        return LatentPath(self.gram, self.final_CThw.size, self.sigmas)

    def save(self, file: Path) -> None:
        """Write the walk; `file` is there whole or not at all."""
        stacked: dict[str, Any] = {
            f"statistics_{name}": np.stack([np.asarray(getattr(s, name)) for s in self.statistics])
            for name in _STATISTICS
        }
        part = file.with_name(f"{file.stem}.{os.getpid()}.part.npz")
        np.savez(part, gram=self.gram, sigmas=self.sigmas, final=self.final_CThw, tokens=self.tokens, **stacked)
        part.replace(file)

    @classmethod
    def read(cls, file: Path) -> Walk:
        with np.load(file) as stored:
            columns: dict[str, Any] = {name: stored[f"statistics_{name}"] for name in _STATISTICS}
            statistics = []
            for k in range(len(stored["sigmas"])):
                own: dict[str, Any] = {n: v[k] if v.ndim > 1 else float(v[k]) for n, v in columns.items()}
                statistics.append(LatentStatistics(**own))
            return cls(stored["gram"], stored["sigmas"], stored["final"], tuple(statistics), int(stored["tokens"]))


class WalkObserver(Observer):
    """Collects a run's states for their Gram matrix in the file `scratch`, and the statistics of its states."""

    def __init__(self, scratch: Path) -> None:
        self._path = PathGram(scratch)
        self._statistics: list[LatentStatistics] = []
        self._sigmas: tuple[float, ...] = ()
        self._last: np.ndarray | None = None

    def start(self, latents: Tensor, sigmas: tuple[float, ...]) -> None:
        """Add the first state: latents float32 [1, C, T, h, w]."""
        self._sigmas = sigmas
        self._add(latents)

    def step(self, state: StepState) -> None:
        self._add(state.latents)

    def _add(self, latents: Tensor) -> None:
        self._last = np.array(latents[0].detach().float().cpu().numpy())
        self._path.add(self._last)
        self._statistics.append(latent_statistics(self._last))

    def walk(self, tokens: int) -> Walk:
        """Return the walk of the finished run; tokens: how many the prompt has."""
        assert self._last is not None
        return Walk(self._path.matrix(), np.array(self._sigmas), self._last, tuple(self._statistics), tokens)

    def close(self) -> None:
        self._path.close()


class Walker:
    """Makes walks of a marbles model at marbles' default size, or reads them from `folder`. steps: of the sampler."""

    def __init__(self, model: WanModel, folder: Path, steps: int | None = None) -> None:
        own = resolve("marbles").defaults  # a variant trained apart has no defaults of its own
        self.model = model
        self.video = VideoSpec(width=own.width, height=own.height, frames=own.frames, fps=own.fps)
        self.sampler = SamplerSpec(steps=steps).resolved(own.values(), len(model.experts()))
        self.negative = own.negative_prompt
        stamp = [model.identity, self.sampler.model_dump(mode="json"), self.video.model_dump(mode="json"), 1]
        self.folder = folder / _hash(stamp)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._texts: dict[str, Tensor] = {}

    def file(self, prompt: str, seed: int) -> Path:
        return self.folder / f"{_hash([prompt, seed])}.npz"

    def walk(self, prompt: str, seed: int) -> Walk:
        """Return the walk of a prompt and a seed, made now or read from its file."""
        file = self.file(prompt, seed)
        if file.exists():
            return Walk.read(file)
        walk = self._made(prompt, seed, file.with_suffix(f".{os.getpid()}.scratch"))
        walk.save(file)
        return walk

    def _made(self, prompt: str, seed: int, scratch: Path) -> Walk:
        from wanscope.sample.conditioning import Conditioning
        from wanscope.sample.loop import denoise, initial_noise

        conditioning = Conditioning(self._encoded(prompt), self._encoded(self.negative))
        observer = WalkObserver(scratch)
        try:
            noise = initial_noise(self.model.latent_shape(self.video), seed)
            denoise(self.model, conditioning, self.sampler, noise, observers=[observer])
            return observer.walk(len(conditioning.cond))
        finally:
            observer.close()

    def _encoded(self, text: str) -> Tensor:
        from wanscope.wan.text import encode

        if text not in self._texts:
            self._texts[text] = encode(self.model, [text])[0]
        return self._texts[text]


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:20]
