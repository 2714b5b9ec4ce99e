"""Runs of a study in forked processes that are killed or compete; prints JSON for tests/study/test_study_killed.py.

    python fork_runs.py killed WORKSPACE KILLS SEED      kill -9 at random moments, then run to the end
    python fork_runs.py together WORKSPACE PROCESSES     several processes on one study at once

Several of these may be given, separated by `--`; each prints one line of JSON. With a fork after the imports, a run
costs only its takes. The parent uses neither torch's threads nor zarr before it forks.
"""

from __future__ import annotations

import gc
import json
import os
import random
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from itertools import groupby
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

# Imported lazily by a run: once here instead of in every process. None of these imports starts a thread.
import av  # noqa: F401
import duckdb  # noqa: F401
import pyarrow  # noqa: F401
import torch
import zarr  # noqa: F401

import wanscope.runtime.diffusers.session
import wanscope.study.make_take  # noqa: F401
from helpers.studies import STUDY, Events, model
from wanscope.events import Event, TakeDone
from wanscope.study.run import run

SMALL = {**STUDY, "capture": {"latents": {"dtype": "fp16"}}}
WAIT_SECONDS = 240


class Sharing(Events):
    """Waits after its first take until the other processes have made one too: a busy machine may let one run ahead."""

    def __init__(self, own: Path | None, others: list[Path]) -> None:
        super().__init__()
        self.own, self.others = own, others

    def __call__(self, event: Event) -> None:
        super().__call__(event)
        if isinstance(event, TakeDone) and self.own is not None:
            self.own.touch()
            ends = time.monotonic() + WAIT_SECONDS
            while not all(path.exists() for path in self.others) and time.monotonic() < ends:
                time.sleep(0.01)


def child(workspace: Path, log: Path | None = None, own: Path | None = None, others: Sequence[Path] = ()) -> int:
    """Fork a process that runs the study and return its id. It creates `own` and waits for `others`: see Sharing."""
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        torch.set_num_threads(1)
        events = Sharing(own, list(others))
        result = run(SMALL, workspace=workspace, model=model(), on_event=events)
        done = {"made": [e.take for e in events.of(TakeDone)], "takes": [take.id for take in result.takes]}
        if log is not None:
            log.write_text(json.dumps({**done, "failed": [failure.error for failure in result.failed]}))
        status = 0
    finally:
        os._exit(status)


def complete(workspace: Path) -> dict[str, list[int]]:
    # A hidden folder is an unfinished take; if it was killed just before the rename, it already has a `take.json`.
    manifests = (path for path in workspace.glob("takes/*/take.json") if not path.parent.name.startswith("."))
    found = {path.parent.name: path.stat() for path in manifests}
    return {take: [stat.st_mtime_ns, stat.st_ino] for take, stat in found.items()}


def killed(workspace: Path, kills: int, seed: int) -> dict[str, object]:
    draw = random.Random(seed)
    began = time.monotonic()
    os.waitpid(child(workspace / "reference", workspace / "reference.json"), 0)
    whole = time.monotonic() - began
    changed, seen, moments = [], complete(workspace / "out"), []
    for _ in range(kills):
        process = child(workspace / "out")
        moments.append(draw.uniform(0.05, 0.6) * whole)
        time.sleep(moments[-1])
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        now = complete(workspace / "out")
        changed += [take for take in seen if now.get(take) != seen[take]]
        seen = now
    before_last = len(seen)
    _, status = os.waitpid(child(workspace / "out", workspace / "last.json"), 0)
    now = complete(workspace / "out")
    changed += [take for take in seen if now.get(take) != seen[take]]
    return {"changed": changed, "status": status, "complete_before_last": before_last, "seconds": moments}


def together(workspace: Path, processes: int) -> dict[str, object]:
    logs = [workspace / f"{i}.json" for i in range(processes)]
    began = [log.with_suffix(".made") for log in logs]
    children = [child(workspace / "out", log, began[i], [*began[:i], *began[i + 1 :]]) for i, log in enumerate(logs)]
    statuses = [os.waitpid(process, 0)[1] for process in children]
    return {"statuses": statuses, "logs": [json.loads(log.read_text()) for log in logs]}


if __name__ == "__main__":
    with suppress(ImportError):
        import pandas  # noqa: F401 - which duckdb uses where it is installed
    model()
    gc.freeze()
    for between, words in groupby(sys.argv[1:], "--".__eq__):
        if not between:
            what, folder, *rest = words
            Path(folder).mkdir(parents=True, exist_ok=True)
            print(json.dumps({"killed": killed, "together": together}[what](Path(folder), *map(int, rest))), flush=True)
