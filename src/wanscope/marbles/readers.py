"""Reading a marbles video back: every attribute from pixels alone, without anything learned.

The background is the color of the frame's border. What differs from it is split into connected pieces, pieces are
tracked from frame to frame, and each object's color (nearest of the palette inside the piece), shape (the one whose
ideal drawing, of the object's area and at its center, overlaps it most), size (area) and motion (displacement of its
center) are measured.

The shape is also read in a second way, `shape_by_box`: from how much of its bounding box the object fills. For drawn
objects both agree, and both call a square with rounded corners a circle from about the same roundness on. But a
sheared square (by 15 percent) or a rotated one (by 5 degrees) fills as little of its box as a circle does, and
generated squares are often sheared.

The number of objects is read separately: attributes are read for the expected number of objects, and an extra object
must not go unnoticed. A piece counts if it is at least a quarter as large as the smallest object of the world, in at
least a quarter of the frames; anything less is specks and flicker. What differs from the background by less than half
of what palette colors do is not an object for any reader.

Shape suffixes: F frames, H height, W width, C color channels, K objects. Lengths are in pixels, y points down.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from wanscope.marbles import world

# A pixel belongs to an object when it is this far (of 441) from the background: just under half of the smallest
# distance between a palette color and a background, so that an anti-aliased edge is cut near its middle.
_FOREGROUND_DISTANCE = 62.0
_MIN_AREA_PX = 60
_STILL_PX = 8.0
# What counts as an object: this much of the smallest one's area (in pixels), in this share of the frames.
_COUNTED_AREA_PX = 0.25 * math.pi * world.least_radius() ** 2
_COUNTED_FRAMES = 0.25
# Upper limits of the filled share of the bounding box, which is 1/2 for a triangle, pi/4 for a circle, 1 for a square.
_FILL_EDGES = ((0.645, "triangle"), (0.885, "circle"), (math.inf, "square"))


@dataclass(frozen=True)
class ReadThing:
    """One object as read. path: centers (x, y) [F, 2], NaN where it was not seen; masks: bool [F, H, W]."""

    shape: str
    color: str
    size: str
    motion: str
    path: NDArray[np.float64]
    masks: NDArray[np.bool_]
    area: float
    shape_by_box: str


@dataclass(frozen=True)
class ReadScene:
    """What a video shows. `relation` is where the first of two objects is, seen from the second.

    count: how many objects it shows, which may be more than the `things` that were requested.
    """

    things: tuple[ReadThing, ...]
    background: str
    relation: str | None
    count: int

    @property
    def words(self) -> str:
        """The scene in a sentence, for reports and logs."""
        things = [f"a {t.size} {t.color} {t.shape} ({t.motion})" for t in self.things]
        text = f"{' and '.join(things) or 'nothing'} on {self.background}"
        return text if self.count == len(self.things) else f"{text}; {self.count} objects in all"


@dataclass
class _Piece:
    mask_HW: NDArray[np.bool_]
    center: tuple[float, float]
    area: float
    fill: float
    overlaps: dict[str, float]  # with the ideal drawing of each shape
    color_C: NDArray[np.float64]


def _nearest(color_C: NDArray, palette: dict[str, tuple[int, int, int]]) -> str:
    return min(palette, key=lambda name: float(np.linalg.norm(np.asarray(palette[name]) - color_C)))


def read_background(video_FHWC: NDArray[np.uint8]) -> tuple[str, NDArray[np.float64]]:
    """Return the background's name and its color [C] in this video, the median over a border three pixels wide."""
    border = np.concatenate(
        [
            video_FHWC[:, :3].reshape(-1, 3),
            video_FHWC[:, -3:].reshape(-1, 3),
            video_FHWC[:, :, :3].reshape(-1, 3),
            video_FHWC[:, :, -3:].reshape(-1, 3),
        ]
    )
    color_C = np.median(border, axis=0)
    return _nearest(color_C, world.BACKGROUNDS), color_C


def _coverage(frame_HWC: NDArray, background_C: NDArray, mask_HW: NDArray, color_C: NDArray) -> NDArray[np.float64]:
    """Return how much of each pixel the object covers, [H, W], from its color between background and object."""
    axis = color_C - background_C
    share = (frame_HWC - background_C) @ axis / float(axis @ axis)
    near = ndimage.binary_dilation(mask_HW, iterations=2)
    return np.where(near, np.clip(share, 0, 1), 0.0)


def _pieces(frame_HWC: NDArray[np.uint8], background_C: NDArray) -> list[_Piece]:
    frame = frame_HWC.astype(np.float64)
    foreground_HW = np.linalg.norm(frame - background_C, axis=-1) > _FOREGROUND_DISTANCE
    labeled: Any = ndimage.label(foreground_HW)  # scipy's type hints do not say that it is a pair
    labels_HW, count = labeled
    pieces = []
    for label, box in enumerate(ndimage.find_objects(labels_HW, count), start=1):
        mask_HW = labels_HW == label
        if int(mask_HW[box].sum()) < _MIN_AREA_PX:
            continue
        core_HW: Any = ndimage.binary_erosion(mask_HW, iterations=3)
        core_HW = core_HW if core_HW.sum() >= 8 else mask_HW
        color_C = np.median(frame[core_HW], axis=0)
        cover_HW = _coverage(frame, background_C, mask_HW, color_C)
        area = float(cover_HW.sum())
        y, x = np.mgrid[: mask_HW.shape[0], : mask_HW.shape[1]] + 0.5
        center = (float((cover_HW * x).sum() / area), float((cover_HW * y).sum() / area))
        # The box to sub-pixel accuracy: the largest column and row sums are its height and width.
        width, height = _extent(cover_HW.max(axis=0)), _extent(cover_HW.max(axis=1))
        overlaps = _overlaps(cover_HW, x - center[0], y - center[1], area)
        pieces.append(_Piece(mask_HW, center, area, area / (width * height), overlaps, color_C))
    return sorted(pieces, key=lambda piece: -piece.area)


def _overlaps(cover_HW: NDArray, x_HW: NDArray, y_HW: NDArray, area: float) -> dict[str, float]:
    """Return the IoU of the object's cover with a drawing of each shape that has the same area and center."""
    radius = math.sqrt(area / math.pi)
    near = (cover_HW > 0) | (np.maximum(np.abs(x_HW), np.abs(y_HW)) < 2 * radius)  # everything either can cover
    rows, columns = np.flatnonzero(near.any(axis=1)), np.flatnonzero(near.any(axis=0))
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    overlaps = {}
    for shape in world.SHAPES:
        drawn_HW = world.coverage(shape, radius, x_HW[box], y_HW[box])
        overlaps[shape] = float(np.minimum(cover_HW[box], drawn_HW).sum() / np.maximum(cover_HW[box], drawn_HW).sum())
    return overlaps


def _extent(profile: NDArray[np.float64]) -> float:
    return float(np.clip(profile, 0, 1).sum())


def _tracks(pieces_F: list[list[_Piece]], objects: int) -> list[list[_Piece | None]]:
    """Return each object's piece in each frame: the assignment with the least motion and color change."""
    first = next(f for f, pieces in enumerate(pieces_F) if len(pieces) >= objects)
    tracks: list[list[_Piece | None]] = [[None] * len(pieces_F) for _ in range(objects)]
    for k in range(objects):
        tracks[k][first] = pieces_F[first][k]
    for order in (range(first + 1, len(pieces_F)), range(first - 1, -1, -1)):
        last = [tracks[k][first] for k in range(objects)]
        for f in order:
            candidates: list[_Piece | None] = [*pieces_F[f][: objects + 2], *([None] * objects)]
            best = min(permutations(range(len(candidates)), objects), key=lambda p: _cost(last, candidates, p))
            for k, index in enumerate(best):
                piece = candidates[index]
                tracks[k][f] = piece
                last[k] = piece or last[k]
    return tracks


def _cost(last: list[_Piece | None], candidates: list[_Piece | None], choice: tuple[int, ...]) -> float:
    total = 0.0
    for previous, index in zip(last, choice, strict=True):
        piece = candidates[index]
        if piece is None or previous is None:
            total += 60.0
            continue
        change = float(np.linalg.norm(previous.color_C - piece.color_C))
        total += math.dist(previous.center, piece.center) + 0.1 * change
    return total


def _motion(path_F2: NDArray[np.float64]) -> str:
    """Return the direction of a straight line fitted to the centers over the clip; `still` below 8 pixels."""
    seen = ~np.isnan(path_F2[:, 0])
    if seen.sum() < 2:
        return "still"
    frames = np.arange(len(path_F2))[seen]
    slope = np.polyfit(frames, path_F2[seen], 1)[0]
    dx, dy = slope * (len(path_F2) - 1)
    if max(abs(dx), abs(dy)) < _STILL_PX:
        return "still"
    if abs(dx) >= abs(dy):
        return "left" if dx < 0 else "right"
    return "up" if dy < 0 else "down"


def _read_thing(track: list[_Piece | None], shape_HW: tuple[int, int]) -> ReadThing:
    seen = [piece for piece in track if piece is not None]
    fill = float(np.median([piece.fill for piece in seen]))
    area = float(np.median([piece.area for piece in seen]))
    overlaps = {name: float(np.median([piece.overlaps[name] for piece in seen])) for name in world.SHAPES}
    small, large = world.SIZES["small"], world.SIZES["large"]
    path = np.array([piece.center if piece else (math.nan, math.nan) for piece in track])
    masks = np.stack([piece.mask_HW if piece else np.zeros(shape_HW, bool) for piece in track])
    return ReadThing(
        shape=max(overlaps, key=lambda name: overlaps[name]),
        color=_nearest(np.median([piece.color_C for piece in seen], axis=0), world.COLORS),
        size="small" if math.sqrt(area / math.pi) < math.sqrt(small * large) else "large",
        motion=_motion(path),
        path=path,
        masks=masks,
        area=area,
        shape_by_box=next(name for edge, name in _FILL_EDGES if fill < edge),
    )


def _count(pieces_F: list[list[_Piece]]) -> int:
    """Return the largest number of objects that enough frames show at the same time."""
    shown_F = sorted((sum(p.area >= _COUNTED_AREA_PX for p in pieces) for pieces in pieces_F), reverse=True)
    return shown_F[max(1, math.ceil(_COUNTED_FRAMES * len(shown_F))) - 1]


def _relation(a: NDArray[np.float64], b: NDArray[np.float64]) -> str:
    dx, dy = np.nanmean(a - b, axis=0)
    if abs(dy) >= abs(dx):
        return "above" if dy < 0 else "below"
    return "left of" if dx < 0 else "right of"


def read(video_FHWC: NDArray[np.uint8], objects: int | None = None) -> ReadScene:
    """Read a video, uint8 [F, H, W, 3].

    objects: how many are expected (None: as many as most frames show, 0 to 2). Fewer are returned when fewer can be
    seen. `count` of the result does not depend on it. Raises ValueError for another shape or dtype.
    """
    video_FHWC = np.asarray(video_FHWC)
    if video_FHWC.ndim != 4 or video_FHWC.shape[-1] != 3 or video_FHWC.dtype != np.uint8:
        raise ValueError(f"a video is uint8 [F, H, W, 3], not {video_FHWC.dtype} {video_FHWC.shape}")
    background, background_C = read_background(video_FHWC)
    pieces_F = [_pieces(frame, background_C) for frame in video_FHWC]
    if objects is None:
        objects = int(np.clip(np.median([len(pieces) for pieces in pieces_F]), 0, 2))
    objects = min(objects, max(len(pieces) for pieces in pieces_F))
    count = _count(pieces_F)
    if objects == 0:
        return ReadScene((), background, None, count)
    tracks = _tracks(pieces_F, objects)
    things = tuple(_read_thing(track, video_FHWC.shape[1:3]) for track in tracks)
    relation = _relation(things[0].path, things[1].path) if objects == 2 else None
    return ReadScene(things, background, relation, count)


ATTRIBUTES = ("shape", "color", "size", "motion")


def compare(truth: world.Scene, seen: ReadScene) -> dict[str, float]:
    """Return the share of objects whose attribute was read correctly, for each attribute.

    `background` and, for two objects, `relation` are scored too, and `count`: 1 where there are as many objects as in
    the scene, otherwise 0. Objects are matched so that most attributes agree; an object that was not seen counts as
    wrong, and an extra one as a wrong `count`.
    """
    count = len(truth.things)
    padded = [*seen.things, *([None] * count)]

    def agreement(order: tuple[int, ...]) -> list[dict[str, bool]]:
        chosen = [padded[i] for i in order]
        return [
            {name: read is not None and getattr(thing, name) == getattr(read, name) for name in ATTRIBUTES}
            for thing, read in zip(truth.things, chosen, strict=True)
        ]

    best = max(permutations(range(len(padded)), count), key=lambda o: sum(sum(row.values()) for row in agreement(o)))
    rows = agreement(best)
    scores = {name: float(np.mean([row[name] for row in rows])) for name in ATTRIBUTES}
    scores["background"] = float(truth.background == seen.background)
    scores["count"] = float(seen.count == count)
    if count == 2:
        a, b = (padded[i] for i in best)
        scores["relation"] = float(a is not None and b is not None and _relation(a.path, b.path) == truth.relation)
    return scores
