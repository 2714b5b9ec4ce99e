"""Tries faults by the thousand: kills at file operations, damaged files, inputs that nobody meant.

    python tests/faults/campaign.py --kills 1000 --inputs 100000 --flips 2000 [--folder FOLDER] [--report]

Every fault is drawn from its number alone, and what is done is noted in FOLDER, so that the same command goes on where
it was stopped or killed. It prints a table, and every finding. Its aim is 0 lost, 0 silent, and 0 other findings; the
exit status is 1 where there is one. `--one kill 17` does a single fault again and prints what came of it.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"
sys.path.insert(0, str(Path(__file__).parents[1]))

from faults import inputs  # noqa: E402
from faults.flips import KINDS, Flips  # noqa: E402
from faults.kills import Kills  # noqa: E402
from faults.workspace import few_figures, model, say  # noqa: E402

PARTS = ("kill", "flip", "input")


class Notes:
    """What was done so far: how many of each part, their outcomes, and the findings, one JSON object per line."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "campaign.jsonl"
        self.done = Counter[str]()
        self.outcomes = Counter[tuple[str, str, str]]()
        self.findings: list[dict[str, Any]] = []
        for line in self.file.read_text().splitlines() if self.file.exists() else ():
            try:
                self.count(json.loads(line))
            except ValueError:  # the last line, when the campaign itself was killed
                continue

    def count(self, note: dict[str, Any]) -> None:
        self.done[note["part"]] = max(self.done[note["part"]], note["next"])
        for kind, outcome, number in note["outcomes"]:
            self.outcomes[note["part"], kind, outcome] += number
        self.findings += note["findings"]

    def add(self, part: str, following: int, outcomes: list[tuple[str, str, int]], findings: list[dict]) -> None:
        note = {"part": part, "next": following, "outcomes": outcomes, "findings": findings}
        with self.file.open("a") as file:
            file.write(json.dumps(note, default=str) + "\n")
        self.count(note)
        for finding in findings:
            say(f"{part}: {json.dumps(finding, default=str)[:1500]}")

    def table(self) -> str:
        lines = ["| part | kind | outcome | number |", "|---|---|---|---|"]
        lines += [f"| {' | '.join(key)} | {number} |" for key, number in sorted(self.outcomes.items())]
        totals = Counter[tuple[str, str]]()
        for (part, _, outcome), number in self.outcomes.items():
            totals[part, outcome] += number
        lines += [f"| **{part}** | all | {outcome} | {number} |" for (part, outcome), number in sorted(totals.items())]
        return "\n".join(lines)


def kills(notes: Notes, campaign: Kills, last: int) -> None:
    for number in range(notes.done["kill"], last):
        out = campaign.one(number)
        outcome = "lost" if out["lost"] else "nothing lost" if out["killed"] else "done before the kill"
        found = [{"number": number, **out}] if out["lost"] else []
        notes.add("kill", number + 1, [(out["work"], outcome, 1)], found)


def flips(notes: Notes, campaign: Flips, last: int) -> None:
    for number in range(notes.done["flip"], last):
        out = campaign.one(number)
        found = [{"number": number, **out}] if out["verdict"] in ("silent", "crash") else []
        notes.add("flip", number + 1, [(out["kind"], out["verdict"], 1)], found)


def fuzz(notes: Notes, folder: Path, last: int) -> None:
    for first in range(notes.done["input"], last, inputs.BATCH):
        count = min(inputs.BATCH, last - first)
        wrong = dict(inputs.batch(first, count, folder))
        outcomes = Counter((inputs.kind_of(n), "wrong" if n in wrong else "ok") for n in range(first, first + count))
        found = [{"number": n, "kind": inputs.kind_of(n), "wrong": what} for n, what in wrong.items()]
        notes.add("input", first + count, [(*key, number) for key, number in outcomes.items()], found)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for part in PARTS:
        parser.add_argument(f"--{part}s", type=int, default=0, help=f"how many of part {part} there shall be in all")
    parser.add_argument("--folder", type=Path, default=Path("campaign"))
    parser.add_argument("--report", action="store_true", help="only print what was done so far")
    parser.add_argument("--one", nargs=2, metavar=("PART", "NUMBER"))
    options = parser.parse_args()
    options.folder = options.folder.absolute()
    options.folder.mkdir(parents=True, exist_ok=True)
    notes = Notes(options.folder)
    began = time.monotonic()
    if not options.report:
        few_figures()
        model()
        gc.freeze()
        workspaces = Kills(options.folder)
        damaged = Flips(workspaces.base, options.folder)
        if options.one:
            part, number = options.one[0], int(options.one[1])
            print({"kill": workspaces.one, "flip": damaged.one, "input": inputs.one}[part](number))
            return 0
        fuzz(notes, options.folder, options.inputs)
        flips(notes, damaged, options.flips)
        kills(notes, workspaces, options.kills)
    print(notes.table())
    print(
        f"{len(notes.findings)} findings; {len(KINDS)} kinds of files; this call took {time.monotonic() - began:.0f} s"
    )
    return 1 if notes.findings else 0


if __name__ == "__main__":
    raise SystemExit(main())
