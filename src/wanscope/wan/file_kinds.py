"""What a file that cannot be read as weights is, so that the error says it; and the shards of a sharded file. No torch.

Only a file that ends too early is worth downloading again.
"""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path

from wanscope.errors import ModelError
from wanscope.wan.identity import shards

SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors")
HEADER_LENGTH_BYTES = 8
LARGEST_HEADER_BYTES = 100_000_000  # the limit of the safetensors library
STARTS = (
    (b"GGUF", "a GGUF file; rename it so that it ends in .gguf"),
    (b"PK\x03\x04", "a zip file, which pickled PyTorch weights are; use the same weights as safetensors"),
    (b"\x80\x02", "a pickle, which can run any code when it is loaded; use the same weights as safetensors"),
    (b"version https:", "a pointer of Git LFS instead of the file; run `git lfs pull` in its repository"),
    (b"<", "a web page; the download needs a login, or the address was that of the page"),
)


def unreadable(path: Path, reason: object) -> ModelError:
    """Return the error for a file that the safetensors or gguf library could not read. reason: its message."""
    with path.open("rb") as file:
        start = file.read(64)
    size = path.stat().st_size
    if size == 0:
        return ModelError(f"{path} is empty", "the download did not finish; download it again")
    found = next((kind for begin, kind in STARTS if start.lstrip().startswith(begin)), None)
    gguf = path.suffix.lower() == ".gguf"
    if found is not None and not (gguf and start.startswith(b"GGUF")):
        return ModelError(f"{path} is not a weight file of the kind its name says", f"it is {found}")
    if gguf:
        if not start.startswith(b"GGUF"):
            return ModelError(f"{path} is not a GGUF file", "it does not begin like one")
        return ModelError(f"{path} cannot be read", f"it is not a complete GGUF file ({reason}); download it again")
    expected = _expected_bytes(path)
    if expected is None:
        return ModelError(f"{path} is not a safetensors file", f"it does not begin like one ({reason})")
    if size < expected:
        return ModelError(f"{path} is incomplete", f"it has {size:,} of {expected:,} bytes; download it again")
    return ModelError(f"{path} cannot be read", f"its header does not describe its content ({reason})")


def _expected_bytes(path: Path) -> int | None:
    """Return the size in bytes that a safetensors file's header promises, or None if it has no such header."""
    with path.open("rb") as file:
        start = file.read(HEADER_LENGTH_BYTES)
        if len(start) < HEADER_LENGTH_BYTES:
            return None
        (length,) = struct.unpack("<Q", start)
        if length > LARGEST_HEADER_BYTES:
            return None
        text = file.read(length)
    if not text.startswith(b"{"):
        return None
    if len(text) < length:
        return HEADER_LENGTH_BYTES + length
    try:
        header = json.loads(text)
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        return HEADER_LENGTH_BYTES + length + max(ends, default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        return None


def shard_files(path: Path) -> list[Path]:
    """Return the files that make up one set of weights: the path itself, or all shards of the set it belongs to.

    path: a file, one of several shards, or their index. Raises ModelError, which names what is missing, for a set that
    is not complete.
    """
    if path.name.endswith(".safetensors.index.json"):
        files = [path.parent / name for name in shards(path)]
        what = str(path)
    else:
        match = SHARD.fullmatch(path.name)
        if match is None:
            return [path]
        count = int(match["count"])
        files = [path.with_name(f"{match['stem']}-{n:05d}-of-{count:05d}.safetensors") for n in range(1, count + 1)]
        what = f"{path} is shard {int(match['number'])} of {count}, and"
    gone = [file.name for file in files if not file.is_file()]
    if gone:
        raise ModelError(
            f"{what} {len(gone)} of {len(files)} files are missing" if "shard" in what else f"{what} is not complete",
            f"there is no {', '.join(gone[:3])}" + (f" and {len(gone) - 3} more" if len(gone) > 3 else ""),
        )
    return files
