"""`studies/<name>/`: the study file, a table of its takes, and links with readable names into `takes/`.

    study.yaml                the study as it was last run, with the settings it left open in comments
    study.1.yaml, ...         earlier versions, oldest first
    index.csv                 one row per take: name, take, seed, prompt, slots, status, and a checksum of the table
    two-women_seed07.mp4      -> ../../takes/<id>/video.mp4

Running a changed study under the same name keeps both versions. The earlier file is numbered, its takes stay in the
table with `current` = no, and the take's id is appended to the names of its links. Where the file system does not
support links, a small text file `two-women_seed07.txt` contains the path instead.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from wanscope.errors import RecipeError, StorageError
from wanscope.events import Note
from wanscope.recipe import Study
from wanscope.spec.strict_yaml import read_yaml_file
from wanscope.spec.validation import validated
from wanscope.study.expand import Expansion
from wanscope.study.lock import STUDY_WAIT_SECONDS, held
from wanscope.take.building import write_atomic
from wanscope.take.disk import guarded
from wanscope.take.store import VIDEO
from wanscope.take.study_table import INDEX, read_table, table_text
from wanscope.workspace import TAKE_ID, Workspace, is_plain_name

STUDY = "study.yaml"
COLUMNS = ("name", "take", "variation", "seed", "status", "current", "seconds", "prompt", "error")
SLOT = "slot:"
EDIT = "edit"  # a column only where a study has edits


@dataclass(frozen=True)
class IndexRow:
    """One row of index.csv.

    status: complete, failed or missing. slots: the variation's bindings. edit: `baseline`, `edited` or the label of its
    combination in the sweep; "" where the study has no edits. swept: {setting: value}.
    """

    name: str
    take: str
    variation: int
    seed: int
    status: str
    prompt: str
    slots: Mapping[str, str] = field(default_factory=dict)
    current: bool = True
    seconds: float | None = None
    error: str = ""
    edit: str = ""
    swept: Mapping[str, str] = field(default_factory=dict)


class StudyFolder:
    """The folder of one study in a workspace. All writing happens under the study's lock."""

    def __init__(self, workspace: Workspace, name: str) -> None:
        self.workspace, self.name = workspace, name
        self.folder = workspace.studies / name

    def begin(self, expansion: Expansion) -> list[Note]:
        """Write study.yaml, keeping a different earlier version under a number; return notes for the user."""
        with self._locked(), guarded(self.folder):
            path = self.folder / STUDY
            notes = []
            if path.exists():
                earlier = _read_study(path)
                if earlier == expansion.study:
                    return []
                number = next(n for n in itertools.count(1) if not (self.folder / f"study.{n}.yaml").exists())
                os.replace(path, self.folder / f"study.{number}.yaml")
                changed = _changes(earlier, expansion.study)
                notes.append(
                    Note(f"study {self.name} has changed ({changed}); the earlier version is in study.{number}.yaml")
                )
            write_atomic(path, study_yaml(expansion))
            return notes

    def record(self, rows: Iterable[IndexRow]) -> None:
        """Update index.csv and the links: `rows` are the study's current ones; earlier rows stay as not current."""
        with self._locked(), guarded(self.folder):
            mine = list(rows)
            ids = {(row.take, row.name) for row in mine}
            older = [row for row in self.rows() if (row.take, row.name) not in ids]
            kept = [replace(row, current=False) for row in older if self._video(row.take).exists()]
            write_atomic(self.folder / INDEX, _csv([*mine, *kept]))
            self._set_links([*mine, *kept])

    def link(self, rows: Iterable[IndexRow]) -> None:
        """Create the links of finished takes, before the table is written at the end."""
        with self._locked(), guarded(self.folder):
            for row in rows:
                _link(self.folder / f"{row.name}.mp4", self._video(row.take))

    def rows(self) -> list[IndexRow]:
        """Return the rows of index.csv, or [] before there is one. Raises RecipeError where it cannot be read."""
        path = self.folder / INDEX
        if not path.exists():
            return []
        return [_row(line) for line in read_table(path)]

    def _video(self, take: str) -> Path:
        return self.workspace.take_folder(take) / VIDEO

    def _set_links(self, rows: list[IndexRow]) -> None:
        wanted = {}
        for row in rows:
            if self._video(row.take).exists():
                wanted[row.name if row.current else f"{row.name}_{row.take[:8]}"] = self._video(row.take)
        for path in self.folder.iterdir():
            link = path.suffix == ".mp4" and path.is_symlink() and Path(os.readlink(path)).name == VIDEO
            ours = link or (path.suffix == ".txt" and _is_pointer(path))
            if ours and path.stem not in wanted:
                path.unlink()
        for name, video in wanted.items():
            _link(self.folder / f"{name}.mp4", video)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with held(self.workspace.studies, self.name, STUDY_WAIT_SECONDS) as ours:
            if not ours:
                raise StorageError(
                    f"study {self.name} is being written by another process",
                    f"it has held the study's lock for {STUDY_WAIT_SECONDS:.0f} seconds",
                )
            with guarded(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
            yield


def study_yaml(expansion: Expansion) -> str:
    """Return the study as YAML that can be run again, with the settings it left open in comments above it."""
    import yaml

    data = expansion.study.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    if expansion.loras and expansion.variant.experts > 1:  # without it, the expert would be that of the file's name
        data["loras"] = [{"path": lora.path, "weight": lora.weight, "expert": lora.expert} for lora in expansion.loras]
    data = {"model": expansion.study.model, **data, "seeds": list(expansion.study.seeds)}
    sampler = expansion.sampler.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    video = expansion.video.model_dump(mode="json", exclude_none=True)
    head = [
        f"{len(expansion)} takes: {expansion.counted}",
        f"model: {expansion.variant.title}, {expansion.dtype}",
        f"video: {_inline(video)}",
        f"sampler: {_inline(sampler)}",
        f"negative: {_inline(expansion.negative)}",
    ]
    comments = "".join(f"# {line}\n" for line in head)
    return comments + yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=1_000_000)


def _inline(value: object) -> str:
    import yaml

    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=1_000_000)
    return text.removesuffix("...\n").strip()


def _read_study(path: Path) -> Study:
    return validated(Study, read_yaml_file(path))


def _changes(before: Study, after: Study) -> str:
    old, new = before.model_dump(mode="json"), after.model_dump(mode="json")
    changed = [key for key in new if new[key] != old.get(key)]
    return ", ".join(changed) or "its text"


def _csv(rows: list[IndexRow]) -> str:
    slots = list(dict.fromkeys(slot for row in rows for slot in row.slots))
    swept = list(dict.fromkeys(key for row in rows for key in row.swept))
    edit = [EDIT] if any(row.edit for row in rows) else []
    table: list[list[object]] = [[*COLUMNS, *edit, *swept, *(SLOT + slot for slot in slots)]]
    for row in rows:
        seconds = "" if row.seconds is None else f"{row.seconds:.3f}"
        current = "yes" if row.current else "no"
        fixed = [
            row.name,
            row.take,
            row.variation,
            row.seed,
            row.status,
            current,
            seconds,
            row.prompt,
            one_line(row.error),
        ]
        edits = [*([row.edit] if edit else []), *(row.swept.get(key, "") for key in swept)]
        table.append([*fixed, *edits, *(row.slots.get(slot, "") for slot in slots)])
    return table_text(table)


def one_line(text: str) -> str:
    """Return a text without line breaks: one row of the table is then one line, also for grep."""
    return " ".join(text.split())


def _row(line: dict[str, str]) -> IndexRow:
    try:
        # Links are made with these: a table that somebody else wrote must not lead out of the study's folder.
        if not is_plain_name(line["name"]):
            raise ValueError(f"the name {line['name']!r} is not that of a file")
        if line["take"] and not TAKE_ID.fullmatch(line["take"]):
            raise ValueError(f"{line['take']!r} is not the id of a take")
        return IndexRow(
            line["name"],
            line["take"],
            int(line["variation"]),
            int(line["seed"]),
            line["status"],
            line["prompt"],
            {key.removeprefix(SLOT): value for key, value in line.items() if key.startswith(SLOT) and value},
            line["current"] == "yes",
            float(line["seconds"]) if line["seconds"] else None,
            line["error"],
            line.get(EDIT) or "",
            {key: value for key, value in line.items() if key.startswith("edits.") and value},
        )
    except (KeyError, TypeError, ValueError) as error:
        raise RecipeError(
            f"an {INDEX} has been changed and cannot be read",
            f"{error!r} in {line}. Delete the file; it is written again when the study is run",
        ) from None


def _link(place: Path, video: Path) -> None:
    target = os.path.relpath(video, place.parent)
    if place.is_symlink() and os.readlink(place) == target:
        return
    pointer = place.with_suffix(".txt")
    place.unlink(missing_ok=True)
    try:
        os.symlink(target, place)
        pointer.unlink(missing_ok=True)
    except (OSError, NotImplementedError):
        # Links are not supported here (FAT, or Windows without the privilege): write the path as text.
        write_atomic(pointer, f"{_POINTER}{Path(target).as_posix()}\n")


_POINTER = "wanscope take: "


def _is_pointer(path: Path) -> bool:
    return path.stat().st_size < 4096 and path.read_text(encoding="utf-8", errors="replace").startswith(_POINTER)
