"""What attention maps say: where a word looks, how sharply, what it shares with others, how much goes to the padding.

A map m over latent frames, rows and columns of tokens is made a distribution p = m / sum m (negative values, which only
GramCol maps have, count as 0). Of it:

- concentration: 1 - H(p) / ln N, H(p) = -sum p ln p over the N positions: 0 spread evenly, 1 on a single position.
- center: of each frame, the mean of (x, y) under that frame's p, in fractions of the frame, (0, 0) at the top left.
- travel: the length of the path of centers, from frame to frame.
- overlap of two maps: sum min(p, q): 1 the same, 0 nowhere both.
- mass: the mean of m itself over all positions. For probabilities it is the share of all attention that a word gets;
  words, other tokens and the padding sum to 1. The padding's is large: it is where attention goes that is not needed.

Entropy as a measure of attention is as old as attention (Bahdanau et al. 2015 show maps, Ghader and Monz 2017, arXiv
1710.03348, measure their entropy); centers and travel are plain moments.

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
    """Maps [..., T, Y, X] as distributions over their last three axes, float64; NaN where a map has nothing."""
    positive = np.maximum(np.asarray(maps, dtype=np.float64), 0)
    total = positive.sum((-3, -2, -1), keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(total > 0, positive / total, np.nan)


def concentration(maps: np.ndarray) -> np.ndarray:
    """1 - H / ln N of maps [..., T, Y, X]; 0 spread evenly, 1 on one position. NaN for a map of zeros."""
    p = distribution(maps)
    count = math.prod(p.shape[-3:])
    with np.errstate(invalid="ignore", divide="ignore"):
        entropy = -np.where(p > 0, p * np.log(p), 0 * p).sum((-3, -2, -1))
    return 1 - entropy / math.log(count) if count > 1 else np.ones_like(entropy)


def centers(maps: np.ndarray) -> np.ndarray:
    """Centers (x, y) of every frame of maps [..., T, Y, X], in fractions of the frame: float64 [..., T, 2]."""
    frames = np.maximum(np.asarray(maps, dtype=np.float64), 0)
    Y, X = frames.shape[-2:]
    total = frames.sum((-2, -1))
    with np.errstate(invalid="ignore", divide="ignore"):
        x = (frames.sum(-2) * ((np.arange(X) + 0.5) / X)).sum(-1) / total
        y = (frames.sum(-1) * ((np.arange(Y) + 0.5) / Y)).sum(-1) / total
    return np.stack([x, y], -1)


def travel(maps: np.ndarray) -> np.ndarray:
    """Length of the path of centers, in fractions of the frame: float64 [...]."""
    return np.linalg.norm(np.diff(centers(maps), axis=-2), axis=-1).sum(-1)


def overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """sum min(p, q) of two maps [..., T, Y, X], from 0 to 1."""
    return np.minimum(distribution(a), distribution(b)).sum((-3, -2, -1))


@dataclass(frozen=True)
class Profile:
    """Numbers of every map of a take, float64 [S, L, K]: one for each evaluation, block and row. NaN: skipped blocks.

    center: [S, L, K, T, 2]. Heads are averaged first where they were kept.
    """

    names: tuple[str, ...]
    steps: tuple[int, ...]
    blocks: tuple[int, ...]
    mass: np.ndarray
    concentration: np.ndarray
    travel: np.ndarray
    center: np.ndarray

    def rows(self) -> Iterator[dict[str, object]]:
        """Tidy rows: step (None for a mean over the steps), block, word, what is measured, value."""
        for i in range(self.mass.shape[0]):
            for j, block in enumerate(self.blocks):
                for k, name in enumerate(self.names):
                    where = {"step": self.steps[i] if self.steps else None, "block": block, "word": name}
                    for what in ("mass", "concentration", "travel"):
                        yield {**where, "measure": what, "value": float(getattr(self, what)[i, j, k])}

    def by_step(self, what: str) -> np.ndarray:
        """Averaged over blocks, [S, K]; NaN left out."""
        return _nanmean(getattr(self, what), 1)

    def by_block(self, what: str) -> np.ndarray:
        """Averaged over steps, [L, K]; NaN left out."""
        return _nanmean(getattr(self, what), 0)


def profile(attention: Attention) -> Profile:
    """The profile of a take's maps, read in parts of a step."""
    count, (frames, _, _) = attention.shape[0], attention.grid
    where = (count, len(attention.blocks), len(attention.names))
    mass, sharp, way, center = (np.full((*where, *more), np.nan) for more in ((), (), (), (frames, 2)))
    for place in range(count):
        for blocks, rows, maps in attention.parts(place):
            if attention.heads is not None:
                maps = maps.mean(1)
            at = (place, blocks, rows)
            mass[at], sharp[at] = maps.mean((-3, -2, -1)), concentration(maps)
            way[at], center[at] = travel(maps), centers(maps)
    return Profile(attention.names, attention.steps, attention.blocks, mass, sharp, way, center)


def overlaps(attention: Attention, blocks: list[int] | None = None, steps: list[int] | None = None) -> np.ndarray:
    """Overlap of every two rows' mean maps, float64 [K, K], 1 on the diagonal."""
    p_KTYX = distribution(attention.means(blocks, steps))
    return np.array([[np.minimum(a, b).sum() for b in p_KTYX] for a in p_KTYX])


def of_means(attention: Attention) -> Iterator[dict[str, object]]:
    """Tidy rows of the mean maps over steps, blocks and heads: centers by latent frame, and overlaps of every two."""
    whole = {"step": None, "block": None}
    maps = dict(zip(attention.names, attention.means(), strict=True))
    for name, map_TYX in maps.items():
        for frame, (x, y) in enumerate(centers(map_TYX)):
            yield {**whole, "word": name, "measure": "center_x", "frame": frame, "value": float(x)}
            yield {**whole, "word": name, "measure": "center_y", "frame": frame, "value": float(y)}
    for a, b in combinations(maps, 2):
        yield {**whole, "word": a, "measure": "overlap", "other": b, "value": float(overlap(maps[a], maps[b]))}


def pad_mass(attention: Attention) -> np.ndarray:
    """The share of all attention that goes to the padding, float64 [S, L]; NotCaptured for a text without padding."""
    pad = next((row.name for row in attention.rows if row.kind == "pad"), "pad")
    at = attention.row(pad)
    out = []
    for place in range(attention.shape[0]):
        maps = attention[(place, ..., at, slice(None), slice(None), slice(None))].astype(np.float64)
        out.append(maps.reshape(len(attention.blocks), -1).mean(1))
    return np.stack(out)


def _nanmean(values: np.ndarray, axis: int) -> np.ndarray:
    there = np.isfinite(values)
    count = there.sum(axis)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(count > 0, np.where(there, values, 0).sum(axis) / count, np.nan)
