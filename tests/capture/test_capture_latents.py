"""What an observer stores equals the loop's states, and observing changes nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from wanscope.capture.arrays import open_array
from wanscope.capture.latents import LatentsObserver, stored_states
from wanscope.capture.moments import StepState
from wanscope.errors import NumericalError
from wanscope.recipe import LatentsCapture

STEPS = 7


def random_path(scale: float = 1.0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [scale * torch.randn(1, 16, 3, 4, 5, generator=generator) for _ in range(STEPS + 1)]


def observe(folder: Path, spec: LatentsCapture, path: list[torch.Tensor]) -> LatentsObserver:
    sigmas = tuple(np.linspace(1, 0, STEPS + 1).tolist())
    observer = LatentsObserver(folder / "latents.zarr", folder / "scratch", spec)
    observer.start(path[0], sigmas)
    for k, x in enumerate(path[1:]):
        observer.step(StepState(k, STEPS, sigmas[k], sigmas[k + 1], x, None, 1, 0.0))
    return observer


@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
@pytest.mark.parametrize(("every", "kept"), [(1, range(8)), (3, [0, 3, 6, 7]), (7, [0, 7]), (100, [0, 7])])
def test_kept_states_equal_those_of_the_loop(tmp_path: Path, dtype: str, every: int, kept: list[int]) -> None:
    path = random_path()
    observer = observe(tmp_path, LatentsCapture(dtype=dtype, every=every), path)
    array = open_array(tmp_path / "latents.zarr")
    assert observer.states == tuple(kept) == tuple(array.attrs["states"])
    want = torch.cat([path[k] for k in kept]).to(torch.float16 if dtype == "fp16" else torch.float32).numpy()
    assert array.dtype == want.dtype and np.array_equal(array[:], want)


def test_the_gram_is_of_fp32_latents_even_where_fp16_is_stored(tmp_path: Path) -> None:
    path = random_path()
    gram = observe(tmp_path, LatentsCapture(dtype="fp16", every=4), path).gram()
    flat = torch.cat(path).flatten(1).double()
    v = torch.cat([flat[:1], flat.diff(dim=0)])
    assert np.allclose(gram, (v @ v.T).numpy(), rtol=1e-12, atol=1e-10)
    assert not (tmp_path / "scratch").exists()


def test_values_beyond_fp16_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NumericalError, match="dtype: fp32"):
        observe(tmp_path, LatentsCapture(dtype="fp16"), random_path(scale=1e5))
    (tmp_path / "b").mkdir()
    observe(tmp_path / "b", LatentsCapture(dtype="fp32"), random_path(scale=1e5)).close()
    assert not (tmp_path / "b" / "scratch").exists()


def test_first_and_last_states_are_always_kept() -> None:
    assert stored_states(1, 5) == (0,)
    assert stored_states(2, 5) == (0, 1)
    assert stored_states(11, 5) == (0, 5, 10)
    assert stored_states(12, 5) == (0, 5, 10, 11)
