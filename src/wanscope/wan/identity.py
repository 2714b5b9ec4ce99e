"""Hashes of weights, which identify the weights that made a take, wherever the files are stored.

Files up to `WHOLE_BYTES` are hashed completely. For a larger file, the hash covers its size, its first MiB (which
contains the safetensors or GGUF header with the name, type and shape of every tensor), its last MiB, and `SAMPLES`
evenly spaced blocks of `BLOCK` bytes, so that 28 GB are hashed in under a second. Two files that differ only between
the sampled blocks have the same hash; a retrained, merged or requantized model does not. The hash of a component is
the hash of its files' sorted hashes and of its config without names and versions, so renaming or moving files changes
nothing, but sharding them differently does.
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
    """Return the SHA-256 of a file's content in hex; files larger than `WHOLE_BYTES` are sampled."""
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
    """Return the SHA-256 of a component in hex, from its files in any order and its config."""
    if len(paths) == 1 and config is None:
        return file_hash(paths[0])
    parts = sorted(file_hash(path) for path in paths)
    if config is not None:
        parts.append(json.dumps({k: v for k, v in sorted(config.items()) if not k.startswith("_")}, sort_keys=True))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def weight_files(folder: Path) -> list[Path]:
    """Return the weight files in a component's folder that loading reads, sorted; other files do not count.

    These are the shards that the index names, or the single file with the library's name: transformers reads a single
    `model.safetensors` first, and diffusers the index of `diffusion_pytorch_model` first. Without either, all
    safetensors files. Raises ModelError for an index that cannot be read.
    """
    for stem, index_first in (("diffusion_pytorch_model", True), ("model", False)):
        single, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
        if index.is_file() and (index_first or not single.is_file()):
            return [folder / name for name in shards(index)]
        if single.is_file():
            return [single]
    return sorted(folder.glob("*.safetensors"))


def shards(index: Path) -> list[str]:
    """Return the names of the files that an index (`*.safetensors.index.json`) lists, sorted.

    Raises ModelError for an index that cannot be read or that names files outside its folder.
    """
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{index} cannot be read", f"it is not an index of weight files ({error})") from None
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise ModelError(f"{index} cannot be used", f"it names {name!r}, which is not a file in its folder")
    return names


def folder_hash(folder: Path) -> str:
    """Return the SHA-256 of a component's folder in diffusers' layout, in hex.

    Raises ModelError for a folder without weights.
    """
    weights = weight_files(folder)
    config = folder / "config.json"
    if weights:
        return files_hash(weights, json.loads(config.read_text()) if config.exists() else {})
    files = [folder / name for name in TOKENIZER_FILES if (folder / name).exists()]
    if not files:
        raise ModelError(f"{folder} contains no weights", "there is no .safetensors file and no tokenizer in it")
    return files_hash(files, {})


def module_hash(module: nn.Module) -> str:
    """Return the SHA-256 of a module in memory, in hex.

    It covers the names, dtypes, shapes and all values of parameters and buffers.
    """
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
