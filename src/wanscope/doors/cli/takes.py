"""`wanscope takes`: the takes of a workspace, read from its folders. Damaged takes are listed as damaged."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wanscope.doors.cli import output
from wanscope.errors import DamagedTake, TakeNotFound, nearest
from wanscope.study.study_folder import IndexRow, StudyFolder
from wanscope.take.disk import size_text
from wanscope.take.manifest import Manifest, check_sizes, read_manifest
from wanscope.workspace import MANIFEST, Workspace


@dataclass(frozen=True)
class Listed:
    """A take's folder: its manifest, or what is wrong with it (both where a file of a readable take is missing)."""

    id: str
    folder: Path
    manifest: Manifest | None
    damage: str = ""

    @property
    def status(self) -> str:
        return "damaged" if self.damage else "complete"

    def as_dict(self) -> dict[str, Any]:
        data: dict[str, Any] = {"id": self.id, "status": self.status, "folder": str(self.folder)}
        if self.damage:
            data["damage"] = self.damage
        if self.manifest is not None:
            recipe = self.manifest.recipe
            data |= {
                "made": self.manifest.made,
                "model": recipe.model.name,
                "variant": recipe.model.variant,
                "prompt": recipe.prompt,
                "labels": recipe.labels,
                "seed": recipe.seed,
                "video": recipe.video.model_dump(exclude_none=True),
                "latents": self.manifest.latents is not None,
                "seconds": self.manifest.seconds.get("total"),
                "bytes": bytes_of(self.manifest),
            }
        return data


def bytes_of(manifest: Manifest) -> int:
    return sum(record.bytes for record in manifest.files)


def inspect(folder: Path) -> Listed:
    """Inspect a take's folder; file sizes are checked, and contents are not read."""
    try:
        manifest = read_manifest(folder)
    except DamagedTake as error:
        return Listed(folder.name, folder, None, error.why or error.what)
    try:
        check_sizes(folder, manifest.files)
    except DamagedTake as error:
        return Listed(folder.name, folder, manifest, f"{error.what}: {error.why}")
    return Listed(folder.name, folder, manifest)


def in_workspace(workspace: Workspace) -> Iterator[Listed]:
    """Yield every take, ordered by id; the hidden folders of unfinished takes are left out."""
    if not workspace.takes.is_dir():
        return
    for folder in sorted(workspace.takes.iterdir()):
        if folder.is_dir() and not folder.name.startswith("."):
            yield inspect(folder)


def study_rows(workspace: Workspace, name: str) -> list[IndexRow]:
    """Return the current rows of a study. Raises TakeNotFound, with the nearest name, if there is no such study."""
    known = study_names(workspace)
    if name not in known:
        raise TakeNotFound(
            f"there is no study {name!r}",
            nearest(name, known) if known else f"{workspace.studies} holds none",
            f"wanscope takes{workspace.option}",
        )
    return [row for row in StudyFolder(workspace, name).rows() if row.current]


def study_names(workspace: Workspace) -> list[str]:
    if not workspace.studies.is_dir():
        return []
    return sorted(p.name for p in workspace.studies.iterdir() if p.is_dir() and not p.name.startswith("."))


def run_takes(study: str | None, output_dir: Path | None, json: bool) -> int:
    workspace = Workspace.find(output_dir)
    if study is not None:
        return _takes_of_study(workspace, study, json)
    listed = sorted(in_workspace(workspace), key=lambda take: take.manifest.made if take.manifest else "")
    if json:
        output.document([take.as_dict() for take in listed])
        return 0
    if not listed:
        output.say(f"{workspace.takes} holds no takes yet. Begin with: wanscope demo")
        return 0
    output.table(
        ("take", "made", "model", "video", "seed", "time", "size", "prompt"),
        [_cells(take) for take in listed],
        right=("seed", "time", "size"),
    )
    total = sum(bytes_of(take.manifest) for take in listed if take.manifest)
    damaged = sum(bool(take.damage) for take in listed)
    output.say(
        f"\n{len(listed)} take{'s'[: len(listed) != 1]}, {size_text(total)}"
        + (f", {damaged} damaged" if damaged else "")
    )
    for name in study_names(workspace):
        output.say(f"study: {name}")
    return 0


def _cells(take: Listed) -> tuple[str, ...]:
    if take.manifest is None:
        return (take.id, "", "", "", "", "", "", f"DAMAGED: {take.damage}")
    recipe, video = take.manifest.recipe, take.manifest.recipe.video
    return (
        take.id,
        take.manifest.made[:16].replace("T", " "),
        _short_model(recipe.model.name),
        f"{video.width}x{video.height}x{video.frames}",
        str(recipe.seed),
        output.seconds_text(take.manifest.seconds.get("total", 0.0)),
        size_text(bytes_of(take.manifest)),
        f"DAMAGED: {take.damage}" if take.damage else recipe.prompt,
    )


def _short_model(name: str) -> str:
    """Return the last part of a path, and other names unchanged."""
    return Path(name).name if Path(name).is_absolute() else name


def _takes_of_study(workspace: Workspace, study: str, json: bool) -> int:
    rows = study_rows(workspace, study)
    statuses = [_status(workspace, row) for row in rows]
    if json:
        data = []
        for row, (status, damage) in zip(rows, statuses, strict=True):
            entry = {
                "name": row.name,
                "id": row.take,
                "status": status,
                "prompt": row.prompt,
                "slots": dict(row.slots),
                "edit": row.edit or None,
                "seed": row.seed,
                "seconds": row.seconds,
                "folder": str(workspace.take_folder(row.take)),
            }
            data.append(entry | ({"problem": damage} if damage else {}))
        output.document(data)
        return 0
    output.table(
        ("name", "take", "status", "seed", "time", "prompt"),
        [
            (
                row.name,
                row.take,
                status,
                str(row.seed),
                "" if row.seconds is None else output.seconds_text(row.seconds),
                row.prompt,
            )
            for row, (status, _) in zip(rows, statuses, strict=True)
        ],
        right=("seed", "time"),
    )
    for row, (status, problem) in zip(rows, statuses, strict=True):
        if problem:
            output.say(f"{row.name} is {status}: {problem}")
    done = sum(status == "complete" for status, _ in statuses)
    output.say(f"\n{done} of {len(rows)} complete")
    return 0


def _status(workspace: Workspace, row: IndexRow) -> tuple[str, str]:
    """Return status and damage as the folder is now, which may be newer than the table."""
    folder = workspace.take_folder(row.take)
    if (folder / MANIFEST).is_file():
        listed = inspect(folder)
        return listed.status, listed.damage
    return row.status if row.status == "failed" else "missing", row.error.splitlines()[0] if row.error else ""
