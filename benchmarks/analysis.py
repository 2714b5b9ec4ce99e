"""How fast the one pass over latents is, beside what the disk and the arithmetic allow, and how much memory it takes.

    python benchmarks/analysis.py --folder /tmp/latents [--takes 100] [--states 51] [--size 60x104x21] [--keep]

Claim: the pass reads at least half of the smaller of (the disk's own read speed, the speed of its arithmetic on data
that is in memory already), and stays under 1 GB of memory, whatever the number of takes and their resolution.

Made: `takes` synthetic paths of [states, 16, T, h, w] in fp16, in the format of takes; those that are there already are
not made again, so that a run that was cut short goes on. Measured in one process, in turn, over the same files:

    disk        every file read whole, without decoding (drop the system's cache first to see the disk itself)
    arithmetic  the pass over arrays in memory that are no files: inner products, projections, statistics
    pass        the pass itself: checksums as `take.latents` checks them, then reading, decoding and arithmetic

Bytes are those of the stored numbers, over all passes. Memory is the process's peak.
"""

from __future__ import annotations

import argparse
import hashlib
import resource
import sys
import time
from pathlib import Path

import numpy as np

from wanscope.analysis import gram
from wanscope.capture.arrays import create_array, open_array

CHANNELS = 16


def make(folder: Path, takes: int, states: int, shape_CThw: tuple[int, ...]) -> list[Path]:
    """The latents of every take: noise that turns into a smooth picture, as a path does."""
    folder.mkdir(parents=True, exist_ok=True)
    places = []
    for i in range(takes):
        place = folder / f"take-{i:03d}-{states}-{'x'.join(map(str, shape_CThw))}"
        places.append(place)
        if (place / "done").exists():
            continue
        rng = np.random.default_rng(i)
        noise = rng.standard_normal(shape_CThw, dtype=np.float32)
        smooth = np.cumsum(rng.standard_normal(shape_CThw, dtype=np.float32), axis=-1)
        smooth /= smooth.std()
        array = create_array(place, (states, *shape_CThw), (CHANNELS, 1, *shape_CThw[2:]), "fp16", {})
        for k in range(states):
            sigma = 1 - k / max(states - 1, 1)
            array[k] = (sigma * noise + (1 - sigma) * smooth).astype(np.float16)
        (place / "done").touch()
        print(f"\rmade {i + 1} of {takes}", end="", file=sys.stderr, flush=True)
    return places


def read_raw(places: list[Path]) -> tuple[int, float]:
    """Bytes on disk and seconds to read every file whole."""
    began, count = time.perf_counter(), 0
    for place in places:
        for path in place.rglob("*"):
            if path.is_file():
                with path.open("rb", buffering=0) as file:
                    while block := file.read(1 << 22):
                        count += len(block)
    return count, time.perf_counter() - began


def checksums(places: list[Path]) -> float:
    began = time.perf_counter()
    for place in places:
        for path in place.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    hashlib.file_digest(file, "sha256")
    return time.perf_counter() - began


class InMemory:
    """As an array on disk, with a few latents in memory that stand for all of them."""

    def __init__(self, states_KCThw: np.ndarray, shape: tuple[int, ...]) -> None:
        self.states_KCThw, self.shape = states_KCThw, shape

    def __getitem__(self, place: tuple) -> np.ndarray:
        state, channels, frames = place
        return self.states_KCThw[state % len(self.states_KCThw), channels, frames]


def peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where the synthetic latents lie or will lie")
    parser.add_argument("--takes", type=int, default=100)
    parser.add_argument("--states", type=int, default=51)
    parser.add_argument("--size", default="60x104x21", help="latent height x width x frames")
    parser.add_argument("--keep", action="store_true", help="leave the synthetic latents for another run")
    asked = parser.parse_args()
    height, width, frames = (int(part) for part in asked.size.split("x"))
    shape_CThw = (CHANNELS, frames, height, width)
    places = make(asked.folder, asked.takes, asked.states, shape_CThw)
    before = peak_bytes()

    on_disk, disk_seconds = read_raw(places)
    small = [open_array(places[0])[k : k + 1] for k in (0, asked.states - 1)]
    memory = [InMemory(np.concatenate(small), (asked.states, *shape_CThw))] * asked.takes
    began = time.perf_counter()
    floor = gram.one_pass(memory, scratch=asked.folder)
    floor_seconds = time.perf_counter() - began
    del memory, small

    check_seconds = checksums(places)
    began = time.perf_counter()
    found = gram.one_pass([open_array(place) for place in places], scratch=asked.folder)
    pass_seconds = time.perf_counter() - began
    assert found.bytes_read == floor.bytes_read

    stored = int(np.prod(shape_CThw)) * 2 * asked.takes * asked.states
    bytes_in_all = stored + found.bytes_read  # the checksums are a pass of their own
    speeds = {
        "disk": on_disk / disk_seconds,
        "arithmetic": found.bytes_read / floor_seconds,
        "pass": bytes_in_all / (check_seconds + pass_seconds),
        "pass without checksums": found.bytes_read / pass_seconds,
    }
    print(f"\n{asked.takes} takes of {asked.states} x {list(shape_CThw)} fp16: {stored / 1e9:.2f} GB, "
          f"{on_disk / 1e9:.2f} GB on disk")  # fmt: skip
    for name, speed in speeds.items():
        print(f"{name:<24}{speed / 1e6:>10.0f} MB/s")
    smaller = min(speeds["disk"], speeds["arithmetic"])
    print(f"pass / smaller of disk and arithmetic: {speeds['pass'] / smaller:.2f} (aim: 0.5)")
    print(f"peak memory: {peak_bytes() / 1e6:.0f} MB (making the data: {before / 1e6:.0f} MB; aim: under 1000 MB)")
    if not asked.keep:
        import shutil

        for place in places:
            shutil.rmtree(place)


if __name__ == "__main__":
    main()
