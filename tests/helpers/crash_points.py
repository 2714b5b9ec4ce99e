"""Ends the process at each file operation of writing a take, one after another; prints JSON.

    python crash_points.py WORKSPACE new|replace ...     one line of JSON per word

For `replace`, a complete older take exists before. After each crash, the recovery of the next run is done and the
result is reported: nothing, the complete old take, or the complete new one.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import av  # noqa: F401 - what writing a take imports when it comes to it: once here, not in every process
import PIL.Image  # noqa: F401

from helpers.takes import recipe, write_take
from wanscope.errors import DamagedTake
from wanscope.recipe import CaptureSpec
from wanscope.take.store import Take, recover, unfinished

OPERATIONS = ("rename", "replace", "fsync", "mkdir", "rmdir", "unlink", "open")
CRASHED = 77


def crash_at(count: int) -> None:
    """Count file operations from now on and end the process before the given one, as kill -9 would."""
    left = [count]

    def counted(name: str):
        real = getattr(os, name)

        def operation(*args, **options):
            left[0] -= 1
            if left[0] == 0:
                os._exit(CRASHED)
            return real(*args, **options)

        return operation

    for name in OPERATIONS:
        setattr(os, name, counted(name))


def one(takes: Path, crash: int, replace: bool) -> dict[str, object]:
    wanted = recipe(latents=False)
    shutil.rmtree(takes, ignore_errors=True)
    if replace:
        write_take(takes, wanted.model_copy(update={"labels": {"which": "old"}}))
    process = os.fork()
    if process == 0:
        crash_at(crash)
        write_take(takes, wanted.model_copy(update={"labels": {"which": "new"}}))
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    left = unfinished(takes)
    for take in left:
        recover(takes, take)
    try:
        take = Take.open(takes / wanted.id)
        take.verify()
        found = take.recipe.labels["which"] if take.complete(CaptureSpec()) else "broken"
    except DamagedTake as error:
        found = "nothing" if not (takes / wanted.id).exists() else f"damaged: {error}"
    rest = [path.name for path in takes.iterdir() if path.name != wanted.id] if takes.exists() else []
    return {"code": code, "found": found, "rest": rest}


if __name__ == "__main__":
    for how in sys.argv[2:]:
        outcomes: list[dict[str, object]] = []
        while not outcomes or outcomes[-1]["code"] == CRASHED:
            outcomes.append(one(Path(sys.argv[1]) / how, len(outcomes) + 1, how == "replace"))
        print(json.dumps(outcomes), flush=True)
