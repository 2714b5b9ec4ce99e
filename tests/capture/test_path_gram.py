"""A path's Gram matrix equals direct float64 algebra, uses bounded memory, and keeps what fp32 states lose."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wanscope.capture.path_gram import PathGram, increments


def direct(states: np.ndarray) -> np.ndarray:
    flat = states.reshape(len(states), -1).astype(np.float64)
    v = np.concatenate([flat[:1], flat[1:] - flat[:-1]])
    return np.array([[np.sum(a * b) for b in v] for a in v])


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 7), st.integers(1, 300), st.integers(40, 4000), st.integers(0, 2**32 - 1))
def test_it_equals_direct_algebra_for_any_slice_size(
    tmp_path_factory: pytest.TempPathFactory, count: int, values: int, slice_bytes: int, seed: int
) -> None:
    states = np.random.default_rng(seed).standard_normal((count, values)).astype(np.float32)
    with PathGram(tmp_path_factory.mktemp("gram") / "scratch", slice_bytes) as path:
        for state in states:
            path.add(state)
        gram = path.matrix()
    assert gram.dtype == np.float64 and np.array_equal(gram, gram.T)
    assert np.allclose(gram, direct(states), rtol=1e-12, atol=1e-12 * values)


def test_small_late_steps_keep_their_acceleration(tmp_path: Path) -> None:
    # A long way from the origin with tiny turns: the second difference is 1e-6 of the state's length.
    rng = np.random.default_rng(0)
    start = rng.standard_normal(4096) * 10
    step = rng.standard_normal(4096) * 1e-2
    turn = rng.standard_normal(4096) * 1e-4
    states = np.stack([start + k * step + k * k * turn for k in range(5)]).astype(np.float32)
    with PathGram(tmp_path / "scratch") as path:
        for state in states:
            path.add(state)
        gram = path.matrix()
    exact = states.astype(np.float64)
    second = np.linalg.norm(exact[3] - 2 * exact[2] + exact[1])
    from_gram = np.sqrt(gram[3, 3] - 2 * gram[3, 2] + gram[2, 2])
    assert from_gram == pytest.approx(second, rel=1e-6)
    # The Gram matrix of the fp32 states, which is often stored instead, has lost it completely.
    g = (states @ states.T).astype(np.float64)
    lost = g[3, 3] + 4 * g[2, 2] + g[1, 1] - 4 * g[3, 2] + 2 * g[3, 1] - 4 * g[2, 1]
    assert abs(np.sqrt(max(lost, 0)) - second) > 0.5 * second


def test_memory_does_not_grow_with_the_latents(tmp_path: Path) -> None:
    state = np.ones(2_000_000, np.float32)  # 8 MB per state, 160 MB of float64 for the whole path
    with PathGram(tmp_path / "scratch", slice_bytes=4 << 20) as path:
        for _ in range(10):
            path.add(state)
        tracemalloc.start()
        gram = path.matrix()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 8 << 20
    assert gram[0, 0] == 2_000_000 and not gram[1:].any()
    assert not (tmp_path / "scratch").exists()


def test_states_of_another_kind_are_refused(tmp_path: Path) -> None:
    with PathGram(tmp_path / "scratch") as path:
        path.add(np.zeros(8, np.float32))
        with pytest.raises(TypeError, match="float32"):
            path.add(np.zeros(8, np.float16))
        with pytest.raises(ValueError, match="9 values"):
            path.add(np.zeros(9, np.float32))


def test_the_first_increment_is_the_start() -> None:
    assert increments(np.array([[1.0, 2.0], [4.0, 8.0]])).tolist() == [[1.0, 2.0], [3.0, 6.0]]
