"""Listing, showing and comparing takes on the disk; damaged takes are listed and named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from helpers.takes import recipe, write_take
from wanscope.recipe import Study
from wanscope.spec.validation import validated
from wanscope.study.expand import expand
from wanscope.study.study_folder import IndexRow, StudyFolder
from wanscope.take.store import Take
from wanscope.take.video import video_facts
from wanscope.workspace import Workspace


@pytest.fixture
def space(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "out")


@pytest.fixture
def two(space: Workspace) -> tuple[Take, Take]:
    return write_take(space.takes, recipe(seed=0)), write_take(space.takes, recipe(seed=1, prompt="a [blue] circle"))


def make_study(space: Workspace, takes: tuple[Take, ...], missing: bool = False) -> None:
    """Write a study's folder with these takes; with `missing`, also one that was not made."""
    folder = StudyFolder(space, "mine")
    folder.begin(expand(validated(Study, {"prompt": "a circle", "name": "mine"})))
    rows = [
        IndexRow(f"name-{i}", take.id, i, take.recipe.seed, "complete", take.recipe.prompt, {"1": "x"}, True, 1.0)
        for i, take in enumerate(takes)
    ]
    gone = IndexRow("name-9", "f" * 16, 9, 9, "failed", "a square", error="NaN after step 2\nmore")
    folder.record([*rows, gone] if missing else rows)


def test_an_empty_workspace_suggests_how_to_begin(cli, space: Workspace) -> None:
    ran = cli("takes", "-o", space.folder)
    assert ran.status == 0 and "wanscope demo" in ran.out
    assert json.loads(cli("takes", "--json", "-o", space.folder).out) == []
    assert not space.folder.exists()


def test_takes_are_listed_from_their_folders(cli, space: Workspace, two) -> None:
    ran = cli("takes", "-o", space.folder)
    assert ran.status == 0
    for take in two:
        (line,) = [line for line in ran.out.splitlines() if line.startswith(take.id)]
        assert take.recipe.prompt in line and "64x48x9" in line
    listed = json.loads(cli("takes", "--json", "-o", space.folder).out)
    assert {entry["id"]: entry["prompt"] for entry in listed} == {t.id: t.recipe.prompt for t in two}
    assert all(entry["status"] == "complete" and entry["latents"] for entry in listed)
    assert (
        listed[0]["bytes"]
        == sum(p.stat().st_size for p in two[0].folder.rglob("*") if p.is_file())
        - (two[0].folder / "take.json").stat().st_size
    )


def test_damaged_takes_are_listed_as_damaged(cli, space: Workspace, two) -> None:
    first, second = two
    (first.folder / "take.json").write_text("{")
    (second.folder / "poster.webp").unlink()
    third = write_take(space.takes, recipe(seed=3))
    (space.takes / ("0" * 16)).mkdir()
    (space.takes / ".abc.1.partial").mkdir()
    ran = cli("takes", "-o", space.folder)
    assert ran.status == 0 and ran.out.count("DAMAGED") == 3 and "3 damaged" in ran.out
    listed = {entry["id"]: entry for entry in json.loads(cli("takes", "--json", "-o", space.folder).out)}
    assert listed[third.id]["status"] == "complete"
    assert "JSON" in listed[first.id]["damage"]
    assert "poster.webp" in listed[second.id]["damage"]
    assert "take.json" in listed["0" * 16]["damage"] or "not" in listed["0" * 16]["damage"]
    assert len(listed) == 4


def test_the_takes_of_a_study(cli, space: Workspace, two) -> None:
    make_study(space, two, missing=True)
    (two[1].folder / "video.mp4").write_bytes(b"")
    ran = cli("takes", "--study", "mine", "-o", space.folder)
    assert ran.status == 0 and "1 of 3 complete" in ran.out
    assert "name-9 is failed: NaN after step 2" in ran.out
    listed = json.loads(cli("takes", "--study", "mine", "--json", "-o", space.folder).out)
    assert [entry["status"] for entry in listed] == ["complete", "damaged", "failed"]
    assert listed[0]["slots"] == {"1": "x"}


@pytest.mark.parametrize("name", ["mien", "../studies/mine", ""])
def test_a_study_that_is_not_there(cli, space: Workspace, two, name: str) -> None:
    make_study(space, two)
    ran = cli("takes", "--study", name, "-o", space.folder)
    assert ran.status == 2 and "mine" in ran.err


@pytest.mark.parametrize("way", ["id", "prefix", "folder", "video"])
def test_show(cli, space: Workspace, two, way: str) -> None:
    take = two[1]
    name = {"id": take.id, "prefix": take.id[:9], "folder": take.folder, "video": take.video}[way]
    ran = cli("show", name, "-o", space.folder)
    assert ran.status == 0
    for text in (take.id, "a [blue] circle", "unipc", "video.mp4", "latents.zarr/", "1.0000 0.7500 0.5000", "fp32"):
        assert text in ran.out
    shown = json.loads(cli("show", name, "--json", "-o", space.folder).out)
    assert shown["recipe"]["seed"] == 1 and shown["folder"] == str(take.folder) and shown["sigmas"][0] == 1


def test_show_refuses_what_fits_several_or_none(cli, space: Workspace) -> None:
    for name in ("ab12", "ab34"):
        (space.takes / name).mkdir(parents=True)
        (space.takes / name / "take.json").write_text("{}")
    ran = cli("show", "ab", "-o", space.folder)
    assert ran.status == 2 and "could be any of 2" in ran.err
    ran = cli("show", "xyz", "-o", space.folder)
    assert ran.status == 2 and "xyz" in ran.err and "2 takes" in ran.err


def flip(path: Path, at: int = -1) -> None:
    """Change one bit without changing the size."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["poster.webp", "latents.zarr", "final.npy", "events.jsonl"])
def test_show_reads_every_file(cli, space: Workspace, two, name: str) -> None:
    take = two[0]
    assert "matches its checksum" in cli("show", take.id, "-o", space.folder).out
    path = take.folder / name
    if path.is_dir():  # a shard of the path's states
        path = max((p for p in path.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    flip(path, path.stat().st_size // 2)
    for options in ([], ["--json"]):
        ran = cli("show", take.id, *options, "-o", space.folder)
        assert ran.status == 1 and str(path) in ran.err and "checksum" in ran.err and ran.out == ""
    unread = cli("show", take.id, "--no-verify", "-o", space.folder)
    assert unread.status == 0 and "Checksums were not compared" in unread.out
    listed = cli("takes", "-o", space.folder)  # a listing looks at sizes
    assert listed.status == 0 and "DAMAGED" not in listed.out


def test_the_fix_that_show_gives_for_a_flipped_byte_repairs_it(cli, space: Workspace, two) -> None:
    flip(two[0].video)
    error = cli("show", two[0].id, "-o", space.folder).err
    assert f"Try: rm -r {two[0].folder}" in error


def test_compare_reads_the_videos_it_shows(cli, space: Workspace, two) -> None:
    flip(two[0].video)
    ran = cli("compare", two[0].id, two[1].id, "-o", space.folder)
    assert ran.status == 1 and str(two[0].video) in ran.err
    make_study(space, two)
    ran = cli("compare", "mine", "-o", space.folder)
    assert ran.status == 0 and "left out of study mine: 1 missing or damaged" in ran.out


def test_compare_takes(cli, space: Workspace, two, tmp_path: Path) -> None:
    ran = cli("compare", two[0].id[:6], two[1].folder, "-o", space.folder)
    assert ran.status == 0
    (path,) = space.folder.glob("compare-*.mp4")
    assert two[0].id[:8] in path.name and two[1].id[:8] in path.name and path.name in ran.out
    assert video_facts(path)["frames"] == 9
    chosen = tmp_path / "new" / "pair.mp4"
    shown = json.loads(cli("compare", two[0].id, two[1].id, "--out", chosen, "--json", "-o", space.folder).out)
    assert chosen.is_file() and shown["video"] == str(chosen)
    assert (shown["rows"], shown["columns"], shown["takes"]) == (1, 2, [two[0].id, two[1].id])


def test_compare_a_study(cli, space: Workspace, two) -> None:
    make_study(space, two, missing=True)
    ran = cli("compare", "mine", "-o", space.folder)
    assert ran.status == 0 and "left out of study mine: 1 missing or damaged" in ran.out
    assert (space.studies / "mine" / "side-by-side.mp4").is_file()
    shown = json.loads(cli("compare", "mine", two[0].id, "--json", "-o", space.folder).out)
    assert shown["takes"] == [two[0].id, two[1].id]  # each once
    # Running the study again does not remove the comparison.
    StudyFolder(space, "mine").record([])
    assert (space.studies / "mine" / "side-by-side.mp4").is_file()


def test_compare_refuses_what_is_named_twice(cli, space: Workspace, two) -> None:
    take = two[0]
    for again in (take.id, take.id[:8], take.folder):
        ran = cli("compare", take.id, two[1].id, again, "-o", space.folder)
        assert ran.status == 2 and f"take {take.id} is named twice" in ran.err and "Try: wanscope takes" in ran.err
        assert (str(again) in ran.err.split("named twice")[1]) == (str(again) != take.id)
    make_study(space, two)
    ran = cli("compare", "mine", "mine", "-o", space.folder)
    assert ran.status == 2 and "study mine is named twice" in ran.err
    assert not list(space.folder.glob("compare-*.mp4")) and not list(space.studies.rglob("side-by-side.mp4"))


def test_compare_refuses(cli, space: Workspace, two) -> None:
    assert cli("compare", two[0].id, "--out", "x.avi", "-o", space.folder).status == 2
    assert cli("compare", "zzz", "-o", space.folder).status == 2
    blocked = cli("compare", two[0].id, "--out", two[0].video / "x.mp4", "-o", space.folder)
    assert blocked.status == 2 and "is not a folder" in blocked.err
    make_study(space, (), missing=True)
    ran = cli("compare", "mine", "-o", space.folder)
    assert ran.status == 2 and "no finished take" in ran.err


def test_a_workspace_that_is_a_file(cli, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ran = cli("takes", "-o", tmp_path / "file")
    assert ran.status == 2 and "is not a folder" in ran.err


def test_tables_are_plain_in_a_pipe_and_drawn_at_a_terminal(monkeypatch, capsys) -> None:
    from wanscope.doors.cli import output

    output.table(("name", "n"), [("a", "1"), ("long [red] name\n", "20")], right=("n",))
    assert capsys.readouterr().out == "name               n\na                  1\nlong [red] name   20\n"
    monkeypatch.setattr(output, "interactive", lambda stream=None: True)
    output.table(("name", "n"), [("a", "1"), ("long [red] name", "20")], right=("n",))
    assert "long [red] name" in capsys.readouterr().out
