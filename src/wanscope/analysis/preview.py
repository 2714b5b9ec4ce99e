"""Small copies of the videos for the report, which keep a page of many takes small.

They have at most SIDE pixels on the longer side. If together they exceed the budget, they are encoded again, smaller
and at lower quality. A video that still does not fit is replaced by a still image, with a note on the page.
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
# Longer side in pixels and x264's constant rate factor, from best to smallest.
QUALITIES = ((SIDE, 24), (240, 29), (160, 34))
# For the files; base64 in the page makes them a third larger. With 3 MB of attention overlays, 5 MB of Plotly and the
# data of the figures, a page of 60 takes stays under 40 MB.
BUDGET_BYTES = 20_000_000


@dataclass(frozen=True)
class Preview:
    """A small copy of a take's video. kind: "video/mp4", "image/webp" or, without data, "". width, height: in pixels.

    note: why there is a still image, or nothing, instead of the video.
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


def make_previews(takes: Sequence[Take], budget_bytes: int = BUDGET_BYTES) -> list[Preview]:
    """Return a preview of each take, in order; together at most `budget_bytes`, unless the stills alone exceed it."""
    copies: list[Preview] = []
    for side, crf in QUALITIES:
        copies = [_encode_video(take, side, crf) for take in takes]
        if sum(len(copy.data) for copy in copies) <= budget_bytes:
            return copies
    out, used_bytes = [], 0
    for take, preview in zip(takes, copies, strict=True):
        if used_bytes + len(preview.data) > budget_bytes:
            preview = _make_still(take, QUALITIES[-1][0])
        used_bytes += len(preview.data)
        out.append(preview)
    return out


def fit_size(width: int, height: int, side: int) -> tuple[int, int]:
    """Return width and height scaled to a longer side of at most `side`, and made even; nothing is enlarged.

    Encoders of 4:2:0 video need even sizes.
    """
    factor = min(1.0, side / max(width, height))
    return max(2, round(width * factor / 2) * 2), max(2, round(height * factor / 2) * 2)


def _encode_video(take: Take, side: int, crf: int) -> Preview:
    """Return a small copy of a take's video; without data, but with a note, if the video is damaged."""
    video = take.recipe.video
    width, height = fit_size(video.width or SIDE, video.height or SIDE, side)
    options = {"crf": str(crf), "preset": "medium"}
    try:
        with TemporaryDirectory(prefix="wanscope-preview-") as folder:
            path = Path(folder) / "preview.mp4"
            write_video(path, _resize_frames(take, width, height), video.fps or 8, options=options)
            return Preview("video/mp4", path.read_bytes(), width, height)
    except (DamagedTake, RequestError) as error:
        return Preview("", b"", width, height, from_takes(str(error).splitlines()[0], take.folder))


def _resize_frames(take: Take, width: int, height: int) -> Iterator[np.ndarray]:
    """Yield the frames of a take's video, uint8 [height, width, 3]."""
    from PIL import Image

    for frame_HW3 in iter_frames(take.video, take.recipe.video.width, take.recipe.video.height):
        if frame_HW3.shape[:2] == (height, width):
            yield frame_HW3
        else:
            yield np.asarray(Image.fromarray(frame_HW3).resize((width, height), Image.Resampling.LANCZOS))


def _make_still(take: Take, side: int) -> Preview:
    """Return a small copy of a take's poster; without data, but with a note, if the poster is damaged."""
    from PIL import Image

    buffer = BytesIO()
    try:
        with Image.open(take.poster) as poster:
            width, height = fit_size(*poster.size, side)
            poster.resize((width, height), Image.Resampling.LANCZOS).save(buffer, "WEBP", quality=70)
    except OSError as error:
        return Preview("", b"", side, side, from_takes(f"{take.poster} is damaged: {error}", take.folder))
    return Preview("image/webp", buffer.getvalue(), width, height, "a still image: the videos together were too large")
