"""Latent statistics against direct fp64 computation and known answers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from wanscope.analysis import latent_statistics as ls


def smooth_noise(seed: int = 0, shape: tuple[int, ...] = (4, 3, 12, 18)) -> np.ndarray:
    """Return noise with correlated channels and smooth changes between frames."""
    rng = np.random.default_rng(seed)
    x = np.cumsum(rng.standard_normal(shape), axis=1) + rng.standard_normal((shape[0], 1, 1, 1))
    x[1] += 0.7 * x[0]
    return np.cumsum(x, axis=3).astype(np.float32)


@pytest.mark.parametrize("shape", [(4, 3, 12, 18), (3, 2, 9, 7), (16, 1, 8, 8)])
def test_moments_and_coherence_equal_direct_computation(shape: tuple[int, ...]) -> None:
    x = smooth_noise(1, shape)
    found, exact = ls.latent_statistics(x), x.astype(np.float64)
    flat = exact.reshape(len(x), -1)
    assert found.mean_C == pytest.approx(flat.mean(axis=1))
    assert found.variance_C == pytest.approx(flat.var(axis=1))
    assert found.variance == pytest.approx(exact.var())
    assert np.allclose(found.correlation_CC, np.corrcoef(flat))
    off = np.corrcoef(flat)[~np.eye(len(x), dtype=bool)]
    assert found.correlation == pytest.approx(np.abs(off).mean())
    frames = [exact[:, t] - exact[:, t].mean(axis=(1, 2), keepdims=True) for t in range(shape[1])]
    pairs = list(itertools.pairwise(frames))
    if pairs:
        assert found.coherence == pytest.approx(
            np.mean([(a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum()) for a, b in pairs])
        )
        assert found.change == pytest.approx(
            np.mean([((a - b) ** 2).sum() / ((a**2).sum() + (b**2).sum()) for a, b in pairs])
        )
    else:
        assert np.isnan(found.coherence) and np.isnan(found.change)


@pytest.mark.parametrize("shape", [(4, 3, 12, 18), (3, 2, 9, 7)])
def test_spectrum_equals_the_full_transform(shape: tuple[int, ...]) -> None:
    x = smooth_noise(2, shape)
    found, exact = ls.latent_statistics(x), x.astype(np.float64)
    height, width = shape[2:]
    power = np.abs(np.fft.fft2(exact)) ** 2 / (height * width)
    power[..., 0, 0] = 0
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None, :])
    edges = ls.band_edges()
    for r in range(ls.BANDS):
        upper = np.inf if r == ls.BANDS - 1 else edges[r + 1]
        inside = (radius >= edges[r]) & (radius < upper)
        inside[0, 0] = False
        if inside.any():
            assert found.power_R[r] == pytest.approx(power[..., inside].mean(), rel=1e-4)
        else:
            assert np.isnan(found.power_R[r])
    assert found.detail == pytest.approx(power[..., radius >= 0.25].sum() / power.sum(), rel=1e-4)


def test_white_noise() -> None:
    x = (2 * np.random.default_rng(3).standard_normal((16, 5, 40, 48))).astype(np.float32)
    found = ls.latent_statistics(x)
    assert found.power_R == pytest.approx(np.full(ls.BANDS, 4.0), rel=0.05)
    assert found.coherence == pytest.approx(0, abs=0.02)
    assert found.change == pytest.approx(1, abs=0.02)
    assert found.entropy == pytest.approx(0.5 * np.log(2 * np.pi * np.e * 4), abs=0.01)
    assert found.gaussian_gap == pytest.approx(0, abs=0.01)
    assert found.correlation < 0.02


def test_entropy_of_known_distributions() -> None:
    rng = np.random.default_rng(4)
    uniform = rng.uniform(-3, 3, (4, 4, 60, 60)).astype(np.float32)
    laplace = rng.laplace(0, 1, (4, 4, 60, 60)).astype(np.float32)
    assert ls.latent_statistics(uniform).entropy == pytest.approx(np.log(6), abs=0.01)
    assert ls.latent_statistics(laplace).entropy == pytest.approx(1 + np.log(2), abs=0.02)


def test_a_still_video_is_coherent_and_a_flat_one_has_no_spectrum() -> None:
    frame = np.random.default_rng(5).standard_normal((4, 1, 8, 8)).astype(np.float32)
    still = ls.latent_statistics(np.repeat(frame, 3, axis=1))
    assert still.coherence == pytest.approx(1)
    assert still.change == pytest.approx(0, abs=1e-12)
    flat = ls.latent_statistics(np.ones((4, 2, 8, 8), np.float32))
    assert np.isnan(flat.detail) and np.isnan(flat.coherence) and flat.variance == 0


@pytest.mark.parametrize(("period", "band"), [(16, 1), (8, 2), (2, 7)])
def test_a_wave_lies_in_its_band(period: int, band: int) -> None:
    x = np.sin(2 * np.pi * (np.arange(32) + 0.25) / period) * np.ones((1, 1, 32, 1))
    assert np.nanargmax(ls.latent_statistics(x.astype(np.float32)).power_R) == band
