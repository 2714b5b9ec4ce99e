"""Runs of a study in forked processes that are killed or compete; prints JSON for tests/study/test_study_killed.py.

    python fork_runs.py killed WORKSPACE KILLS SEED      kill -9 at random moments, then run to the end
    python fork_runs.py together WORKSPACE PROCESSES     several processes on one study at once

Forking after the imports makes a run cost its takes alone. The parent uses neither torch's threads nor zarr before it
forks.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from helpers.studies import STUDY, Events, model
from wanscope.events import TakeDone
from wanscope.study.run import run

SMALL = {**STUDY, "capture": {"latents": {"dtype": "fp16"}}}


def child(workspace: Path, log: Path | None = None) -> int:
    """Fork a process that runs the study; returns its id."""
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        torch.set_num_threads(1)
        events = Events()
        result = run(SMALL, workspace=workspace, model=model(), on_event=events)
        done = {"made": [e.take for e in events.of(TakeDone)], "takes": [take.id for take in result.takes]}
        if log is not None:
            log.write_text(json.dumps({**done, "failed": [failure.error for failure in result.failed]}))
        status = 0
    finally:
        os._exit(status)


def complete(workspace: Path) -> dict[str, list[int]]:
    # A hidden folder is a take on its way: killed just before the rename, it holds a `take.json` already.
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
    children = [child(workspace / "out", log) for log in logs]
    statuses = [os.waitpid(process, 0)[1] for process in children]
    return {"statuses": statuses, "logs": [json.loads(log.read_text()) for log in logs]}


if __name__ == "__main__":
    model()
    what, folder = sys.argv[1], Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    numbers = [int(number) for number in sys.argv[3:]]
    print(json.dumps({"killed": killed, "together": together}[what](folder, *numbers)))
