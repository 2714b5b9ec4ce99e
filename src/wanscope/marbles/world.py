"""The marbles world: short videos of one or two colored shapes, drawn from known attributes.

A :class:`Scene` describes everything that can be seen; :func:`render` draws it and returns the pixels together with
the ground truth (masks and paths of centers); :func:`caption` describes it in words. Every random draw comes from the
generator that the caller passes.

Shape suffixes: F frames, K objects, H height, W width, C color channels (RGB).
Units: lengths are pixels of the 128 x 128 frame, speeds pixels per frame, y points down.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

WIDTH: Final = 128
HEIGHT: Final = 128
FRAMES: Final = 17
FPS: Final = 8

SHAPES: Final = ("circle", "square", "triangle")
# The corners of the RGB cube except black and white, softened. Where the cube's diagonal is 441, no two colors are
# closer than 130 (cyan and blue), no color is closer than 128 to a background (green and gray), and no two backgrounds
# are closer than 96 (brown and black).
COLORS: Final[dict[str, tuple[int, int, int]]] = {
    "red": (230, 35, 35),
    "green": (35, 190, 60),
    "blue": (45, 75, 235),
    "yellow": (245, 220, 40),
    "purple": (190, 50, 215),
    "cyan": (40, 205, 225),
}
BACKGROUNDS: Final[dict[str, tuple[int, int, int]]] = {
    "black": (12, 12, 14),
    "white": (242, 242, 240),
    "gray": (122, 122, 126),
    "brown": (96, 58, 28),
}
# Radius of a circle with the object's area, so that size means the same for every shape.
SIZES: Final[dict[str, float]] = {"small": 12.0, "large": 19.0}
MOTIONS: Final[dict[str, tuple[int, int]]] = {
    "left": (-1, 0),
    "right": (1, 0),
    "up": (0, -1),
    "down": (0, 1),
    "still": (0, 0),
}
RELATIONS: Final = ("above", "below", "left of", "right of")

# Combinations that the training set never shows; the validation reports them separately.
HELD_OUT: Final = frozenset({("yellow", "triangle"), ("cyan", "square"), ("purple", "down")})

_MARGIN_PX: Final = 4.0
_SPEED_SINGLE: Final = (1.9, 2.7)
_SPEED_PAIR: Final = (1.3, 1.9)
_SIZE_JITTER: Final = 0.05


def least_radius() -> float:
    """Return the smallest radius that `sample_thing` draws, in pixels."""
    return min(SIZES.values()) * (1 - _SIZE_JITTER)


@dataclass(frozen=True)
class Thing:
    """One object: its four attributes and the geometry that realizes them (see the module for units)."""

    shape: str
    color: str
    size: str
    motion: str
    radius: float = 0.0
    x0: float = 0.0
    y0: float = 0.0
    speed: float = 0.0

    def __post_init__(self) -> None:
        for value, known in ((self.shape, SHAPES), (self.color, COLORS), (self.size, SIZES), (self.motion, MOTIONS)):
            if value not in known:
                raise ValueError(f"{value!r} is not one of {', '.join(known)}")

    @property
    def held_out(self) -> bool:
        return (self.color, self.shape) in HELD_OUT or (self.color, self.motion) in HELD_OUT

    def path(self, frames: int) -> NDArray[np.float64]:
        """Return the centers as (x, y), float64 [F, 2]."""
        dx, dy = MOTIONS[self.motion]
        steps = np.arange(frames, dtype=np.float64)[:, None] * self.speed
        return np.array([self.x0, self.y0]) + steps * np.array([dx, dy], dtype=np.float64)


@dataclass(frozen=True)
class Scene:
    """One or two objects on a background. `relation` is where the first one is, seen from the second."""

    things: tuple[Thing, ...]
    background: str
    relation: str | None = None

    @property
    def held_out(self) -> bool:
        return any(thing.held_out for thing in self.things)


@dataclass(frozen=True)
class Clip:
    """A rendered scene with its ground truth.

    video: uint8 [F, H, W, C]; masks: float32 coverage in 0..1 [F, K, H, W]; paths: float64 centers (x, y) [F, K, 2].
    """

    scene: Scene
    video: NDArray[np.uint8]
    masks: NDArray[np.float32]
    paths: NDArray[np.float64]


def half_extents(shape: str, radius: float) -> tuple[float, float, float]:
    """Return half the width, and the extents above and below the center, of a shape with area pi * radius**2."""
    if shape == "circle":
        return radius, radius, radius
    if shape == "square":
        half = radius * math.sqrt(math.pi) / 2
        return half, half, half
    base = radius * math.sqrt(2 * math.pi)
    return base / 2, base * 2 / 3, base / 3  # the center is the centroid


def signed_distance(shape: str, radius: float, x_HW: NDArray, y_HW: NDArray) -> NDArray:
    """Return the distance in pixels to the outline of a shape centered at the origin, negative inside, [H, W]."""
    if shape == "circle":
        return np.hypot(x_HW, y_HW) - radius
    if shape == "square":
        return np.maximum(np.abs(x_HW), np.abs(y_HW)) - radius * math.sqrt(math.pi) / 2
    base = radius * math.sqrt(2 * math.pi)  # width = height = base, apex up, centroid at the origin
    slant = math.hypot(1.0, 0.5)
    sides = (np.abs(x_HW) - (y_HW + base * 2 / 3) / 2) / slant
    return np.maximum(sides, y_HW - base / 3)


def coverage(shape: str, radius: float, x_HW: NDArray, y_HW: NDArray) -> NDArray:
    """Return how much of each pixel a shape at the origin covers, 0..1, [H, W]: clip(1/2 - distance), anti-aliased."""
    return np.clip(0.5 - signed_distance(shape, radius, x_HW, y_HW), 0, 1)


def render(scene: Scene, frames: int = FRAMES, width: int = WIDTH, height: int = HEIGHT) -> Clip:
    """Draw a scene with anti-aliasing, later objects over earlier ones."""
    paths_FK2 = np.stack([thing.path(frames) for thing in scene.things], axis=1)
    canvas_FHWC = np.empty((frames, height, width, 3), np.float32)
    canvas_FHWC[:] = BACKGROUNDS[scene.background]
    masks_FKHW = np.zeros((frames, len(scene.things), height, width), np.float32)
    for k, thing in enumerate(scene.things):
        half_width, above, below = (reach + 2 for reach in half_extents(thing.shape, thing.radius))
        color_C = np.array(COLORS[thing.color], np.float32)
        for f, (cx, cy) in enumerate(paths_FK2[:, k]):
            left, right = max(0, int(cx - half_width)), min(width, int(cx + half_width) + 2)
            top, bottom = max(0, int(cy - above)), min(height, int(cy + below) + 2)
            if left >= right or top >= bottom:
                continue
            y_HW, x_HW = np.mgrid[top:bottom, left:right] + 0.5
            cover_HW = coverage(thing.shape, thing.radius, x_HW - cx, y_HW - cy).astype(np.float32)
            masks_FKHW[f, :k, top:bottom, left:right] *= 1 - cover_HW
            masks_FKHW[f, k, top:bottom, left:right] = cover_HW
            patch_HWC = canvas_FHWC[f, top:bottom, left:right]
            patch_HWC += cover_HW[..., None] * (color_C - patch_HWC)
    return Clip(scene, np.rint(canvas_FHWC).astype(np.uint8), masks_FKHW, paths_FK2)


def _box(thing: Thing, frames: int) -> tuple[float, float, float, float]:
    """Return the bounds of everything the object covers, relative to its start: left, right, top, bottom."""
    half_width, above, below = half_extents(thing.shape, thing.radius)
    dx, dy = MOTIONS[thing.motion]
    reach = thing.speed * (frames - 1)
    return (
        min(0.0, dx * reach) - half_width,
        max(0.0, dx * reach) + half_width,
        min(0.0, dy * reach) - above,
        max(0.0, dy * reach) + below,
    )


def _placed(thing: Thing, rng: np.random.Generator, frames: int) -> Thing:
    left, right, top, bottom = _box(thing, frames)
    x0 = rng.uniform(_MARGIN_PX - left, WIDTH - _MARGIN_PX - right)
    y0 = rng.uniform(_MARGIN_PX - top, HEIGHT - _MARGIN_PX - bottom)
    return replace(thing, x0=float(x0), y0=float(y0))


def _relation(a: Thing, b: Thing, frames: int) -> str | None:
    """Return where `a` is, seen from `b`, in every frame; None if that changes or the two come close."""
    offsets_F2 = a.path(frames) - b.path(frames)
    wide_a, above_a, below_a = half_extents(a.shape, a.radius)
    wide_b, above_b, below_b = half_extents(b.shape, b.radius)
    gap = 5.0
    x_F, y_F = offsets_F2[:, 0], offsets_F2[:, 1]
    vertical = np.abs(y_F) > np.abs(x_F)
    if (y_F < -(below_a + above_b + gap)).all() and vertical.all():
        return "above"
    if (y_F > above_a + below_b + gap).all() and vertical.all():
        return "below"
    if (x_F < -(wide_a + wide_b + gap)).all() and not vertical.any():
        return "left of"
    if (x_F > wide_a + wide_b + gap).all() and not vertical.any():
        return "right of"
    return None


def color_chances(weights: Mapping[str, float]) -> list[float]:
    """Return the probability of each color, in the order of `COLORS`; a color without a weight has weight 1.

    Raises ValueError for unknown colors and for weights that are negative or all zero.
    """
    unknown = [name for name in weights if name not in COLORS]
    found = [float(weights.get(name, 1.0)) for name in COLORS]
    if unknown or min(found) < 0 or sum(found) <= 0:
        raise ValueError(f"weights are for {', '.join(COLORS)}, at least 0 and not all 0: {dict(weights)}")
    return [weight / sum(found) for weight in found]


def sample_thing(
    rng: np.random.Generator,
    speed: tuple[float, float] = _SPEED_SINGLE,
    colors: Mapping[str, float] | None = None,
) -> Thing:
    """Draw an object with uniform attributes, not placed yet.

    speed: smallest and largest, pixels per frame. colors: weights of the colors, where they are not all equal.
    """
    size, motion = str(rng.choice(list(SIZES))), str(rng.choice(list(MOTIONS)))
    return Thing(
        shape=str(rng.choice(SHAPES)),
        # Without weights, keep the call without p: even equal probabilities would consume other numbers of `rng`.
        color=str(rng.choice(list(COLORS)) if colors is None else rng.choice(list(COLORS), p=color_chances(colors))),
        size=size,
        motion=motion,
        radius=SIZES[size] * float(rng.uniform(1 - _SIZE_JITTER, 1 + _SIZE_JITTER)),
        speed=0.0 if motion == "still" else float(rng.uniform(*speed)),
    )


def sample_scene(
    rng: np.random.Generator,
    objects: int = 1,
    held_out: bool | None = None,
    frames: int = FRAMES,
    colors: Mapping[str, float] | None = None,
) -> Scene:
    """Draw a scene uniformly over the attributes; its objects stay inside the frame for all `frames`.

    held_out: None draws from all combinations, False never draws a held-out one, True always does. colors: weights of
    the colors, before scenes are rejected because of `held_out`. Two objects never touch, and their relation holds in
    every frame. Raises ValueError unless there are 1 or 2 objects.
    """
    if objects not in (1, 2):
        raise ValueError(f"a scene has 1 or 2 objects, not {objects}")
    while True:
        background = str(rng.choice(list(BACKGROUNDS)))
        things = tuple(
            sample_thing(rng, _SPEED_SINGLE if objects == 1 else _SPEED_PAIR, colors) for _ in range(objects)
        )
        if objects == 2 and (things[0].color, things[0].shape) == (things[1].color, things[1].shape):
            continue  # in "a red circle above a red circle" a reader could not distinguish the two
        if held_out is not None and any(thing.held_out for thing in things) != held_out:
            continue
        if objects == 1:
            return Scene((_placed(things[0], rng, frames),), background)
        for _ in range(40):
            a, b = (_placed(thing, rng, frames) for thing in things)
            relation = _relation(a, b, frames)
            if relation is not None:
                return Scene((a, b), background, relation)


# Sentences use the verbs ("a circle slides left"); noun phrases, as after "there is" or "above", the other forms.
_MOVES_VERB: Final = ("moves {d}", "slides {d}", "drifts {d}", "moves {d}wards")
_MOVES_NOUN: Final = ("moving {d}", "that moves {d}", "that slides {d}", "that drifts {d}", "moving {d}wards")
_STILL_VERB: Final = ("stays still", "is still", "does not move")
_STILL_NOUN: Final = ("that stays still", "standing still", "that does not move")
_GROUND: Final = ("on a {b} background", "over a {b} background", "in front of a {b} background")
_RELATION_WORDS: Final = {"left of": ("to the left of", "left of"), "right of": ("to the right of", "right of")}
_OPENINGS: Final = ("", "", "", "", "a video of", "there is")


def _motion_words(thing: Thing, rng: np.random.Generator, verb: bool) -> str:
    if thing.motion == "still":
        return str(rng.choice(_STILL_VERB if verb else _STILL_NOUN))
    return str(rng.choice(_MOVES_VERB if verb else _MOVES_NOUN)).format(d=thing.motion)


def _noun(thing: Thing, rng: np.random.Generator, size: float, color: float = 1.0, shape: float = 1.0) -> str:
    """Return a noun phrase such as `a small red circle`; size, color, shape: the probability of mentioning each."""
    words = ["a"]
    if rng.random() < size:
        words.append(thing.size)
    if rng.random() < color:
        words.append(thing.color)
    words.append(thing.shape if rng.random() < shape else "shape")
    return " ".join(words)


@dataclass(frozen=True)
class Phrase:
    """A piece of a caption and what it is about: `object 0`, `object 1`, `relation`, `background` or nothing."""

    text: str
    about: str = ""


def phrases(scene: Scene, rng: np.random.Generator, full: bool = False) -> list[Phrase]:
    """Return the caption in pieces; see :func:`caption`."""
    size, ground = (1.0, 1.0) if full else (0.6, 0.85)
    color_and_shape = (1.0, 1.0) if full else (0.97, 0.97)
    ground_words = str(rng.choice(_GROUND)).format(b=scene.background)
    opening = str(rng.choice(_OPENINGS))
    relation = scene.relation or ""
    relation = str(rng.choice(_RELATION_WORDS.get(relation, (relation,))))
    joined = not full and rng.random() < 0.15  # "and" in place of the relation
    sentence = not opening and rng.random() < 0.6
    body = []
    for k, thing in enumerate(scene.things):
        verb = sentence and (k == 0 or joined)  # "a circle moves left above a square that moves up"
        words = f"{_noun(thing, rng, size, *color_and_shape)} {_motion_words(thing, rng, verb)}"
        body.append(Phrase(words, f"object {k}"))
    if len(body) == 2:
        body.insert(1, Phrase("and") if joined else Phrase(relation, "relation"))
    if rng.random() >= ground:
        parts = body
    elif not opening and rng.random() < 0.15:
        return [Phrase(f"{scene.background} background", "background"), Phrase(","), *body]
    else:
        parts = [*body, Phrase(ground_words, "background")]
    return [Phrase(opening), *parts] if opening else parts


def caption(scene: Scene, rng: np.random.Generator, full: bool = False) -> str:
    """Return a description of the scene in one of several phrasings.

    full: mention every attribute that the readers read; otherwise size and background are sometimes left out, and
    rarely color or shape, so that the model learns what an incomplete caption leaves open.
    """
    return " ".join(phrase.text for phrase in phrases(scene, rng, full)).replace(" ,", ",")
