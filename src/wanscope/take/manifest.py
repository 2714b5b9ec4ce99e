"""`take.json`: what a take is, how it was made, and a checksum of every file in it.

It is the last file of a take to be written, so a folder that has one is complete. It contains its own checksum.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from pydantic import field_validator

from wanscope import __version__
from wanscope.errors import DamagedTake, RecipeError, StorageError, UnreadableTake
from wanscope.recipe import Recipe, Spec
from wanscope.spec.strict_json import read_json
from wanscope.spec.validation import validated
from wanscope.take.applied_edits import AppliedEdit
from wanscope.take.disk import file_sha256, files_below, guarded
from wanscope.workspace import MANIFEST, TAKE_ID, is_plain_name

MANIFEST_VERSION = 1
# The packages that can change the last bit of a result, or how a file is read.
PACKAGES = ("torch", "diffusers", "transformers", "numpy", "zarr", "av")


class FileRecord(Spec):
    """One file of the take; `path` is relative to the take's folder, with forward slashes."""

    path: str
    bytes: int
    sha256: str

    @field_validator("path")
    @classmethod
    def _below(cls, path: str) -> str:
        if not all(is_plain_name(part) for part in path.split("/")):
            raise ValueError("it is not a path below the take's folder")
        return path


class Environment(Spec):
    """Where a take was made. Two takes of the same recipe have the same bits if their environments are equal."""

    wanscope: str
    python: str
    packages: dict[str, str]
    platform: str
    processor: str
    device: str
    threads: int

    def differences(self, other: Environment) -> list[str]:
        """Return what differs in the other environment, such as `torch 2.12 -> 2.13`."""
        mine, theirs = self.flat(), other.flat()
        keys = dict.fromkeys([*mine, *theirs])
        return [f"{k} {mine.get(k, 'none')} -> {theirs.get(k, 'none')}" for k in keys if mine.get(k) != theirs.get(k)]

    def flat(self) -> dict[str, str]:
        """Return everything that can change the latents, as one mapping of names to text."""
        data = self.model_dump()
        # The other packages write and read videos and arrays, which does not affect the latents.
        packages = {k: v for k, v in data.pop("packages").items() if k in ("torch", "diffusers", "transformers")}
        return {k: str(v) for k, v in {**data, **packages}.items()}


class StoredLatents(Spec):
    """The content of latents.zarr: `states[i]` is the path's state at index i; 0 is the noise, the last the result.

    For x0.zarr, `states[i]` is the step whose prediction is at index i.
    """

    dtype: Literal["fp16", "fp32"]
    every: int
    states: tuple[int, ...]


class StoredAttention(Spec):
    """A summary of the attention stores, whose attributes have all details. shape: of one measure's array."""

    measures: tuple[str, ...]
    words: tuple[str, ...]
    rows: int
    blocks: int
    evaluations: int
    keep: Literal["maps", "mean"]
    shape: tuple[int, ...]


class Earlier(Spec):
    """A take that this one replaced: it had different bits and was made in another environment."""

    latents_sha256: str
    made: str
    environment: Environment


class Manifest(Spec):
    """Everything in take.json. Times are in seconds, sizes in bytes; `sigmas` has one more entry than there are steps.

    prompt_tokens: the number of real text tokens of the prompt, including the end token.
    """

    version: Literal[1] = 1
    id: str
    hash: str
    recipe: Recipe
    made: str
    environment: Environment
    seconds: dict[str, float]
    peak_bytes: dict[str, int]
    evaluations: int
    sigmas: tuple[float, ...]
    latent_shape: tuple[int, int, int, int]
    latents_sha256: str
    latents: StoredLatents | None = None
    gram: tuple[tuple[float, ...], ...] | None = None
    x0: StoredLatents | None = None
    attention: StoredAttention | None = None
    self_attention: StoredAttention | None = None
    applied_edits: tuple[AppliedEdit, ...] = ()
    prompt_tokens: int | None = None
    earlier: tuple[Earlier, ...] = ()
    files: tuple[FileRecord, ...]

    @field_validator("id")
    @classmethod
    def _id(cls, take: str) -> str:
        if not TAKE_ID.fullmatch(take):
            raise ValueError("it is not the id of a take: 16 digits and letters from a to f")
        return take

    @field_validator("gram")
    @classmethod
    def _square(cls, gram: tuple[tuple[float, ...], ...] | None) -> tuple[tuple[float, ...], ...] | None:
        if gram is not None and any(len(row) != len(gram) for row in gram):
            raise ValueError("it should be a square matrix")
        return gram

    def dumped(self) -> str:
        """Return the text of take.json. Floats are exact: Python writes the shortest digits that read back equal."""
        data = self.model_dump(mode="json")
        return json.dumps({**data, "sha256": _checksum(data)}, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _checksum(data: Mapping[str, Any]) -> str:
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of a take's folder. Raises DamagedTake where it is missing or not as it was written."""
    path = folder / MANIFEST
    damaged = f"{path} is damaged"
    again = "run the take's study again: it replaces damaged takes"
    try:
        with guarded(path, "read"):
            data = read_json(path.read_bytes(), finite=True)
    except (FileNotFoundError, NotADirectoryError):
        raise DamagedTake(f"{folder} is not a finished take", f"it has no {MANIFEST}", again) from None
    except StorageError as error:
        raise UnreadableTake(error.what, error.why, error.fix) from error
    except OSError as error:
        raise DamagedTake(f"{path} cannot be read", str(error)) from None
    except ValueError as error:
        raise DamagedTake(damaged, f"it is not JSON: {error}", again) from None
    if not isinstance(data, dict) or not isinstance(data.get("version"), int):
        raise DamagedTake(damaged, "it does not state its version", again)
    if data["version"] > MANIFEST_VERSION:
        raise DamagedTake(
            f"{path} was made by a newer wanscope",
            f"its version is {data['version']}, and this one reads up to {MANIFEST_VERSION}",
            "pip install --upgrade wanscope",
        )
    written = data.pop("sha256", None)
    if written != _checksum(data):
        raise DamagedTake(damaged, "its text does not match its own checksum", again)
    try:
        return validated(Manifest, data)
    except RecipeError as error:
        raise DamagedTake(damaged, str(error), again) from None


def list_files(folder: Path) -> tuple[FileRecord, ...]:
    """Return path, size and SHA-256 of every file below `folder` except take.json itself."""
    return tuple(
        FileRecord(path=path.as_posix(), bytes=(folder / path).stat().st_size, sha256=file_sha256(folder / path))
        for path in files_below(folder)
        if path.as_posix() != MANIFEST
    )


def check_sizes(folder: Path, files: Iterable[FileRecord]) -> None:
    """Raise DamagedTake, naming the first file that is missing or has another size. No content is read."""
    with guarded(folder, "read"):
        for record in files:
            path = folder / record.path
            if not path.is_file():
                raise _damage(path, "it is missing")
            size = path.stat().st_size
            if size != record.bytes:
                raise _damage(path, f"it has {size} bytes instead of {record.bytes}")


def check_content(folder: Path, files: Iterable[FileRecord]) -> None:
    """Raise DamagedTake, naming the first file whose size or checksum is not as recorded."""
    files = list(files)
    check_sizes(folder, files)
    inside = folder.resolve()
    for record in files:
        if not (folder / record.path).resolve().is_relative_to(inside):
            raise _damage(folder / record.path, "it is a link to a file outside the take")
        with guarded(folder / record.path, "read"):
            found = file_sha256(folder / record.path)
        if found != record.sha256:
            # A study compares sizes only and would consider this take complete.
            fix = f"rm -r {folder}, then run its study again"
            raise _damage(folder / record.path, "its content does not match its checksum", fix)


def _damage(path: Path, why: str, fix: str = "run the take's study again: it replaces damaged takes") -> DamagedTake:
    return DamagedTake(f"{path} is damaged", why, fix)


@cache
def processor() -> str:
    """The CPU's model name, as the machine gives it."""
    linux = Path("/proc/cpuinfo")
    lines = linux.read_text().splitlines() if linux.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def environment(device: str, threads: int) -> Environment:
    """Return this process's environment. device: as torch names it, with the model name if it is a GPU."""
    return Environment(
        wanscope=__version__,
        python=platform.python_version(),
        packages={name: metadata.version(name) for name in PACKAGES},
        platform=f"{platform.system()} {platform.machine()}",
        processor=processor(),
        device=device,
        threads=threads,
    )
