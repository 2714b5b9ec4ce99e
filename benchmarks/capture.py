"""The cost of recording attention: time per step and peak memory, relative to those without recording.

    python benchmarks/capture.py                                   marbles, on the CPU
    python benchmarks/capture.py --model 1.3b --device cuda        random weights, 832 x 480 x 81, bf16
    python benchmarks/capture.py --model 14b --device cuda
    (each with --out FILE.md for a table to keep)

Claims: recording 8 words in all blocks, heads averaged, at every step, written to disk, takes at most 1.03 times the
time at full size, and at most 2% more memory than the step's peak above its weights. `naive` is the processor that most
tools use, softmax(q k^T) v with the whole map of a block in memory, which memory is also compared with; if it does not
fit, that is printed.

Each way runs the same guided steps (cond and uncond) on the same inputs. One round runs all ways one after the other;
medians over the rounds are printed, so that other load on the machine affects all ways equally. The first two steps of
each way in each round are a warm-up and not counted. Writing is one step behind, so that a step's time includes the
writing of the previous one; writing the last one, after the steps, is timed separately (`closing`). Files are written
to --folder. Memory is the peak of two steps and everything attached for them, above what was allocated before: on the
CPU, torch's own allocations (memory.py). There, time is wall time, because a thread does the writing: keep the machine
free, or look at the quartiles.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from memory import peak_bytes
from reporting import Table, add_options
from torch import Tensor

from wanscope.capture.attention_plan import AttentionPlan, MapRow
from wanscope.capture.attention_sink import AttentionSink
from wanscope.capture.moments import Branch, Moment
from wanscope.edit.plan import EditPlan
from wanscope.edit.planned import Passes
from wanscope.edit.planned_texts import PlannedText
from wanscope.runtime.diffusers.recorder import AttentionRecorder
from wanscope.runtime.diffusers.session import attach
from wanscope.spec.capture import MEASURES, AttentionCapture
from wanscope.wan.load import load
from wanscope.wan.model import WanModel
from wanscope.wan.variants import VARIANTS

NAMES = {"marbles": "marbles", "1.3b": "wan2.1-t2v-1.3b", "14b": "wan2.1-t2v-14b"}
WORDS = 8
WARM = 2  # steps that are not counted


class RandomModel:
    """A transformer of a variant's full size with random weights, with the attributes that a session needs."""

    def __init__(self, name: str, device: torch.device, dtype: torch.dtype) -> None:
        from diffusers import WanTransformer3DModel

        self.variant = VARIANTS[name]
        with torch.device("meta"):
            transformer = WanTransformer3DModel(**self.variant.transformer_config())
        self.transformer = transformer.to_empty(device=device).to(dtype).eval().requires_grad_(False)
        generator = torch.Generator(device).manual_seed(0)
        with torch.no_grad():
            for name_, parameter in self.transformer.named_parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0, 0.02, generator=generator)
                else:
                    parameter.fill_(1.0 if "norm" in name_ and name_.endswith("weight") else 0.0)
        # The tables of RoPE are buffers and have to be made again: `to_empty` leaves them uninitialized.
        config = self.transformer.config
        self.transformer.rope = type(self.transformer.rope)(
            config.attention_head_dim, config.patch_size, config.rope_max_seq_len
        ).to(device)
        self.device, self.dtype, self.text_length = device, dtype, 512
        self.blocks = len(self.transformer.blocks)

    def experts(self) -> tuple[Any, ...]:
        return (self.transformer,)


class NaiveProcessor:
    """Cross-attention with the whole map in memory, as in tools without fused attention."""

    _attention_backend = None
    _parallel_config = None

    def __init__(self, keep: Callable[[Tensor], None]) -> None:
        self.keep = keep

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, *rest: Any, **more: Any):
        q = attn.norm_q(attn.to_q(hidden_states)).unflatten(2, (attn.heads, -1)).transpose(1, 2)
        k = attn.norm_k(attn.to_k(encoder_hidden_states)).unflatten(2, (attn.heads, -1)).transpose(1, 2)
        v = attn.to_v(encoder_hidden_states).unflatten(2, (attn.heads, -1)).transpose(1, 2)
        p = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
        self.keep(p[..., :WORDS].mean(1))
        return attn.to_out[0]((p @ v).transpose(1, 2).flatten(2))


class Run:
    """The guided step of one model, run in several ways."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.device = torch.device(args.device)
        self.clock: Callable[[], float] = time.perf_counter
        self.model: WanModel | RandomModel
        if args.model == "marbles":
            self.model = load("marbles", device=args.device)
            frames, height, width = 5, 16, 16
        else:
            self.model = RandomModel(NAMES[args.model], self.device, torch.bfloat16)
            frames, height, width = (args.frames - 1) // 4 + 1, args.height // 8, args.width // 8
        if args.compile:
            self.model.transformer.compile_repeated_blocks(fullgraph=True)
        self.grid = (frames, height // 2, width // 2)
        generator = torch.Generator().manual_seed(1)
        shape = (1, self.model.variant.in_channels, frames, height, width)
        self.x = torch.randn(shape, generator=generator).to(self.device, self.model.dtype)
        self.texts: dict[Branch, Tensor] = {}
        for branch, tokens in (("cond", args.tokens), ("uncond", max(1, args.tokens // 2))):
            text = torch.zeros(1, self.model.text_length, self.model.variant.text_dim)
            text[:, :tokens] = torch.randn(1, tokens, text.shape[-1], generator=generator)
            self.texts[branch] = text.to(self.device, self.model.dtype)  # type: ignore[index]
        self.tokens, self.measures = args.tokens, tuple(args.measures)
        self.folder, self.closing = getattr(args, "folder", None), []

    @torch.no_grad()
    def step(self, number: int, around_call: Callable[[Moment], Any]) -> None:
        """Run both passes of a step."""
        for branch, text in self.texts.items():
            with around_call(Moment(number, 10**6, 0, (branch,), 0, 0.5)):
                timestep = torch.full((1,), 500.0, device=self.device)
                self.model.transformer(self.x, timestep, text, return_dict=False)

    def plan(self) -> AttentionPlan:
        rows = [MapRow(f"word {i}", "word", (i,)) for i in range(min(WORDS, self.tokens))]
        rows.append(MapRow("pad", "pad", (self.tokens,)))
        spec = AttentionCapture(tokens="all", measures=self.measures)
        blocks, steps = tuple(range(self.model.blocks)), tuple(range(10**4))
        return AttentionPlan(spec, tuple(rows), self.tokens, blocks, None, steps, self.grid)

    @contextlib.contextmanager
    def capturing(self) -> Iterator[Callable[[Moment], Any]]:
        """Record attention during the block; yields the function to call around model calls."""
        text = PlannedText(torch.zeros(self.tokens, 1), frozenset())
        passes = Passes((0.5,), (1,), (frozenset({0}),))
        main: dict[Branch, PlannedText] = {"cond": text, "uncond": text}
        empty = EditPlan((), passes, self.model.blocks, self.model.text_length, self.grid, main, self.tokens)
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            sink = AttentionSink(self.plan(), Path(folder))
            recorder = AttentionRecorder(sink, self.device, self.model.dtype)
            with attach(self.model, empty, recorder) as session:  # type: ignore[arg-type]
                yield session.around_call
            began = time.perf_counter()
            sink.close()
            self.closing.append(time.perf_counter() - began)
            assert sink.evaluations, "nothing was recorded, so the timing is not that of a recording"

    @contextlib.contextmanager
    def naive(self) -> Iterator[Callable[[Moment], Any]]:
        """Use `NaiveProcessor` during the block."""
        kept: list[Tensor] = []
        before = [block.attn2.processor for block in self.model.transformer.blocks]
        for block in self.model.transformer.blocks:
            block.attn2.processor = NaiveProcessor(lambda maps: kept.append(maps.half().cpu()))

        @contextlib.contextmanager
        def around(moment: Moment) -> Iterator[None]:
            kept.clear()
            yield

        try:
            yield around
        finally:
            for block, own in zip(self.model.transformer.blocks, before, strict=True):
                block.attn2.processor = own

    @contextlib.contextmanager
    def plain(self) -> Iterator[Callable[[Moment], Any]]:
        """Record nothing."""
        yield lambda moment: contextlib.nullcontext()

    def measured(self, way: str, steps: int) -> float | None:
        """Return the seconds of the median step; None where it does not fit in memory."""
        cuda = self.device.type == "cuda"
        try:
            with getattr(self, way)() as around_call:
                for number in range(WARM):  # allocates buffers and the array on disk, and compiles
                    self.step(number, around_call)
                if cuda:
                    torch.cuda.synchronize()
                seconds = []
                for number in range(WARM, WARM + steps):
                    began = self.clock()
                    self.step(number, around_call)
                    if cuda:
                        torch.cuda.synchronize()
                    seconds.append(self.clock() - began)
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
            return None
        return statistics.median(seconds)

    def peak(self, way: str, steps: int) -> int | None:
        """Return the peak bytes of `steps` steps and of everything attached for them; None where it does not fit.

        To be called after `measured`, so that code is already compiled.
        """

        def work() -> None:
            with getattr(self, way)() as around_call:
                for number in range(steps):
                    self.step(number, around_call)

        return peak_bytes(work, self.device)


def arguments(description: str | None, rounds: int) -> argparse.ArgumentParser:
    """Return the argument parser that benchmarks of steps share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=NAMES, default="marbles")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--steps", type=int, default=3, help="in each round, the median of them counts")
    parser.add_argument("--tokens", type=int, default=16, help="real tokens of the prompt")
    parser.add_argument("--width", type=int, default=832)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--frames", type=int, default=81)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--json", type=Path)
    return parser


def summary(seconds: list[float | None], plain: list[float | None]) -> dict[str, Any]:
    """Return medians over the rounds of the time and of its ratio to plain.

    The ratio is taken within each round, because other load on the machine affects both in it.
    """
    taken = [value for value in seconds if value is not None]
    ratios = [one / base for one, base in zip(seconds, plain, strict=True) if one is not None and base is not None]
    found: dict[str, Any] = {
        "seconds": statistics.median(taken) if taken else None,
        "ratio": statistics.median(ratios) if ratios else None,
    }
    return found | ({"ratio_quartiles": statistics.quantiles(ratios, n=4)[::2]} if len(ratios) > 3 else {})


def row(name: str, one: dict[str, Any]) -> str:
    """Return a line of the table, from a `summary` with its `peak`."""
    if one["seconds"] is None:
        return f"| {name} | does not fit | | | |"
    ratio = "" if one["ratio"] is None else f"{one['ratio']:.3f}"
    low, high = one.get("ratio_quartiles", (None, None))
    quartiles = "fewer than 4 rounds" if low is None else f"{low:.3f} to {high:.3f}"
    memory = "does not fit" if one["peak"] is None else f"{one['peak'] / 1e6:.1f}"
    return f"| {name} | {one['seconds']:.4f} | {ratio} | {quartiles} | {memory} |"


def main() -> None:
    parser = arguments(__doc__, rounds=9)
    parser.add_argument("--measures", nargs="+", choices=MEASURES, default=["probability"])
    parser.add_argument("--folder", type=Path, help="where maps are written; the system's temporary folder if left out")
    add_options(parser)
    args = parser.parse_args()
    if args.folder is not None:
        args.folder.mkdir(parents=True, exist_ok=True)
    run = Run(args)
    ways = ("plain", "capturing", "naive")
    found: dict[str, list[float | None]] = {way: [] for way in ways}
    for _ in range(args.rounds):
        for way in ways:
            found[way].append(run.measured(way, args.steps))
    result: dict[str, Any] = {"model": args.model, "device": args.device, "words": min(WORDS, args.tokens)}
    result |= {"measures": list(run.measures), "compiled": args.compile, "rounds": args.rounds}
    result["closing_seconds"] = statistics.median(run.closing) if run.closing else None  # of the timed runs
    for way in ways:
        result[way] = summary(found[way], found["plain"])
        result[way]["peak"] = None if result[way]["seconds"] is None else run.peak(way, WARM)
    device = torch.cuda.get_device_name() if run.device.type == "cuda" else ""
    table = Table("Recording attention", args, ("wanscope", "torch", "diffusers"), device)
    result["machine"] = table.machine
    compiled = ", compiled" if args.compile else ""
    frames, rows, columns = run.grid
    table.say(f"{args.model}, {frames} x {rows} x {columns} positions, {run.model.blocks} blocks{compiled}; "
              f"{result['words']} words and the padding, {', '.join(run.measures)}. "
              f"{args.rounds} rounds of {args.steps} guided steps after two warm-up steps.\n")  # fmt: skip
    table.say("| way | s per step | ratio to plain, median | quartiles | peak, MB |")
    table.say("|---|---|---|---|---|")
    for way in ways:
        table.say(row(way, result[way]))
    if result["closing_seconds"] is not None:
        table.say(f"\nWriting the maps of the last step: {result['closing_seconds']:.4f} s, median.")
    table.close()
    if args.json is not None:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
