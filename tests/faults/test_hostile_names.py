"""Names and ids from somebody else's files lead nowhere but below the folder they belong to."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.paths import write_study
from wanscope.analysis.bundle import export_bundle
from wanscope.analysis.collection import collect
from wanscope.catalog.files import EmbeddingFiles
from wanscope.errors import CatalogDamaged, DamagedTake, RequestError, WanscopeError
from wanscope.study.study_folder import IndexRow, StudyFolder
from wanscope.take.manifest import MANIFEST, FileRecord
from wanscope.take.store import Take
from wanscope.take.study_table import INDEX, read_table, table_text
from wanscope.workspace import Workspace, is_plain_name

HOSTILE = (
    *("../../../../x", "..", ".", "", "a/b", "/etc/x", "a\\b", "..\\x", "a\0b", "a\nb", "\x7f", "x" * 300),
    *("./x", "x/..", "a/../../b"),
)


@pytest.mark.parametrize("name", HOSTILE)
def test_no_hostile_name_is_plain(name: str) -> None:
    assert not is_plain_name(name)


@pytest.mark.parametrize("name", ["red-circle_seed00", "x.mp4", "ünïcode", "赤い円", "-", ".hidden", "a b", "con"])
def test_usual_names_are_plain(name: str) -> None:
    assert is_plain_name(name)


def everything_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def rewrite(space: Path, **cells: str) -> None:
    """Change cells of the first row of index.csv, as somebody who also knows how its checksum is made."""
    path = space / "studies" / "made" / INDEX
    rows = read_table(path)
    rows[0] |= cells
    path.write_text(table_text([list(rows[0]), *(list(row.values()) for row in rows)]), encoding="utf-8")


@pytest.mark.parametrize("column", ["name", "take"])
@pytest.mark.parametrize("text", [name for name in HOSTILE if name])
def test_a_table_of_a_study_makes_no_link_outside_its_folder(column: str, text: str, tmp_path: Path) -> None:
    space = tmp_path / "a" / "b" / "space"
    takes = write_study(space, {"color": ("red", "blue")}, 1)
    victim = tmp_path / "a" / "b" / "space" / "x.mp4"
    os.symlink("video.mp4", victim)  # what the link would replace
    rewrite(space, **{column: text})
    before = everything_below(tmp_path)
    folder = StudyFolder(Workspace(space), "made")
    row = IndexRow("green_seed00", takes[0].id, 2, 0, "complete", "a green circle")
    for act in (
        folder.rows,
        lambda: folder.record([row]),
        lambda: collect("made", Workspace(space)),
        lambda: export_bundle("made", workspace=space),
    ):
        with pytest.raises(WanscopeError) as error:
            act()
        assert "is not that of a file" in str(error.value) or "is not the id of a take" in str(error.value)
    assert everything_below(tmp_path) == before and victim.is_symlink()


@pytest.mark.parametrize("name", HOSTILE)
def test_ids_lead_nowhere_else(name: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="is not the id of a take"):
        Workspace(tmp_path).take_folder(name)
    with pytest.raises(CatalogDamaged, match="is not the key of an embedding"):
        EmbeddingFiles(tmp_path).path(name)


@pytest.mark.parametrize("path", [name for name in HOSTILE if name not in ("a/b",)])
def test_a_take_lists_only_files_below_its_folder(path: str, tmp_path: Path) -> None:
    (take,) = write_study(tmp_path, {"color": ("red",)}, 1)
    for changed in (
        take.manifest.model_copy(update={"files": (FileRecord.model_construct(path=path, bytes=1, sha256="0"),)}),
        take.manifest.model_copy(update={"id": path}),
    ):
        (take.folder / MANIFEST).write_text(changed.dumped(), encoding="utf-8")
        with pytest.raises(DamagedTake):
            Take.open(take.folder)


@pytest.mark.parametrize("whole", [True, False])
def test_a_link_out_of_a_take_is_not_followed(whole: bool, tmp_path: Path) -> None:
    """The link leads to a file with the right content, so that only the link is wrong."""
    (take,) = write_study(tmp_path / "space", {"color": ("red",)}, 1)
    name = "latents.zarr" if whole else "final.npy"
    os.rename(take.folder / name, tmp_path / name)
    os.symlink(tmp_path / name, take.folder / name, target_is_directory=whole)
    with pytest.raises(DamagedTake, match="it is a link to a file outside the take"):
        Take.open(take.folder).check_files()


def test_a_row_without_a_take_is_still_read(tmp_path: Path) -> None:
    """Missing takes of a model that is not here have no id."""
    takes = write_study(tmp_path, {"color": ("red", "blue")}, 1)
    rewrite(tmp_path, take="", status="missing")
    rows = StudyFolder(Workspace(tmp_path), "made").rows()
    assert [row.take for row in rows] == ["", takes[1].id]
    assert replace(rows[0], take="x").name == rows[0].name
