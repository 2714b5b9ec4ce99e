"""The workspace that faults are tried on: a study of four takes with records, its analysis, its bundle, its catalog.

A tiny random model makes it, so that nothing of the product is replaced by a stand-in. The parent process of a campaign
uses no threads: whatever works with a workspace runs in a fork of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

# What the product imports when it comes to it: once here, not in every fork.
import av  # noqa: F401
import duckdb  # noqa: F401
import numpy as np
import PIL.Image
import plotly.offline  # noqa: F401
import pyarrow.compute
import pyarrow.parquet  # noqa: F401
import torch
import zarr  # noqa: F401

import wanscope.analysis.metrics.latent
import wanscope.analysis.metrics.path
import wanscope.analysis.report as report
import wanscope.catalog.exchange
import wanscope.runtime.diffusers.session
import wanscope.sample.solvers.unipc
import wanscope.study.make_take
import wanscope.wan.placement
import wanscope.wan.text
import wanscope.wan.word_weights  # noqa: F401
from helpers.figures import one_of_each_form
from helpers.studies import STUDY, Events, model
from wanscope.analysis.analyze import analyze
from wanscope.analysis.bundle import export_bundle
from wanscope.catalog.catalog import Catalog
from wanscope.events import TakeDone
from wanscope.study.run import run

with contextlib.suppress(ImportError):
    import pandas  # noqa: F401 - which duckdb uses where it is installed
PIL.Image.init()

NAME = "small"
SMALL = {**STUDY, "capture": {"latents": {"dtype": "fp16"}, "attention": {"tokens": "marked"}}}
LABEL = "mine"
WAIT_SECONDS = 300


def few_figures() -> None:
    """Make a report draw one figure instead of all: they are files like each other."""
    every = report.write_static
    report.write_static = lambda charts, folder: every(one_of_each_form(charts)[:1], folder)


def generate(space: Path, **changes: Any) -> list[str]:
    """Run the study, note every finished take in a file beside the workspace, and return their ids."""
    with space.with_name(f"{space.name}.done").open("a") as log:

        def listen(event: Any) -> None:
            if isinstance(event, TakeDone):
                log.write(f"{event.take}\n")
                log.flush()

        result = run({**SMALL, **changes}, workspace=space, model=model(), on_event=listen)
    assert not result.failed, result.failed
    return [take.id for take in result.takes]


def finished(space: Path) -> set[str]:
    """Return the takes whose making was reported to the user, now or before."""
    log = space.with_name(f"{space.name}.done")
    return set(log.read_text().split()) if log.exists() else set()


def fill(space: Path) -> None:
    """Make the workspace from nothing."""
    generate(space)
    catalog = Catalog(space)
    values = np.random.default_rng(0).standard_normal((3, 32)).astype(np.float32)
    key = catalog.put(values, prompt="own words", model="m", encoder="e")
    catalog.annotate(key, label=LABEL, add=["tag"])
    analyze(NAME, workspace=space, report=False, on_event=Events())
    export_bundle(NAME, workspace=space, on_event=Events())
    catalog.export(space / "exports" / "db")


def copied(space: Path, to: Path) -> Path:
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(space, to, symlinks=True)
    log = space.with_name(f"{space.name}.done")
    if log.exists():
        shutil.copyfile(log, to.with_name(f"{to.name}.done"))
    return to


def forked(work: Callable[[], Any], seconds: float = WAIT_SECONDS) -> dict[str, Any]:
    """Do the work in a fork; return its `result`, or its `error`, or the signal that ended it as `signal`.

    Where it takes longer than `seconds`, it is killed and its result is "hangs".
    """
    read, write = os.pipe()
    process = os.fork()
    if process == 0:
        os.close(read)
        try:
            torch.set_num_threads(1)
            silence = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silence, 1)
            told = {"result": work()}
        except BaseException as error:  # noqa: BLE001 - whatever it is, the parent is told
            told = {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
        try:
            with os.fdopen(write, "w") as file:
                json.dump(told, file, default=str)
        finally:
            os._exit(0)
    os.close(write)
    ends, parts = time.monotonic() + seconds, []
    os.set_blocking(read, False)
    while True:
        try:
            part = os.read(read, 1 << 16)
            if not part:
                break
            parts.append(part)
        except BlockingIOError:
            if time.monotonic() > ends:
                os.kill(process, signal.SIGKILL)
                os.waitpid(process, 0)
                os.close(read)
                return {"error": "hangs"}
            time.sleep(0.002)
    os.close(read)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    if code < 0:
        return {"signal": -code}
    try:
        return json.loads(b"".join(parts))
    except ValueError:
        return {"error": f"it told nothing and ended with {code}"}


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
