"""What is built beside its place is there completely or not at all; leftovers of killed builders are removed."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from wanscope.errors import StorageError, StorageRefused
from wanscope.take.building import built_beside, new_file, new_folder, write_atomic

KILLED = """
import os, sys
from pathlib import Path
from wanscope.take import building

place, crash = Path(sys.argv[1]), int(sys.argv[2])
left = [crash]

def counted(name):
    real = getattr(os, name)
    def operation(*arguments, **options):
        left[0] -= 1
        if left[0] == 0:
            os._exit(77)
        return real(*arguments, **options)
    setattr(os, name, operation)

for name in ("open", "mkdir", "rename", "replace", "unlink", "rmdir", "fsync"):
    counted(name)
with building.built_beside(place) as folder:
    (folder / "a").write_text("new")
    (folder / "sub").mkdir()
    (folder / "sub" / "b").write_text("new")
os._exit(0)
"""


def fill(place: Path, text: str) -> None:
    with built_beside(place) as folder:
        (folder / "a").write_text(text)


def content(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the operations are those of POSIX")
@pytest.mark.parametrize("how", ["new", "replace"])
def test_a_folder_killed_at_any_operation_can_be_built_again_and_nothing_is_lost(tmp_path: Path, how: str) -> None:
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    code, crash, seen = 77, 0, set()
    while code == 77:
        crash += 1
        place = tmp_path / str(crash) / "place"
        place.parent.mkdir()
        if how == "replace":
            fill(place, "old")
        code = subprocess.run([sys.executable, str(script), str(place), str(crash)], env=env).returncode
        found = content(place) if place.exists() else {}
        assert found in ({}, {"a": "old"}, {"a": "new", "sub/b": "new"})
        seen.add(found.get("a"))
        if not found and how == "replace":  # between the two renames: the next builder puts it back first
            with pytest.raises(KeyError), built_beside(place):
                raise KeyError
            assert content(place) == {"a": "old"}
        fill(place, "again")
        assert content(place) == {"a": "again"}
        assert [p.name for p in place.parent.iterdir()] == ["place"]
    assert code == 0 and crash > 10 and "new" in seen


def test_an_error_leaves_what_was_there(tmp_path: Path) -> None:
    place = tmp_path / "place"
    fill(place, "old")
    with contextlib.suppress(StorageError), built_beside(place) as folder:
        (folder / "a").write_text("new")
        raise StorageError("the disk is full")
    assert content(place) == {"a": "old"} and [p.name for p in tmp_path.iterdir()] == ["place"]


def test_a_folder_that_another_process_is_building_is_left_alone(tmp_path: Path) -> None:
    with new_folder(tmp_path, "x") as mine, new_folder(tmp_path, "x") as other:
        assert mine.is_dir() and other.is_dir() and mine != other
    assert list(tmp_path.iterdir()) == []


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    real.mkdir()
    link.symlink_to(real)
    fill(link, "new")
    assert link.is_symlink() and content(real) == {"a": "new"}


def test_a_place_that_cannot_be_renamed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "is_mount", lambda path: path.name == "disk")
    with pytest.raises(StorageRefused, match="cannot be replaced"):
        fill(tmp_path / "disk", "new")


@pytest.mark.parametrize("name", ["a.json", "x" * 255, "é" * 127])
def test_a_file_is_replaced_and_files_of_killed_writers_are_removed(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write_atomic(path, "old")
    with contextlib.suppress(KeyError), new_file(path) as new:
        new.write_text("half")
        raise KeyError
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1
    with new_file(path) as new:
        young, old = (new.with_name(new.name.replace(f".{os.getpid()}-", f".{i}-")) for i in (998, 999))
        for left in (young, old):
            left.write_text("left")
        os.utime(old, (0, time.time() - 7200))
        new.write_text("new")
    write_atomic(path, "newer")
    assert {p.name for p in tmp_path.iterdir()} == {name, young.name}  # the young one may be of a running process


def test_a_full_disk_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    write_atomic(path, "old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, "new")
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["a"]
