"""The file of one embedding: a header, the mean token, and the values, each under a checksum.

    <key>.emb    8 bytes "WANSEMB2"; 16 bytes: BLAKE2b of what follows up to the values;
                 4 bytes each, little-endian: lengths of the header and of the mean token;
                 16 bytes: BLAKE2b of the values as they are stored;
                 the header (JSON); the mean token scaled to length 1 (fp16 [dim]);
                 and the values: zstd over byte planes

Byte planes: the first bytes of all values, then the second bytes and so on; exponents are adjacent and compress well.
What the values decompress to is verified by the key. Version 0.1 wrote "WANSEMB1", with the header's length alone after
it and no checksum of header and mean token: of such a file, the mean token is computed again from the values and
compared.

A file may come from somebody else. Nothing in it is believed before it is checked, and no memory is taken for what the
header only claims.

Shape suffix: D dimension.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np

from wanscope.catalog.content import SPACES, WIDTHS, Tokens
from wanscope.errors import CatalogDamaged, RecipeError
from wanscope.spec.strict_json import read_json

MAGIC, OLD_MAGIC = b"WANSEMB2", b"WANSEMB1"
PREFIX, OLD_PREFIX = struct.Struct("<8s16sII16s"), struct.Struct("<8sI")
DIGEST_BYTES = 16
LEVEL = 1  # zstd; higher levels gain less than 1% on noise
# Matches in byte planes are coincidences: searching for fewer of them is faster and makes smaller files.
SEARCH = {"hash_log": 6, "min_match": 7}
LONGEST_HEADER = 1 << 24
# The most bytes of values that a file may claim: 64 MiB, which exceeds every text, or this many times its own size.
# Activations shrink to about 0.8 of theirs; what shrinks to a hundredth was made to fill the memory.
FREE_BYTES, MOST_RATIO = 1 << 26, 100
HALF_STEP = 0.501  # of fp16: as far as a rounded number is from its exact one, which another CPU may compute otherwise


@dataclass(frozen=True)
class Header:
    """The metadata of a file. `prompt` and `source` are those it was first stored with."""

    model: str = ""
    encoder: str = ""
    space: str = "text"
    prompt: str | None = None
    source: str = "python"
    created: str = ""


@dataclass(frozen=True)
class Head:
    """The beginning of a file: what comes before the values.

    unit_D: the mean token as a unit vector, fp16; norm: its length. sealed: the checksum of the stored values, where
    one covers all of this too; b"" in a file of version 0.1. end: the position of the values in the file.
    """

    dtype: str
    tokens: int
    dim: int
    norm: float
    header: Header
    unit_D: np.ndarray
    sealed: bytes
    end: int

    @property
    def bytes(self) -> int:
        """The size of the values in bytes, as the header claims it."""
        return self.tokens * self.dim * WIDTHS[self.dtype]


def pack(tokens: Tokens, header: Header) -> bytes:
    """Return the bytes of the file. Raises RecipeError where it could not be read again."""
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
    if len(text) > LONGEST_HEADER:
        raise RecipeError(
            f"an embedding with {len(text)} bytes of text cannot be stored", f"{LONGEST_HEADER} bytes are the most"
        )
    how = zstandard.ZstdCompressionParameters.from_level(LEVEL, write_checksum=True, **SEARCH)
    packed = zstandard.ZstdCompressor(compression_params=how).compress(_planes(tokens).data)
    size = len(tokens.data)
    if size > most_bytes(len(packed)):
        raise RecipeError(
            f"an embedding of {size} bytes that shrinks to {len(packed)} cannot be stored",
            f"above {FREE_BYTES} bytes, a file that holds {MOST_RATIO} times its own size is not read again",
        )
    mean = unit_D.astype("<f2").tobytes()
    return sealed(text, mean, packed)


def most_bytes(file_bytes: int) -> int:
    """Return the most bytes of values that are read from a file of this size."""
    return max(FREE_BYTES, MOST_RATIO * file_bytes)


def sealed(text: bytes, mean: bytes, packed: bytes) -> bytes:
    """Return the bytes of a file with this header, mean token and stored values, with their checksums."""
    rest = b"".join((struct.pack("<II", len(text), len(mean)), _digest(packed), text, mean))
    return b"".join((MAGIC, _digest(rest), rest, packed))


def _digest(data: bytes | memoryview) -> bytes:
    return blake2b(data, digest_size=DIGEST_BYTES).digest()


def _planes(tokens: Tokens) -> np.ndarray:
    """Return uint8 [bytes per value, values]: the first bytes of all values, the second bytes of all, and so on."""
    width = WIDTHS[tokens.dtype]
    values = np.frombuffer(tokens.data, f"<u{width}")
    planes = np.empty((width, len(values)), np.uint8)
    for byte in range(width):
        np.right_shift(values, 8 * byte, out=planes[byte], casting="unsafe")
    return planes


def read_head(more: Callable[[int], bytes], name: str, size: int) -> Head:
    """Return the beginning of a file, verified as far as its version allows.

    more: returns at least this many bytes from the beginning of the file, or the whole of a shorter one. size: of the
    file. Raises CatalogDamaged where it is not valid.
    """
    try:
        return _read_head(more, size)
    except (ValueError, KeyError, TypeError, struct.error, RecursionError) as error:
        raise damage(name, str(error) or type(error).__name__) from None


def _read_head(more: Callable[[int], bytes], size: int) -> Head:
    data = more(PREFIX.size)
    if data[:8] == MAGIC:
        _, digest, length, mean_bytes, values = PREFIX.unpack_from(data)
        start = PREFIX.size + length
    elif data[:8] == OLD_MAGIC:
        _, length = OLD_PREFIX.unpack_from(data)
        start, digest, mean_bytes, values = OLD_PREFIX.size + length, b"", 0, b""
    else:
        raise ValueError("it does not begin like the file of an embedding")
    if length > LONGEST_HEADER or start + mean_bytes > size:
        raise ValueError("its header would be longer than the file")
    data = more(start + mean_bytes)
    if digest and _digest(memoryview(data)[8 + DIGEST_BYTES : start + mean_bytes]) != digest:
        raise ValueError("its header or its mean token does not match their checksum")
    dtype, tokens, dim, norm, header = _checked(read_json(data[start - length : start]))
    end = start + 2 * dim
    if end > size or (digest and mean_bytes != 2 * dim):
        raise ValueError(f"its mean token does not have {dim} values")
    claimed = tokens * dim * WIDTHS[dtype]
    if claimed > most_bytes(size):
        raise ValueError(f"it has {size} bytes, and its header says {claimed} of values")
    unit_D = np.frombuffer(more(end), "<f2", dim, start)
    return Head(dtype, tokens, dim, norm, header, unit_D, values, end)


def _checked(facts: Any) -> tuple[str, int, int, float, Header]:
    """Return dtype, tokens, dim, norm and metadata. Raises ValueError where one is missing or absurd."""
    if not isinstance(facts, dict):
        raise ValueError("its header is not a mapping")
    if missing := [name for name in ("dtype", "tokens", "dim", "norm") if name not in facts]:
        raise ValueError(f"its header has no {missing[0]}")
    dtype, tokens, dim, norm = (facts[name] for name in ("dtype", "tokens", "dim", "norm"))
    if not isinstance(dtype, str) or dtype not in WIDTHS:
        raise ValueError("its header does not name a dtype")
    if type(tokens) is not int or type(dim) is not int or tokens < 0 or dim < 1:
        raise ValueError("its header does not describe a matrix")
    if type(norm) not in (int, float) or not 0 <= norm < math.inf:
        raise ValueError("the length of its mean token is not a length")
    kept = {name: facts[name] for name in Header.__dataclass_fields__ if name in facts}
    header = Header(**kept)
    if not all(isinstance(value, str) for value in kept.values()) or header.space not in SPACES:
        raise ValueError("its header does not name where it comes from")
    return dtype, tokens, dim, float(norm), header


def unpack(data: bytes, name: str, key: str | None = None) -> tuple[Tokens, Head]:
    """Return a file's values and its head, which is verified too: an old file's mean token by computing it again.

    key: the key to verify. Raises CatalogDamaged where the file is not valid or does not have that key.
    """
    head = read_head(lambda _: data, name, len(data))
    tokens = unpack_values(data, head, name, key)
    if not head.sealed and not _is_mean(head, tokens):
        raise damage(name, "its mean token is not that of its values")
    return tokens, head


def unpack_values(data: bytes, head: Head, name: str, key: str | None = None) -> Tokens:
    """Return a file's values, verified by the key alone."""
    import zstandard

    packed = memoryview(data)[head.end :]
    if head.sealed and _digest(packed) != head.sealed:
        raise damage(name, "its values do not match their checksum")
    try:
        claimed = zstandard.get_frame_parameters(packed).content_size
        # zstd takes the memory that its frame claims, whatever limit it is given
        if claimed != head.bytes:
            raise damage(name, f"its values would be {claimed} bytes, and its header says {head.bytes}")
        body = zstandard.ZstdDecompressor().decompress(packed, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise damage(name, str(error)) from None
    if len(body) != head.bytes:
        raise damage(name, f"it contains {len(body)} bytes instead of {head.bytes}")
    planes = np.frombuffer(body, np.uint8).reshape(WIDTHS[head.dtype], -1)
    tokens = Tokens(head.dtype, head.tokens, head.dim, np.ascontiguousarray(planes.T).tobytes())
    header = head.header
    if key is not None and tokens.key(header.model, header.encoder, header.space) != key:
        raise damage(name, "its content does not match its key")
    return tokens


def _is_mean(head: Head, tokens: Tokens) -> bool:
    unit_D, norm = tokens.pooled
    with np.errstate(invalid="ignore"):
        step_D = np.maximum(np.spacing(np.abs(head.unit_D)), np.spacing(np.abs(unit_D.astype("<f2"))))
        close_D = np.abs(head.unit_D.astype(np.float32) - unit_D) <= HALF_STEP * step_D.astype(np.float32)
    return bool(close_D.all()) and abs(head.norm - norm) <= 1e-12 * norm


def damage(name: str, why: str) -> CatalogDamaged:
    return CatalogDamaged(f"{name} is damaged", why, "remove that file and store the embedding again")
