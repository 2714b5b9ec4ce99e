"""Speed, turning, curvature, temporal frequency and phases of a denoising path.

All of them are computed from the path's Gram matrix (latent_path.py). Lengths are divided by sqrt(D), which makes them
root mean squares per latent value, so that paths of different resolutions can be compared.

Sources: discrete curvature as the circle through three points, Menger 1930, Math. Ann. 103:466; change points by
optimal partitioning, Jackson et al. 2005, doi 10.1109/LSP.2001.838216.

Shapes: K states x_0 to x_S, S steps with increments v_k = x_k - x_(k-1), F frequencies; D values per latent.
"""

from __future__ import annotations

import numpy as np

from wanscope.analysis.latent_path import FLOOR_FACTOR, LatentPath, centered

RESTING = 1e-12  # a step shorter than this, relative to the longest one, has no direction


def velocity(path: LatentPath) -> np.ndarray:
    """Return the length of each step, |x_k - x_(k-1)| / sqrt(D), [S]."""
    return np.sqrt(np.diag(path.increments).clip(min=0) / path.dimension)


def sigma_speed(path: LatentPath) -> np.ndarray:
    """Return the velocity per unit of noise level, [S]; NaN if sigma does not change in a step."""
    change = np.abs(np.diff(path.sigmas))
    return np.divide(velocity(path), change, out=np.full(len(change), np.nan), where=change > 0)


def acceleration(path: LatentPath) -> np.ndarray:
    """Return the length of the change between increments, |v_(k+1) - v_k| / sqrt(D), [S - 1]."""
    g = path.increments
    diagonal = np.diag(g)
    return np.sqrt((diagonal[1:] + diagonal[:-1] - 2 * np.diag(g, 1)).clip(min=0) / path.dimension)


def path_length(path: LatentPath) -> float:
    """Return the sum of the steps' lengths, divided by sqrt(D)."""
    return float(velocity(path).sum())


def displacement(path: LatentPath) -> float:
    """Return the distance from the noise to the result, |x_S - x_0| / sqrt(D)."""
    return float(drift(path)[-1])


def drift(path: LatentPath) -> np.ndarray:
    """Return the distance of each state from the noise, |x_k - x_0| / sqrt(D), [K]."""
    return np.sqrt(np.diag(path.from_start).clip(min=0) / path.dimension)


def remaining(path: LatentPath) -> np.ndarray:
    """Return the distance of each state to the result, |x_S - x_k| / sqrt(D), [K]."""
    inner = path.from_start
    squared = inner[-1, -1] - 2 * inner[-1] + np.diag(inner)
    return np.sqrt(squared.clip(min=0) / path.dimension)


def alignment(path: LatentPath) -> np.ndarray:
    """Return the cosine between each step and the straight line from x_0 to x_S, [S]; NaN if either has no length."""
    toward = path.increments.sum(axis=1)
    sizes = np.sqrt(np.diag(path.increments).clip(min=0) * max(path.increments.sum(), 0.0))
    return np.divide(toward, sizes, out=np.full(len(sizes), np.nan), where=sizes > 0).clip(-1, 1)


def linearity(path: LatentPath) -> float:
    """Return displacement over path length: 1 on a straight line, 0 if the path returns, NaN if it does not move."""
    length = path_length(path)
    return displacement(path) / length if length > 0 else float("nan")


def turning_angles(path: LatentPath) -> np.ndarray:
    """Return the angles between neighboring increments in degrees, [S - 1]; NaN next to a step of length zero."""
    g, norms = path.increments, np.sqrt(np.diag(path.increments).clip(min=0))
    a, b, inner = norms[:-1], norms[1:], np.diag(g, 1)
    moving = np.minimum(a, b) > RESTING * max(norms.max(initial=0.0), 1e-300)
    cosine = np.divide(inner, a * b, out=np.full(len(a), np.nan), where=moving)
    return np.degrees(np.arccos(cosine.clip(-1, 1)))


def curvature(path: LatentPath) -> np.ndarray:
    """Return sqrt(D) over the radius of the circle through x_(k-1), x_k and x_(k+1), [S - 1].

    NaN where the path reverses its direction or does not move.
    """
    g = path.increments
    diagonal = np.diag(g)
    chord = np.sqrt((diagonal[1:] + diagonal[:-1] + 2 * np.diag(g, 1)).clip(min=0) / path.dimension)
    sine = np.sin(np.radians(turning_angles(path)))
    longest = max(velocity(path).max(initial=0.0), 1e-300)
    return np.divide(2 * sine, chord, out=np.full(len(chord), np.nan), where=chord > RESTING * longest)


def coordinates(gram: np.ndarray, axes: int, dimension: int) -> np.ndarray:
    """Return the coordinates of vectors on the principal axes of their centered Gram matrix, / sqrt(D), [K, axes].

    gram: [K, K]. The largest coordinate on each axis is positive, so that figures do not change their sign.
    """
    values, vectors = np.linalg.eigh(centered(gram))
    order = np.argsort(values)[::-1][:axes]
    places = vectors[:, order] * np.sqrt(values[order].clip(min=0) / dimension)
    largest = np.take_along_axis(places, np.abs(places).argmax(axis=0)[None], axis=0)
    return places * np.where(largest < 0, -1.0, 1.0)


def frequency_spectrum(path: LatentPath) -> tuple[np.ndarray, np.ndarray]:
    """Return frequencies in cycles per step, in (0, 1/2], and the power of the increments minus their mean, [F] each.

    The power of the discrete Fourier transform of a sequence of vectors is e* G e, so their Gram matrix G suffices. The
    powers of all frequencies sum to the increments' squared distance from their mean.
    """
    g = centered(path.increments)
    steps = len(g)
    index = np.arange(1, steps // 2 + 1)
    waves = np.exp(-2j * np.pi * np.outer(index, np.arange(steps)) / steps)
    power = np.einsum("fk,kl,fl->f", waves.conj(), g, waves).real.clip(min=0) / steps
    mirrored = np.where(2 * index == steps, 1.0, 2.0)
    return index / steps, power * mirrored


def mean_frequency(path: LatentPath) -> float:
    """Return the power-weighted mean frequency of the increments, in cycles per step; NaN if they are constant."""
    frequencies, power = frequency_spectrum(path)
    total = power.sum()
    return float(frequencies @ power / total) if total > FLOOR_FACTOR * path.floor else float("nan")


def phase_changes(speeds: np.ndarray, least: int = 3, floor: float = 0.05) -> tuple[int, ...]:
    """Return the first step of every phase of the velocity except the first phase. speeds: [S].

    The log of the speeds is divided into segments of at least `least` steps, each fitted by a straight line, so that
    the sum of squares plus a penalty of 3 s^2 ln S per change point is smallest (as in BIC: a line and a place). s is
    the noise, estimated from the second differences; it is at least `floor`, so that bends of less than about 5% do not
    count.
    """
    moving = speeds > 0
    y = np.log(np.where(moving, speeds, speeds[moving].min() if moving.any() else 1.0))
    steps = len(y)
    if steps < 2 * least:
        return ()
    second = np.diff(y, 2)
    # The variance of a second difference of independent noise is 6 s^2; 0.6745 is the median of |normal|.
    noise = max(float(np.median(np.abs(second - np.median(second)))) / 0.6745 / np.sqrt(6), floor)
    penalty = 3 * noise**2 * np.log(steps)
    best = np.full(steps + 1, np.inf)
    best[0] = -penalty
    last = np.zeros(steps + 1, dtype=int)
    for stop in range(least, steps + 1):
        for start in range(0, stop - least + 1):
            if np.isfinite(best[start]):
                cost = best[start] + _line_error(y[start:stop]) + penalty
                if cost < best[stop] - 1e-12:
                    best[stop], last[stop] = cost, start
    cuts = []
    stop = steps
    while stop > 0:
        stop = int(last[stop])
        if stop:
            cuts.append(stop)
    return tuple(reversed(cuts))


def _line_error(y: np.ndarray) -> float:
    """Return the sum of squares about the least-squares line of values y, [n]."""
    x = np.arange(len(y)) - (len(y) - 1) / 2
    spread = float(x @ x)
    slope = float(x @ y) / spread if spread else 0.0
    rest = y - y.mean() - slope * x
    return float(rest @ rest)
