"""A token matrix as bytes: cut to its real tokens, keyed by content, and written as a file of its own.

    <key>.emb    8 bytes "WANSEMB1", 4 bytes length of the header (little-endian), the header (JSON),
                 the mean token scaled to length 1 (fp16 [dim]), and the values: zstd over byte planes

Byte planes: the first bytes of all values, then the second bytes and so on; exponents lie together and compress. The
key covers shape, dtype, values, model, encoder and space, so reading a file back checks it whole.

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
LEVEL = 1  # zstd; higher ones gain under 1% on noise
# Matches in planes of bytes are accidents: looking for few of them is faster, and leaves smaller files.
SEARCH = {"hash_log": 6, "min_match": 7}
POOL_VALUES = 1 << 15  # widened at once, so that they stay in the processor's cache
WIDTHS = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
SPACES = ("text", "context", "hidden")


@dataclass(frozen=True)
class Tokens:
    """A token matrix [L, D] without the rows of zeros at its end; `data` is little-endian, row by row."""

    dtype: str
    tokens: int
    dim: int
    data: bytes = field(repr=False)

    @classmethod
    def of(cls, values: Any) -> Tokens:
        """From a torch tensor or numpy array [L, D] or [1, L, D]. RecipeError for other shapes or types, NaN, Inf."""
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
        """SHA-256 of the content together with where it is from."""
        where = json.dumps([self.content, model, encoder, space], ensure_ascii=False)
        return hashlib.sha256(where.encode()).hexdigest()

    def array(self) -> np.ndarray:
        """[L, D], exactly: bfloat16 as float32, all else in its own dtype."""
        raw = np.frombuffer(self.data, _stored(self.dtype)).reshape(self.tokens, self.dim)
        return _widened(raw, self.dtype)

    def tensor(self, length: int | None = None) -> Tensor:
        """[L, D] in its own dtype on the CPU; with `length`, rows of zeros up to there."""
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
        """The mean token as a direction, float32 [D], and its length. Zeros where there is none."""
        if not self.tokens:
            return np.zeros(self.dim, np.float32), 0.0
        raw_LD = np.frombuffer(self.data, _stored(self.dtype)).reshape(self.tokens, self.dim)
        # Sums and squares of the largest float64 numbers would not fit; those of all narrower types do.
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
    """What a file says beside its values. `prompt` and `source` are those it was first stored with."""

    model: str = ""
    encoder: str = ""
    space: str = "text"
    prompt: str | None = None
    source: str = "python"
    created: str = ""


def pack(tokens: Tokens, header: Header) -> bytes:
    """The file's bytes."""
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
    """[bytes of a value, values]: the first bytes of all, the second bytes of all, and so on."""
    width = WIDTHS[tokens.dtype]
    values = np.frombuffer(tokens.data, f"<u{width}")
    planes = np.empty((width, len(values)), np.uint8)
    for place in range(width):
        np.right_shift(values, 8 * place, out=planes[place], casting="unsafe")
    return planes


def read_head(data: bytes, name: str) -> tuple[dict[str, Any], int]:
    """The header and where it ends, from a file's beginning. CatalogDamaged when it is not as written."""
    try:
        if data[:8] != MAGIC:
            raise ValueError("it does not begin as an embedding's file does")
        end = 12 + struct.unpack("<I", data[8:12])[0]
        facts = json.loads(data[12:end])
        if facts["dtype"] not in WIDTHS or facts["tokens"] < 0 or facts["dim"] < 1:
            raise ValueError("its header names no such matrix")
    except (ValueError, KeyError, TypeError, struct.error) as error:
        raise _damage(name, str(error)) from None
    return facts, end


def unpack(data: bytes, name: str, key: str | None = None) -> tuple[Tokens, Header, float]:
    """Values, header and length of the mean token of a file. CatalogDamaged unless they have `key`, where given."""
    import zstandard

    facts, end = read_head(data, name)
    size = facts["tokens"] * facts["dim"] * WIDTHS[facts["dtype"]]
    try:
        body = zstandard.ZstdDecompressor().decompress(data[end + 2 * facts["dim"] :], max_output_size=size)
    except zstandard.ZstdError as error:
        raise _damage(name, str(error)) from None
    if len(body) != size:
        raise _damage(name, f"it holds {len(body)} bytes instead of {size}")
    planes = np.frombuffer(body, np.uint8).reshape(WIDTHS[facts["dtype"]], -1)
    tokens = Tokens(facts["dtype"], facts["tokens"], facts["dim"], np.ascontiguousarray(planes.T).tobytes())
    header = Header(**{f: facts[f] for f in Header.__dataclass_fields__ if f in facts})
    if key is not None and tokens.key(header.model, header.encoder, header.space) != key:
        raise _damage(name, "its content does not have its key")
    return tokens, header, float(facts["norm"])


def _damage(name: str, why: str) -> CatalogDamaged:
    return CatalogDamaged(f"{name} is damaged", why, "remove that file and store the embedding again")


def _stored(dtype: str) -> str:
    return {"bfloat16": "<u2", "float16": "<f2", "float32": "<f4", "float64": "<f8"}[dtype]


def _widened(raw: np.ndarray, dtype: str) -> np.ndarray:
    return (raw.astype(np.uint32) << 16).view(np.float32) if dtype == "bfloat16" else raw


def _raw(values: Any) -> tuple[str, np.ndarray]:
    """The dtype's name, and the values in it, little-endian; bfloat16 as its 16 bits."""
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
        f"an embedding of {name} cannot be stored", f"values are kept as they are, in {', '.join(WIDTHS)}", ".float()"
    )
