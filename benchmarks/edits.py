"""What editing costs: time a step and peak memory with each edit, over those without, in one run.

    python benchmarks/edits.py                                   marbles, on the CPU
    python benchmarks/edits.py --model 1.3b --device cuda        random weights, 832 x 480 x 81, bf16
    python benchmarks/edits.py --model 14b --device cuda --compile

Claims, at full size, edits on cond in all blocks at every step: at most 1.01 of the unedited time for edits of the
context, at most 1.05 for bending 8 words. A `mix` runs a second cross-attention where it acts, which by itself is 0.4%
of a guided 14B step; at strength 1 it runs none. `hidden` runs the donor's own pass up to the last block it acts in.

Each way runs the same guided steps (cond and uncond) on the same inputs. One round runs all ways one after the other;
ratios are within a round and printed are their medians, so that a machine that others use disturbs all ways alike. On
the CPU time is the process's own, not the wall's: run it with OMP_NUM_THREADS=1.
Memory is the device's peak above what is allocated before, on a GPU; on the CPU it is not measured.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from capture import WORDS, Run, arguments
from wanscope.capture.base import Moment
from wanscope.edit.donors import DonorTexts
from wanscope.edit.edits import Bend, Edit, Inject, Skip
from wanscope.edit.plan import Passes, make_plan
from wanscope.runtime.diffusers import attach

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


class EditRun(Run):
    """The benchmark of captures, with edits attached in place of a recorder."""

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(args)
        self.steps = args.steps + 1
        self.edits: list[Edit] = []

    @contextlib.contextmanager
    def editing(self) -> Iterator[Callable[[Moment], Any]]:
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
        session.verify()  # what is timed is an edit that acted

    def measured(self, way: str, steps: int) -> dict[str, float | None]:
        if self.device.type == "cuda":
            return super().measured(way, steps)
        with getattr(self, way)() as around_call:
            self.step(0, around_call)  # warm: contexts, keys, compiled code
            seconds = []
            for number in range(1, steps + 1):
                began = time.process_time()
                self.step(number, around_call)
                seconds.append(time.process_time() - began)
        return {"seconds": statistics.median(seconds), "peak": None}


def main() -> None:
    parser = arguments(__doc__, rounds=7)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    args = parser.parse_args()
    args.measures = []
    run = EditRun(args)
    ways = list(dict.fromkeys(["plain", *args.ways]))
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    for _ in range(args.rounds):
        for way in ways:
            run.edits = WAYS[way]
            found[way].append(run.measured("editing", args.steps))
    result: dict[str, Any] = {"model": args.model, "device": args.device, "compiled": args.compile, "ways": {}}
    for way in ways:
        pairs = zip(found[way], found["plain"], strict=True)
        ratios = [one["seconds"] / base["seconds"] for one, base in pairs if one["seconds"] and base["seconds"]]
        if not ratios:
            print(f"{way:10} does not fit")
            continue
        low, high = statistics.quantiles(ratios, n=4)[::2] if len(ratios) > 3 else (min(ratios), max(ratios))
        peak = max((one["peak"] for one in found[way] if one["peak"] is not None), default=None)
        result["ways"][way] = {"ratio": statistics.median(ratios), "quartiles": [low, high], "peak_bytes": peak}
        memory = "" if peak is None else f"   peak above weights {peak / 1e6:.0f} MB"
        print(f"{way:10} {statistics.median(ratios):.3f} of plain (quartiles {low:.3f} to {high:.3f}){memory}")
    if args.json is not None:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
