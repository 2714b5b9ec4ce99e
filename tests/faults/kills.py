"""Kills a process at its n-th file operation, does the same work again, and looks for what was lost.

The work is whatever writes: generating, generating after a change, analyzing, exporting a bundle and a catalog,
importing, merging, indexing. Operations are those of Python's `os` and `open`; what DuckDB, FFmpeg and Arrow write on
their own is reached by kills at a random moment.
"""

from __future__ import annotations

import builtins
import io
import os
import random
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from faults.workspace import (
    LABEL,
    NAME,
    Catalog,
    Events,
    analyze,
    copied,
    export_bundle,
    fill,
    finished,
    forked,
    generate,
)
from wanscope.take.disk import file_sha256
from wanscope.take.store import Take

OPERATIONS = ("open", "mkdir", "rmdir", "rename", "replace", "unlink", "symlink", "fsync", "truncate")
TIMED = 0.25  # the share of kills that come at a moment instead of an operation
LEFT = re.compile(r"^\..*\.(partial|old|new|lock)(\.\w+)?$")
TWO_HOURS = 7200


def more(space: Path) -> None:
    generate(space, seeds=3)


def again(space: Path) -> None:
    """Another capture: every take is made again and replaces itself."""
    generate(space, capture={"latents": {"dtype": "fp32"}, "attention": {"tokens": "marked"}})


def changed(space: Path) -> None:
    generate(space, prompt="a [@color: red|green] (circle)")


def put(space: Path) -> None:
    rng = np.random.default_rng(1)
    catalog = Catalog(space)
    for i in range(3):
        values = rng.standard_normal((2, 8)).astype(np.float32)
        catalog.annotate(catalog.put(values, prompt=f"new {i}"), label=f"new {i}")


def db_export(space: Path) -> None:
    Catalog(space).export(space / "exports" / "again")


def merge(space: Path) -> None:
    Catalog(space.with_name(f"{space.name}.other")).merge(space)


def import_(space: Path) -> None:
    Catalog(space.with_name(f"{space.name}.other")).import_(space / "exports" / "db")


# First those that the short campaign tries; kills of generating are tested in tests/study/test_study_killed.py, too.
WORK: dict[str, Callable[[Path], Any]] = {
    "db export": db_export,
    "bundle": lambda space: export_bundle(NAME, workspace=space, on_event=Events()),
    "put": put,
    "analyze": lambda space: analyze(NAME, workspace=space, report=True, on_event=Events()),
    "generate": generate,
    "more seeds": more,
    "other captures": again,
    "another prompt": changed,
    "db import": import_,
    "db merge": merge,
    "index": lambda space: Catalog(space).index(rebuild=True),
}
FROM_NOTHING = ("generate",)


class Counter:
    """Counts file operations and ends the process at the n-th, as kill -9 does; n = 0 never."""

    def __init__(self, at: int = 0) -> None:
        self.at, self.count = at, 0
        for where, name in [*((os, name) for name in OPERATIONS), (builtins, "open"), (io, "open")]:
            setattr(where, name, self.counted(getattr(where, name)))

    def counted(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def operation(*arguments: Any, **options: Any) -> Any:
            self.count += 1
            if self.count == self.at:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)

        return operation


def counted(work: Callable[[Path], Any], space: Path, at: int = 0, seconds: float = 0.0) -> int:
    """Do the work and return its number of file operations; with `at` or `seconds`, be killed there."""
    if seconds:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, seconds)  # SIGALRM ends a process without any cleaning up
    counter = Counter(at)
    work(space)
    return counter.count


class Kills:
    """Kills by number: each is drawn from its number alone, so that a campaign can be continued."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.base = folder / "base"
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "base.made").exists():
            done = forked(lambda: fill(self.base))
            assert "result" in done, done
            (folder / "base.made").touch()
        self.lengths: dict[str, tuple[int, float, dict[str, Any]]] = {}

    def space(self, name: str, what: str) -> Path:
        """Return a fresh workspace for one kind of work."""
        space = self.folder / what
        for left in self.folder.glob(f"{what}*"):
            _remove(left)
        if name not in FROM_NOTHING:
            copied(self.base, space)
        return space

    def length(self, name: str) -> tuple[int, float, dict[str, Any]]:
        """Return operations and seconds of the whole work, and what is there after it."""
        if name not in self.lengths:
            space = self.space(name, "whole")
            began = time.monotonic()
            told = forked(lambda: counted(WORK[name], space))
            assert "result" in told, (name, told)
            seconds = time.monotonic() - began
            state = forked(lambda: content(space))
            assert "result" in state, (name, state)
            self.lengths[name] = told["result"], seconds, state["result"]
        return self.lengths[name]

    def one(self, number: int) -> dict[str, Any]:
        """Return what came of a kill: `lost` lists what was."""
        draw = random.Random(f"kill {number}")
        name = list(WORK)[number % len(WORK)]
        operations, seconds, whole = self.length(name)
        timed = draw.random() < TIMED
        at, moment = (0, draw.uniform(0.001, seconds)) if timed else (draw.randint(1, operations), 0.0)
        return self.kill(name, at, moment, whole)

    def kill(self, name: str, at: int, moment: float, whole: dict[str, Any]) -> dict[str, Any]:
        space = self.space(name, "killed")
        told = forked(lambda: counted(WORK[name], space, at, moment))
        out: dict[str, Any] = {"work": name, "at": at, "moment": round(moment, 4), "killed": "signal" in told}
        lost = [] if "error" not in told else [f"the work failed before it was killed: {told['error']}"]
        before = finished(space)
        for left in space.parent.rglob(".*.new*"):
            os.utime(left, (0, time.time() - TWO_HOURS))
        rerun = forked(lambda: WORK[name](space))
        if "error" in rerun:
            lost.append(f"it cannot be run again: {rerun['error']}")
            out["traceback"] = rerun.get("traceback")
        else:
            state = forked(lambda: content(space))
            if "error" in state:
                lost.append(f"the workspace cannot be read: {state['error']}")
                out["traceback"] = state.get("traceback")
            else:
                lost += differences(whole, state["result"])
                lost += [f"take {take} was reported as done" for take in before - set(state["result"]["takes"])]
        return {**out, "lost": lost}


def _remove(path: Path) -> None:
    import shutil

    shutil.rmtree(path) if path.is_dir() else path.unlink()


def content(space: Path) -> dict[str, Any]:
    """Return all that a user has in a workspace, verified, and what killed processes left in it."""
    from wanscope.study.study_folder import StudyFolder
    from wanscope.workspace import Workspace

    workspace = Workspace(space)
    takes = {}
    for take in workspace.take_ids():
        opened = Take.open(workspace.take_folder(take))
        opened.verify()
        takes[take] = [opened.manifest.latents_sha256, opened.recipe.capture.model_dump_json()]
    studies = {}
    for folder in sorted(workspace.studies.glob("[!.]*")):
        rows = StudyFolder(workspace, folder.name).rows()
        studies[folder.name] = {
            "rows": sorted(f"{row.name} {row.take} {row.status} {row.current}" for row in rows),
            "links": sorted(path.name for path in folder.glob("*.mp4") if path.exists()),
            "files": sorted(path.name for path in folder.glob("study*.yaml")),
            "analysis": sorted(str(p.relative_to(folder)) for p in (folder / "analysis").rglob("*") if p.is_file()),
        }
    catalogs = {}
    for place in (space, space.with_name(f"{space.name}.other")):
        if place.exists():
            catalog = Catalog(place)
            check = catalog.check(deep=True)
            catalogs["own" if place == space else "other"] = {
                "problems": list(check.problems),
                "embeddings": sorted(catalog.list()["key"].to_pylist()),
                "labels": sorted(label for label in catalog.list()["label"].to_pylist() if label),
                "takes": catalog.count("takes"),
            }
            catalog.cleanup(dry_run=False)
    bundles = {folder.name: bundle(folder) for folder in sorted((space / "exports").glob("[!.]*"))}
    roots = [space, space.with_name(f"{space.name}.other")]
    left = [str(p.relative_to(root)) for root in roots if root.exists() for p in root.rglob(".*") if LEFT.match(p.name)]
    left = [name for name in left if "/.locks/" not in f"/{name}" and not name.endswith("catalog.duckdb.lock")]
    return {"takes": takes, "studies": studies, "catalogs": catalogs, "bundles": bundles, "left": sorted(left)}


def bundle(folder: Path) -> list[str]:
    """Return the files of a bundle or an export; raise where one does not have its checksum."""
    sums = folder / "SHA256SUMS"
    if sums.exists():
        for line in sums.read_text().splitlines():
            wanted, name = line.split("  ", 1)
            assert file_sha256(folder / name) == wanted, f"{name} of the bundle is damaged"
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def differences(whole: Any, found: Any, place: str = "") -> list[str]:
    """Return what a killed and repeated work left otherwise than one that was not killed."""
    if isinstance(whole, dict) and isinstance(found, dict):
        return [
            line
            for key in sorted({*whole, *found})
            for line in differences(whole.get(key), found.get(key), f"{place}/{key}")
        ]
    return [] if whole == found else [f"{place}: {whole!r} became {found!r}"]


__all__ = ["LABEL", "Kills"]
