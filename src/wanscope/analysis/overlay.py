"""Overlays of attention maps on their video, as an MP4 with one panel per word, block or step.

The first latent frame corresponds to one video frame, and each later one to four. Maps are resized with bilinear
interpolation. A panel's colors range from 0 to the 99.5th percentile of its own map, so panels can be compared by shape
but not by brightness, unless they are given a common maximum. The label gives the mean of the map, which for
probabilities is the word's share of all attention.

Shape suffixes: F frames, H and W pixels, T latent frames, Y and X rows and columns of tokens.
"""

from __future__ import annotations

import shlex
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
# From dark to bright through purple, red and orange. Brightness increases throughout, so maps can be read without hues.
COLORS = ((0, 0, 0), (60, 10, 90), (150, 25, 105), (225, 70, 60), (250, 160, 20), (250, 250, 150))


@dataclass(frozen=True)
class Panel:
    """One map, float32 [T, Y, X], and the video below it.

    frames_FHW3: the video, uint8 [F, H, W, 3]; by default that of the take. vmax: the value that gets the brightest
    color; by default the map's 99.5th percentile. word: the word whose attention the map shows.
    """

    label: str
    map_TYX: np.ndarray
    frames_FHW3: np.ndarray | None = None
    vmax: float | None = None
    word: str = ""


def make_panels(
    attention: Attention,
    words: Sequence[str] = (),
    by: By = "word",
    blocks: Sequence[int] | None = None,
    steps: Sequence[int] | None = None,
) -> list[Panel]:
    """Return one panel per word, or one per block or step of a single word.

    words: all words if empty. blocks, steps: which ones; None for all that were kept. Raises RequestError if panels by
    block or step are requested for several words, or by step if only means over the steps were kept. Raises RecipeError
    for another value of `by`, and NotCaptured for a word, block or step without maps.
    """
    words = list(words) or list(attention.words)
    if by == "word":
        return [_panel(word, attention, word, blocks, steps) for word in words]
    if len(words) != 1:
        raise RequestError(
            f"panels by {by} show one word, and {len(words)} are given",
            ", ".join(words),
            f"--maps {shlex.quote(words[0])} --by {by}",
        )
    if by == "block":
        kept = attention.blocks if blocks is None else blocks
        return [_panel(f"{words[0]}, block {block}", attention, words[0], [block], steps) for block in kept]
    if by != "step":
        raise RecipeError(f"by is {by!r}", "panels are made by word, block or step", 'by="block"')
    if not attention.steps:
        raise RequestError("there is no map of a single step", "the maps were averaged over the steps", "--by block")
    kept = list(dict.fromkeys(attention.steps)) if steps is None else steps
    return [_panel(f"{words[0]}, step {step + 1}", attention, words[0], blocks, [step]) for step in kept]


def _panel(
    label: str, attention: Attention, word: str, blocks: Sequence[int] | None, steps: Sequence[int] | None
) -> Panel:
    map_TYX = attention.mean(word, blocks, steps)
    mean = float(map_TYX.mean())
    if attention.measure == "self":  # sums to 1 over the video, so its mean is the same for every position
        return Panel(label, map_TYX, word=word)
    value = f"{100 * mean:.2g}%" if attention.measure == "probability" else f"{mean:.3g}"
    return Panel(f"{label}: {value}", map_TYX, word=word)


def overlay_video(take: Take, shown: Sequence[Panel], out: Path, columns: int | None = None) -> tuple[int, int]:
    """Write a video of all panels side by side, and return the number of rows and columns of panels.

    columns: by default about the square root of the number of panels. All panels have videos of the same size. Raises
    RequestError if there are no panels, too many, or if together they are too large for a video.
    """
    if not shown:
        raise RequestError(
            "there are no panels to show", "the list of words, blocks or steps is empty", "make_panels(take.attention)"
        )
    if len(shown) > MAX_PANELS:
        raise RequestError(
            f"{len(shown)} panels are too many", f"a video shows at most {MAX_PANELS}", _fewer(shown, MAX_PANELS)
        )
    frames_FHW3 = take.frames
    F, H, W, _ = frames_FHW3.shape
    zoom = max(1, round(LEAST_CELL / W))

    def grid_size(panels: int) -> tuple[int, int, tuple[int, int]]:
        across = columns or min(panels, max(1, round(panels**0.5 + 0.49)))
        down = -(-panels // across)
        return down, across, (across * (W * zoom + GAP) + GAP, down * (H * zoom + LABEL_PIXELS + GAP) + GAP)

    rows, columns_shown, size = grid_size(len(shown))
    if max(size) > MAX_SIDE:
        fits = next((n for n in range(len(shown) - 1, 0, -1) if max(grid_size(n)[2]) <= MAX_SIDE), 0)
        raise RequestError(
            f"{len(shown)} panel{'s'[: len(shown) != 1]} of this video would be {size[0]} x {size[1]} pixels",
            f"a video has at most {MAX_SIDE} pixels per side",
            _fewer(shown, fits) if fits else "",
        )
    canvas_HW3 = _canvas(size, shown, columns_shown, W * zoom, H * zoom)
    tops = [GAP + (i // columns_shown) * (H * zoom + LABEL_PIXELS + GAP) + LABEL_PIXELS for i in range(len(shown))]
    lefts = [GAP + (i % columns_shown) * (W * zoom + GAP) for i in range(len(shown))]

    def compose_frames() -> Iterator[np.ndarray]:
        for frame in range(F):
            for panel, top, left in zip(shown, tops, lefts, strict=True):
                video_FHW3 = frames_FHW3 if panel.frames_FHW3 is None else panel.frames_FHW3
                vmax = float(np.nanpercentile(panel.map_TYX, PERCENTILE)) if panel.vmax is None else panel.vmax
                picture = overlay_frame(video_FHW3[frame], panel.map_TYX[latent_frame(frame)], vmax)
                canvas_HW3[top : top + H * zoom, left : left + W * zoom] = picture.repeat(zoom, 0).repeat(zoom, 1)
            yield canvas_HW3

    write_video(out, compose_frames(), take.recipe.video.fps or 8, {"title": f"attention of {take.recipe.prompt}"})
    return rows, columns_shown


def _fewer(shown: Sequence[Panel], count: int) -> str:
    """Return the options that show at most `count` of the panels."""
    words = list(dict.fromkeys(panel.word for panel in shown))
    if len(words) == 1:  # by block or step: the mean over them is a single panel
        return "--by word"
    return f"--maps {shlex.quote(','.join(words[:count]))}"


def latent_frame(frame: int) -> int:
    """Return the latent frame from which a video frame was decoded: 0 for the first frame, then one per four frames."""
    return (frame + 3) // 4


def overlay_frame(frame_HW3: np.ndarray, map_YX: np.ndarray, vmax: float) -> np.ndarray:
    """Return a frame [H, W, 3] with a map [Y, X] blended over it, uint8 [H, W, 3]; the opacity grows with the map.

    vmax: the value of the map that gets the brightest color. NaN counts as 0.
    """
    from PIL import Image

    height, width = frame_HW3.shape[:2]
    share_YX = np.clip(np.nan_to_num(map_YX) / max(vmax, 1e-12), 0, 1).astype(np.float32)
    share_HW = np.asarray(Image.fromarray(share_YX).resize((width, height), Image.Resampling.BILINEAR))
    color_HW3 = np.stack([np.interp(share_HW, np.linspace(0, 1, len(COLORS)), c) for c in np.transpose(COLORS)], -1)
    weight_HW1 = OPACITY * share_HW[..., None]
    dim = 0.6 + 0.4 * share_HW[..., None]
    return (frame_HW3 * dim * (1 - weight_HW1) + color_HW3 * weight_HW1).round().astype(np.uint8)


def _canvas(size: tuple[int, int], shown: Sequence[Panel], columns: int, width: int, height: int) -> np.ndarray:
    """Return the background with the labels, uint8 [H, W, 3]. size: its width and height; width, height: of a panel."""
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
