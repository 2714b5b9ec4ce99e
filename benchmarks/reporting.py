"""How benchmarks describe the machine, and the tables that they print and save."""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that all benchmarks share."""
    parser.add_argument(
        "--machine", default="", help="a description for the table; the GPU or the CPU cores if left out"
    )
    parser.add_argument("--note", default="", help="what else ran on the machine")
    parser.add_argument("--out", type=Path, help="write the table here, benchmarks/results/NAME.md")


def _machine() -> str:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{usable} of {os.cpu_count()} CPU cores, {platform.system()} {platform.machine()}"


class Table:
    """Lines that are printed immediately and written to --out at the end. device: the default for --machine."""

    def __init__(self, title: str, options: argparse.Namespace, packages: Sequence[str], device: str = "") -> None:
        self.out, self.lines = options.out, []
        self.machine = options.machine or device or _machine()
        threads = os.environ.get("OMP_NUM_THREADS")
        shown = ", ".join(
            [*(f"{name} {version(name)}" for name in packages), *([f"OMP_NUM_THREADS={threads}"] if threads else [])]
        )
        self.say(f"# {title}\n")
        self.say(f"Python {platform.python_version()}, {shown}.")
        self.say(f"Machine: {self.machine}. {options.note}".rstrip() + "\n")

    def say(self, line: str = "") -> None:
        """Print a line and keep it."""
        print(line, flush=True)
        self.lines.append(line)

    def close(self) -> None:
        """Write all lines to --out, if given."""
        if self.out is not None:
            self.out.write_text("\n".join(self.lines) + "\n", encoding="utf-8")
