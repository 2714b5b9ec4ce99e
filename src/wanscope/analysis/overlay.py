"""Attention maps over the video they belong to, as an MP4 with one panel per word, block or step.

The first latent frame corresponds to one video frame, and each later one to four. Maps are resized with bilinear
interpolation. A panel's colors range from 0 to the 99.5th percentile of its own map unless a common value is given, so
panels can be compared by shape but not by brightness. The label gives the mean of the map, which for probabilities is
the word's share of all attention.

Shape suffixes: F frames, H and W pixels, T latent frames, Y and X rows and columns of tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from wanscope.errors import RecipeError, RequestError
from wanscope.take.attention_maps import Attention
from wanscope.take.compare import BACKGROUND, GAP, INK, LEAST_CELL, MAX_SIDE
from wanscope.take.store import Take
from wanscope.take.video import write_video

By = Literal["word", "block", "step"]
PERCENTILE = 99.5
OPACITY = 0.75
LABEL_PIXELS = 24
MAX_PANELS = 60
FEWER = "name fewer words after --maps, or fewer blocks or steps"
# From dark to bright through purple, red and orange. Brightness increases throughout, so the hue carries nothing.
COLORS = ((0, 0, 0), (60, 10, 90), (150, 25, 105), (225, 70, 60), (250, 160, 20), (250, 250, 150))


@dataclass(frozen=True)
class Panel:
    """A map over a video, float32 [T, Y, X], and its label.

    frames_FHW3: the video, by default that of the take. top: the value with the brightest color, by default the map's
    own 99.5th percentile.
    """

    label: str
    map_TYX: np.ndarray
    frames_FHW3: np.ndarray | None = None
    top: float | None = None


def panels(
    attention: Attention,
    words: Sequence[str] = (),
    by: By = "word",
    blocks: Sequence[int] | None = None,
    steps: Sequence[int] | None = None,
) -> list[Panel]:
    """Return one panel per word (of all words if none is named), or one per block or step of a single word.

    Raises RequestError if panels by block or step are asked for several words, or by step if only means were kept.
    """
    words = list(words) or list(attention.words)
    if by == "word":
        return [_panel(word, attention, word, blocks, steps) for word in words]
    if len(words) != 1:
        raise RequestError(f"panels by {by} are of one word", f"named are {', '.join(words)}", f"--maps {words[0]}")
    if by == "block":
        chosen = attention.blocks if blocks is None else blocks
        return [_panel(f"{words[0]}, block {block}", attention, words[0], [block], steps) for block in chosen]
    if by != "step":
        raise RecipeError(f"there are no panels by {by!r}", "", "word, block or step")
    if not attention.steps:
        raise RequestError("the maps were averaged over the steps", "no step's own was kept", "--by block")
    kept = list(dict.fromkeys(attention.steps)) if steps is None else steps
    return [_panel(f"{words[0]}, step {step + 1}", attention, words[0], blocks, [step]) for step in kept]


def _panel(
    label: str, attention: Attention, word: str, blocks: Sequence[int] | None, steps: Sequence[int] | None
) -> Panel:
    map_TYX = attention.mean(word, blocks, steps)
    mean = float(map_TYX.mean())
    if attention.measure == "self":  # always sums to 1
        return Panel(label, map_TYX)
    return Panel(
        f"{label}: {100 * mean:.2g}%" if attention.measure == "probability" else f"{label}: {mean:.3g}", map_TYX
    )


def overlay_video(take: Take, shown: Sequence[Panel], out: Path, columns: int | None = None) -> tuple[int, int]:
    """Write the video with the panels' maps over it and return the number of rows and columns of panels.

    columns: chosen by the number of panels by default. All panels have videos of the same size. Raises RequestError if
    there are no panels, too many, or if they are too large together.
    """
    if not 0 < len(shown) <= MAX_PANELS:
        raise RequestError(f"{len(shown)} panels cannot be shown", f"from 1 to {MAX_PANELS} can", FEWER)
    frames_FHW3 = take.frames
    F, H, W, _ = frames_FHW3.shape
    zoom = max(1, round(LEAST_CELL / W))
    columns = columns or min(len(shown), max(1, round(len(shown) ** 0.5 + 0.49)))
    rows = -(-len(shown) // columns)
    size = (columns * (W * zoom + GAP) + GAP, rows * (H * zoom + LABEL_PIXELS + GAP) + GAP)
    if max(size) > MAX_SIDE:
        raise RequestError(
            f"{len(shown)} panels of this video are too large", f"they would be {size[0]} x {size[1]} pixels", FEWER
        )
    canvas_HW3 = _canvas(size, shown, columns, W * zoom, H * zoom)
    tops = [GAP + (i // columns) * (H * zoom + LABEL_PIXELS + GAP) + LABEL_PIXELS for i in range(len(shown))]
    lefts = [GAP + (i % columns) * (W * zoom + GAP) for i in range(len(shown))]

    def composed() -> Iterator[np.ndarray]:
        for frame in range(F):
            for panel, top, left in zip(shown, tops, lefts, strict=True):
                under_FHW3 = frames_FHW3 if panel.frames_FHW3 is None else panel.frames_FHW3
                top_value = _brightest(panel.map_TYX) if panel.top is None else panel.top
                picture = overlay_frame(under_FHW3[frame], panel.map_TYX[latent_frame(frame)], top_value)
                canvas_HW3[top : top + H * zoom, left : left + W * zoom] = picture.repeat(zoom, 0).repeat(zoom, 1)
            yield canvas_HW3

    write_video(out, composed(), take.recipe.video.fps or 8, {"title": f"attention of {take.recipe.prompt}"})
    return rows, columns


def latent_frame(frame: int) -> int:
    """Return the latent frame from which a video frame was decoded: 0 for the first frame, then one per four frames."""
    return (frame + 3) // 4


def overlay_frame(frame_HW3: np.ndarray, map_YX: np.ndarray, top: float) -> np.ndarray:
    """Return a frame [H, W, 3] with a map [Y, X] over it, uint8 [H, W, 3]; the weight of the color grows with the map.

    top: the value of the map that has the brightest color.
    """
    from PIL import Image

    height, width = frame_HW3.shape[:2]
    share_YX = np.clip(np.nan_to_num(map_YX) / max(top, 1e-12), 0, 1).astype(np.float32)
    share_HW = np.asarray(Image.fromarray(share_YX).resize((width, height), Image.Resampling.BILINEAR))
    color_HW3 = np.stack([np.interp(share_HW, np.linspace(0, 1, len(COLORS)), c) for c in np.transpose(COLORS)], -1)
    weight_HW1 = OPACITY * share_HW[..., None]
    dim = 0.6 + 0.4 * share_HW[..., None]
    return (frame_HW3 * dim * (1 - weight_HW1) + color_HW3 * weight_HW1).round().astype(np.uint8)


def _brightest(map_TYX: np.ndarray) -> float:
    return float(np.nanpercentile(map_TYX, PERCENTILE))


def _canvas(size: tuple[int, int], shown: Sequence[Panel], columns: int, width: int, height: int) -> np.ndarray:
    from PIL import Image, ImageDraw, ImageFont

    canvas = Image.new("RGB", size, BACKGROUND)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=15)
    for i, panel in enumerate(shown):
        label = panel.label
        while font.getlength(label) > width and len(label) > 4:
            label = label[:-4] + "..."
        at = (GAP + (i % columns) * (width + GAP), GAP + (i // columns) * (height + LABEL_PIXELS + GAP))
        draw.text(at, label, fill=INK, font=font)
    return np.array(canvas)
