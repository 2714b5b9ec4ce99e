"""The latent pass against direct fp64 computation on the raw latents; its memory; takes without a Gram matrix."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from helpers.takes import path_of as states_of
from helpers.takes import recipe, write_take
from wanscope.analysis import landmarks, latent_pass, latent_path, trajectory
from wanscope.analysis.latent_statistics import latent_statistics
from wanscope.capture.arrays import create_array, open_array
from wanscope.capture.path_gram import increments
from wanscope.errors import DamagedTake, NotCaptured
from wanscope.take.store import LATENTS

SHAPE = (5, 4, 3, 6, 8)  # states, channels, frames, height, width


def latents(takes: int = 6, shape: tuple[int, ...] = SHAPE, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [np.cumsum(rng.standard_normal(shape), axis=0).astype(np.float16) for _ in range(takes)]


@pytest.mark.parametrize("budget", [1 << 28, 30_000, 1])
def test_between_take_grams_equal_direct_ones_whatever_the_slices(budget: int) -> None:
    arrays = latents()
    found = latent_pass.one_pass(arrays, budget_bytes=budget)
    for k in range(SHAPE[0]):
        flat = np.stack([x[k].reshape(-1).astype(np.float64) for x in arrays])
        assert np.allclose(found.gram_KNN[k], flat @ flat.T, rtol=1e-12)
    assert found.dimension == np.prod(SHAPE[1:])
    assert found.gram_KNN.dtype == np.float64


def test_statistics_are_those_of_each_latent() -> None:
    arrays = latents()
    found = latent_pass.one_pass(arrays, budget_bytes=20_000)
    for i, x in enumerate(arrays):
        for k in range(SHAPE[0]):
            direct, mine = latent_statistics(x[k].astype(np.float32)), found.statistics[i][k]
            assert np.allclose(mine.variance_C, direct.variance_C)
            assert mine.power_R == pytest.approx(direct.power_R, nan_ok=True)
            assert (mine.coherence, mine.entropy) == pytest.approx((direct.coherence, direct.entropy))


def test_it_reads_every_value_once_and_the_landmarks_twice_more() -> None:
    arrays = latents(takes=20)
    found = latent_pass.one_pass(arrays)
    whole = sum(x.nbytes for x in arrays)
    one = arrays[0][0].nbytes
    assert found.bytes_read == whole + 2 * len(landmarks.choose(20, SHAPE[0])) * one
    assert latent_pass.one_pass(arrays, axes=0).bytes_read == whole


def test_joint_coordinates_are_the_exact_ones_when_all_are_landmarks() -> None:
    arrays = latents()
    found = latent_pass.one_pass(arrays).joint
    assert found is not None and found.exact and found.landmarks == 30
    flat = np.concatenate([x.reshape(SHAPE[0], -1).astype(np.float64) for x in arrays])
    centered = flat - flat.mean(axis=0)
    u, s, _ = np.linalg.svd(centered, full_matrices=False)
    wanted = u[:, :3] * s[:3] / np.sqrt(flat.shape[1])
    mine = found.places_NKA.reshape(-1, 3)
    assert np.allclose(np.abs(mine), np.abs(wanted), rtol=1e-4, atol=1e-5)
    assert found.share_A == pytest.approx(s[:3] ** 2 / (s**2).sum(), rel=1e-4)


def test_with_fewer_landmarks_the_reported_error_is_correct() -> None:
    # 30 takes that differ in a few directions: landmarks find them.
    rng = np.random.default_rng(3)
    directions = rng.standard_normal((4, *SHAPE[1:]))
    arrays = [
        (np.einsum("ki,i...->k...", rng.standard_normal((SHAPE[0], 4)) * [8, 4, 2, 1], directions)).astype(np.float32)
        for _ in range(30)
    ]
    found = latent_pass.one_pass(arrays).joint
    assert found is not None and not found.exact and found.landmarks <= 64
    flat = np.concatenate([x.reshape(SHAPE[0], -1).astype(np.float64) for x in arrays])
    values = np.linalg.svd(flat - flat.mean(axis=0), compute_uv=False) ** 2
    assert found.explained == pytest.approx(values[:3].sum() / values.sum(), abs=0.03)


def test_landmarks_are_spread_and_few() -> None:
    for takes, states in [(3, 5), (100, 51), (2, 200), (500, 2), (9, 9)]:
        picks = landmarks.choose(takes, states)
        assert len(set(picks)) == len(picks) <= 64
        assert {state for _, state in picks} >= {0, states - 1}
        assert {take for take, _ in picks} >= {0, takes - 1}


def test_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="2 shapes"):
        latent_pass.one_pass([np.zeros(SHAPE), np.zeros((4, *SHAPE[1:]))])


def test_memory_does_not_grow_with_the_latents(tmp_path: Path) -> None:
    shape = (2, 16, 40, 80, 40)  # 4 MB per state as fp16, 16 MB as float64; 5 takes: 41 MB, 164 MB
    folders = []
    for i in range(5):
        array = create_array(tmp_path / f"{i}", shape, (16, 1, 80, 40), "fp16", {})
        for k in range(2):
            array[k] = np.full(shape[1:], i + k, np.float16)
        folders.append(open_array(tmp_path / f"{i}"))
    latent_pass.one_pass(folders[:2], budget_bytes=4 << 20)  # loads modules once
    tracemalloc.start()
    latent_pass.one_pass(folders, budget_bytes=4 << 20, scratch=tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20


def test_memory_is_bounded_where_one_frame_is_large() -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((2, 16, 2, 64, 64)).astype(np.float16) for _ in range(32)]
    path = rng.standard_normal((51, 16, 2, 64, 64)).astype(np.float16)
    latent_pass.one_pass(arrays[:2], statistics=False)  # loads modules once
    tracemalloc.start()
    joint = latent_pass.one_pass(arrays, statistics=False, budget_bytes=40 << 20).joint
    passed = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    sliced = latent_pass.gram_of(path, budget_bytes=8 << 20)
    own = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert passed < 44 << 20 and own < 16 << 20
    assert joint is not None and landmarks.LEAST <= joint.landmarks < landmarks.LANDMARKS
    assert np.allclose(sliced, latent_pass.gram_of(path), rtol=1e-12)


def test_the_path_is_the_gram_taken_while_sampling(tmp_path: Path) -> None:
    take = write_take(tmp_path, recipe())
    path = latent_pass.path_of(take)
    assert np.array_equal(path.gram, take.gram) and path.dtype == "fp32"
    states = states_of(take.recipe)
    v = increments(states)
    assert np.allclose(path.gram, v @ v.T)


@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
def test_without_it_the_stored_latents_are_read_with_their_floor(tmp_path: Path, dtype: str) -> None:
    from wanscope.recipe import CaptureSpec, LatentsCapture

    take = write_take(tmp_path, recipe(capture=CaptureSpec(latents=LatentsCapture(dtype=dtype))))  # type: ignore[arg-type]
    bare = type(take)(take.folder, take.manifest.model_copy(update={"gram": None}))
    path, exact = latent_pass.path_of(bare, budget_bytes=1), latent_pass.path_of(take)
    stored = take.latents[:].astype(np.float64)
    v = increments(stored)
    assert np.allclose(path.gram, v @ v.T, rtol=1e-12)
    assert path.dtype == dtype
    assert path.floor == pytest.approx(latent_path.rounding_floor(exact.squared_norms, dtype), rel=1e-2)
    assert np.allclose(path.spectrum, exact.spectrum, atol=10 * path.floor + 1e-9 * exact.spectrum[0])


def test_every_nth_state(tmp_path: Path) -> None:
    take = write_take(tmp_path, recipe())
    stored = take.manifest.latents
    assert stored is not None
    keep = (0, 2, 4)
    thin = create_array(take.folder / "thin", (3, *take.latents.shape[1:]), (16, 1, 6, 8), "fp32", {})
    for i, k in enumerate(keep):
        thin[i] = take.latents[k]
    path = latent_path.LatentPath(
        latent_pass.gram_of(thin), take.latents[0].size, take.sigmas[list(keep)], "fp32", np.array(keep)
    )
    assert trajectory.displacement(path) == pytest.approx(trajectory.displacement(latent_pass.path_of(take)), rel=1e-6)
    assert path.states.tolist() == [0, 2, 4]


def test_a_take_without_any_record_is_an_error_with_a_fix(tmp_path: Path) -> None:
    with pytest.raises(NotCaptured, match="--store-latents"):
        latent_pass.path_of(write_take(tmp_path, recipe(latents=False)))


def test_a_flipped_byte_is_a_damaged_take(tmp_path: Path) -> None:
    take = write_take(tmp_path, recipe())
    array = open_array(take.folder / LATENTS)
    shard = max((take.folder / LATENTS).rglob("c.*"), key=lambda path: path.stat().st_size)
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(DamagedTake, match="cannot be read"):
        latent_pass.one_pass([array], axes=0)
