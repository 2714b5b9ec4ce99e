"""Small copies of the videos for the report, so that a page of many takes stays small.

They have at most SIDE pixels on the longer side. If all of them together exceed the budget, they are made again,
smaller and at lower quality. A video that still does not fit is replaced by a still picture, with a note on the page.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from wanscope.analysis.collection import from_takes
from wanscope.errors import DamagedTake, RequestError
from wanscope.take.store import Take
from wanscope.take.video import iter_frames, write_video

SIDE = 320  # pixels
# Longer side and constant rate factor, from good to small.
QUALITIES = ((SIDE, 24), (240, 29), (160, 34))
# For the video files; as text in the page they are a third larger. With 3 MB of maps, 5 MB of Plotly and the figures'
# numbers, a page of 60 takes stays under 40 MB.
BUDGET_BYTES = 20_000_000


@dataclass(frozen=True)
class Preview:
    """A small copy of a take's video. kind: "video/mp4" or "image/webp". width, height: in pixels.

    note: why there is a still or nothing instead of the video.
    """

    kind: str
    data: bytes
    width: int
    height: int
    note: str = ""

    @property
    def source(self) -> str:
        """The file as a data URI, to embed in a page."""
        return f"data:{self.kind};base64,{base64.b64encode(self.data).decode()}"


def previews(takes: Sequence[Take], budget_bytes: int = BUDGET_BYTES) -> list[Preview]:
    """Return a preview of each take, in order; together at most `budget_bytes`, unless the stills alone exceed it."""
    made: list[Preview] = []
    for side, rate in QUALITIES:
        made = [_video_copy(take, side, rate) for take in takes]
        if sum(len(preview.data) for preview in made) <= budget_bytes:
            return made
    out, used = [], 0
    for take, preview in zip(takes, made, strict=True):
        if used + len(preview.data) > budget_bytes:
            preview = _still(take, QUALITIES[-1][0])
        used += len(preview.data)
        out.append(preview)
    return out


def scaled(width: int, height: int, side: int) -> tuple[int, int]:
    """Return an even width and height with the longer side at most `side`; small videos keep their size."""
    factor = min(1.0, side / max(width, height))
    return max(2, round(width * factor / 2) * 2), max(2, round(height * factor / 2) * 2)


def _video_copy(take: Take, side: int, rate: int) -> Preview:
    video = take.recipe.video
    width, height = scaled(video.width or SIDE, video.height or SIDE, side)
    options = {"crf": str(rate), "preset": "medium"}
    try:
        with TemporaryDirectory(prefix="wanscope-preview-") as folder:
            path = Path(folder) / "preview.mp4"
            write_video(path, _resized(take, width, height), video.fps or 8, options=options)
            return Preview("video/mp4", path.read_bytes(), width, height)
    except (DamagedTake, RequestError) as error:
        return Preview("", b"", width, height, from_takes(str(error).splitlines()[0], take.folder))


def _resized(take: Take, width: int, height: int) -> Iterator[np.ndarray]:
    from PIL import Image

    for frame_HW3 in iter_frames(take.video, take.recipe.video.width, take.recipe.video.height):
        if frame_HW3.shape[:2] == (height, width):
            yield frame_HW3
        else:
            yield np.asarray(Image.fromarray(frame_HW3).resize((width, height), Image.Resampling.LANCZOS))


def _still(take: Take, side: int) -> Preview:
    from PIL import Image

    buffer = BytesIO()
    try:
        with Image.open(take.poster) as poster:
            width, height = scaled(*poster.size, side)
            poster.resize((width, height), Image.Resampling.LANCZOS).save(buffer, "WEBP", quality=70)
    except OSError as error:
        return Preview("", b"", side, side, from_takes(f"{take.poster} is damaged: {error}", take.folder))
    return Preview("image/webp", buffer.getvalue(), width, height, "a still: the videos together were too large")
