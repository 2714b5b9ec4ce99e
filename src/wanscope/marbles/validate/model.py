"""`wanscope validate marbles`: a check of the readers and the model, scored against known ground truth.

Five parts: the readers on rendered clips; the VAE on held-out clips; generated videos of one and of two objects,
compared with their captions; generated videos of attribute combinations that training never showed (reported
separately, without a bound); and how long loading and one video take on this machine (reported, not judged: see
`check_speed`). Scenes come from a separate stream of seeds, so none is a training clip.
"""

from __future__ import annotations

import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from wanscope.marbles import readers, world
from wanscope.recipe import SamplerSpec, Study, VideoSpec
from wanscope.take.manifest import environment

if TYPE_CHECKING:
    from wanscope.wan.model import WanModel

_STREAM = 1_000_003  # training draws from other streams (train/vae.py, train/denoiser.py)
BOUNDS: dict[str, float] = {"readers": 0.995, "vae_psnr_db": 30.0, "single": 0.95, "pair": 0.85}
# What two CPU cores should need. The verdict does not depend on it, because the machine may be busy or slower.
AIMS_SECONDS: dict[str, float] = {"video": 4.0, "loading": 3.0}
SPEED_THREADS = 2
SPEED_REPEATS = 3

COLUMNS = ("part", "what", "value", "95% interval", "n", "bound")


@dataclass(frozen=True)
class ReportRow:
    """One figure: a share with its 95% Wilson interval, or a value in `unit`; `bound` None where none is asked.

    bound: the smallest value that passes, None where the figure is only reported. aim: the target, at most this many
    seconds, of a figure that does not affect the verdict.
    """

    part: str
    what: str
    value: float
    count: int
    low: float | None = None
    high: float | None = None
    bound: float | None = None
    unit: str = ""
    aim: float | None = None

    @property
    def passed(self) -> bool:
        return self.bound is None or self.value >= self.bound

    def cells(self) -> tuple[str, str, str, str, str, str]:
        """Return the row's cells in the report's table, in the order of `COLUMNS`."""
        digits = {"dB": 1, "s": 2}.get(self.unit, 3)
        interval = "" if self.low is None else f"{self.low:.3f} to {self.high:.3f}"
        bound = "" if self.bound is None else f"{self.bound:g} {'met' if self.passed else 'NOT MET'}"
        if self.aim is not None:
            bound = f"(aim: at most {self.aim:g})"
        value = f"{self.value:.{digits}f} {self.unit}".rstrip()
        return self.part, self.what, value, interval, str(self.count), bound


def rows_of(report: dict) -> list[ReportRow]:
    """A report's figures."""
    return [ReportRow(**{key: value for key, value in row.items() if key != "passed"}) for row in report["rows"]]


def wilson(share: float, count: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Return the score interval of a share (Wilson, 1927); z: the normal quantile, 95% by default."""
    if count == 0:
        return 0.0, 1.0
    middle = share + z * z / (2 * count)
    spread = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


def _share_rows(part: str, scores: list[dict[str, float]], objects: int, bound: float | None) -> list[ReportRow]:
    rows = []
    for name in scores[0]:
        share = float(np.mean([score[name] for score in scores]))
        count = len(scores) * (objects if name.partition(",")[0] in readers.ATTRIBUTES else 1)
        rows.append(ReportRow(part, name, share, count, *wilson(share, count), bound))
    return rows


def scenes(part: str, count: int, objects: int, held_out: bool) -> Iterator[tuple[int, world.Scene, str]]:
    """Yield (seed, scene, full caption) of the validation's pairs; each depends only on its part and number."""
    for number in range(count):
        rng = np.random.default_rng([_STREAM, sum(map(ord, part)), number])
        scene = world.sample_scene(rng, objects, held_out=held_out)
        yield number, scene, world.caption(scene, rng, full=True)


def check_readers(count: int) -> list[ReportRow]:
    """Readers on rendered truth, one and two objects, all combinations."""
    rows = []
    for objects in (1, 2):
        rng = np.random.default_rng([_STREAM, 1, objects])
        scores = []
        for _ in range(count):
            scene = world.sample_scene(rng, objects)
            scores.append(readers.compare(scene, readers.read(world.render(scene).video)))
        rows += _share_rows(f"readers, {objects} object{'s' * (objects - 1)}", scores, objects, BOUNDS["readers"])
    return rows


def check_vae(model: WanModel, count: int) -> list[ReportRow]:
    """Reconstruction of held-out clips of full length, and of twice that length (the causal cache goes on)."""
    import torch

    from wanscope.wan.vae import decode_raw, encode_moments

    rows = []
    for part, frames, bound in (
        ("VAE, 17 frames", world.FRAMES, BOUNDS["vae_psnr_db"]),
        ("VAE, 33 frames", 2 * world.FRAMES - 1, None),
    ):
        values, scores = [], []
        for _, scene, _ in scenes(part, count, 1, held_out=False):
            clip = world.render(scene, frames)
            video = torch.from_numpy(clip.video).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
            with torch.no_grad():
                mean = encode_moments(model.vae, video.to(model.vae.dtype))[:, : model.vae.config["z_dim"]]
                out = decode_raw(model.vae, mean).float().clamp(-1, 1)
            values.append(-10 * math.log10(float((out - video).square().mean()) / 4))
            if frames == world.FRAMES:
                pixels = ((out[0].permute(1, 2, 3, 0) + 1) * 127.5).round().byte().numpy()
                scores.append(readers.compare(scene, readers.read(pixels, 1)))
        rows.append(ReportRow(part, "PSNR, mean", float(np.mean(values)), count, bound=bound, unit="dB"))
        rows.append(ReportRow(part, "PSNR, worst", float(np.min(values)), count, unit="dB"))
        if scores:
            rows += _share_rows(part, scores, 1, None)
    return rows


def generate(model: WanModel, text: str, seed: int) -> np.ndarray:
    """One video [F, H, W, 3] uint8 at the default sampler: the loop and the VAE, without a take."""
    from wanscope.sample.conditioning import Conditioning
    from wanscope.sample.loop import denoise, initial_noise
    from wanscope.wan.text import encode
    from wanscope.wan.vae import decode

    own = model.variant.defaults
    video = VideoSpec(width=own.width, height=own.height, frames=own.frames, fps=own.fps)
    sampler = SamplerSpec().resolved(own.values(), len(model.experts()))
    cond, uncond = encode(model, [text, own.negative_prompt])
    noise = initial_noise(model.latent_shape(video), seed)
    result = denoise(model, Conditioning(cond, uncond), sampler, noise)
    pixels = decode(model.vae, result.latents)
    return ((pixels[0].permute(1, 2, 3, 0).float() + 1) * 127.5).round().clamp(0, 255).byte().cpu().numpy()


def check_generated(
    model: WanModel,
    part: str,
    count: int,
    objects: int,
    held_out: bool,
    bound: float | None,
    tell: Callable[[str], None],
) -> tuple[list[ReportRow], list[dict[str, Any]]]:
    """Generated videos read back. The second list names each pair that was read wrong."""
    scores, by_box, wrong = [], [], []
    for seed, scene, text in scenes(part, count, objects, held_out):
        seen = readers.read(generate(model, text, seed), objects)
        score = readers.compare(scene, seen)
        scores.append(score)
        boxes = tuple(replace(thing, shape=thing.shape_by_box) for thing in seen.things)
        by_box.append({"shape, by its box": readers.compare(scene, replace(seen, things=boxes))["shape"]})
        if min(score.values()) < 1:
            wrong.append({"part": part, "prompt": text, "seed": seed, "read": seen.words})
        if (seed + 1) % 20 == 0:
            tell(f"{part}: {seed + 1} of {count}, {len(wrong)} with something wrong")
    return _share_rows(part, scores, objects, bound) + _share_rows(part, by_box, objects, None), wrong


def check_speed(model: WanModel) -> list[ReportRow]:
    """Seconds to load marbles once everything is imported, and to make one default video once it is loaded.

    Each is the median of a few runs. A video is a whole take: prompt encoded, denoised, decoded and written, without
    its path. Loading reads files that are in the system's cache. Two threads, or one where the process has one core.
    """
    import torch

    from wanscope.study.run import run
    from wanscope.wan.load import load

    def measured(work: Callable[[int], object]) -> float:
        seconds = []
        for number in range(SPEED_REPEATS):
            began = time.perf_counter()
            work(number)
            seconds.append(time.perf_counter() - began)
        return statistics.median(seconds)

    threads = torch.get_num_threads()
    torch.set_num_threads(min(SPEED_THREADS, usable_cores()))
    try:
        device = str(model.device)
        load("marbles", device=device)  # imports what loading needs
        loading = measured(lambda _: load("marbles", device=device))
        with tempfile.TemporaryDirectory() as folder:

            def one(seed: int) -> None:
                study = {"name": "speed", "prompt": "a red circle moves left on a black background", "seeds": [seed]}
                result = run(Study(**study), workspace=folder, model=model)
                if result.failed:
                    raise result.failed[0].exception

            one(SPEED_REPEATS)
            video = measured(one)
    finally:
        torch.set_num_threads(threads)
    return [
        ReportRow("speed", "loading, after imports", loading, SPEED_REPEATS, unit="s", aim=AIMS_SECONDS["loading"]),
        ReportRow(
            "speed", "one default video, after loading", video, SPEED_REPEATS, unit="s", aim=AIMS_SECONDS["video"]
        ),
    ]


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine_text(model: WanModel) -> str:
    """Return a description of this machine, for figures that depend on it."""
    import torch

    env = environment(str(model.device), torch.get_num_threads())
    packages = ", ".join(f"{name} {env.packages[name]}" for name in ("torch", "diffusers"))
    cores = usable_cores()
    text = f"{env.processor}, {cores} core{'s'[: cores != 1]} in use, {env.platform}, {packages}"
    if hasattr(os, "getloadavg"):
        text += f", load average {os.getloadavg()[0]:.1f}"
    return text


def packaged() -> WanModel:
    """Load marbles as it ships, which every validation uses by default."""
    from wanscope.wan.load import load

    return load("marbles")


def validate(pairs: int = 200, *, model: WanModel | None = None, tell: Callable[[str], None] = lambda _: None) -> dict:
    """Return the whole report as plain data.

    pairs: the number of one-object videos; there are half as many two-object ones. tell: called with progress messages.
    """
    began = time.monotonic()
    model = model or packaged()
    machine = machine_text(model)
    speed = check_speed(model)  # first, before other work changes the machine's state
    tell("speed measured")
    rows = check_readers(max(20, 2 * pairs))
    tell("readers checked")
    rows += check_vae(model, max(4, pairs // 4))
    tell("VAE checked")
    wrong: list[dict[str, Any]] = []
    for part, count, objects, held_out, bound in (
        ("one object", pairs, 1, False, BOUNDS["single"]),
        ("two objects", max(1, pairs // 2), 2, False, BOUNDS["pair"]),
        ("combinations never shown", max(1, pairs * 3 // 10), 1, True, None),
    ):
        part_rows, part_wrong = check_generated(model, part, count, objects, held_out, bound, tell)
        rows += part_rows
        wrong += part_wrong
    rows += speed
    return {
        "passed": all(row.passed for row in rows),
        "rows": [{**asdict(row), "passed": row.passed} for row in rows],
        "wrong": wrong,
        "model": model.identity,
        "device": str(model.device),
        "machine": machine,
        "seconds": round(time.monotonic() - began, 1),
    }


def as_markdown(report: dict) -> str:
    """Return the report as a Markdown page: a table, then what was read wrong."""
    lines = [
        "# Validation of marbles",
        "",
        f"`wanscope validate marbles` on {report['device']}, {report['seconds']:.0f} s. "
        f"{'Every bound is met.' if report['passed'] else 'Not every bound is met.'}",
        "",
        f"The machine: {report['machine']}.",
        "",
        "`shape` is the one whose ideal drawing overlaps the object most. `shape, by its box` is a second reading, "
        "from how much of its bounding box the object fills, and has no bound: it takes a square that is sheared by 15 "
        "percent or rotated by 5 degrees for a circle.",
        "",
        f"| {' | '.join(COLUMNS)} |",
        f"|{'---|' * len(COLUMNS)}",
    ]
    lines += [f"| {' | '.join(row.cells()).replace('NOT MET', '**not met**')} |" for row in rows_of(report)]
    if report["wrong"]:
        lines += ["", "## Read wrong", "", "| part | prompt | seed | read |", "|---|---|---|---|"]
        lines += [f"| {w['part']} | {w['prompt']} | {w['seed']} | {w['read']} |" for w in report["wrong"]]
    return "\n".join(lines) + "\n"
