"""The takes that `wanscope validate trajectories` compares: fixed contrasts, and two kinds of nulls.

A contrast has `count` pairs. Pair i is scene i described twice, with one attribute changed and all other words the
same, and both are made with seed i. So a pair is a scene with its own seed, and results generalize to similar scenes.

Nulls: a pool of takes of one prompt, with arbitrary group labels; and the same meaning in several wordings, for the
same scenes and seeds. Wordings are a null of meaning, not of words: a fixed change of words may have an effect.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from wanscope.marbles import world

_STREAM = 4_000_003  # separate, so that no scene is one of the training or of another validation
MOVING = "moving"  # any motion except "still", drawn for each scene

# attribute, a, b
FIXED = (
    ("color", "red", "blue"),
    ("shape", "circle", "square"),
    ("shape", "circle", "triangle"),
    ("motion", "left", "right"),
    ("motion", "still", MOVING),
    ("size", "small", "large"),
)
WORDINGS = (
    "a {size} {color} {shape} moves {motion} on a {background} background",
    "a {size} {color} {shape} slides {motion} on a {background} background",
    "a {size} {color} {shape} moves {motion}wards on a {background} background",
    "a {size} {color} {shape} moves {motion} in front of a {background} background",
    "a video of a {size} {color} {shape} moving {motion} on a {background} background",
    "there is a {size} {color} {shape} that drifts {motion} over a {background} background",
)
POOL_PROMPT = "a large green circle moves up on a gray background"


@dataclass(frozen=True)
class Video:
    """The prompt and the seed that determine a take."""

    prompt: str
    seed: int


@dataclass(frozen=True)
class Contrast:
    """Pairs of takes, (a, b). attribute: what differs."""

    attribute: str
    a: str
    b: str
    pairs: tuple[tuple[Video, Video], ...]

    @property
    def name(self) -> str:
        return f"{self.a} against {self.b}"


def fixed(count: int) -> list[Contrast]:
    """Return the contrasts of `FIXED`, `count` pairs each; no prompt has a combination that training never showed."""
    return [Contrast(*names, tuple(_pair(*names, number) for number in range(count))) for names in FIXED]


def _pair(attribute: str, a: str, b: str, number: int) -> tuple[Video, Video]:
    rng = np.random.default_rng([_STREAM, sum(map(ord, attribute + a + b)), number])
    while True:
        scene = world.sample_scene(rng, 1, held_out=False)
        moves = [motion for motion in world.MOTIONS if motion != "still"]
        values = [str(rng.choice(moves)) if value == MOVING else value for value in (a, b)]
        scenes = [replace(scene, things=(replace(scene.things[0], **{attribute: value}),)) for value in values]
        if not any(found.held_out for found in scenes):
            break
    phrasing = int(rng.integers(1 << 30))
    prompts = [world.caption(found, np.random.default_rng(phrasing), full=True) for found in scenes]
    return Video(prompts[0], number), Video(prompts[1], number)


def pool(count: int) -> list[Video]:
    """Return one prompt with 2 `count` seeds; in any split into pairs the two groups differ only in their labels."""
    return [Video(POOL_PROMPT, seed) for seed in range(2 * count)]


def wordings(count: int) -> list[list[Video]]:
    """Return for each wording the same `count` scenes of one moving object, scene i with seed i."""
    scenes = []
    for number in range(count):
        rng = np.random.default_rng([_STREAM, 1, number])
        scene = world.sample_scene(rng, 1, held_out=False)
        while scene.things[0].motion == "still":
            scene = world.sample_scene(rng, 1, held_out=False)
        thing = scene.things[0]
        words = {name: getattr(thing, name) for name in ("size", "color", "shape", "motion")}
        scenes.append({**words, "background": scene.background})
    return [[Video(form.format(**words), seed) for seed, words in enumerate(scenes)] for form in WORDINGS]


def worded(count: int) -> list[Contrast]:
    """Return every pair of wordings as a contrast."""
    videos = wordings(count)
    return [
        Contrast("wording", f"wording {i + 1}", f"wording {j + 1}", tuple(zip(videos[i], videos[j], strict=True)))
        for i, j in combinations(range(len(WORDINGS)), 2)
    ]
