"""Processes that write to one catalog at the same time, read it meanwhile, or are killed; prints JSON.

    python catalog_writers.py together FOLDER WRITERS EACH BATCH READERS
    python catalog_writers.py killed FOLDER KILLS SEED

Forked after the imports. A writer logs each batch once `put_many` has returned; what is logged is committed.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import duckdb  # noqa: F401 - imported before forking
import numpy as np
import pyarrow  # noqa: F401

from wanscope.catalog.catalog import Catalog, New
from wanscope.errors import WanscopeError


def values(writer: int, i: int) -> np.ndarray:
    return np.random.default_rng([writer, i]).standard_normal((6, 64)).astype(np.float32)


def forked(work: Callable[[], None]) -> int:
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        work()
        status = 0
    finally:
        os._exit(status)


def write(folder: Path, writer: int, count: int, batch: int, log: Path) -> None:
    catalog = Catalog(folder)
    with log.open("w") as file:
        for start in range(0, count, batch):
            news = [New(values(writer, i), prompt=f"w{writer} {i}", encoder="e") for i in range(start, start + batch)]
            began = time.monotonic()
            entry: dict[str, object] = {}
            try:
                entry["keys"] = catalog.put_many(news)
            except WanscopeError as error:
                entry["error"] = str(error)
            entry["seconds"] = time.monotonic() - began
            file.write(json.dumps(entry) + "\n")
            file.flush()


def read(folder: Path, stop: Path, log: Path) -> None:
    catalog, entries, seen = Catalog(folder), [], 0
    while not stop.exists():
        began = time.monotonic()
        entry: dict[str, object] = {}
        try:
            count = catalog.count("embeddings")
            entry["fell"] = count < seen
            seen = count
            catalog.search("w1", limit=5)
        except WanscopeError as error:
            entry["error"] = str(error)
        entry["seconds"] = time.monotonic() - began
        entries.append(entry)
        time.sleep(0.05)
    log.write_text("".join(json.dumps(entry) + "\n" for entry in entries))


def entries(log: Path) -> list[dict]:
    lines = log.read_text().split("\n") if log.exists() else []
    return [json.loads(line) for line in lines[:-1]]


def outcome(folder: Path) -> dict[str, object]:
    """Return what a new process finds."""
    catalog = Catalog(folder)
    found = catalog.check(deep=True)
    return {"count": found.embeddings, "problems": list(found.problems), "keys": catalog.list()["key"].to_pylist()}


def together(folder: Path, writers: int, each: int, batch: int, readers: int) -> dict[str, object]:
    logs = [folder / f"write{i}.log" for i in range(writers)]
    stop, reads = folder / "stop", [folder / f"read{i}.log" for i in range(readers)]
    began = time.monotonic()
    reading = [forked(lambda log=log: read(folder, stop, log)) for log in reads]
    writing = [forked(lambda i=i, log=log: write(folder, i, each, batch, log)) for i, log in enumerate(logs)]
    statuses = [os.waitpid(process, 0)[1] for process in writing]
    seconds = time.monotonic() - began
    stop.touch()
    statuses += [os.waitpid(process, 0)[1] for process in reading]
    done = [entry for log in logs for entry in entries(log)]
    seen = [entry for log in reads for entry in entries(log)]
    return {
        "statuses": statuses,
        "seconds": seconds,
        "longest_write": max(entry["seconds"] for entry in done),
        "longest_read": max((entry["seconds"] for entry in seen), default=0.0),
        "reads": len(seen),
        "errors": [entry["error"] for entry in [*done, *seen] if "error" in entry],
        "fell": any(entry.get("fell") for entry in seen),
        "committed": [key for entry in done for key in entry.get("keys", ())],
        **outcome(folder),
    }


def killed(folder: Path, kills: int, seed: int) -> dict[str, object]:
    """Run three writers; at random moments a random one is killed and replaced."""
    draw = random.Random(seed)
    numbers = iter(range(10_000))
    logs: list[Path] = []
    running: dict[int, Path] = {}

    def begin() -> None:
        writer = next(numbers)
        logs.append(folder / f"write{writer}.log")
        running[forked(lambda log=logs[-1]: write(folder, writer, 100_000, 5, log))] = logs[-1]

    for _ in range(3):
        begin()
    problems: list[str] = []
    opened = 0
    while not any(entries(log) for log in logs):
        time.sleep(0.02)
    for kill in range(kills):
        time.sleep(draw.uniform(0.02, 0.25))
        victim = draw.choice(sorted(running))
        os.kill(victim, signal.SIGKILL)
        os.waitpid(victim, 0)
        del running[victim]
        catalog = Catalog(folder)
        noted = {key for log in logs for entry in entries(log) for key in entry["keys"]}
        there = set(catalog.list()["key"].to_pylist())  # the file opens at once, with the others still writing
        opened += 1
        problems += [f"kill {kill}: {len(noted - there)} committed rows are gone"] if noted - there else []
        begin()
    for process in running:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    noted = [key for log in logs for entry in entries(log) for key in entry["keys"]]
    errors = [entry["error"] for log in logs for entry in entries(log) if "error" in entry]
    return {"opened": opened, "lost": problems, "errors": errors, "committed": noted, **outcome(folder)}


if __name__ == "__main__":
    what, place = sys.argv[1], Path(sys.argv[2])
    place.mkdir(parents=True, exist_ok=True)
    print(json.dumps({"together": together, "killed": killed}[what](place, *map(int, sys.argv[3:]))))
