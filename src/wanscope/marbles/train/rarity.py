"""Small variants of marbles in which one color is rare, and the volume of their paths.

    python -m wanscope.marbles.train rarity --folder .rarity --out rarity.json

For every repeat and each of two colors, a transformer is trained from scratch on scenes of one object in which that
color is `factor` times rarer than every other. Both variants of a repeat start from the same weights and use the same
random numbers, so that nearly all of their scenes differ at most in the color. Text encoder, VAE and the scale of the
latents are the packaged ones. Then log-volumes are compared (rarity_volume.py).

Every part resumes where it was stopped: clips are stored in parts, training by checkpoint, paths one by one.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan

from wanscope.analysis.path_volume import common_rank, log_volume
from wanscope.errors import RequestError
from wanscope.marbles import rarity_volume, readers, world
from wanscope.marbles.train import denoiser, export
from wanscope.marbles.validate.model import machine_text
from wanscope.marbles.validate.paths import Walk, Walker
from wanscope.marbles.validate.trajectory_cases import Video
from wanscope.take.building import write_atomic
from wanscope.wan.variants import MARBLES_WEIGHTS

if TYPE_CHECKING:
    from wanscope.wan.model import WanModel

CONFIG: dict[str, Any] = {**denoiser.CONFIG, "num_layers": 6}
# A shorter version of the packaged table; every clip has one object.
STAGES = (
    denoiser.Stage(1000, (denoiser.START,), lr=0.02),
    denoiser.Stage(600, (denoiser.OBJECT,), lr=0.02),
    denoiser.Stage(600, (denoiser.OBJECT,), lr=0.004),
    denoiser.Stage(1800, (denoiser.WHOLE, denoiser.SHORT, denoiser.OBJECT), lr=0.004),
)
SETTINGS = "settings.json"
_FIXED = ("colors", "factor", "clips", "steps", "layers")  # settings that everything in a folder shares

Progress = Callable[[str], None]


@dataclass(frozen=True)
class RaritySettings:
    """colors: the two of which one is rare. factor: how much rarer. repeats: pairs of trainings. scenes: measured.

    colors: the two of which one is rare. factor: how much rarer. repeats: pairs of trainings. clips, steps: of each
    training. scenes: how many are measured. sampler_steps: of the measured paths, marbles' default where None.
    """

    colors: tuple[str, str] = ("red", "blue")
    factor: float = 10.0
    repeats: int = 1
    clips: int = 2000
    steps: int = 4000
    scenes: int = 24
    sampler_steps: int | None = None

    def record(self) -> dict[str, Any]:
        """Return the settings as plain data for JSON."""
        return {**asdict(self), "colors": list(self.colors), "layers": CONFIG["num_layers"]}

    def check(self) -> None:
        """Raise RequestError for settings that allow no comparison."""
        held_out = {color for color, _ in world.HELD_OUT}
        allowed = [color for color in world.COLORS if color not in held_out]
        if len(set(self.colors)) != 2 or not set(self.colors) <= set(allowed):
            raise RequestError(
                f"{' and '.join(self.colors)} cannot be compared",
                f"two different colors of {', '.join(allowed)} can; training leaves out combinations of the others",
                "--colors red blue",
            )
        if self.factor <= 1 or min(self.repeats, self.clips, self.steps) < 1 or self.scenes < 2:
            raise RequestError(
                "a number is too small", "the factor has to be above 1, scenes at least 2, all others at least 1", ""
            )


def scenes_of(rare: str, factor: float) -> denoiser.SceneOf:
    """Return scenes of one object in which the color `rare` has a weight of 1 / factor."""

    def scene(seed: int, index: int) -> world.Scene:
        rng = np.random.default_rng([seed, 17, index])
        return world.sample_scene(rng, 1, held_out=False, colors={rare: 1 / factor})

    return scene


def variant_folder(folder: Path, rare: str, repeat: int) -> Path:
    return folder / f"{rare}_rare_{repeat}"


def train_variant(folder: Path, rare: str, repeat: int, settings: RaritySettings, device: str = "cpu") -> Path:
    """Train one variant, going on where it was; the folder of its weights, in diffusers' layout."""
    place = variant_folder(folder, rare, repeat)
    weights = place / "weights"
    facts = weights / "training.json"
    if facts.exists() and json.loads(facts.read_text())["denoiser_steps"] >= settings.steps:
        return weights
    _shared_parts(place)
    scenes = scenes_of(rare, settings.factor)
    denoiser.encode_set(place, settings.clips, seed=repeat, device=device, scenes=scenes)
    denoiser.train(
        place,
        settings.steps,
        max(1, settings.steps // 8),
        seed=repeat,
        device=device,
        scenes_of=scenes,
        config=CONFIG,
        stages=STAGES,
    )
    export.export(place, weights)
    return weights


def _shared_parts(place: Path) -> None:
    """Copy the packaged VAE, text encoder, tokenizer and scale of latents; only the transformer is trained."""
    statistics = place / "latents" / "statistics.json"
    if statistics.exists():
        return
    statistics.parent.mkdir(parents=True, exist_ok=True)
    for name in ("text_encoder", "tokenizer"):
        shutil.copytree(MARBLES_WEIGHTS / name, place / name, dirs_exist_ok=True)
    vae: Any = AutoencoderKLWan.from_pretrained(MARBLES_WEIGHTS / "vae")
    vae.save_pretrained(place / "vae")
    figures = {"mean": list(vae.config.latents_mean), "std": list(vae.config.latents_std)}
    part = statistics.with_suffix(".tmp")
    part.write_text(json.dumps(figures))
    part.replace(statistics)  # last: its existence means that the rest exists


def run(
    settings: RaritySettings, folder: Path, *, device: str = "cpu", tell: Progress = lambda _: None
) -> dict[str, Any]:
    """Train what is not trained yet, measure, and return the report as plain data.

    tell: called with progress messages. Raises RequestError for a folder with other settings.
    """
    settings.check()
    _require_same_settings(folder, settings)
    began = time.monotonic()
    weights = {}
    for repeat in range(settings.repeats):
        for rare in settings.colors:
            tell(f"{rare} rare, training {repeat} ...")
            weights[repeat, rare] = train_variant(folder, rare, repeat, settings, device)
    report = measure(weights, settings, folder, device=device, tell=tell)
    return {**report, "seconds": round(time.monotonic() - began, 1)}


def _require_same_settings(folder: Path, settings: RaritySettings) -> None:
    """Raise RequestError where the folder has variants with other settings, which would be mixed up."""
    folder.mkdir(parents=True, exist_ok=True)
    path, own = folder / SETTINGS, {name: settings.record()[name] for name in _FIXED}
    if path.exists():
        stored = json.loads(path.read_text())
        other = [f"{name} {stored.get(name)}, not {own[name]}" for name in _FIXED if stored.get(name) != own[name]]
        if other:
            raise RequestError(f"{folder} has variants with other settings", "; ".join(other), "--folder ANOTHER")
        return
    path.write_text(json.dumps(own) + "\n")


def measure(
    weights: dict[tuple[int, str], Path],
    settings: RaritySettings,
    folder: Path,
    *,
    device: str = "cpu",
    tell: Progress = lambda _: None,
) -> dict[str, Any]:
    """Return the report: log-volumes of every scene's prompts in every variant, all over the same rank, and a summary.

    weights: the folder of each (repeat, rare color).
    """
    from wanscope.wan.load import load

    scenes = rarity_volume.prompts(settings.colors, settings.scenes)
    walks: dict[tuple[int, int, int, int], Walk] = {}
    read = np.zeros((settings.repeats, 2, 2, settings.scenes))
    identities, machine = {}, ""
    for repeat in range(settings.repeats):
        for v, rare in enumerate(settings.colors):
            model = load(weights[repeat, rare], device=device)
            machine = machine or machine_text(model)
            identities[f"{rare} rare, training {repeat}"] = model.identity
            walker = Walker(model, folder / "paths", settings.sampler_steps)
            for i, videos in enumerate(scenes):
                for c, video in enumerate(videos):
                    walk = walker.walk(video.prompt, video.seed)
                    walks[repeat, v, c, i] = walk
                    read[repeat, v, c, i] = _color_read(walker, video, walk) == settings.colors[c]
            tell(f"{rare} rare, training {repeat}: {2 * len(scenes)} paths measured")
    rank = common_rank([walk.path for walk in walks.values()])
    volumes = np.full(read.shape, np.nan)
    for place, walk in walks.items():
        volumes[place] = log_volume(walk.path.spectrum, rank, walk.path.dimension)
    report = {
        "figures": rarity_volume.measured(volumes, settings.colors),
        "read": _read_rows(read, settings),
        "rank": rank,
        "settings": settings.record(),
        "models": identities,
        "machine": machine,
    }
    return {**report, "summary": rarity_volume.summary(report)}


def _color_read(walker: Walker, video: Video, walk: Walk) -> str:
    """Return the color that the readers find in the walk's video, "" for none; stored next to the walk."""
    file = walker.file(video.prompt, video.seed).with_suffix(".json")
    if not file.exists():
        write_atomic(file, json.dumps(_decoded_color(walker.model, walk)))
    return json.loads(file.read_text())


def _decoded_color(model: WanModel, walk: Walk) -> str:
    from wanscope.study.make_take import frames_of
    from wanscope.wan.vae import decode

    latents = torch.from_numpy(walk.final_CThw)[None].to(model.device)
    things = readers.read(frames_of(decode(model.vae, latents)), 1).things
    return things[0].color if things else ""


def _read_rows(read_RVCn: np.ndarray, settings: RaritySettings) -> list[dict[str, Any]]:
    """By variant and color: the share of videos with the right color, and how many training clips show it a repeat."""
    rows = []
    for v, rare in enumerate(settings.colors):
        scenes = scenes_of(rare, settings.factor)
        shown = [scenes(repeat, i).things[0].color for repeat in range(settings.repeats) for i in range(settings.clips)]
        rows += [
            {
                "rare": rare,
                "color": color,
                "read": round(float(read_RVCn[:, v, c].mean()), 4),
                "clips": round(shown.count(color) / settings.repeats),
            }
            for c, color in enumerate(settings.colors)
        ]
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """The script; see the module's text."""
    default = RaritySettings()
    parser = argparse.ArgumentParser(prog="python -m wanscope.marbles.train rarity", description=__doc__)
    parser.add_argument(
        "--folder", type=Path, default=Path(".rarity"), help="everything that is kept (default .rarity)"
    )
    parser.add_argument("--out", type=Path, default=None, help="write the report there as JSON and Markdown")
    parser.add_argument("--colors", nargs=2, default=default.colors, metavar="COLOR")
    parser.add_argument("--factor", type=float, default=default.factor, help="how much rarer (default 10)")
    parser.add_argument("--repeats", type=int, default=default.repeats, help="pairs of trainings (default 1)")
    parser.add_argument("--clips", type=int, default=default.clips)
    parser.add_argument("--steps", type=int, default=default.steps)
    parser.add_argument("--scenes", type=int, default=default.scenes, help="scenes measured (default 24)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(argv)
    settings = RaritySettings(tuple(args.colors), args.factor, args.repeats, args.clips, args.steps, args.scenes)
    try:
        report = run(settings, args.folder, device=args.device, tell=lambda text: print(text, file=sys.stderr))
    except RequestError as error:
        parser.error(str(error))
    if args.out is not None:
        args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        args.out.with_suffix(".md").write_text(rarity_volume.as_markdown(report), encoding="utf-8")
    sys.stdout.write(rarity_volume.as_markdown(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
