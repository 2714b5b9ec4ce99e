"""A token matrix as bytes: trimmed to its real tokens and addressed by content.

The key covers shape, dtype, values, model, encoder and space, so whatever is read back is verified by it.

Shape suffixes: L real tokens, D dimension.
"""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from wanscope.errors import RecipeError

if TYPE_CHECKING:
    from torch import Tensor

POOL_VALUES = 1 << 15  # converted to float64 at a time, so that they stay in the processor's cache
WIDTHS = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
SPACES = ("text", "context", "hidden")


@dataclass(frozen=True)
class Tokens:
    """A token matrix [L, D] without the rows of zeros at its end; `data` is little-endian, in row-major order."""

    dtype: str
    tokens: int
    dim: int
    data: bytes = field(repr=False)

    @classmethod
    def of(cls, values: Any) -> Tokens:
        """Make one from a torch tensor or numpy array [L, D] or [1, L, D].

        Raises RecipeError for other shapes or dtypes, and for NaN or Inf.
        """
        if isinstance(values, Tokens):
            return values
        name, raw = _raw(values)
        if raw.ndim == 3 and raw.shape[0] == 1:
            raw = raw[0]
        if raw.ndim != 2 or raw.shape[1] == 0:
            raise RecipeError(
                f"an embedding of shape {list(raw.shape)} cannot be stored",
                "it should be a matrix [tokens, dimensions] of one prompt, with at least one dimension",
            )
        exact_LD = _widened(raw, name)
        if not np.isfinite(exact_LD).all():
            raise RecipeError(
                "an embedding with values that are not finite cannot be stored",
                f"{int((~np.isfinite(exact_LD)).sum())} of its values are NaN or Inf",
            )
        full = np.flatnonzero((exact_LD != 0).any(axis=1))
        count = int(full[-1]) + 1 if len(full) else 0
        return cls(name, count, raw.shape[1], np.ascontiguousarray(raw[:count]).tobytes())

    @cached_property
    def content(self) -> str:
        """SHA-256 of shape, dtype and values."""
        digest = hashlib.sha256(f"wanscope embedding 1\n{self.dtype} {self.tokens} {self.dim}\n".encode())
        digest.update(self.data)
        return digest.hexdigest()

    def key(self, model: str = "", encoder: str = "", space: str = "text") -> str:
        """Return the SHA-256 of the content together with its model, encoder and space."""
        where = json.dumps([self.content, model, encoder, space], ensure_ascii=False)
        return hashlib.sha256(where.encode()).hexdigest()

    def array(self) -> np.ndarray:
        """Return the exact values [L, D]: bfloat16 as float32, everything else in its own dtype."""
        raw = np.frombuffer(self.data, _stored(self.dtype)).reshape(self.tokens, self.dim)
        return _widened(raw, self.dtype)

    def tensor(self, length: int | None = None) -> Tensor:
        """Return the values [L, D] in their own dtype on the CPU; with `length`, padded with zeros to [length, D].

        Raises RecipeError where there are more tokens than `length`.
        """
        import torch

        out_LD = torch.zeros(max(length or 0, self.tokens), self.dim, dtype=getattr(torch, self.dtype))
        if self.tokens:
            flat = torch.frombuffer(bytearray(self.data), dtype=getattr(torch, self.dtype))
            out_LD[: self.tokens] = flat.view(self.tokens, self.dim)
        if length is not None and length < self.tokens:
            raise RecipeError(f"{self.tokens} tokens do not fit into {length}", "this embedding is longer")
        return out_LD

    @cached_property
    def pooled(self) -> tuple[np.ndarray, float]:
        """The mean token as a unit vector, float32 [D], and its length; zeros where there is no token."""
        if not self.tokens:
            return np.zeros(self.dim, np.float32), 0.0
        raw_LD = np.frombuffer(self.data, _stored(self.dtype)).reshape(self.tokens, self.dim)
        # Sums and squares of the largest float64 numbers would overflow; those of all narrower types do not.
        largest = float(np.abs(raw_LD).max()) if self.dtype == "float64" else 1.0
        sum_D = np.zeros(self.dim)
        step = max(1, POOL_VALUES // self.dim)
        for start in range(0, self.tokens, step):
            part = _widened(raw_LD[start : start + step], self.dtype).astype(np.float64)
            sum_D += (part if largest == 1 else part / largest).sum(axis=0)
        mean_D = sum_D / self.tokens
        length = float(np.linalg.norm(mean_D))
        if length < 1e-150:
            return np.zeros(self.dim, np.float32), 0.0
        return (mean_D / length).astype(np.float32), min(length * largest, sys.float_info.max)


def _stored(dtype: str) -> str:
    return {"bfloat16": "<u2", "float16": "<f2", "float32": "<f4", "float64": "<f8"}[dtype]


def _widened(raw: np.ndarray, dtype: str) -> np.ndarray:
    return (raw.astype(np.uint32) << 16).view(np.float32) if dtype == "bfloat16" else raw


def _raw(values: Any) -> tuple[str, np.ndarray]:
    """Return the dtype's name and the little-endian values in any shape; bfloat16 as uint16 bit patterns."""
    if type(values).__module__.partition(".")[0] == "torch" or hasattr(values, "detach"):
        import torch

        values = values.detach().cpu().contiguous()
        name = str(values.dtype).removeprefix("torch.")
        if name in WIDTHS:
            bits = values.view(torch.uint16) if name == "bfloat16" else values
            return name, bits.numpy().astype(_stored(name), copy=False)
    else:
        values = np.asarray(values)
        name = values.dtype.name
        if name in WIDTHS and name != "bfloat16":
            return name, values.astype(_stored(name), copy=False)
    raise RecipeError(
        f"an embedding of {name} cannot be stored", f"values are stored unchanged, in {', '.join(WIDTHS)}", ".float()"
    )
