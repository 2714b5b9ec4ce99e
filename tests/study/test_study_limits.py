"""What a run has run out of ends it, as a full disk does: files, memory, a disk that fails. It says what stays.

The errors are raised where the system would raise them, in the calls that every library ends in.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import wanscope.study.make_take
from helpers.studies import STUDY, Events, model
from wanscope.errors import DamagedTake, StorageError
from wanscope.events import TakeDone, TakeFailed, TakeStarted
from wanscope.study.run import run
from wanscope.take.disk import ending
from wanscope.take.store import existing_take

CODES = ["EMFILE", "ENFILE", "ENOMEM", "EIO", "ENOSPC", "EROFS"]
SMALL = {**STUDY, "capture": {"latents": {"dtype": "fp16"}}}


class Failing:
    """Raises the error in every call that touches a take in progress, from the second take on."""

    def __init__(self, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.code, self.active = code, False
        for where, name in ((os, "open"), (os, "fsync"), (builtins, "open"), (io, "open"), (os, "mkdir")):
            monkeypatch.setattr(where, name, self.checked(getattr(where, name)))

    def checked(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def operation(*arguments: Any, **options: Any) -> Any:
            if self.active and ".partial" in str(arguments[0] if arguments else ""):
                raise OSError(self.code, os.strerror(self.code), str(arguments[0]))
            return real(*arguments, **options)

        return operation


@pytest.mark.parametrize("name", CODES)
def test_a_limit_ends_the_run_at_the_take_that_meets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    failing, seen = Failing(getattr(errno, name), monkeypatch), Events()

    def listen(event: Any) -> None:
        seen(event)
        failing.active = failing.active or isinstance(event, TakeDone)

    with pytest.raises(StorageError, match="1 of 4 takes are complete and stay"):
        run(SMALL, workspace=tmp_path, model=model(), on_event=listen)
    assert len(seen.of(TakeStarted)) <= 2 and seen.of(TakeFailed) == []
    failing.active = False
    assert run(SMALL, workspace=tmp_path, model=model()).made == 3


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("can't start new thread"),
        ValueError("a library's own words"),
    ],
    ids=["MemoryError", "torch", "thread", "wrapped"],
)
def test_limits_that_libraries_report_in_their_own_words_end_it_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    if isinstance(error, ValueError):
        error.__cause__ = OSError(errno.EMFILE, "Too many open files")

    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(wanscope.study.make_take, "_write_files", fail)
    seen = Events()
    with pytest.raises(StorageError, match="0 of 4 takes are complete"):
        run(STUDY, workspace=tmp_path, model=model(), on_event=seen)
    assert len(seen.of(TakeStarted)) == 1


def test_other_failures_belong_to_their_take(tmp_path: Path) -> None:
    for error in (
        ValueError("x"),
        RuntimeError("x"),
        torch.OutOfMemoryError("x"),
        OSError(errno.ENOENT, "x"),
        KeyError(),
    ):
        assert ending(error, tmp_path) is None
    hidden = ValueError("x")
    hidden.__context__, hidden.__suppress_context__ = OSError(errno.EIO, "x"), True
    assert ending(hidden, tmp_path) is None
    turning = ValueError("x")
    turning.__cause__ = turning.__context__ = turning
    assert ending(turning, tmp_path) is None


@pytest.mark.parametrize("name", ["EMFILE", "ENFILE", "ENOMEM", "EIO", "EACCES"])
def test_a_take_that_cannot_be_read_is_not_taken_for_one_that_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    done = run(STUDY, workspace=tmp_path, model=model()).takes[0]

    def refuse(path: Path) -> bytes:
        raise OSError(getattr(errno, name), os.strerror(getattr(errno, name)), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", refuse)
        with pytest.raises(DamagedTake) as told:
            existing_take(done.folder)
        assert isinstance(told.value, StorageError)
        with pytest.raises(StorageError):
            run(STUDY, workspace=tmp_path, model=model())
    assert run(STUDY, workspace=tmp_path, model=model()).made == 0


@pytest.mark.parametrize("how", ["removed", "cut short", "its take.json removed"])
def test_a_take_that_vanishes_while_others_are_made_is_a_failure(tmp_path: Path, how: str) -> None:
    first: list[Path] = []

    def listen(event: Any) -> None:
        if isinstance(event, TakeDone):
            first.append(Path(event.folder))
            if len(first) == 2:
                harm(first[0])

    def harm(folder: Path) -> None:
        if how == "removed":
            shutil.rmtree(folder)
        elif how == "cut short":
            os.truncate(folder / "video.mp4", 100)
        else:
            (folder / "take.json").unlink()

    result = run(STUDY, workspace=tmp_path, model=model(), on_event=listen)
    assert [failure.take for failure in result.failed] == [first[0].name] and len(result.takes) == 3
    assert "was complete and is not any more" in result.failed[0].error
    table = (tmp_path / "studies" / "small" / "index.csv").read_text()
    assert table.count(",failed,yes,") == 1 and table.count(",complete,yes,") == 3
    again = run(STUDY, workspace=tmp_path, model=model())
    assert (again.made, len(again.takes), again.failed) == (1, 4, ())
