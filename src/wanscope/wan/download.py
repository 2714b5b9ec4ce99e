"""Downloads model files from the Hugging Face hub. Size and destination are reported first; pickles are never loaded.

Files in the local cache are used without a network request.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from wanscope import events
from wanscope.errors import ModelError
from wanscope.wan.identity import shards

FILES = ("*.json", "*.safetensors", "*.model", "*.txt")
PARTS = ("transformer", "transformer_2", "vae", "text_encoder", "tokenizer", "scheduler")


def size(bytes_: float) -> str:
    """Return a number of bytes as text, such as `28.6 GB`."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if bytes_ >= scale:
            return f"{bytes_ / scale:.1f} {unit}"
    return f"{bytes_:.0f} bytes"


def missing(folder: Path, parts: tuple[str, ...] = ()) -> list[str]:
    """Return the files that a folder in diffusers' layout needs but does not have.

    parts: the components that are needed; () for all that model_index.json names.
    """
    index = folder / "model_index.json"
    if not index.is_file():
        return ["model_index.json"]
    named = {k for k, v in json.loads(index.read_text()).items() if k in PARTS and isinstance(v, list) and v[0]}
    gone = []
    for part in sorted(named & set(parts or PARTS)):
        gone += [f"{part}/{name}" for name in _missing_in(folder / part, part)]
    return gone


def _missing_in(folder: Path, part: str) -> list[str]:
    if part == "tokenizer":
        known = ("tokenizer.json", "spiece.model")
        return [] if any((folder / name).is_file() for name in known) else [" or ".join(known)]
    if part == "scheduler":
        return [] if (folder / "scheduler_config.json").is_file() else ["scheduler_config.json"]
    gone = [] if (folder / "config.json").is_file() else ["config.json"]
    listed = {name for index in folder.glob("*.safetensors.index.json") for name in shards(index)}
    if listed:
        return gone + [name for name in sorted(listed) if not (folder / name).is_file()]
    return gone if any(folder.glob("*.safetensors")) else [*gone, "*.safetensors"]


def snapshot(
    hub_id: str,
    on_event: events.Listener = events.ignore,
    *,
    parts: tuple[str, ...] = PARTS,
    endpoint: str | None = None,
    cache: Path | None = None,
) -> Path:
    """Return the folder with the hub repository's files for these parts, from the cache or downloaded.

    A Note states size and destination before a download. Raises ModelError where it cannot be downloaded: no network,
    no such repository, or not enough disk space.
    """
    import huggingface_hub
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.errors import HfHubHTTPError

    # Its first base is the HTTP library's own error (httpx or its successor), which some failures raise directly.
    network_errors: Any = (OSError, *HfHubHTTPError.__bases__)
    wanted: dict[str, Any] = {
        "repo_id": hub_id,
        "allow_patterns": ["model_index.json", *(f"{part}/{name}" for part in parts for name in FILES)],
        "cache_dir": cache,
        "endpoint": endpoint,
    }
    try:
        folder = Path(huggingface_hub.snapshot_download(**wanted, local_files_only=True))
        if not missing(folder, parts):
            return folder
    except network_errors:
        pass  # not in the cache: the next call asks the hub
    place = Path(cache or HF_HUB_CACHE)
    try:
        files = huggingface_hub.snapshot_download(**wanted, dry_run=True)
        needed = sum(file.file_size or 0 for file in files if file.will_download)
        _check_disk(hub_id, needed, place)
        on_event(events.Note(f"downloading {size(needed)} of {hub_id} to {place}"))
        folder = Path(huggingface_hub.snapshot_download(**wanted))
    except network_errors as error:
        raise _unreachable(hub_id, place, error) from None
    gone = missing(folder, parts)
    if gone:
        raise ModelError(
            f"{hub_id} is not a complete Wan model in diffusers' layout",
            f"it has no {', '.join(gone[:4])} (pickled weights are never loaded)",
            "wanscope models",
        )
    return folder


def _check_disk(hub_id: str, needed: int, place: Path) -> None:
    existing = next(folder for folder in (place, *place.absolute().parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise ModelError(
            f"{hub_id} does not fit on the disk",
            f"the download to {place} needs {size(needed)}, and {size(free)} are free",
            "export HF_HOME=/a/larger/disk",
        )


def _unreachable(hub_id: str, place: Path, error: BaseException) -> ModelError:
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    chain = [error]  # the library wraps the reason several times
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    if any(isinstance(link, GatedRepoError) for link in chain):
        return ModelError(
            f"{hub_id} is a gated model", "accept its terms on its hub page, then log in", "hf auth login"
        )
    if any(isinstance(link, RepositoryNotFoundError) for link in chain):
        return ModelError(f"the hub has no model {hub_id}", "the name is wrong, or it is private", "wanscope models")
    if constants.HF_HUB_OFFLINE:
        return ModelError(
            f"{hub_id} is not in the local cache {place}",
            "HF_HUB_OFFLINE is set, so it is not downloaded",
            "unset HF_HUB_OFFLINE",
        )
    reason = str(chain[-1]).strip().split("\n")[0] or type(chain[-1]).__name__
    return ModelError(
        f"{hub_id} is not in the local cache {place} and cannot be downloaded",
        f"the hub cannot be reached or stopped responding ({reason[:200]}). Connect to the network, or pass the folder "
        "of a copy of the model",
    )
