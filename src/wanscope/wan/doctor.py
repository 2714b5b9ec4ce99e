"""Checks whether this machine is ready, and says what to do if not. No check downloads or changes anything."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from wanscope.wan.download import size
from wanscope.wan.variants import MARBLES_WEIGHTS, VARIANTS

Status = Literal["ok", "warn", "fail"]
NEEDED = ("diffusers", "transformers", "accelerate", "safetensors", "peft", "gguf", "pydantic", "typer", "zarr", "av")
NEWEST_TESTED = (3, 14)
SMALL_DISK_BYTES = 2_000_000_000
MODEL_BYTES = 30_000_000_000
MARBLES_HOST_BYTES = 3_000_000_000


@dataclass(frozen=True)
class Check:
    """The result of one check. `fix` is what to do where status is not ok."""

    name: str
    status: Status
    detail: str
    fix: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return the result as plain data."""
        return asdict(self)


def diagnose(workspace: Path | None = None) -> list[Check]:
    """Run all checks and return their results. workspace: where takes are written (default: the current folder)."""
    checks: list[Callable[[], Check]] = [
        python,
        packages,
        torch_build,
        gpu,
        memory,
        lambda: disk(workspace or Path.cwd()),
        hub_cache,
        video_writing,
        marbles,
    ]
    return [check() for check in checks]


def python() -> Check:
    """Check that Python is not newer than the versions that wanscope is tested with."""
    version = platform.python_version()
    if sys.version_info >= NEWEST_TESTED:
        return Check(
            "Python", "warn", f"{version}, newer than the versions wanscope is tested with", "python3.13 -m venv .venv"
        )
    return Check("Python", "ok", version)


def packages() -> Check:
    """Check that the required packages are installed."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        return Check("packages", "fail", f"missing: {', '.join(missing)}", f"pip install {' '.join(missing)}")
    shown = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("diffusers", "transformers"))
    return Check("packages", "ok", shown)


def torch_build() -> Check:
    """Check that torch is installed, and that its build fits the machine."""
    if importlib.util.find_spec("torch") is None:
        return Check("torch", "fail", "not installed", "pip install 'torch>=2.10,<2.14'")
    import torch

    kind = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"
    if torch.version.cuda is None and shutil.which("nvidia-smi"):
        return Check(
            "torch",
            "warn",
            f"{torch.__version__}, {kind}, but this machine has an NVIDIA GPU (see 'Choosing a torch build' in "
            "docs/install.md)",
            "python3 scripts/setup.py demo --torch cuda",
        )
    return Check("torch", "ok", f"{torch.__version__}, {kind}, {torch.get_num_threads()} threads")


def gpu() -> Check:
    """Check whether torch can use a GPU, and whether the GPU supports bfloat16."""
    if importlib.util.find_spec("torch") is None:
        return Check("GPU", "fail", "cannot be checked without torch", "pip install 'torch>=2.10,<2.14'")
    import torch

    if not torch.cuda.is_available():
        if torch.version.cuda:
            return Check("GPU", "warn", "the CUDA build of torch finds no GPU; check the driver", "nvidia-smi")
        return Check("GPU", "ok", "none; marbles runs on the CPU, larger models need a GPU")
    found = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        found.append(f"{torch.cuda.get_device_name(index)}, {size(free)} of {size(total)} free")
    old = not torch.cuda.is_bf16_supported()
    if old:
        return Check("GPU", "warn", f"{'; '.join(found)}; it does not support bfloat16", "dtype: fp16")
    return Check("GPU", "ok", "; ".join(found))


def memory() -> Check:
    """Check that there is enough free host memory for marbles."""
    import psutil

    state = psutil.virtual_memory()
    detail = f"{size(state.available)} of {size(state.total)} available, {os.cpu_count()} CPU cores"
    if state.available < MARBLES_HOST_BYTES:
        return Check("memory", "warn", detail, f"close other programs; marbles needs {size(MARBLES_HOST_BYTES)}")
    return Check("memory", "ok", detail)


def disk(folder: Path) -> Check:
    """Check that the folder for takes can be written and has enough free space."""
    existing = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    detail = f"{size(shutil.disk_usage(existing).free)} free in {existing}"
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        why = f"{existing} cannot be written ({error.strerror}); choose another folder"
        return Check("workspace", "fail", why, "export WANSCOPE_HOME=/a/folder")
    if shutil.disk_usage(existing).free < SMALL_DISK_BYTES:
        return Check("workspace", "warn", detail, "free some space; a study that stores latents needs gigabytes")
    return Check("workspace", "ok", detail)


def hub_cache() -> Check:
    """Check which variants are in the hub's cache, and whether there is room for another one."""
    from huggingface_hub import constants

    place = Path(constants.HF_HUB_CACHE)
    cached = [v.name for v in VARIANTS.values() if v.hub_id is not None and _is_cached(place, v.hub_id)]
    existing = next(folder for folder in (place, *place.absolute().parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    detail = f"{place}: {', '.join(cached) or 'no Wan model yet'}, {size(free)} free"
    if constants.HF_HUB_OFFLINE:
        detail += "; HF_HUB_OFFLINE is set, so models are not downloaded"
        return Check("hub cache", "warn", detail, "unset HF_HUB_OFFLINE")
    if free < MODEL_BYTES:
        return Check("hub cache", "warn", f"{detail}; models need 12 to 70 GB", "export HF_HOME=/a/larger/disk")
    return Check("hub cache", "ok", detail)


def _is_cached(place: Path, hub_id: str) -> bool:
    """Return whether a snapshot of a repository is in the hub's cache.

    `huggingface_hub.scan_cache_dir` would tell, but takes longer to import than everything else here except torch.
    """
    from huggingface_hub import constants

    folder = place / constants.REPO_ID_SEPARATOR.join(("models", *hub_id.split("/"))) / "snapshots"
    return folder.is_dir() and any(entry.is_dir() for entry in folder.iterdir())


def video_writing() -> Check:
    """Check that PyAV, which includes its own encoders, can write MP4. An ffmpeg program is not needed."""
    try:
        import av
        import av.codec
    except ImportError as error:
        return Check("video", "fail", f"PyAV cannot be imported ({error})", "pip install av")
    known = [name for name in ("libx264", "libopenh264", "mpeg4") if name in av.codecs_available]
    if not known:
        return Check("video", "fail", f"PyAV {av.__version__} has no MP4 encoder", "pip install --force-reinstall av")
    status: Status = "ok" if known[0] == "libx264" else "warn"
    detail = f"PyAV {av.__version__}, {known[0]}"
    if status == "ok":
        return Check("video", status, detail)
    return Check("video", status, f"{detail}, without libx264 for H.264", "pip install --force-reinstall av")


def marbles() -> Check:
    """Check that the packaged weights of marbles are installed."""
    if (MARBLES_WEIGHTS / "model_index.json").is_file():
        return Check("marbles", "ok", f"weights in {MARBLES_WEIGHTS}")
    fix = "pip install --force-reinstall wanscope"
    return Check("marbles", "fail", "the weights that ship with the package are missing", fix)
