"""Several takes in one picture: a labeled grid video, and a contact sheet of frames.

Where the takes form such a table, rows are variations (each with its edits) and columns are seeds; with one seed, the
columns are the edits, including the baseline. Smaller clips are centered on black, shorter ones hold their last frame,
and each plays at its own frame rate; `Grid.notes` reports where that was needed.

Shape suffixes: H height, W width; frames are uint8 RGB.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wanscope.edit.shorthand import shorthand
from wanscope.edit.sweep import edit_labels
from wanscope.errors import RequestError
from wanscope.take.building import new_file
from wanscope.take.disk import guarded
from wanscope.take.store import Take
from wanscope.take.video import iter_frames, video_facts, write_video

if TYPE_CHECKING:
    from PIL import ImageFont

    from wanscope.recipe import Recipe
    from wanscope.spec.settings import LoraSpec

BACKGROUND = (16, 16, 18)
INK = (235, 235, 235)
GAP = 8
LEAST_CELL = 224  # smaller clips are enlarged by a whole factor to about this width, so that labels can be read
FONT_SIZE = 15
LINES = 2
MAX_SIDE = 8192


@dataclass(frozen=True)
class Cell:
    """One clip and its label."""

    video: Path
    label: str


@dataclass(frozen=True)
class Grid:
    """A grid that was written: the file, its rows and columns, and how differing clips were adapted."""

    path: Path
    rows: int
    columns: int
    notes: tuple[str, ...]


def side_by_side(takes: Sequence[Take], out: Path | str, labels: Sequence[str] | None = None) -> Grid:
    """Write one MP4 with all `takes`.

    labels: one per take; by default each label says how its take differs from the others. Raises RequestError where
    there are no takes, where the labels do not match them, or where the grid is too large.
    """
    if not takes:
        raise RequestError("there is nothing to compare", "no take was named", "wanscope takes")
    if labels is not None and len(labels) != len(takes):
        raise RequestError(f"{len(labels)} labels do not fit {len(takes)} takes", "each take needs one")
    names = list(labels) if labels is not None else labels_of(takes)
    return grid_video(
        [[None if i is None else Cell(takes[i].video, names[i]) for i in row] for row in table(takes)], out
    )


def table(takes: Sequence[Take]) -> list[list[int | None]]:
    """Return the takes' indices in rows (everything but the seed) and columns (seeds), or a plain grid if sparse.

    With one seed the columns are the takes' edits, in the order of their first appearance. None is an empty cell.
    """
    seeds = sorted({take.recipe.seed for take in takes})
    columns: list[Any] = seeds if len(seeds) > 1 else list(dict.fromkeys(_edits(take) for take in takes))
    of = [take.recipe.seed if len(seeds) > 1 else _edits(take) for take in takes]
    settings = [_settings(take, with_edits=len(seeds) > 1) for take in takes]
    rows = list(dict.fromkeys(settings))
    places = {place: i for i, place in enumerate(zip(settings, of, strict=True))}
    if len(rows) > 1 and len(columns) > 1 and len(places) == len(takes) and 2 * len(takes) > len(rows) * len(columns):
        return [[places.get((row, column)) for column in columns] for row in rows]
    width = min(len(takes), max(1, round(len(takes) ** 0.5 + 0.49)) if len(takes) > 4 else len(takes))
    order: list[int | None] = [*range(len(takes)), *[None] * (-len(takes) % width)]
    return [order[i : i + width] for i in range(0, len(order), width)]


def _settings(take: Take, with_edits: bool) -> str:
    without = {"seed": 0} if with_edits else {"seed": 0, "edits": ()}
    return take.recipe.model_copy(update=without).canonical()


def _edits(take: Take) -> tuple[str, ...]:
    return tuple(map(shorthand, take.recipe.edits))


def labels_of(takes: Sequence[Take]) -> list[str]:
    """Return a label for each take with what differs: bound words, edits, model, seed, settings, prompt, or its id."""
    recipes = [take.recipe for take in takes]
    edits = edit_labels([recipe.edits for recipe in recipes])
    prompts = {recipe.prompt for recipe in recipes}
    keys = [k for k in (recipes[0].labels or {}) if all(k in r.labels for r in recipes)]
    keys = [k for k in keys if k != "edit" and not k.startswith("edits.")]  # edits are labeled separately
    varying = [k for k in keys if len({r.labels[k] for r in recipes}) > 1]
    # Words are shorter than prompts, but are used only where they distinguish all prompts.
    words = len({tuple(r.labels[k] for k in varying) for r in recipes}) == len(prompts)
    out = []
    for take, recipe, edit, settings in zip(takes, recipes, edits, _differing_settings(recipes), strict=True):
        parts = []
        if len(prompts) > 1 and words and varying:
            parts.append(" ".join(recipe.labels[k] for k in varying))
        if len(set(edits)) > 1:
            parts.append(edit)
        if len({r.model.name for r in recipes}) > 1:
            parts.append(recipe.model.name)
        if len({r.seed for r in recipes}) > 1:
            parts.append(f"seed {recipe.seed}")
        parts += settings
        if len(prompts) > 1 and not (words and varying):
            parts.append(recipe.prompt)  # near the end: a long prompt is shortened, and what follows it is lost
        if len({r.negative for r in recipes}) > 1:
            parts.append(f"negative {recipe.negative or 'none'}")
        out.append(", ".join(parts) or take.id)
    counts = {label: out.count(label) for label in out}
    return [label if counts[label] == 1 else f"{label}, {take.id}" for label, take in zip(out, takes, strict=True)]


def _differing_settings(recipes: Sequence[Recipe]) -> list[list[str]]:
    """Return each recipe's settings that differ among them: `from take 5d91...`, `steps 20`, `guidance 4`."""
    rows = []
    for recipe in recipes:
        init = {} if recipe.init is None else recipe.init.model_dump(exclude={"sha256"}, exclude_none=True)
        settings = {**recipe.sampler.model_dump(mode="json"), **recipe.video.model_dump(), "dtype": recipe.dtype}
        settings["loras"] = [_lora(lora) for lora in recipe.loras]
        rows.append({"from": " ".join(f"{kind} {place}" for kind, place in init.items()) or "noise", **settings})
    differing = [key for key in rows[0] if any(row[key] != rows[0][key] for row in rows)]
    return [[_setting(key, row[key]) for key in differing] for row in rows]


def _lora(lora: LoraSpec) -> str:
    return f"{Path(lora.path).stem}:{lora.weight:g}{'' if lora.expert == 'both' else f' ({lora.expert})'}"


def _setting(name: str, value: Any) -> str:
    if isinstance(value, float):
        return f"{name} {value:g}"
    if isinstance(value, dict):  # keyframes
        return (
            f"{name} {' '.join(f'{key}:{one:g}' if isinstance(one, float) else str(one) for key, one in value.items())}"
        )
    if isinstance(value, list):
        return f"{name} {' '.join(map(str, value)) or 'none'}"
    return f"{name} {'off' if value is None else value}"


def grid_video(cells: Sequence[Sequence[Cell | None]], out: Path | str) -> Grid:
    """Write the clips of `cells` (rows of columns; None is an empty cell) as one MP4, each with its label above it.

    Raises RequestError where the grid would be larger than players can show.
    """
    filled = [cell for row in cells for cell in row if cell is not None]
    facts = {cell: video_facts(cell.video) for cell in filled}
    width = int(max(f["width"] for f in facts.values()))
    height = int(max(f["height"] for f in facts.values()))
    zoom = max(1, round(LEAST_CELL / width))
    rows, columns = len(cells), max(len(row) for row in cells)
    layout = _Layout(rows, columns, width * zoom, height * zoom, _label_height(filled, width * zoom))
    if max(layout.size) > MAX_SIDE:
        raise RequestError(
            f"a grid of {rows} x {columns} clips is too large",
            f"it would be {layout.size[0]} x {layout.size[1]} pixels, and players show at most {MAX_SIDE}",
            "fewer takes",
        )
    fps = max(f["fps"] for f in facts.values()) or 8.0
    canvas_HW3 = _labeled(cells, layout)

    def frames() -> Iterator[np.ndarray]:
        clips = {cell: _Clip(cell.video, facts[cell]["fps"] or fps) for cell in filled}
        step = 0
        while True:
            ended = [clip.seek(step / fps) for clip in clips.values()]  # a list, so that every clip moves
            if all(ended):
                return
            for y, row in enumerate(cells):
                for x, cell in enumerate(row):
                    if cell is not None:
                        layout.put(canvas_HW3, y, x, clips[cell].picture, zoom)
            yield canvas_HW3
            step += 1

    out = Path(out)
    with guarded(out.parent):
        out.parent.mkdir(parents=True, exist_ok=True)
    write_video(out, frames(), fps, {"title": "wanscope comparison"})
    return Grid(out, rows, columns, tuple(_notes(facts)))


def _notes(facts: dict[Cell, dict[str, float]]) -> Iterator[str]:
    sizes = {(int(f["width"]), int(f["height"])) for f in facts.values()}
    if len(sizes) > 1:
        yield f"clips of {_listed(f'{w} x {h}' for w, h in sorted(sizes))} pixels: smaller ones are centered on black"
    rates = {f["fps"] for f in facts.values()}
    if len(rates) > 1:
        yield f"clips of {_listed(f'{r:g}' for r in sorted(rates))} frames per second: each plays at its own speed"
    lengths = {round(f["frames"] / f["fps"], 2) for f in facts.values() if f["fps"]}
    if len(lengths) > 1:
        yield f"clips of {_listed(f'{s:g}' for s in sorted(lengths))} seconds: shorter ones hold their last frame"


def _listed(words: Iterable[str]) -> str:
    words = list(words)
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]


class _Clip:
    """A clip played forward: `seek(seconds)` advances it, and `picture` is the frame at that time, or the last one."""

    def __init__(self, video: Path, fps: float) -> None:
        self.fps, self._frames, self._index = fps, iter_frames(video), 0
        self.picture = next(self._frames)

    def seek(self, seconds: float) -> bool:
        """Advance to `seconds`; return True where the clip has ended before."""
        wanted = int(seconds * self.fps + 1e-6)
        while self._index < wanted:
            following = next(self._frames, None)
            if following is None:
                return True
            self.picture, self._index = following, self._index + 1
        return False


@dataclass(frozen=True)
class _Layout:
    rows: int
    columns: int
    width: int
    height: int
    label: int

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the whole grid, in pixels."""
        return (
            self.columns * (self.width + GAP) + GAP,
            self.rows * (self.height + self.label + GAP) + GAP,
        )

    def corner(self, row: int, column: int) -> tuple[int, int]:
        """Return the top and left of a cell's label; the clip is `label` pixels below it."""
        return GAP + row * (self.height + self.label + GAP), GAP + column * (self.width + GAP)

    def put(self, canvas_HW3: np.ndarray, row: int, column: int, picture_HW3: np.ndarray, zoom: int) -> None:
        big_HW3 = picture_HW3.repeat(zoom, axis=0).repeat(zoom, axis=1)
        top, left = self.corner(row, column)
        top += self.label + (self.height - big_HW3.shape[0]) // 2
        left += (self.width - big_HW3.shape[1]) // 2
        canvas_HW3[top : top + big_HW3.shape[0], left : left + big_HW3.shape[1]] = big_HW3


def _labeled(cells: Sequence[Sequence[Cell | None]], layout: _Layout) -> np.ndarray:
    from PIL import Image, ImageDraw

    canvas = Image.new("RGB", layout.size, BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    for y, row in enumerate(cells):
        for x, cell in enumerate(row):
            if cell is None:
                continue
            top, left = layout.corner(y, x)
            for i, line in enumerate(wrapped(cell.label, layout.width)):
                draw.text((left, top + i * _line_height()), line, fill=INK, font=_font())
            draw.rectangle(
                (left, top + layout.label, left + layout.width - 1, top + layout.label + layout.height - 1),
                fill=(0, 0, 0),
            )
    return np.array(canvas)


@lru_cache(maxsize=1)
def _font() -> ImageFont.FreeTypeFont | Any:
    from PIL import ImageFont

    return ImageFont.load_default(size=FONT_SIZE)


def _line_height() -> int:
    return round(FONT_SIZE * 1.25)


def _label_height(cells: Sequence[Cell], width: int) -> int:
    return max(len(wrapped(cell.label, width)) for cell in cells) * _line_height() + 2


def wrapped(label: str, width: int) -> list[str]:
    """Wrap a label to at most `LINES` lines of at most `width` pixels; an ellipsis marks what is left out."""
    lines, rest = [], label.split()
    while rest and len(lines) < LINES:
        count = len(rest)
        while count > 1 and _font().getlength(" ".join(rest[:count])) > width:
            count -= 1
        lines.append(" ".join(rest[:count]))
        rest = rest[count:]
    if rest and lines:
        lines[-1] += " ..."
    return [_shortened(line, width) for line in lines] or [""]


def _shortened(line: str, width: int) -> str:
    if _font().getlength(line) <= width:
        return line
    body = line.removesuffix(" ...")
    while body and _font().getlength(body + "...") > width:
        body = body[:-1]
    return body + "..."


def contact_sheet(takes: Sequence[Take], out: Path | str, frames: int = 6, labels: Sequence[str] | None = None) -> Path:
    """Write a PNG with one row per take: `frames` frames, evenly spaced from the first to the last; return its path.

    labels: one per take; by default as in `side_by_side`. Raises RequestError where there are no takes.
    """
    from PIL import Image, ImageDraw

    out = Path(out)
    if not takes:
        raise RequestError("there is nothing to show", "no take was named", "wanscope takes")
    names = list(labels) if labels is not None else labels_of(takes)
    strips = []
    for take in takes:
        clip_FHW3 = take.frames
        picks = np.linspace(0, len(clip_FHW3) - 1, min(frames, len(clip_FHW3))).round().astype(int)
        strips.append(clip_FHW3[picks])
    width = max(s.shape[2] for s in strips)
    height = max(s.shape[1] for s in strips)
    columns = max(len(s) for s in strips)
    row_height = height + _line_height() + GAP
    sheet = Image.new("RGB", (columns * (width + 2) + 2 * GAP, len(takes) * row_height + GAP), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for y, (strip, name) in enumerate(zip(strips, names, strict=True)):
        top = GAP + y * row_height
        draw.text((GAP, top), _shortened(name, sheet.width - 2 * GAP), fill=INK, font=_font())
        for x, frame_HW3 in enumerate(strip):
            sheet.paste(Image.fromarray(frame_HW3), (GAP + x * (width + 2), top + _line_height()))
    with guarded(out.parent):
        out.parent.mkdir(parents=True, exist_ok=True)
        with new_file(out, sync=False) as new:
            sheet.save(new, "PNG", optimize=True)
    return out
