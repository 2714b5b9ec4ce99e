"""Statistics of attention maps: where a word attends, how sharply, its overlap with other words, the padding's share.

A map m over latent frames, rows and columns of tokens is normalized to a distribution p = m / sum m (negative values,
which only GramCol maps have, count as 0). Computed from it:

- concentration: 1 - H(p) / ln N, H(p) = -sum p ln p over the N positions: 0 for a uniform map, 1 for a single
  position.
- center: for each frame, the mean of (x, y) under that frame's p, in fractions of the frame, (0, 0) at the top left.
- travel: the length of the path of the centers over the frames.
- overlap of two maps: sum min(p, q): 1 for equal maps, 0 for maps without a common position.
- mass: the mean of m itself over all positions. For probabilities it is the share of all attention that a word gets;
  words, other tokens and the padding sum to 1. The padding's share is large: it absorbs attention that no word needs.

Sources: maps of attention, Bahdanau et al. 2015; their entropy, Ghader and Monz 2017, arXiv 1710.03348. Centers are
first moments.

Shape suffixes: S kept evaluations, L kept blocks, K rows, T latent frames, Y and X rows and columns of tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from wanscope.take.attention_maps import Attention


def distribution(maps: np.ndarray) -> np.ndarray:
    """Normalize maps [..., T, Y, X] to distributions over the last three axes, float64; NaN for a map of zeros."""
    positive = np.maximum(np.asarray(maps, dtype=np.float64), 0)
    total = positive.sum((-3, -2, -1), keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(total > 0, positive / total, np.nan)


def concentration(maps: np.ndarray) -> np.ndarray:
    """Return 1 - H / ln N of maps [..., T, Y, X], float64 [...]: 0 if uniform, 1 on one position, NaN for zeros."""
    p = distribution(maps)
    count = math.prod(p.shape[-3:])
    with np.errstate(invalid="ignore", divide="ignore"):
        entropy = -np.where(p > 0, p * np.log(p), 0 * p).sum((-3, -2, -1))
    return 1 - entropy / math.log(count) if count > 1 else np.ones_like(entropy)


def centers(maps: np.ndarray) -> np.ndarray:
    """Return the centers (x, y) of all frames of maps [..., T, Y, X], in fractions of a frame: float64 [..., T, 2]."""
    frames = np.maximum(np.asarray(maps, dtype=np.float64), 0)
    Y, X = frames.shape[-2:]
    total = frames.sum((-2, -1))
    with np.errstate(invalid="ignore", divide="ignore"):
        x = (frames.sum(-2) * ((np.arange(X) + 0.5) / X)).sum(-1) / total
        y = (frames.sum(-1) * ((np.arange(Y) + 0.5) / Y)).sum(-1) / total
    return np.stack([x, y], -1)


def travel(maps: np.ndarray) -> np.ndarray:
    """Return the length of the path of centers of maps [..., T, Y, X], in fractions of the frame: float64 [...]."""
    return np.linalg.norm(np.diff(centers(maps), axis=-2), axis=-1).sum(-1)


def overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return sum min(p, q) of two maps [..., T, Y, X], from 0 to 1: float64 [...]."""
    return np.minimum(distribution(a), distribution(b)).sum((-3, -2, -1))


@dataclass(frozen=True)
class Profile:
    """Statistics of every map of a take, float64 [S, L, K]: evaluations, blocks, rows. NaN in blocks that were skipped.

    center: [S, L, K, T, 2]. If heads were kept, they are averaged first.
    """

    names: tuple[str, ...]
    steps: tuple[int, ...]
    blocks: tuple[int, ...]
    mass: np.ndarray
    concentration: np.ndarray
    travel: np.ndarray
    center: np.ndarray

    def rows(self) -> Iterator[dict[str, object]]:
        """Yield tidy rows: step (None for a mean over the steps), block, word, measure, value."""
        for i in range(self.mass.shape[0]):
            for j, block in enumerate(self.blocks):
                for k, name in enumerate(self.names):
                    where = {"step": self.steps[i] if self.steps else None, "block": block, "word": name}
                    for what in ("mass", "concentration", "travel"):
                        yield {**where, "measure": what, "value": float(getattr(self, what)[i, j, k])}

    def by_step(self, what: str) -> np.ndarray:
        """Return the mean of a measure over the blocks, [S, K], without NaN values."""
        return _nanmean(getattr(self, what), 1)

    def by_block(self, what: str) -> np.ndarray:
        """Return the mean of a measure over the steps, [L, K], without NaN values."""
        return _nanmean(getattr(self, what), 0)


def profile(attention: Attention) -> Profile:
    """Compute the profile of a take's maps, which are read a part of a step at a time."""
    count, (frames, _, _) = attention.shape[0], attention.grid
    where = (count, len(attention.blocks), len(attention.names))
    mass, sharpness, travelled, center = (np.full((*where, *more), np.nan) for more in ((), (), (), (frames, 2)))
    for place in range(count):
        for blocks, rows, maps in attention.parts(place):
            if attention.heads is not None:
                maps = maps.mean(1)
            at = (place, blocks, rows)
            mass[at], sharpness[at] = maps.mean((-3, -2, -1)), concentration(maps)
            travelled[at], center[at] = travel(maps), centers(maps)
    return Profile(attention.names, attention.steps, attention.blocks, mass, sharpness, travelled, center)


def overlaps(attention: Attention, blocks: list[int] | None = None, steps: list[int] | None = None) -> np.ndarray:
    """Return the overlap of every two rows' mean maps, float64 [K, K], with 1 on the diagonal."""
    p_KTYX = distribution(attention.means(blocks, steps))
    return np.array([[np.minimum(a, b).sum() for b in p_KTYX] for a in p_KTYX])


def of_means(attention: Attention) -> Iterator[dict[str, object]]:
    """Yield tidy rows of the maps averaged over steps, blocks and heads: centers by frame, and overlaps of pairs."""
    whole = {"step": None, "block": None}
    maps = dict(zip(attention.names, attention.means(), strict=True))
    for name, map_TYX in maps.items():
        for frame, (x, y) in enumerate(centers(map_TYX)):
            yield {**whole, "word": name, "measure": "center_x", "frame": frame, "value": float(x)}
            yield {**whole, "word": name, "measure": "center_y", "frame": frame, "value": float(y)}
    for a, b in combinations(maps, 2):
        yield {**whole, "word": a, "measure": "overlap", "other": b, "value": float(overlap(maps[a], maps[b]))}


def pad_mass(attention: Attention) -> np.ndarray:
    """Return the share of all attention that goes to the padding, float64 [S, L].

    Raises NotCaptured for a text without padding.
    """
    pad = next((row.name for row in attention.rows if row.kind == "pad"), "pad")
    at = attention.row(pad)
    out = []
    for place in range(attention.shape[0]):
        maps = attention[(place, ..., at, slice(None), slice(None), slice(None))].astype(np.float64)
        out.append(maps.reshape(len(attention.blocks), -1).mean(1))
    return np.stack(out)


def _nanmean(values: np.ndarray, axis: int) -> np.ndarray:
    known = np.isfinite(values)
    count = known.sum(axis)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(count > 0, np.where(known, values, 0).sum(axis) / count, np.nan)
