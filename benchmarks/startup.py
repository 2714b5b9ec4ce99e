"""How long a command takes to answer, as multiples of `python -c "import torch"` in the same run.

    python benchmarks/startup.py [--before /another/checkout/src] [--rounds 7] [--out benchmarks/results/startup.md]

Every command runs in its own process. Each round runs `import torch` and then every command once, from the checkout in
--before and from this one. `wall` is the median over rounds of the command's time divided by that of `import torch` in
the same round. `CPU` is the command's lowest CPU time (user and system) divided by the lowest of `import torch`. Other
programs on the machine increase wall times but hardly CPU times, so compare the latter if the machine is shared.

`generate` is timed from its start to the end of the first denoising step, in an empty workspace, and then stopped.
The user's cache is a folder of the benchmark: the case "first of a machine" empties it before each run.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from reporting import Table, add_options

from wanscope.take.manifest import processor

TORCH = 'python -c "import torch"'
PROMPT = ("-t", "a red circle moves right")
SMALL = ("--frames", "5", "--steps", "2", "--seeds", "1")
OURS = Path(__file__).parents[1] / "src"


@dataclass(frozen=True)
class Case:
    """A command line of wanscope. first_step: stop after the first step. clear: folders to remove before each run."""

    name: str
    arguments: tuple[str, ...]
    first_step: bool = False
    clear: tuple[str, ...] = ()


@dataclass
class Timings:
    """The seconds of each round."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


def cases(take: str) -> list[Case]:
    """Return the commands, for a folder that has a workspace `made` with one take."""
    made, dry = ("-o", "made"), ("generate", *PROMPT, "--dry-run", "-o", "empty")
    return [
        Case("--help", ("--help",)),
        Case("expand", ("expand", "a [red|blue] (circle)")),
        Case("models", ("models",)),
        Case("takes", ("takes", *made)),
        Case("show", ("show", take, *made)),
        Case("db stats", ("db", "stats", *made)),
        Case("doctor", ("doctor", *made)),
        Case("dry run, marbles", dry),
        Case("dry run, marbles, first of a machine", dry, clear=("cache",)),
        Case("dry run, wan2.1-t2v-14b", (*dry, "--model", "wan2.1-t2v-14b")),
        Case("a prompt that is refused", ("generate", "-t", "a red elephant", "-o", "empty")),
        Case("generate, all complete", ("generate", *PROMPT, *SMALL, *made)),
        Case("generate, to the first step", ("generate", *PROMPT, *SMALL, "--json", "-o", "new"), True, ("new",)),
    ]


def timed(command: list[str], folder: Path, source: Path | None, until: Callable[[bytes], bool] | None = None):
    """Return the (wall, CPU) seconds of a process; with `until`, up to the first line for which it is true."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), "HF_HUB_CACHE": str(folder / "hub")}
    environment |= {} if source is None else {"PYTHONPATH": str(source)}
    output = subprocess.DEVNULL if until is None else subprocess.PIPE
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *command], cwd=folder, env=environment, stdout=output, stderr=subprocess.DEVNULL
    )
    if until is not None:
        assert process.stdout is not None
        if not any(until(line) for line in process.stdout):
            raise RuntimeError(f"{' '.join(command)} ended without the expected output")
        wall = time.perf_counter() - began
        process.kill()
        _, _, usage = os.wait4(process.pid, 0)
    else:
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - began
        if os.waitstatus_to_exitcode(status) not in (0, 2):  # 2: refused, like 14B on a machine without the memory
            raise RuntimeError(f"{' '.join(command)} failed with status {os.waitstatus_to_exitcode(status)}")
    process.returncode = 0  # it has been waited for
    return wall, usage.ru_utime + usage.ru_stime


def is_step(line: bytes) -> bool:
    """Return whether a line of `--json` output reports a finished step."""
    return json.loads(line)["event"] == "StepDone"


def measured(sources: dict[str, Path], rounds: int, folder: Path) -> tuple[Timings, dict[tuple[str, str], Timings]]:
    """Return the timings of `import torch` and of each case and source.

    A first round, which is not counted, writes bytecode and caches.
    """
    run_once = [sys.executable, "-m", "wanscope", "generate", *PROMPT, *SMALL, "-o", str(folder / "made")]
    subprocess.run(run_once, check=True, env={**os.environ, "PYTHONPATH": str(OURS)}, stdout=subprocess.DEVNULL)
    take = next((folder / "made" / "takes").iterdir()).name
    base, found = Timings(), {(case.name, key): Timings() for case in cases(take) for key in sources}

    def note(into: Timings, wall: float, cpu: float, counts: bool) -> None:
        if counts:
            into.wall.append(wall)
            into.cpu.append(cpu)

    for index in range(rounds + 1):
        note(base, *timed(["-c", "import torch"], folder, None), index > 0)
        for case in cases(take):
            for key, source in sources.items():
                for name in case.clear:
                    shutil.rmtree(folder / name, ignore_errors=True)
                until = is_step if case.first_step else None
                taken = timed(["-m", "wanscope", *case.arguments], folder, source, until)
                note(found[case.name, key], *taken, index > 0)
        print(f"round {index} of {rounds}", file=sys.stderr, flush=True)
    return base, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="src of another checkout, to compare with")
    parser.add_argument("--rounds", type=int, default=7)
    add_options(parser)
    options = parser.parse_args()
    sources = {**({"before": options.before.resolve()} if options.before else {}), "now": OURS}
    table = Table(
        "Time to an answer",
        options,
        ("wanscope", "torch", "diffusers", "transformers", "peft", "typer"),
        f"{processor()}, {os.cpu_count()} cores",
    )
    with tempfile.TemporaryDirectory() as folder:
        base, found = measured(sources, options.rounds, Path(folder))
    table.say(
        f"`{TORCH}`: {statistics.median(base.wall):.2f} s (median; {min(base.wall):.2f} to {max(base.wall):.2f}), "
        f"{min(base.cpu):.2f} s of CPU time at least. {options.rounds} rounds, all commands in turn. `wall` and `CPU` "
        "are multiples of it.\n"
    )
    heads = [f"{key}: {column}" for key in sources for column in ("s, median", "wall", "CPU")]
    table.say(f"| command | {' | '.join(heads)} |")
    table.say("|---" * (1 + len(heads)) + "|")
    for name in dict.fromkeys(name for name, _ in found):
        cells = []
        for key in sources:
            times = found[name, key]
            ratio = statistics.median(a / b for a, b in zip(times.wall, base.wall, strict=True))
            cells += [f"{statistics.median(times.wall):.2f}", f"{ratio:.2f}", f"{min(times.cpu) / min(base.cpu):.2f}"]
        table.say(f"| {name} | {' | '.join(cells)} |")
    table.close()


if __name__ == "__main__":
    main()
