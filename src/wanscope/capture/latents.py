"""Keeps a path's states while it is sampled, and its Gram matrix.

States go to `latents.zarr` (see arrays.py) as fp16 or fp32, every n-th of them and always the first and the last. The
Gram is of the loop's own fp32 latents, whatever is stored (see gram.py).

Shape suffixes: K stored states, C channels, T latent frames, h and w latent height and width.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from wanscope.capture.arrays import DTYPES, create_array
from wanscope.capture.base import Observer, StepState
from wanscope.capture.gram import PathGram
from wanscope.errors import NumericalError
from wanscope.recipe import LatentsCapture

if TYPE_CHECKING:
    import zarr
    from torch import Tensor


def stored_states(states: int, every: int) -> tuple[int, ...]:
    """Indices of the states that are kept: every n-th, and the last."""
    return tuple(sorted({*range(0, states, every), states - 1}))


class LatentsObserver(Observer):
    """Writes a run's states to `folder` and accumulates their Gram in the file `scratch`.

    After the run `gram()` gives the float64 matrix [S + 1, S + 1] and removes the scratch file; `states` are the
    indices of what was stored. One run each.
    """

    def __init__(self, folder: Path, scratch: Path, spec: LatentsCapture) -> None:
        self.folder, self.spec = folder, spec
        self.states: tuple[int, ...] = ()
        self._path = PathGram(scratch)
        self._array: zarr.Array | None = None

    def start(self, latents: Tensor, sigmas: tuple[float, ...]) -> None:
        self.states = stored_states(len(sigmas), self.spec.every)
        shape_CThw = tuple(latents.shape[1:])
        frame_CThw = (shape_CThw[0], 1, *shape_CThw[2:])
        attributes = {"states": list(self.states), "sigmas": [sigmas[k] for k in self.states]}
        self._array = create_array(
            self.folder, (len(self.states), *shape_CThw), frame_CThw, self.spec.dtype, attributes
        )
        self._keep(latents)

    def step(self, state: StepState) -> None:
        self._keep(state.latents)

    def gram(self) -> np.ndarray:
        """Inner products of x_0 and the increments, float64 [S + 1, S + 1]."""
        with self._path as path:
            return path.matrix()

    def close(self) -> None:
        """Let go of the scratch file, also after a run that failed."""
        self._path.close()

    def _keep(self, latents: Tensor) -> None:
        assert self._array is not None
        state_CThw = latents[0].detach().float().cpu().numpy()
        index = self._path.count
        self._path.add(state_CThw)
        if index in self.states:
            with np.errstate(over="ignore"):  # said below, with the numbers
                stored_CThw = state_CThw.astype(DTYPES[self.spec.dtype])
            if not np.isfinite(stored_CThw).all():
                raise NumericalError(
                    f"the latents of state {index} do not fit {self.spec.dtype}",
                    f"their largest value is {np.abs(state_CThw).max():.3g}, and fp16 ends at 65504",
                    "capture: {latents: {dtype: fp32}}",
                )
            self._array[self.states.index(index)] = stored_CThw
