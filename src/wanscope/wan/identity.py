"""What the weights are, as a hash: so that a take's id says which weights made it, wherever the files lie.

Files up to `WHOLE_BYTES` are hashed whole. Of a larger file the hash covers its size, its first MiB (a safetensors or
GGUF header lies there, with the name, type and shape of every tensor), its last MiB and `SAMPLES` blocks of `BLOCK`
bytes spread evenly: 28 GB are then told apart in under a second. Two files that differ only between the sampled
blocks would share a hash; a retrained, merged or requantised model does not. A component is the hash of its files'
hashes, sorted, and of its config without names and versions; so renaming or moving files changes nothing, and
sharding them otherwise does.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from wanscope.errors import ModelError

if TYPE_CHECKING:
    from torch import nn

WHOLE_BYTES = 64 << 20
BLOCK = 64 << 10
SAMPLES = 256
EDGE = 1 << 20
TOKENIZER_FILES = ("tokenizer.json", "spiece.model", "tokenizer_config.json")


def file_hash(path: Path) -> str:
    """SHA-256 in hex of a file's content, sampled beyond `WHOLE_BYTES`."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= WHOLE_BYTES:
            return hashlib.file_digest(file, "sha256").hexdigest()
        digest = hashlib.sha256(f"sampled {size}\n".encode())
        digest.update(file.read(EDGE))
        for i in range(1, SAMPLES + 1):
            file.seek(EDGE + (size - 2 * EDGE - BLOCK) * i // (SAMPLES + 1))
            digest.update(file.read(BLOCK))
        file.seek(size - EDGE)
        digest.update(file.read(EDGE))
    return digest.hexdigest()


def files_hash(paths: list[Path], config: dict | None = None) -> str:
    """SHA-256 in hex of a component: its files in any order, and its config."""
    if len(paths) == 1 and config is None:
        return file_hash(paths[0])
    parts = sorted(file_hash(path) for path in paths)
    if config is not None:
        parts.append(json.dumps({k: v for k, v in sorted(config.items()) if not k.startswith("_")}, sort_keys=True))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def folder_hash(folder: Path) -> str:
    """SHA-256 in hex of one component folder in diffusers' layout."""
    weights = sorted(folder.glob("*.safetensors"))
    config = folder / "config.json"
    if weights:
        return files_hash(weights, json.loads(config.read_text()) if config.exists() else {})
    files = [folder / name for name in TOKENIZER_FILES if (folder / name).exists()]
    if not files:
        raise ModelError(f"{folder} holds no weights", "there is no .safetensors file and no tokenizer in it")
    return files_hash(files, {})


def module_hash(module: nn.Module) -> str:
    """SHA-256 in hex of a module in memory: names, types, shapes and all values of its parameters and buffers."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
