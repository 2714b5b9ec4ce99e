"""The cost of editing: time per step and peak memory with each edit, relative to those without.

    python benchmarks/edits.py                                   marbles, on the CPU (also with --compile)
    python benchmarks/edits.py --model 1.3b --device cuda        random weights, 832 x 480 x 81, bf16
    python benchmarks/edits.py --model 14b --device cuda --compile
    (each with --out FILE.md for a table to keep)

Claims, at full size, with edits on cond in all blocks at every step: at most 1.01 times the unedited time for edits of
the context, at most 1.05 times for bending 8 words. A `mix` runs a second cross-attention where it acts, which alone is
0.4% of a guided 14B step; at strength 1 it runs none. `hidden` runs the donor's own pass up to the last block it acts
in.

Each way runs the same guided steps (cond and uncond) on the same inputs. One round runs all ways one after the other;
ratios are taken within a round and their medians are printed, so that other load on the machine affects all ways
equally. On the CPU, time is process time, not wall time: run it with OMP_NUM_THREADS=1.
Memory is the peak of two steps and everything attached for them, above what was allocated before: on the CPU, torch's
own allocations (memory.py).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from reporting import Table, add_options

from capture import WARM, WORDS, Run, arguments, row, summary
from wanscope.capture.moments import Moment
from wanscope.edit.edits import Bend, Edit, Inject, Skip
from wanscope.edit.encoded_texts import DonorTexts
from wanscope.edit.plan import make_plan
from wanscope.edit.planned import Passes
from wanscope.runtime.diffusers.session import attach

PROMPT, NEGATIVE, DONOR = "prompt", "negative", "donor"
WORD = "words"

WAYS: dict[str, list[Edit]] = {
    "plain": [],
    "mix": [Inject(DONOR, strength=0.4)],
    "mix late": [Inject(DONOR, strength=0.4, blocks="late")],
    "replace": [Inject(DONOR)],
    "tokens": [Inject(DONOR, mode="tokens", strength=0.4)],
    "append": [Inject(DONOR, mode="append", strength=0.4)],
    "bend": [Bend([WORD], "translate", x=0.25)],
    "amplify": [Bend([WORD], "amplify", factor=2.0)],
    "hidden": [Inject(DONOR, on="hidden", strength=0.4, blocks="mid")],
    "skip": [Skip("0-0")],
}


LABELS = {
    "plain": "none",
    "mix": "mix at 0.4",
    "mix late": "mix at 0.4, late blocks",
    "replace": "mix at 1 (the donor alone)",
    "tokens": "tokens at 0.4",
    "append": "append at 0.4",
    "bend": "bend, 8 words translated",
    "amplify": "bend, 8 words amplified",
    "hidden": "hidden, mid blocks",
    "skip": "skip, one block",
}


class EditRun(Run):
    """The benchmark of captures, with edits attached instead of a recorder."""

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(args)
        if self.device.type == "cpu":
            self.clock = time.process_time
        self.steps = args.steps + WARM
        self.edits: list[Edit] = []

    @contextlib.contextmanager
    def editing(self) -> Iterator[Callable[[Moment], Any]]:
        """Attach `self.edits` during the block; yields the function to call around model calls."""
        if not self.edits:
            yield lambda moment: contextlib.nullcontext()
            return
        raw = {
            name: text[0, : self.tokens].float().cpu()
            for name, text in ((PROMPT, self.texts["cond"]), (NEGATIVE, self.texts["uncond"]))
        }
        raw[DONOR] = torch.randn(raw[PROMPT].shape, generator=torch.Generator().manual_seed(2))
        columns = tuple(range(min(WORDS, self.tokens)))
        places = {i: {PROMPT: columns} for i, edit in enumerate(self.edits) if edit.kind == "bend"}
        texts = DonorTexts(PROMPT, NEGATIVE, raw[PROMPT], raw[NEGATIVE], raw, self.model.text_length, {}, places)
        passes = Passes((0.5,) * self.steps, (1,) * self.steps, (frozenset(range(self.steps)),))
        heads = self.model.variant.heads
        plan = make_plan(self.edits, texts, passes, blocks=self.model.blocks, heads=heads, grid=self.grid)
        with attach(self.model, plan) as session:  # type: ignore[arg-type]
            yield session.around_call
        session.verify()  # so that the timing is that of an edit which was applied


def main() -> None:
    parser = arguments(__doc__, rounds=7)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    add_options(parser)
    args = parser.parse_args()
    args.measures = []
    run = EditRun(args)
    ways = list(dict.fromkeys(["plain", *args.ways]))
    found: dict[str, list[float | None]] = {way: [] for way in ways}
    for _ in range(args.rounds):
        for way in ways:
            run.edits = WAYS[way]
            found[way].append(run.measured("editing", args.steps))
    device = torch.cuda.get_device_name() if run.device.type == "cuda" else ""
    table = Table("Editing", args, ("wanscope", "torch", "diffusers"), device)
    result: dict[str, Any] = {"model": args.model, "device": args.device, "compiled": args.compile, "ways": {}}
    compiled = ", compiled" if args.compile else ""
    frames, rows, columns = run.grid
    table.say(f"{args.model}, {frames} x {rows} x {columns} positions, {run.model.blocks} blocks{compiled}; edits on "
              f"cond in all blocks at every step unless noted. {args.rounds} rounds of {args.steps} guided steps after "
              "two warm-up steps.\n")  # fmt: skip
    table.say("| edit | s per step | ratio to plain, median | quartiles | peak, MB |")
    table.say("|---|---|---|---|---|")
    for way in ways:
        one = result["ways"][way] = summary(found[way], found["plain"])
        run.edits, run.steps = WAYS[way], WARM
        one["peak"] = None if one["seconds"] is None else run.peak("editing", WARM)
        table.say(row(LABELS[way], one))
    result["machine"] = table.machine
    table.close()
    if args.json is not None:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
