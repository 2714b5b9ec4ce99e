"""The speed of the one pass over latents, compared with the limits of disk and arithmetic, and its peak memory.

    python benchmarks/analysis.py --folder /tmp/latents [--takes 100] [--states 51] [--size 60x104x21] [--rounds 3]
                                  [--keep] [--out benchmarks/results/analysis.md]

Claim: the pass reads at least half as fast as the slower of (reading from the disk, its arithmetic on data that is
already in memory), and uses less than 1 GB of memory, whatever the number of takes and their resolution.

The data: `takes` synthetic paths of [states, 16, T, h, w] in fp16, in the format of takes; existing ones are not made
again, so that an interrupted run can be resumed. Measured in one process, in turn, on the same files:

    disk        reading every file completely, without decoding
    arithmetic  the pass over arrays in memory instead of files: inner products, projections, statistics
    pass        the pass itself: verifying checksums as `take.latents` does, then reading, decoding and arithmetic

Before the disk, the checksums and the pass, the system is asked to drop the files from its cache (posix_fadvise, which
needs no privileges). The table reports whether it could be asked, not whether it complied: otherwise, and for a folder
in memory such as /tmp may be, `disk` is the speed of memory. A small pass before the first round is a warm-up.
All speeds refer to the stored numbers, fp16 before compression, so that they are comparable; the pass counts every time
it reads them. Ratios are taken within a round, and the claim is about their median. Memory is the process's peak, also
given before the passes.

Shape suffixes: K states, C channels, T latent frames, h and w latent height and width.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import resource
import statistics
import sys
import time
from pathlib import Path

import numpy as np
from reporting import Table, add_options

from wanscope.analysis import latent_pass
from wanscope.capture.arrays import create_array, open_array

CHANNELS = 16


def make(folder: Path, takes: int, states: int, shape_CThw: tuple[int, ...]) -> list[Path]:
    """Make the latents of every take: noise that becomes a smooth picture, as on a real path; return their folders."""
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


def files_of(places: list[Path]) -> list[Path]:
    """Return all files in some folders."""
    return [path for place in places for path in sorted(place.rglob("*")) if path.is_file()]


def drop_cache(places: list[Path]) -> bool:
    """Ask the system to drop the files from its cache; return whether it can be asked."""
    if not hasattr(os, "posix_fadvise"):
        return False
    for path in files_of(places):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)  # what is not written yet cannot be dropped
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)
    return True


def read_raw(places: list[Path]) -> tuple[int, float]:
    """Read every file completely; return the bytes on disk and the seconds."""
    began, count = time.perf_counter(), 0
    for path in files_of(places):
        with path.open("rb", buffering=0) as file:
            while block := file.read(1 << 22):
                count += len(block)
    return count, time.perf_counter() - began


def checksums(places: list[Path]) -> float:
    """Compute the checksum of every file; return the seconds."""
    began = time.perf_counter()
    for path in files_of(places):
        with path.open("rb") as file:
            hashlib.file_digest(file, "sha256")
    return time.perf_counter() - began


class InMemory:
    """Behaves like an array [K, C, T, h, w] on disk, with a few latents in memory that are reused for all states."""

    def __init__(self, states_KCThw: np.ndarray, shape: tuple[int, ...]) -> None:
        self.states_KCThw, self.shape = states_KCThw, shape

    def __getitem__(self, place: tuple) -> np.ndarray:
        state, channels, frames = place
        return self.states_KCThw[state % len(self.states_KCThw), channels, frames]


def peak_bytes() -> int:
    """Return the process's peak memory in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def timed(places: list[Path], memory: list[InMemory], scratch: Path) -> tuple[dict[str, float], int, int]:
    """Run one round; return the seconds of each way, the bytes on disk, and the bytes of numbers that the pass read."""
    drop_cache(places)
    on_disk, disk_seconds = read_raw(places)
    began = time.perf_counter()
    floor = latent_pass.one_pass(memory, scratch=scratch)
    floor_seconds = time.perf_counter() - began
    drop_cache(places)
    check_seconds = checksums(places)
    drop_cache(places)
    began = time.perf_counter()
    found = latent_pass.one_pass([open_array(place) for place in places], scratch=scratch)
    pass_seconds = time.perf_counter() - began
    assert found.bytes_read == floor.bytes_read
    seconds = {"disk": disk_seconds, "arithmetic": floor_seconds, "checksums": check_seconds, "pass": pass_seconds}
    return seconds, on_disk, found.bytes_read


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where the synthetic latents are or will be stored")
    parser.add_argument("--takes", type=int, default=100)
    parser.add_argument("--states", type=int, default=51)
    parser.add_argument("--size", default="60x104x21", help="latent height x width x frames")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--keep", action="store_true", help="leave the synthetic latents for another run")
    add_options(parser)
    asked = parser.parse_args()
    height, width, frames = (int(part) for part in asked.size.split("x"))
    shape_CThw = (CHANNELS, frames, height, width)
    places = make(asked.folder, asked.takes, asked.states, shape_CThw)
    stored = int(np.prod(shape_CThw)) * 2 * asked.takes * asked.states

    small = np.concatenate([open_array(places[0])[k : k + 1] for k in (0, asked.states - 1)])
    latent_pass.one_pass([InMemory(small[..., :8, :8], (2, *shape_CThw[:2], 8, 8))] * 2, scratch=asked.folder)  # warm
    before = peak_bytes()
    memory = [InMemory(small, (asked.states, *shape_CThw))] * asked.takes
    rounds = [timed(places, memory, asked.folder) for _ in range(asked.rounds)]

    table = Table("The one pass over latents", asked, ("wanscope", "numpy", "scipy", "zarr"))
    _, on_disk, read = rounds[0]
    table.say(f"{asked.takes} takes of {asked.states} x {list(shape_CThw)} fp16: {stored / 1e9:.3g} GB, "
              f"{on_disk / 1e9:.3g} GB on disk. Rounds: {asked.rounds}.")  # fmt: skip
    asked_to = "was" if drop_cache(places) else "could not be"
    table.say(f"The system {asked_to} asked to drop the files from its cache before each reading.\n")
    speeds = [
        {
            "disk": stored / seconds["disk"],
            "arithmetic": read / seconds["arithmetic"],
            # the checksums read the files once more
            "pass": (stored + read) / (seconds["checksums"] + seconds["pass"]),
            "pass without checksums": read / seconds["pass"],
        }
        for seconds, _, _ in rounds
    ]
    table.say("| what | MB/s, median | range |")
    table.say("|---|---|---|")
    for name in speeds[0]:
        values = [one[name] / 1e6 for one in speeds]
        table.say(f"| {name} | {statistics.median(values):.0f} | {min(values):.0f} to {max(values):.0f} |")
    ratios = [one["pass"] / min(one["disk"], one["arithmetic"]) for one in speeds]
    table.say(f"\nPass / smaller of disk and arithmetic: {statistics.median(ratios):.2f} "
              f"({min(ratios):.2f} to {max(ratios):.2f}; aim: 0.5).")  # fmt: skip
    table.say(
        f"Peak memory: {peak_bytes() / 1e6:.0f} MB (before the passes {before / 1e6:.0f} MB; aim: under 1000 MB)."
    )
    table.close()
    if not asked.keep:
        import shutil

        for place in places:
            shutil.rmtree(place)


if __name__ == "__main__":
    main()
