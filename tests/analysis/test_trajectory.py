"""Path metrics: closed forms on made paths, direct fp64 computation on the raw states, and rotations."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wanscope.analysis import trajectory as tr
from wanscope.analysis.latent_path import LatentPath, rounding_floor
from wanscope.analysis.path_volume import common_rank, explained_variance, log_volume, participation_ratio
from wanscope.capture.path_gram import increments


def path_of(states_KD: np.ndarray, sigmas: np.ndarray | None = None, dtype: str = "fp32") -> LatentPath:
    v = increments(states_KD)
    sigmas = np.linspace(1, 0, len(states_KD)) if sigmas is None else sigmas
    return LatentPath(v @ v.T, states_KD.shape[1], sigmas, dtype)


def walk(states: int, dimension: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.cumsum(rng.standard_normal((states, dimension)) * rng.uniform(0.3, 2, (states, 1)), axis=0)


SCALARS: dict[str, Callable[[LatentPath], float]] = {
    "path_length": tr.path_length,
    "displacement": tr.displacement,
    "linearity": tr.linearity,
    "participation_ratio": lambda path: participation_ratio(path.spectrum),
    "log_volume": lambda path: log_volume(path.spectrum, 5, path.dimension),
    "mean_frequency": tr.mean_frequency,
}
SERIES: dict[str, Callable[[LatentPath], np.ndarray]] = {
    "velocity": tr.velocity,
    "sigma_speed": tr.sigma_speed,
    "acceleration": tr.acceleration,
    "drift": tr.drift,
    "remaining": tr.remaining,
    "alignment": tr.alignment,
    "turning_angles": tr.turning_angles,
    "curvature": tr.curvature,
    "spectrum": lambda path: path.spectrum,
    "frequency_power": lambda path: tr.frequency_spectrum(path)[1],
}


def direct(x: np.ndarray, sigmas: np.ndarray) -> dict[str, np.ndarray]:
    """Return every metric computed on the raw states, without a Gram matrix."""
    root = np.sqrt(x.shape[1])
    v = np.diff(x, axis=0)
    length = np.linalg.norm(v, axis=1)
    unit = v / length[:, None]
    values = np.linalg.svd(x - x.mean(axis=0), compute_uv=False)[: len(x) - 1] ** 2
    fourier = np.abs(np.fft.fft(v - v.mean(axis=0), axis=0)) ** 2 / len(v)
    half = len(v) // 2
    power = fourier[1 : half + 1].sum(axis=1) + np.where(
        np.arange(1, half + 1) * 2 == len(v), 0, fourier[::-1][:half].sum(axis=1)
    )
    sides = [np.linalg.norm(x[2:] - x[1:-1], axis=1), np.linalg.norm(x[1:-1] - x[:-2], axis=1)]
    sides.append(np.linalg.norm(x[2:] - x[:-2], axis=1))
    half_sum = sum(sides) / 2
    area = np.sqrt(half_sum * np.prod([half_sum - side for side in sides], axis=0))  # Heron
    return {
        "path_length": length.sum() / root,
        "displacement": np.linalg.norm(x[-1] - x[0]) / root,
        "linearity": np.linalg.norm(x[-1] - x[0]) / length.sum(),
        "participation_ratio": values.sum() ** 2 / (values**2).sum(),
        "log_volume": np.log(np.sqrt(values[:5] / x.shape[1])).sum(),
        "mean_frequency": (power * np.arange(1, half + 1) / len(v)).sum() / power.sum(),
        "velocity": length / root,
        "sigma_speed": length / root / np.abs(np.diff(sigmas)),
        "acceleration": np.linalg.norm(np.diff(x, 2, axis=0), axis=1) / root,
        "drift": np.linalg.norm(x - x[0], axis=1) / root,
        "remaining": np.linalg.norm(x[-1] - x, axis=1) / root,
        "alignment": unit @ (x[-1] - x[0]) / np.linalg.norm(x[-1] - x[0]),
        "turning_angles": np.degrees(np.arccos((unit[1:] * unit[:-1]).sum(axis=1))),
        "curvature": 4 * area / np.prod(sides, axis=0) * root,
        "spectrum": values,
        "frequency_power": power,
    }


@settings(max_examples=20, deadline=None)
@given(st.integers(7, 16), st.integers(20, 200), st.integers(0, 2**31))
def test_every_metric_equals_direct_computation_on_the_states(states: int, dimension: int, seed: int) -> None:
    x = walk(states, dimension, seed)
    sigmas = np.sort(np.random.default_rng(seed).uniform(0, 1, states))[::-1]
    path, wanted = path_of(x, sigmas), direct(x, sigmas)
    for name, function in {**SCALARS, **SERIES}.items():
        assert np.allclose(function(path), wanted[name], rtol=1e-8, atol=1e-10), name


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31), st.floats(-50, 50))
def test_a_rotated_and_shifted_path_has_the_same_metrics(seed: int, shift: float) -> None:
    x = walk(9, 40, seed)
    rotation = np.linalg.qr(np.random.default_rng(seed + 1).standard_normal((40, 40)))[0]
    one, other = path_of(x), path_of(x @ rotation + shift)
    for name, function in {**SCALARS, **SERIES}.items():
        assert np.allclose(function(one), function(other), rtol=1e-7, atol=1e-9), name
    assert np.allclose(
        tr.coordinates(one.from_start, 3, 40), tr.coordinates(other.from_start, 3, 40), rtol=1e-6, atol=1e-8
    )


def test_a_straight_line() -> None:
    direction = np.random.default_rng(0).standard_normal(64)
    x = 5 + np.outer(np.arange(9), direction)
    path, step = path_of(x), np.linalg.norm(direction) / 8
    assert tr.velocity(path) == pytest.approx(np.full(8, step))
    assert tr.acceleration(path) == pytest.approx(np.zeros(7), abs=1e-6)
    assert tr.linearity(path) == pytest.approx(1)
    assert tr.alignment(path) == pytest.approx(np.ones(8))
    assert tr.turning_angles(path) == pytest.approx(np.zeros(7), abs=1e-4)
    assert participation_ratio(path.spectrum) == pytest.approx(1)
    assert path.rank == 1
    # Nine places a step apart along one axis.
    assert log_volume(path.spectrum, 1, 64) == pytest.approx(np.log(step * np.sqrt(((np.arange(9) - 4) ** 2).sum())))
    assert np.isnan(log_volume(path.spectrum, 0, 64))
    assert np.isnan(tr.mean_frequency(path))


@pytest.mark.parametrize("radius", [0.5, 3.0])
def test_a_circle(radius: float) -> None:
    points, dimension = 12, 50
    plane = np.linalg.qr(np.random.default_rng(1).standard_normal((dimension, 2)))[0].T
    angle = 2 * np.pi * np.arange(points) / points
    x = 2 + radius * np.sqrt(dimension) * (np.cos(angle)[:, None] * plane[0] + np.sin(angle)[:, None] * plane[1])
    path = path_of(x)
    assert tr.curvature(path) == pytest.approx(np.full(points - 2, 1 / radius))
    assert tr.turning_angles(path) == pytest.approx(np.full(points - 2, 360 / points))
    assert tr.path_length(path) == pytest.approx((points - 1) * 2 * radius * np.sin(np.pi / points))
    assert tr.displacement(path) == pytest.approx(2 * radius * np.sin(np.pi / points))
    assert path.rank == 2
    assert path.spectrum[:2] == pytest.approx(np.full(2, points / 2 * radius**2 * dimension))
    assert participation_ratio(path.spectrum) == pytest.approx(2)
    closed = path_of(np.concatenate([x, x[:1]]))
    assert tr.displacement(closed) == pytest.approx(0, abs=1e-7)
    # The increments of a full turn are one vector that rotates once in `points` steps.
    frequencies, power = tr.frequency_spectrum(closed)
    assert frequencies[power.argmax()] == pytest.approx(1 / points)
    assert tr.mean_frequency(closed) == pytest.approx(1 / points)


def test_a_random_walk_in_many_dimensions() -> None:
    steps, dimension = 50, 40_000
    x = np.cumsum(np.random.default_rng(2).standard_normal((steps + 1, dimension)), axis=0)
    path = path_of(x)
    assert tr.linearity(path) == pytest.approx(1 / np.sqrt(steps), rel=0.02)
    assert tr.turning_angles(path) == pytest.approx(np.full(steps - 1, 90), abs=2)
    assert tr.velocity(path) == pytest.approx(np.ones(steps), rel=0.03)
    # Its principal axes are cosines, with variances that fall as 1/k^2 (Antognini and Sohl-Dickstein 2018,
    # arXiv 1806.08805).
    shares = explained_variance(path.spectrum)[:3]
    assert shares == pytest.approx([6 / np.pi**2 / k**2 for k in (1, 2, 3)], rel=0.05)
    assert tr.mean_frequency(path) == pytest.approx(0.25, rel=0.1)


def test_turning_back_and_resting() -> None:
    x = np.zeros((5, 8))
    x[1, 0], x[3, 1], x[4, 1] = 1, 1, 1  # there, back, elsewhere, rest
    path = path_of(x)
    angles, curves = tr.turning_angles(path), tr.curvature(path)
    assert angles[:2] == pytest.approx([180, 90])
    assert np.isnan(angles[2]) and np.isnan(curves[0]) and np.isnan(curves[2])
    assert np.isnan(tr.linearity(path_of(np.ones((4, 8)))))


def test_small_angles_survive() -> None:
    x = np.zeros((3, 2))
    x[1], x[2] = [1, 0], [2, 1e-6]
    assert tr.turning_angles(path_of(x))[0] == pytest.approx(np.degrees(1e-6), rel=1e-3)


# ---- the rank rule


@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
def test_the_floor_is_what_rounding_adds(dtype: str) -> None:
    x = np.random.default_rng(3).standard_normal((6, 50_000))
    rounded = x.astype({"fp16": np.float16, "fp32": np.float32}[dtype]).astype(np.float64)
    error = ((rounded - x) ** 2).sum(axis=1).max()
    floor = rounding_floor((x**2).sum(axis=1), dtype)
    assert floor / 3 < error < floor


def test_a_full_rank_value_of_rounding_is_not_counted() -> None:
    """A path in a plane, rounded to fp16: only the plane is above the rounding floor."""
    rng = np.random.default_rng(4)
    x = rng.standard_normal((10, 2)) @ rng.standard_normal((2, 20_000))
    rounded = x.astype(np.float16).astype(np.float64)
    path = path_of(rounded, dtype="fp16")
    assert (path.spectrum > 0).all()
    assert path.rank == 2


def test_all_paths_have_one_rank() -> None:
    rng = np.random.default_rng(5)
    flat = path_of(rng.standard_normal((8, 3)) @ rng.standard_normal((3, 500)))
    full = path_of(walk(8, 500))
    assert (flat.rank, full.rank) == (3, 7)
    assert common_rank([flat, full]) == 3


def test_a_gram_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        LatentPath(np.eye(3), 10, np.array([1.0, 0.0]))


# ---- phases


def test_phases_of_the_velocity_are_found() -> None:
    rng = np.random.default_rng(6)
    y = np.concatenate([np.full(15, 0.0), np.full(20, 1.5), 1.5 - 0.2 * np.arange(15)])
    assert tr.phase_changes(np.exp(y)) == (15, 35)
    found = tr.phase_changes(np.exp(y + 0.05 * rng.standard_normal(50)))
    assert len(found) == 2 and abs(found[0] - 15) <= 1 and abs(found[1] - 35) <= 2


@pytest.mark.parametrize("slope", [0.0, -0.1, 0.3])
def test_a_steady_course_has_no_phases(slope: float) -> None:
    rng = np.random.default_rng(7)
    found = [tr.phase_changes(np.exp(slope * np.arange(30) + 0.1 * rng.standard_normal(30))) for _ in range(40)]
    assert np.mean([len(cuts) > 0 for cuts in found]) <= 0.15
    assert tr.phase_changes(np.exp(slope * np.arange(30))) == ()


def test_too_few_steps_have_no_phases() -> None:
    assert tr.phase_changes(np.array([1.0, 9.0, 1.0, 9.0, 2.0])) == ()
    assert tr.phase_changes(np.zeros(10)) == ()
