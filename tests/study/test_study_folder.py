"""studies/<name>/: the study as it was run, a table of takes, links with readable names."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

import pytest

from helpers.takes import recipe, write_take
from wanscope.errors import RecipeError
from wanscope.recipe import Study
from wanscope.spec.validation import validated
from wanscope.study import study_folder
from wanscope.study.expand import expand
from wanscope.study.lock import held
from wanscope.study.study_file import load_study_data
from wanscope.study.study_folder import IndexRow, StudyFolder
from wanscope.workspace import Workspace


def study(**changes: Any) -> Study:
    return validated(Study, {"prompt": "a [@who: red|blue] circle", "seeds": 1, "name": "mine", **changes})


def row(space: Workspace, name: str, seed: int, prompt: str = "a red circle", **changes: Any) -> IndexRow:
    take = write_take(space.takes, recipe(seed=seed, prompt=prompt, latents=False))
    return IndexRow(name, take.id, 0, seed, "complete", prompt, {"who": "red"}, **changes)


def names(place: StudyFolder) -> list[str]:
    return sorted(path.name for path in place.folder.iterdir())


@pytest.fixture
def space(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


def test_the_study_file_runs_again_and_records_the_resolved_settings(space: Workspace) -> None:
    place = StudyFolder(space, "mine")
    written = study(sampler={"guidance": {0: 6.5, 5: 3.5}}, negative=None)
    assert place.begin(expand(written)) == []
    path = place.folder / "study.yaml"
    assert validated(Study, load_study_data(str(path))) == written
    head = path.read_text().splitlines()
    assert head[0] == "# 2 takes: 2 variations x 1 seed"
    assert any(line.startswith("# negative:") for line in head)
    assert any("solver: unipc" in line and "shift: 5.0" in line for line in head)


def test_a_changed_study_keeps_its_earlier_version(space: Workspace) -> None:
    place = StudyFolder(space, "mine")
    place.begin(expand(study()))
    assert place.begin(expand(study())) == []
    (note,) = place.begin(expand(study(sampler={"steps": 7})))
    assert "(sampler)" in note.text and "study.1.yaml" in note.text
    place.begin(expand(study(seeds=3)))
    assert names(place) == ["study.1.yaml", "study.2.yaml", "study.yaml"]
    assert load_study_data(str(place.folder / "study.1.yaml")).get("sampler") is None
    assert load_study_data(str(place.folder / "study.2.yaml"))["sampler"] == {"steps": 7}


def test_links_have_readable_names_and_survive_a_move_of_the_workspace(space: Workspace, tmp_path: Path) -> None:
    place = StudyFolder(space, "mine")
    place.record([row(space, "red_seed00", 0), row(space, "red_seed01", 1)])
    link = place.folder / "red_seed00.mp4"
    assert link.is_symlink() and not os.path.isabs(os.readlink(link))
    moved = tmp_path / "moved"
    moved.mkdir()
    for part in ("takes", "studies"):
        (tmp_path / part).rename(moved / part)
    assert (moved / "studies" / "mine" / "red_seed00.mp4").resolve().is_file()


def test_the_table_has_one_row_per_take_and_one_column_per_slot(space: Workspace) -> None:
    place = StudyFolder(space, "mine")
    rows = [
        row(space, "red_seed00", 0, seconds=1.5),
        IndexRow(
            "blue_seed00", "f" * 16, 1, 0, "failed", 'a "blue", circle\n', {"who": "blue"}, error="it broke, badly"
        ),
    ]
    place.record(rows)
    assert place.rows() == rows
    lines = list(csv.DictReader((place.folder / "index.csv").open(newline="")))
    assert [line["slot:who"] for line in lines] == ["red", "blue"]
    assert [line["status"] for line in lines] == ["complete", "failed"]
    assert not (place.folder / "blue_seed00.mp4").exists()


def test_takes_of_an_earlier_content_stay_but_are_not_current(space: Workspace) -> None:
    place = StudyFolder(space, "mine")
    old = row(space, "red_seed00", 0)
    place.record([old])
    new = row(space, "red_seed00", 0, prompt="a blue circle")
    place.record([new])
    assert [(r.take, r.current) for r in place.rows()] == [(new.take, True), (old.take, False)]
    assert (place.folder / "red_seed00.mp4").resolve().parent.name == new.take
    assert (place.folder / f"red_seed00_{old.take[:8]}.mp4").resolve().parent.name == old.take
    place.record([old, new])
    assert all(r.current for r in place.rows())


def test_links_of_removed_takes_are_deleted_and_other_files_stay(space: Workspace) -> None:
    place = StudyFolder(space, "mine")
    place.record([row(space, "red_seed00", 0), row(space, "red_seed01", 1)])
    (place.folder / "notes.txt").write_text("mine")
    (place.folder / "grid.mp4").write_bytes(b"a real file")
    for path in (space.takes / place.rows()[1].take).iterdir():
        path.unlink()
    place.record([place.rows()[0]])
    assert names(place) == ["grid.mp4", "index.csv", "notes.txt", "red_seed00.mp4"]


def test_without_links_a_text_file_contains_the_path(space: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no links here")

    place = StudyFolder(space, "mine")
    monkeypatch.setattr(study_folder.os, "symlink", refuse)
    place.record([row(space, "red_seed00", 0)])
    target = (place.folder / "red_seed00.txt").read_text().removeprefix("wanscope take: ").strip()
    assert (place.folder / target).resolve().is_file()
    monkeypatch.undo()
    place.record(place.rows())
    assert names(place) == ["index.csv", "red_seed00.mp4"]  # the text file was removed when links were possible


def test_an_unreadable_table_is_an_error(space: Workspace) -> None:
    place = StudyFolder(space, "mine")
    place.record([row(space, "red_seed00", 0)])
    (place.folder / "index.csv").write_text("name,take\nx,y\n")
    with pytest.raises(RecipeError, match=r"index\.csv has been changed"):
        place.rows()


def test_a_lock_is_held_once_and_released(tmp_path: Path) -> None:
    with held(tmp_path, "a") as first, held(tmp_path, "a") as second, held(tmp_path, "b") as other:
        assert (first, second, other) == (True, False, True)
    with held(tmp_path, "a") as again:
        assert again
