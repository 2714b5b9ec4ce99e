"""Captures a path's states while it is sampled, its Gram matrix, and on request the prediction of each step.

States go to `latents.zarr` (see arrays.py) as fp16 or fp32: every n-th one, always including the first and the last.
The Gram matrix is computed from the loop's own fp32 latents, whatever is stored (see path_gram.py).

Shape suffixes: K stored states, C channels, T latent frames, h and w latent height and width.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from wanscope.capture.arrays import DTYPES, create_array
from wanscope.capture.moments import Observer, StepState
from wanscope.capture.path_gram import PathGram
from wanscope.errors import NumericalError
from wanscope.recipe import LatentsCapture

if TYPE_CHECKING:
    import zarr
    from torch import Tensor


def stored_states(states: int, every: int) -> tuple[int, ...]:
    """Return the indices of the states that are kept: every n-th, and the last."""
    return tuple(sorted({*range(0, states, every), states - 1}))


class LatentsObserver(Observer):
    """Writes a run's states to `folder` and collects them for their Gram matrix in the file `scratch`.

    After the run `gram()` returns the float64 matrix [S + 1, S + 1] and removes the scratch file; `states` are the
    indices of the stored states. For one run only.
    """

    def __init__(self, folder: Path, scratch: Path, spec: LatentsCapture) -> None:
        self.folder, self.spec = folder, spec
        self.states: tuple[int, ...] = ()
        self._path = PathGram(scratch)
        self._array: zarr.Array | None = None

    def start(self, latents: Tensor, sigmas: tuple[float, ...]) -> None:
        """Create the array and keep the first state: latents float32 [1, C, T, h, w]."""
        self.states = stored_states(len(sigmas), self.spec.every)
        shape_CThw = tuple(latents.shape[1:])
        frame_CThw = (shape_CThw[0], 1, *shape_CThw[2:])
        attributes = {"states": list(self.states), "sigmas": [sigmas[k] for k in self.states]}
        self._array = create_array(
            self.folder, (len(self.states), *shape_CThw), frame_CThw, self.spec.dtype, attributes
        )
        self._keep(latents)

    def step(self, state: StepState) -> None:
        """Keep the state after a step."""
        self._keep(state.latents)

    def gram(self) -> np.ndarray:
        """Return the inner products of x_0 and the increments, float64 [S + 1, S + 1]."""
        with self._path as path:
            return path.matrix()

    def close(self) -> None:
        """Remove the scratch file; also to be called after a run that failed."""
        self._path.close()

    def _keep(self, latents: Tensor) -> None:
        assert self._array is not None
        state_CThw = latents[0].detach().float().cpu().numpy()
        index = self._path.count
        self._path.add(state_CThw)
        if index in self.states:
            stored_CThw = _to_stored_dtype(state_CThw, self.spec.dtype, f"the latents of state {index}", "latents")
            self._array[self.states.index(index)] = stored_CThw


class CleanObserver(Observer):
    """Writes the clean latents that each step predicts to `folder`: x - sigma * velocity at its first evaluation.

    `steps` are the stored steps, numbered by the schedule: every n-th of the run and its last.
    """

    def __init__(self, folder: Path, spec: LatentsCapture) -> None:
        self.folder, self.spec = folder, spec
        self.steps: tuple[int, ...] = ()
        self._sigmas: tuple[float, ...] = ()
        self._array: zarr.Array | None = None

    def start(self, latents: Tensor, sigmas: tuple[float, ...]) -> None:
        """Remember the noise levels; the latents, [1, C, T, h, w], are not needed."""
        self._sigmas = sigmas

    def step(self, state: StepState) -> None:
        """Store the clean latents of a step if it is one of `steps`. Raises NumericalError if fp16 cannot hold them."""
        if self._array is None:
            self._begin(state)
        assert self._array is not None and state.denoised is not None
        if state.step in self.steps:
            clean_CThw = state.denoised[0].detach().float().cpu().numpy()
            stored_CThw = _to_stored_dtype(clean_CThw, self.spec.dtype, f"the clean latents of step {state.step}", "x0")
            self._array[self.steps.index(state.step)] = stored_CThw

    def _begin(self, state: StepState) -> None:
        first, count = state.step, len(self._sigmas) - 1
        self.steps = tuple(first + k for k in stored_states(count, self.spec.every))
        _, C, T, h, w = state.latents.shape
        attributes = {"steps": list(self.steps), "sigmas": [self._sigmas[step - first] for step in self.steps]}
        self._array = create_array(
            self.folder, (len(self.steps), C, T, h, w), (C, 1, h, w), self.spec.dtype, attributes
        )


def _to_stored_dtype(values: np.ndarray, dtype: str, what: str, key: str) -> np.ndarray:
    """Return the values as stored. Raises NumericalError where fp16 cannot hold them."""
    with np.errstate(over="ignore"):  # reported below, with the numbers
        stored = values.astype(DTYPES[dtype])
    if not np.isfinite(stored).all():
        raise NumericalError(
            f"{what} do not fit {dtype}",
            f"their largest value is {np.abs(values).max():.3g}, and fp16 goes up to 65504",
            f"capture: {{{key}: {{dtype: fp32}}}}",
        )
    return stored
