"""What a half-denoised video may wrongly show: a second, fainter copy of an object, for training to clear away.

A clip that is noised is never wrong, so a model trained on such clips alone has not seen its own mistakes: at high
noise it may begin the same object in two places and then finish both. A share of the training inputs therefore shows
the object fainter and a still fainter one like it elsewhere, while the target stays the velocity toward the true clip
(as input perturbation does with noise: Ning et al., 2023, "Input Perturbation Reduces Exposure Bias in Diffusion
Models").

Shape suffixes: N clips, Z latent channels, T latent frames, h, w latent height and width.
"""

from __future__ import annotations

import numpy as np

from wanscope.marbles import world

FAINTEST, FAINTER = 0.5, 0.8  # of the true object's strength; of the ghost's relative to it, at most


def _looks(thing: world.Thing, background: str) -> tuple[str, ...]:
    return thing.shape, thing.color, thing.size, thing.motion, background


class Ghosts:
    """Clips with a ghost in them, from the latents of the training set itself.

    A ghost is another clip's object: its latents less those of the bare background, which are the median over all
    clips on that background (an object covers any one cell in few of them).
    """

    def __init__(self, latents_NZThw: np.ndarray, scenes: list[world.Scene]) -> None:
        self.latents_NZThw, self.scenes = latents_NZThw, scenes
        self.alike: dict[tuple[str, ...], list[int]] = {}
        on: dict[str, list[int]] = {}
        for i, scene in enumerate(scenes):
            on.setdefault(scene.background, []).append(i)
            if len(scene.things) == 1:
                self.alike.setdefault(_looks(scene.things[0], scene.background), []).append(i)
        self.bare_ZThw = {name: np.median(latents_NZThw[rows].astype(np.float32), axis=0) for name, rows in on.items()}

    def __call__(self, index: int, rng: np.random.Generator) -> np.ndarray | None:
        """Clip `index` as [Z, T, h, w] with a ghost of one of its objects; None where no other clip offers one."""
        scene = self.scenes[index]
        thing = scene.things[int(rng.integers(len(scene.things)))]
        others = [i for i in self.alike.get(_looks(thing, scene.background), ()) if i != index]
        if not others:
            return None
        bare = self.bare_ZThw[scene.background]
        strength = 1.0 if rng.random() < 0.5 else rng.uniform(FAINTEST, 1.0)
        ghost = self.latents_NZThw[others[int(rng.integers(len(others)))]] - bare
        return bare + strength * (self.latents_NZThw[index] - bare + rng.uniform(0, FAINTER) * ghost)
