"""A take on disk: written to a temporary folder, then renamed; opened lazily, with checksums verified before use.

    takes/<id>/take.json       recipe, environment, timings, Gram, a checksum of every file
               video.mp4       near-lossless H.264 with the recipe as metadata
               poster.webp     its middle frame
               final.npy       the last latents, fp32 [C, T, h, w]: exact, and where a second pass can start
               latents.zarr/   the path's states, if captured
               x0.zarr/        the clean latents that each step predicts, if captured
               attention.zarr/ attention maps, if captured (attention-contribution.zarr, ...,
                               self-attention.zarr), and the exponents of their values (attention.exponents.npy)
               events.jsonl    what happened, one JSON object per line

While it is being made, a take is `takes/.<id>.<process>.partial`, which whoever holds the take's lock may delete. When
a take replaces an older one, that one is `takes/.<id>.<process>.old` for a moment; `recover` puts it back after a crash
between the two renames.

Shape suffixes: S steps, K kept states or steps, C channels, T latent frames, h, w latent height and width, F frames,
H, W pixels.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from wanscope.capture.arrays import open_array
from wanscope.capture.attention_sink import FOLDERS, exponents_file
from wanscope.errors import DamagedTake, NotCaptured, RecipeError, UnreadableTake
from wanscope.recipe import CaptureSpec, LatentsCapture, Recipe
from wanscope.spec.strict_json import read_json
from wanscope.take.disk import guarded, sync_file, sync_folder, sync_tree
from wanscope.take.manifest import Manifest, check_content, check_sizes, read_manifest
from wanscope.workspace import MANIFEST

if TYPE_CHECKING:
    import zarr

    from wanscope.prompt.tokens import MarkLike
    from wanscope.spec.capture import Recorded
    from wanscope.take.attention_maps import Attention

VIDEO, POSTER, FINAL, EVENTS = "video.mp4", "poster.webp", "final.npy", "events.jsonl"
LATENTS, X0 = "latents.zarr", "x0.zarr"


def latents_sha256(latents_CThw: np.ndarray) -> str:
    """Return the SHA-256 of the values as little-endian fp32 in C order, which a replay is compared with."""
    return hashlib.sha256(np.ascontiguousarray(latents_CThw, dtype="<f4").data).hexdigest()


class Take:
    """One video and its captures. Opening reads only take.json; arrays and frames are read on access.

    Everything is verified first: `latents`, `final` and `frames` compare their files with the checksums and raise
    DamagedTake, naming the file.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder, self.manifest = folder, manifest

    @classmethod
    def open(cls, folder: str | Path) -> Take:
        """Open the finished take in `folder`. Raises DamagedTake where its take.json is missing or not as written."""
        folder = Path(folder)
        return cls(folder, read_manifest(folder))

    def __repr__(self) -> str:
        return f"Take({self.id}, {self.recipe.prompt!r}, seed {self.recipe.seed})"

    @property
    def id(self) -> str:
        return self.manifest.id

    @property
    def recipe(self) -> Recipe:
        return self.manifest.recipe

    @property
    def video(self) -> Path:
        return self.folder / VIDEO

    @property
    def poster(self) -> Path:
        return self.folder / POSTER

    @property
    def sigmas(self) -> np.ndarray:
        """The noise level of every state, float64 [S + 1]."""
        return np.array(self.manifest.sigmas)

    @property
    def states(self) -> np.ndarray:
        """The states of the path that `latents` holds, int [K]: all of 0 to S, or every n-th and the last."""
        return np.array(self._stored().states)

    @property
    def gram(self) -> np.ndarray:
        """The inner products of x_0 and the path's increments, float64 [S + 1, S + 1] (`capture.path_gram`)."""
        if self.manifest.gram is None:
            raise self._missing("no Gram matrix of its path")
        return np.array(self.manifest.gram)

    @cached_property
    def latents(self) -> zarr.Array:
        """The path from the noise to the result, fp16 or fp32 [K, C, T, h, w]; read when it is indexed."""
        self._stored()
        self._check(LATENTS)
        return open_array(self.folder / LATENTS)

    @cached_property
    def x0(self) -> zarr.Array:
        """The clean latents that each step predicts, fp16 or fp32 [K, C, T, h, w]; read when they are indexed.

        `manifest.x0.states` are the steps.
        """
        if self.manifest.x0 is None:
            raise self._missing("no predicted clean latents", "--set capture.x0=true")
        self._check(X0)
        return open_array(self.folder / X0)

    @property
    def attention(self) -> Attention:
        """Cross-attention probabilities of words, [S, L, K, T, Y, X] (see `wanscope.take.attention_maps`)."""
        return self.attention_of("probability")

    @property
    def self_attention(self) -> Attention:
        """Self-attention probabilities of chosen positions, [S, L, K, T, Y, X]: row k is what position k attends to."""
        return self.attention_of("self")

    def attention_of(self, measure: Recorded) -> Attention:
        """Return the attention maps of a measure: probability, contribution, gramcol, or self.

        Raises NotCaptured where it was not kept.
        """
        from wanscope.take.attention_maps import Attention

        if measure not in self._attention:
            kept = self.manifest.self_attention if measure == "self" else self.manifest.attention
            if kept is None and measure == "self":
                raise self._missing("no self-attention maps", "--store-self-attention 0.5,0.5")
            if kept is None:
                raise self._missing("no attention maps", "--store-attention")
            if measure not in kept.measures:
                have = ", ".join(kept.measures)
                raise self._missing(
                    f"no {measure} maps (only {have})", f"--set 'capture.attention.measures=[{have}, {measure}]'"
                )
            self._check(FOLDERS[measure])
            if (self.folder / exponents_file(measure)).exists():
                self._check(exponents_file(measure))
            self._attention[measure] = Attention.open(self.folder, measure)
        return self._attention[measure]

    @cached_property
    def _attention(self) -> dict[str, Attention]:
        return {}

    @cached_property
    def final(self) -> np.ndarray:
        """The last latents, float32 [C, T, h, w], exactly as the loop left them."""
        self._check(FINAL)
        return np.load(self.folder / FINAL, allow_pickle=False)

    @cached_property
    def frames(self) -> np.ndarray:
        """The video's frames, uint8 [F, H, W, 3], as decoded from video.mp4 (near-lossless).

        For exact frames, decode `final` with the model's VAE.
        """
        from wanscope.take.video import read_frames

        self._check(VIDEO)
        return read_frames(self.video, self.recipe.video.width, self.recipe.video.height)

    def events(self) -> list[dict[str, Any]]:
        """Return the events of its making; StepDone has each step's seconds and the device's memory in bytes."""
        self._check(EVENTS)
        return [read_json(line) for line in (self.folder / EVENTS).read_text(encoding="utf-8").splitlines()]

    def verify(self) -> None:
        """Compare every file with its checksum. Raises DamagedTake for the first that differs, is missing or is new."""
        self.check_files()
        expected = {record.path for record in self.manifest.files} | {MANIFEST}
        found = {path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file()}
        if found - expected:
            raise DamagedTake(
                f"{self.folder / min(found - expected)} does not belong to the take", "take.json does not list it"
            )
        if self.recipe.hash != self.manifest.hash or self.recipe.id != self.id:
            raise DamagedTake(f"{self.folder / MANIFEST} is damaged", "its recipe does not have its id")
        if latents_sha256(self.final) != self.manifest.latents_sha256:
            raise DamagedTake(f"{self.folder / FINAL} is damaged", "its values do not have their checksum")

    def check_files(self) -> None:
        """Compare the files that take.json lists with their checksums. Raises DamagedTake for the first mismatch."""
        check_content(self.folder, self.manifest.files)

    def check_video(self) -> None:
        """Compare video.mp4 with its checksum. Raises DamagedTake where it is missing or differs."""
        self._check(VIDEO)

    def complete(self, capture: CaptureSpec, marks: Iterable[MarkLike] | None = None) -> bool:
        """Return whether all files exist with their sizes and include everything that `capture` needs.

        marks: the marked words that `capture` refers to; None for the take's own.
        """
        try:
            check_sizes(self.folder, self.manifest.files)
        except DamagedTake:
            return False
        if marks is not None and capture.attention is not None and capture.attention.marked:
            mine = {(mark.start, mark.end) for mark in self.recipe.marks}
            if not {(mark.start, mark.end) for mark in marks} <= mine:
                return False
        return covers(self.recipe.capture, capture)

    def bytes(self) -> int:
        """Return the total size of all files, in bytes."""
        return sum(record.bytes for record in self.manifest.files) + (self.folder / MANIFEST).stat().st_size

    def _check(self, name: str) -> None:
        files = [r for r in self.manifest.files if r.path == name or r.path.startswith(name + "/")]
        if not files:
            raise DamagedTake(f"{self.folder / name} is not listed", f"{MANIFEST} names no such file")
        check_content(self.folder, files)

    def _stored(self) -> Any:
        if self.manifest.latents is None:
            raise self._missing("no latents of its path")
        return self.manifest.latents

    def _missing(self, what: str, option: str = "--store-latents") -> NotCaptured:
        return NotCaptured(
            f"take {self.id} has {what}", "they were not captured when it was made", f"{option}, and run again"
        )


def covers(have: CaptureSpec, asked: CaptureSpec) -> bool:
    """Return whether a take captured with `have` holds everything `asked` needs: precision, states and maps.

    Always False where `asked` has a `reduce` function: its input exists only while a take is made.
    """
    if asked.reduce is not None:
        return False
    if asked.attention is not None and (have.attention is None or not have.attention.covers(asked.attention)):
        return False
    mine, theirs = have.self_attention, asked.self_attention
    if theirs is not None and (mine is None or not mine.covers(theirs)):
        return False
    return _covers(have.latents, asked.latents) and _covers(have.x0, asked.x0)


def _covers(have: LatentsCapture | None, asked: LatentsCapture | None) -> bool:
    if asked is None:
        return True
    if have is None or (have.dtype == "fp16" and asked.dtype == "fp32"):
        return False
    return asked.every % have.every == 0


def union(have: CaptureSpec, asked: CaptureSpec) -> CaptureSpec:
    """Return the capture that holds both, so that making a take again loses nothing it had.

    Raises RecipeError where one take cannot hold both.
    """
    attention = have.attention or asked.attention
    self_attention = have.self_attention or asked.self_attention
    if have.inside and asked.inside:
        try:
            if have.attention is not None and asked.attention is not None:
                attention = have.attention.union(asked.attention)
            if have.self_attention is not None and asked.self_attention is not None:
                self_attention = have.self_attention.union(asked.self_attention)
        except ValueError as error:
            raise RecipeError(
                "the existing take has other attention maps", str(error), "another --output-dir, for a separate take"
            ) from None
    return CaptureSpec(
        latents=_union(have.latents, asked.latents),
        x0=_union(have.x0, asked.x0),
        attention=attention,
        self_attention=self_attention,
        reduce=asked.reduce,
    )


def existing_take(folder: Path) -> Take | None:
    """The take in `folder`, whole or not; None where there is none or its take.json cannot be trusted.

    Raises UnreadableTake where it cannot be read: it may be whole, and must not be replaced.
    """
    try:
        return Take.open(folder)
    except UnreadableTake:
        raise
    except DamagedTake:
        return None


def with_records_of(had: Recipe, recipe: Recipe) -> Recipe:
    """Return `recipe` with the captures and tracked words of an earlier version of the same take added.

    Marks without a weight track words and change no pixel, so the two may have marked different ones. Raises
    RecipeError as `union` does.
    """
    spans = {(mark.start, mark.end) for mark in recipe.marks}
    marks = sorted((*recipe.marks, *(m for m in had.marks if (m.start, m.end) not in spans)), key=lambda m: m.start)
    update = {"capture": union(had.capture, recipe.capture), "marks": tuple(marks)}
    return recipe.model_copy(update=update)


def _union(have: LatentsCapture | None, asked: LatentsCapture | None) -> LatentsCapture | None:
    if have is None or asked is None:
        return have or asked
    dtype = "fp32" if "fp32" in (have.dtype, asked.dtype) else "fp16"
    return LatentsCapture(dtype=dtype, every=int(np.gcd(have.every, asked.every)))


class TakeWriter:
    """Writes a take to a temporary folder, which `commit` renames. As a context manager it removes that folder.

    Only the process that holds the take's lock may use one.
    """

    def __init__(self, takes: Path, take: str) -> None:
        self.takes, self.take = takes, take
        self.place = takes / take
        self.folder = takes / f".{take}.{os.getpid()}.partial"

    def __enter__(self) -> Self:
        with guarded(self.takes):
            self.takes.mkdir(parents=True, exist_ok=True)
            self.folder.mkdir()
        return self

    def __exit__(self, *problem: object) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def write_final(self, latents_CThw: np.ndarray) -> None:
        """Write the last latents, [C, T, h, w], as float32."""
        # In memory first: on a full disk, numpy's own error says only how many bytes are missing.
        buffer = io.BytesIO()
        np.save(buffer, np.ascontiguousarray(latents_CThw, dtype="<f4"), allow_pickle=False)
        with guarded(self.takes):
            (self.folder / FINAL).write_bytes(buffer.getbuffer())

    def commit(self, manifest: Manifest) -> Take:
        """Write take.json, flush everything to the disk, and rename the folder to the take's; return the take."""
        with guarded(self.takes):
            sync_tree(self.folder)
            path = self.folder / MANIFEST
            path.write_text(manifest.dumped(), encoding="utf-8")
            sync_file(path)
            sync_folder(self.folder)
            older = self.takes / f".{self.take}.{os.getpid()}.old"
            if self.place.exists():
                os.rename(self.place, older)
            os.rename(self.folder, self.place)
            sync_folder(self.takes)
            shutil.rmtree(older, ignore_errors=True)
        return Take(self.place, manifest)


def recover(takes: Path, take: str) -> None:
    """Clean up what a killed process left of the take; only for the process that holds its lock.

    An older take that was moved away and not replaced is moved back; partial folders are removed.
    """
    with guarded(takes):
        _recover(takes, take)


def _recover(takes: Path, take: str) -> None:
    place = takes / take
    for older in takes.glob(f".{take}.*.old"):
        if place.exists():
            shutil.rmtree(older, ignore_errors=True)
        else:
            os.rename(older, place)
    for partial in takes.glob(f".{take}.*.partial"):
        shutil.rmtree(partial, ignore_errors=True)


def unfinished(takes: Path) -> list[str]:
    """Return the ids of takes that were interrupted or are being made right now: they have a temporary folder."""
    return sorted({path.name.split(".")[1] for kind in ("partial", "old") for path in takes.glob(f".*.{kind}")})
