"""The Gram matrix of a denoising path's start and increments, in float64, from the loop's own fp32 latents.

    G[i, j] = <v_i, v_j>,   v_0 = x_0,   v_k = x_k - x_(k-1)        (S + 1 vectors for S steps)

Lengths, angles, speeds, path length, PCA and volumes of the path are algebra on G. It is built from increments rather
than states: a state is three orders of magnitude longer than a late increment, so that differences of fp32 inner
products of states would lose the acceleration completely.

The states go to a scratch file as they come and are read back once, in slices, so memory is bounded by
`SLICE_BYTES` whatever the resolution. The difference of two fp32 states is computed in float64, which rounds it far
below fp32 precision. Plain reads and writes are used: a memory map on a full disk kills the process instead of raising.

Shape suffixes: K states, N = C * T * h * w values per state, n values of a slice, S steps.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

SLICE_BYTES = 64 << 20


def increments(states_KN: np.ndarray) -> np.ndarray:
    """Return x_0 and the differences between consecutive states, float64 [K, N].

    states_KN: [K, ...], with any axes after the first.
    """
    flat = np.asarray(states_KN, dtype=np.float64).reshape(len(states_KN), -1)
    return np.diff(flat, axis=0, prepend=0.0)


class PathGram:
    """Takes a path state by state; `matrix()` returns its Gram matrix.

    path = PathGram(scratch_file)
    for state in states: path.add(state)     # fp32, all of one shape
    path.matrix()                            # float64 [S + 1, S + 1]

    `close()` removes the scratch file; so does leaving it as a context manager.
    """

    def __init__(self, scratch: Path, slice_bytes: int = SLICE_BYTES) -> None:
        self.scratch, self.slice_bytes = scratch, slice_bytes
        self.count = 0
        self.values = 0
        self._file = scratch.open("wb+")

    def add(self, state: np.ndarray) -> None:
        """Add the next state: float32, of any shape, with N values.

        Raises TypeError for another dtype, ValueError for another number of values.
        """
        flat_N = np.ascontiguousarray(state, dtype="<f4").reshape(-1)
        if state.dtype != np.float32:
            raise TypeError(f"the path's states are float32, not {state.dtype}")
        if self.count and flat_N.size != self.values:
            raise ValueError(f"state {self.count} has {flat_N.size} values, the earlier ones have {self.values}")
        self._file.seek(self.count * flat_N.nbytes)
        self._file.write(flat_N.data)
        self.count, self.values = self.count + 1, flat_N.size

    def matrix(self) -> np.ndarray:
        """Return the Gram matrix of x_0 and the increments so far, float64 [count, count]."""
        self._file.flush()
        gram = np.zeros((self.count, self.count))
        # A slice is read as fp32, widened and differenced: 4 + 8 + 8 bytes per value.
        width = max(1, self.slice_bytes // (20 * max(1, self.count)))
        for start in range(0, self.values, width):
            stop = min(start + width, self.values)
            slice_Kn = np.empty((self.count, stop - start), dtype="<f4")
            for k in range(self.count):
                self._file.seek((k * self.values + start) * 4)
                slice_Kn[k] = np.frombuffer(self._file.read((stop - start) * 4), dtype="<f4")
            v_Kn = increments(slice_Kn)
            gram += v_Kn @ v_Kn.T
        return (gram + gram.T) / 2

    def close(self) -> None:
        """Close and remove the scratch file."""
        self._file.close()
        self.scratch.unlink(missing_ok=True)

    def __enter__(self) -> PathGram:
        return self

    def __exit__(self, *problem: object) -> None:
        self.close()
