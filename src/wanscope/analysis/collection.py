"""Collect the takes of a study to analyze. Those that cannot be used are named and left out.

A study is given by its name, its folder, its study.yaml, its workspace, the result of `run`, or a list of takes.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wanscope.errors import DamagedTake, RequestError, TakeNotFound, WanscopeError, nearest
from wanscope.prompt.template import Template, parse
from wanscope.recipe import Study
from wanscope.spec.settings import DesignSpec
from wanscope.spec.strict_yaml import read_yaml_file
from wanscope.spec.validation import validated
from wanscope.study.check_design import EDIT
from wanscope.take.disk import guarded
from wanscope.take.manifest import check_sizes
from wanscope.take.store import Take
from wanscope.workspace import Workspace

if TYPE_CHECKING:
    from wanscope.study.run import StudyResult
    from wanscope.study.study_folder import IndexRow

STUDY_FILE = "study.yaml"
PROMPT = "prompt"  # the factor if no slot varies but the prompts do
GRACE_SECONDS = 2.0  # file systems and manifests may store whole seconds


@dataclass(frozen=True)
class Member:
    """A take of the study. name: readable and unique. labels: the values of its slots and edits, by name."""

    name: str
    take: Take
    labels: Mapping[str, str]

    @property
    def seed(self) -> int:
        return self.take.recipe.seed

    @property
    def id(self) -> str:
        return self.take.id

    @property
    def group(self) -> str:
        """All its labels, joined by commas; the prompt if it has none."""
        return ", ".join(self.labels.values()) or self.take.recipe.prompt


@dataclass(frozen=True)
class LeftOut:
    """A take that is left out of the analysis, and why."""

    name: str
    why: str


@dataclass(frozen=True)
class Collection:
    """The takes to analyze. folder: the study's folder, or None if the takes belong to no study.

    study: as it was last run. written: for each hypothesis, whether it was written before the first take was made.
    """

    name: str
    members: tuple[Member, ...]
    left_out: tuple[LeftOut, ...] = ()
    folder: Path | None = None
    study: Study | None = None
    written: tuple[bool, ...] = ()

    @property
    def design(self) -> DesignSpec | None:
        return None if self.study is None else self.study.design


def from_takes(text: str, folder: Path) -> str:
    """Return a sentence with absolute paths of a take's files shortened to start at the take's parent folder.

    Reports are published, so they must not show where the workspace is on this machine.
    """
    for place in dict.fromkeys((folder.absolute(), folder.resolve())):
        text = text.replace(str(place), f"{place.parent.name}/{place.name}")
    return text


@dataclass
class _Members:
    members: list[Member] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)

    def add(self, name: str, folder: Path, labels: Callable[[Take], Mapping[str, str]] | None = None) -> None:
        try:
            take = Take.open(folder)
            check_sizes(take.folder, take.manifest.files)
            if take.manifest.latents is not None:
                _ = take.latents  # reads all of them and verifies their checksums
        except DamagedTake as error:
            why = f"{error.what}: {error.why}" if error.why else error.what
            self.left_out.append(LeftOut(name, from_takes(why, folder)))
            return
        self.members.append(Member(name, take, dict(take.recipe.labels if labels is None else labels(take))))


def generate_command(folder: Path) -> str:
    """Return the command that generates the takes of the study in `folder` again.

    Without a study file there is no such command, and the one returned lists the study's takes.
    """
    space = Workspace(folder.parent.parent)
    path = folder / STUDY_FILE
    if not path.is_file():
        return f"wanscope takes --study {shlex.quote(folder.name)}{space.option}"
    here = Path.cwd()
    shown = path.relative_to(here) if path.is_relative_to(here) else path
    return f"wanscope generate {shlex.quote(str(shown))}{space.option}"


def collect(source: Any, workspace: Workspace | Path | str | None = None) -> Collection:
    """Return the takes that `source` names.

    Raises TakeNotFound or RequestError if it names none.
    """
    from wanscope.study.run import StudyResult

    if isinstance(source, StudyResult):
        return _of_result(source)
    if isinstance(source, Take):
        source = [source]
    if isinstance(source, Sequence) and not isinstance(source, str):
        return _of_takes(source)
    with guarded(Workspace.find(workspace).folder, "read"):  # a name may be too long for any disk
        return _of_name(str(source), Workspace.find(workspace))


def _of_name(name: str, space: Workspace) -> Collection:
    if (space.studies / name / "index.csv").is_file() and name not in ("", ".", ".."):
        return _of_study(space.studies / name)
    path = Path(os.path.expanduser(name)).absolute()
    if path.name == STUDY_FILE and path.is_file():
        path = path.parent
    if (path / "index.csv").is_file():
        return _of_study(path)
    if (path / "takes").is_dir():
        return _of_workspace(Workspace(path))
    known = sorted(p.parent.name for p in space.studies.glob("*/index.csv"))
    raise TakeNotFound(
        f"there is no study {name!r}",
        nearest(name, known) if known else f"{space.studies} contains no studies",
        f"wanscope {'takes' if known else 'demo'}{space.option}",
    )


def _of_result(result: StudyResult) -> Collection:
    if result.folder is not None:
        return _of_study(result.folder)
    return _of_takes(result.takes)


def _of_takes(takes: Sequence[Any]) -> Collection:
    if not takes or not all(isinstance(take, Take) for take in takes):
        raise RequestError(
            "there is nothing to analyze", "`analyze` needs a study or a list of takes", "wanscope takes"
        )
    found = _Members()
    for take in takes:
        found.add(_name(take), take.folder)
    return _checked("takes", found, "wanscope takes")


def _name(take: Take) -> str:
    words = "-".join(take.recipe.labels.values()) or take.id
    return f"{words}_seed{take.recipe.seed:02d}"


def _of_workspace(space: Workspace) -> Collection:
    studies = sorted(path.parent for path in space.studies.glob("*/index.csv"))
    if len(studies) == 1:
        return _of_study(studies[0])
    if studies:
        raise RequestError(
            f"{space.folder} contains {len(studies)} studies",
            ", ".join(path.name for path in studies[:8]) + (", ..." if len(studies) > 8 else ""),
            f"wanscope analyze {studies[0].name} --output-dir {space.folder}",
        )
    found = _Members()
    for take in space.take_ids():
        found.add(take, space.take_folder(take))
    return _checked(space.folder.name, found, f"wanscope takes{space.option}")


def _of_study(folder: Path) -> Collection:
    from wanscope.study.study_folder import StudyFolder

    space = Workspace(folder.parent.parent.resolve())
    rows = [row for row in StudyFolder(space, folder.name).rows() if row.current]
    study = _study(folder / STUDY_FILE)
    template = parse(study.prompt) if study is not None else None
    found = _Members()
    for row in rows:
        place = space.take_folder(row.take)
        if not place.exists():
            why = row.error.splitlines()[0] if row.error else f"its status is {row.status}"
            found.left_out.append(LeftOut(row.name, why))
            continue
        found.add(row.name, place, lambda take, row=row: _labels(row, take, template))
    written = _written(folder, study, found.members)
    return _checked(folder.name, found, generate_command(folder.absolute()), folder.resolve(), study, written)


def _labels(row: IndexRow, take: Take, template: Template | None) -> Mapping[str, str]:
    """Return a take's labels under this study's slot names.

    The labels stored in a take are those of the study that generated it first, whose slots may have other names.
    index.csv has this study's names, but does not distinguish an empty value from a missing one.
    """
    own, edits = take.recipe.labels, {**({EDIT: row.edit} if row.edit else {}), **row.swept}
    if {name: value for name, value in own.items() if value} == {**row.slots, **edits}:
        return own
    if template is not None and row.variation < template.count:
        variation = template.variation(row.variation)
        if variation.text == row.prompt:
            return {**variation.bindings, **edits}
    return {**row.slots, **edits}


def _study(path: Path) -> Study | None:
    if not path.is_file():
        return None
    return validated(Study, read_yaml_file(path))


def _written(folder: Path, study: Study | None, members: Sequence[Member]) -> tuple[bool, ...]:
    """Return for each hypothesis whether a study file with it is at least as old as the first take.

    Files that were copied have lost their times and count as written later, so that an analysis never claims a
    hypothesis as confirmatory without evidence.
    """
    if study is None or study.design is None:
        return ()
    first_take = min((datetime.fromisoformat(m.take.manifest.made).timestamp() for m in members), default=0.0)
    files = [*folder.glob("study.*.yaml"), folder / STUDY_FILE]
    early = [path for path in files if path.stat().st_mtime <= first_take + GRACE_SECONDS]
    known: list[Any] = []
    for path in early:
        try:
            older = _study(path)
        except WanscopeError:  # written by an older version: it is no evidence
            continue
        known += [] if older is None or older.design is None else older.design.hypotheses
    return tuple(hypothesis in known for hypothesis in study.design.hypotheses)


def _checked(
    name: str,
    found: _Members,
    fix: str,
    folder: Path | None = None,
    study: Study | None = None,
    written: tuple[bool, ...] = (),
) -> Collection:
    """Return the collection, with unique names. Raises TakeNotFound, with that fix, if no take can be analyzed."""
    if not found.members:
        reasons = "; ".join(f"{left.name}: {left.why}" for left in found.left_out[:3])
        raise TakeNotFound(f"{name} has no take that can be analyzed", reasons or "it is empty", fix)
    used: dict[str, int] = {}
    members = []
    for member in found.members:
        count = used[member.name] = used.get(member.name, 0) + 1
        members.append(member if count == 1 else Member(f"{member.name}-{count}", member.take, member.labels))
    return Collection(name, tuple(members), tuple(found.left_out), folder, study, written)
