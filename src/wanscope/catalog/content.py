"""A token matrix as bytes: trimmed to its real tokens, addressed by content, and written to a separate file.

    <key>.emb    8 bytes "WANSEMB1", 4 bytes length of the header (little-endian), the header (JSON),
                 the mean token scaled to length 1 (fp16 [dim]), and the values: zstd over byte planes

Byte planes: the first bytes of all values, then the second bytes and so on; exponents are adjacent and compress well.
The key covers shape, dtype, values, model, encoder and space, so reading a file back verifies all of it.

Shape suffixes: L real tokens, D dimension, U bytes.
"""

from __future__ import annotations

import hashlib
import json
import struct
import sys
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from wanscope.errors import CatalogDamaged, RecipeError

if TYPE_CHECKING:
    from torch import Tensor

MAGIC = b"WANSEMB1"
LEVEL = 1  # zstd; higher levels gain less than 1% on noise
# Matches in byte planes are coincidences: searching for fewer of them is faster and makes smaller files.
SEARCH = {"hash_log": 6, "min_match": 7}
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


@dataclass(frozen=True)
class Header:
    """The metadata of a file. `prompt` and `source` are those it was first stored with."""

    model: str = ""
    encoder: str = ""
    space: str = "text"
    prompt: str | None = None
    source: str = "python"
    created: str = ""


def pack(tokens: Tokens, header: Header) -> bytes:
    """Return the bytes of the file."""
    import zstandard

    unit_D, norm = tokens.pooled
    facts = {
        "dtype": tokens.dtype,
        "tokens": tokens.tokens,
        "dim": tokens.dim,
        "norm": norm,
        **{name: value for name, value in header.__dict__.items() if value not in ("", None)},
    }
    text = json.dumps(facts, ensure_ascii=False).encode()
    how = zstandard.ZstdCompressionParameters.from_level(LEVEL, write_checksum=True, **SEARCH)
    packed = zstandard.ZstdCompressor(compression_params=how).compress(_planes(tokens).data)
    return b"".join((MAGIC, struct.pack("<I", len(text)), text, unit_D.astype("<f2").tobytes(), packed))


def _planes(tokens: Tokens) -> np.ndarray:
    """Return uint8 [bytes per value, values]: the first bytes of all values, the second bytes of all, and so on."""
    width = WIDTHS[tokens.dtype]
    values = np.frombuffer(tokens.data, f"<u{width}")
    planes = np.empty((width, len(values)), np.uint8)
    for byte in range(width):
        np.right_shift(values, 8 * byte, out=planes[byte], casting="unsafe")
    return planes


def read_head(data: bytes, name: str) -> tuple[dict[str, Any], int]:
    """Return the header in the beginning of a file, and where it ends. Raises CatalogDamaged where it is not valid."""
    try:
        if data[:8] != MAGIC:
            raise ValueError("it does not begin like the file of an embedding")
        end = 12 + struct.unpack("<I", data[8:12])[0]
        facts = json.loads(data[12:end])
        if facts["dtype"] not in WIDTHS or facts["tokens"] < 0 or facts["dim"] < 1:
            raise ValueError("its header does not describe a matrix")
    except (ValueError, KeyError, TypeError, struct.error) as error:
        raise _damage(name, str(error)) from None
    return facts, end


def unpack(data: bytes, name: str, key: str | None = None) -> tuple[Tokens, Header, float]:
    """Return a file's values, header and length of the mean token.

    key: the key to verify. Raises CatalogDamaged where the file is not valid or does not have that key.
    """
    import zstandard

    facts, end = read_head(data, name)
    size = facts["tokens"] * facts["dim"] * WIDTHS[facts["dtype"]]
    try:
        body = zstandard.ZstdDecompressor().decompress(data[end + 2 * facts["dim"] :], max_output_size=size)
    except zstandard.ZstdError as error:
        raise _damage(name, str(error)) from None
    if len(body) != size:
        raise _damage(name, f"it contains {len(body)} bytes instead of {size}")
    planes = np.frombuffer(body, np.uint8).reshape(WIDTHS[facts["dtype"]], -1)
    tokens = Tokens(facts["dtype"], facts["tokens"], facts["dim"], np.ascontiguousarray(planes.T).tobytes())
    header = Header(**{f: facts[f] for f in Header.__dataclass_fields__ if f in facts})
    if key is not None and tokens.key(header.model, header.encoder, header.space) != key:
        raise _damage(name, "its content does not match its key")
    return tokens, header, float(facts["norm"])


def _damage(name: str, why: str) -> CatalogDamaged:
    return CatalogDamaged(f"{name} is damaged", why, "remove that file and store the embedding again")


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
