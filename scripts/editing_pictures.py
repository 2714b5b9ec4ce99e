"""Makes the pictures of docs/editing.md with wanscope itself: edited videos of marbles and their baselines.

python scripts/editing_pictures.py                         # writes docs/images/editing-*.png
python scripts/editing_pictures.py --out /tmp --seed 3     # to another folder, from other noise
python scripts/editing_pictures.py --only kinds

Videos are takes of a workspace (`--workspace`), so that an interrupted run can be resumed. Every picture is a palette
PNG; one of more than 150 kB is an error.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import wanscope as ws

ROOT = Path(__file__).resolve().parents[1]
PROMPT = "a red circle moves left on a black background"
DONOR = "a green square moves left on a black background"
THING = "large red circle"
STILL = f"a {THING} stays still on a black background"
PAIRS = [
    (f"a red {shape} moves {way} on a {ground} background", f"a {other} {shape} moves {way} on a {ground} background")
    for shape, way, ground in (("circle", "left", "black"), ("square", "up", "white"), ("triangle", "right", "gray"))
    for other in ("blue", "green", "yellow")
]
KINDS = (
    f"inject '{DONOR}' into late at 0.4",
    f"inject '{DONOR}' into mid at 0.75",
    "bend circle translate x=0.25 in 4-9",
    "skip 3",
    f"prompts 0 '{PROMPT}', 5 '{DONOR}'",
)
BLOCKS = ("early", "mid", "late", "all")
STRENGTHS = (0.25, 0.5, 0.75, 1.0)
SHIFTS = (-0.25, 0.25)
MOST_BYTES = 150_000
GAP, LINE, COLORS = 6, 20, 96
INK, PAPER = (20, 20, 20), (255, 255, 255)

Row = tuple[str, Sequence[np.ndarray]]


class Maker:
    """Makes takes of one seed, each only once."""

    def __init__(self, workspace: Path, seed: int, steps: int | None) -> None:
        self.model = ws.load("marbles")
        self.workspace, self.seed = workspace, seed
        self.settings: dict[str, Any] = {} if steps is None else {"steps": steps}

    def frames(self, prompt: str, edit: Any = None) -> np.ndarray:
        """Return the frames of a take, uint8 [F, H, W, 3]; the counts of its edits are verified when it is made."""
        edits = {} if edit is None else {"edits": edit}
        take = ws.generate(self.model, prompt, seed=self.seed, workspace=self.workspace, **self.settings, **edits)
        print("made:", prompt if edit is None else edit, flush=True)
        return take.frames

    def direction(self) -> Path:
        """Return the file of the direction of red, learned if it does not exist."""
        path = self.workspace / "red.safetensors"
        if not path.exists():
            ws.learn_direction(self.model, PAIRS).save(path)
        return path


def some(frames_FHW3: np.ndarray, count: int = 5) -> list[np.ndarray]:
    """Return `count` frames, evenly spaced from the first to the last."""
    return list(frames_FHW3[np.linspace(0, len(frames_FHW3) - 1, count).round().astype(int)])


def kinds(maker: Maker) -> list[Row]:
    """Return a row of frames for the baseline and for each kind of edit."""
    rows: list[Row] = [(f"no edit: {PROMPT}", some(maker.frames(PROMPT)))]
    rows += [(line, some(maker.frames(PROMPT, line))) for line in KINDS]
    without = ws.Steer(maker.direction(), operation="ablate")
    return [*rows, ("steer red.safetensors ablate", some(maker.frames(PROMPT, without)))]


def strengths(maker: Maker) -> list[Row]:
    """Return a row for each choice of blocks, with one frame for each strength."""
    middle = len(base := maker.frames(PROMPT)) // 2
    rows: list[Row] = []
    for blocks in BLOCKS:
        edited = [maker.frames(PROMPT, f"inject '{DONOR}' into {blocks} at {s:g}")[middle] for s in STRENGTHS]
        at = ", ".join(f"{s:g}" for s in STRENGTHS)
        rows.append((f"into {blocks}: no edit, at {at}", [base[middle], *edited]))
    return rows


def bends(maker: Maker) -> list[Row]:
    """Return rows for a still object: the maps of all words that describe it, moved and amplified."""
    rows: list[Row] = [(f"no edit: {STILL}", some(maker.frames(STILL)))]
    louder = f"bend '{THING}' amplify factor=4"
    for shift in SHIFTS:
        line = f"bend '{THING}' translate x={shift:g}"
        rows.append((f"{line}, and amplify factor=4", some(maker.frames(STILL, [line, louder]))))
    return rows


PICTURES: dict[str, tuple[Callable[[Maker], list[Row]], str]] = {
    "kinds": (kinds, "One seed without an edit and with each kind of edit, five frames from first to last"),
    "strengths": (strengths, "A green square injected into early, middle, late and all blocks at four strengths"),
    "bends": (bends, "The attention maps of an object's words moved left and right by a quarter of the frame"),
}


def draw(rows: Sequence[Row], path: Path) -> int:
    """Write the rows with their labels as a palette PNG; return its size in bytes."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(13)
    height, width = rows[0][1][0].shape[:2]
    columns = max(len(frames) for _, frames in rows)
    sheet = Image.new("RGB", (columns * (width + GAP) + GAP, len(rows) * (height + LINE + GAP)), PAPER)
    pen = ImageDraw.Draw(sheet)
    for y, (label, frames) in enumerate(rows):
        top = y * (height + LINE + GAP)
        if font.getlength(label) > sheet.width - 2 * GAP:
            raise SystemExit(f"the label {label!r} is wider than {path.name}")
        pen.text((GAP, top + 2), label, fill=INK, font=font)
        for x, frame_HW3 in enumerate(frames):
            sheet.paste(Image.fromarray(frame_HW3), (GAP + x * (width + GAP), top + LINE))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.quantize(COLORS, dither=Image.Dither.NONE).save(path, "PNG", optimize=True)
    return path.stat().st_size


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images", help="the folder of the pictures")
    parser.add_argument("--workspace", type=Path, help="where the takes are kept; default: a temporary folder")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, help="denoising steps, for a quick look; default: the model's")
    parser.add_argument("--only", choices=tuple(PICTURES), action="append", help="only this picture; repeatable")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        maker = Maker(given.workspace or Path(scratch), given.seed, given.steps)
        for name in given.only or PICTURES:
            make, alt = PICTURES[name]
            path = given.out / f"editing-{name}.png"
            size = draw(make(maker), path)
            print(f"{path}: {size:,} bytes\n![{alt}](images/{path.name})", flush=True)
            if size > MOST_BYTES:
                print(f"{path} is over {MOST_BYTES:,} bytes", file=sys.stderr)
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
