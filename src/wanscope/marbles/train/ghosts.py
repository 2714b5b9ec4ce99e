"""Ghosts: a second, fainter copy of an object in a half-denoised training clip, which the model learns to remove.

A noised clip never contains an error, so a model trained only on such clips has not seen its own mistakes: at high
noise it may start the same object in two places and then finish both. A share of the training inputs therefore shows
the object fainter and a still fainter similar one elsewhere, while the target remains the velocity toward the true
clip. (Input perturbation does the same with noise: Ning et al., 2023, "Input Perturbation Reduces Exposure Bias in
Diffusion Models".)

Shape suffixes: N clips, Z latent channels, T latent frames, h, w latent height and width.
"""

from __future__ import annotations

import numpy as np

from wanscope.marbles import world

FAINTEST = 0.5  # smallest strength of the true object
FAINTER = 0.8  # largest strength of the ghost relative to it


def _appearance(thing: world.Thing, background: str) -> tuple[str, ...]:
    return thing.shape, thing.color, thing.size, thing.motion, background


class Ghosts:
    """Makes clips with a ghost from the latents of the training set itself.

    A ghost is another clip's object: its latents minus those of the empty background, which are the median over all
    clips on that background (any given cell is covered by an object in few of them).
    """

    def __init__(self, latents_NZThw: np.ndarray, scenes: list[world.Scene]) -> None:
        self.latents_NZThw, self.scenes = latents_NZThw, scenes
        self.similar: dict[tuple[str, ...], list[int]] = {}
        on: dict[str, list[int]] = {}
        for i, scene in enumerate(scenes):
            on.setdefault(scene.background, []).append(i)
            if len(scene.things) == 1:
                self.similar.setdefault(_appearance(scene.things[0], scene.background), []).append(i)
        self.bare_ZThw = {name: np.median(latents_NZThw[rows].astype(np.float32), axis=0) for name, rows in on.items()}

    def __call__(self, index: int, rng: np.random.Generator) -> np.ndarray | None:
        """Return clip `index`, [Z, T, h, w], with a ghost of one of its objects; None where no other clip has one."""
        scene = self.scenes[index]
        thing = scene.things[int(rng.integers(len(scene.things)))]
        others = [i for i in self.similar.get(_appearance(thing, scene.background), ()) if i != index]
        if not others:
            return None
        bare = self.bare_ZThw[scene.background]
        strength = 1.0 if rng.random() < 0.5 else rng.uniform(FAINTEST, 1.0)
        ghost = self.latents_NZThw[others[int(rng.integers(len(others)))]] - bare
        return bare + strength * (self.latents_NZThw[index] - bare + rng.uniform(0, FAINTER) * ghost)
