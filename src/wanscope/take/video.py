"""MP4 files that contain their recipe as metadata, written and read with PyAV.

H.264 in yuv420p, so that every browser and player shows it; BT.709 matrix and limited range, both tagged, so that
colors are decoded as they were encoded. Near-lossless, not lossless: half-resolution chroma and a constant rate factor
of `CRF`. What has to be exact is in the take's final latents.

Shape suffixes: F frames, H height, W width; frames are uint8 RGB.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wanscope.errors import DamagedTake, RequestError, StorageError
from wanscope.spec.strict_json import read_json
from wanscope.take.building import new_file
from wanscope.take.disk import guarded

if TYPE_CHECKING:
    import av
    import av.container

CRF = 12
METADATA_KEY = "wanscope"
KEYFRAME_SECONDS = 1
# In order of preference, with the options that make each near-lossless. mpeg4 is in every build of FFmpeg.
ENCODERS: dict[str, dict[str, str]] = {
    "libx264": {"crf": str(CRF), "preset": "medium"},
    "libopenh264": {"rc_mode": "quality", "qmin": "4", "qmax": "18"},
    "h264_videotoolbox": {"q:v": "85"},
    "mpeg4": {"flags": "+qscale", "global_quality": str(2 * 118)},  # FF_QP2LAMBDA = 118
}
_BT709, _LIMITED = 1, 1  # AVCOL_*_BT709, AVCOL_RANGE_MPEG


def encoder_name() -> str:
    """Return the best encoder of `ENCODERS` that the installed PyAV has. Raises StorageError where it has none."""
    import av

    for name in ENCODERS:
        try:
            av.Codec(name, "w")
        except ValueError:  # av.codec.codec.UnknownCodecError
            continue
        return name
    raise StorageError(
        "the installed PyAV cannot write MP4 video", f"it has none of {', '.join(ENCODERS)}", "pip install --upgrade av"
    )


def write_video(
    path: Path,
    frames_FHW3: Iterable[np.ndarray],
    fps: float,
    metadata: Mapping[str, str] | None = None,
    encoder: str | None = None,
    options: Mapping[str, str] | None = None,
) -> int:
    """Write uint8 RGB frames, each [H, W, 3], as MP4; return how many there were. No part of a file is left.

    fps: frames per second. metadata: written to the file under its own keys. options: for libx264, instead of the
    near-lossless ones. An odd width or height is padded by repeating the last column or row, because yuv420p needs
    even sizes. Raises ValueError where there are no frames.
    """
    import av

    name = encoder or encoder_name()
    count = 0
    with (
        guarded(path.parent),
        new_file(path, sync=False) as new,
        av.open(str(new), "w", options={"movflags": "use_metadata_tags+faststart"}) as output,
    ):
        output.metadata.update(metadata or {})
        stream = None
        for frame_HW3 in frames_FHW3:
            even_HW3 = _even(frame_HW3)
            if stream is None:
                stream = _stream(output, name, fps, even_HW3.shape, options)
            picture = av.VideoFrame.from_ndarray(even_HW3, format="rgb24").reformat(
                format="yuv420p",
                src_colorspace="ITU709",
                dst_colorspace="ITU709",
                src_color_range="JPEG",
                dst_color_range="MPEG",
            )
            output.mux(stream.encode(picture))
            count += 1
        if stream is None:
            raise ValueError("a video needs at least one frame")
        output.mux(stream.encode())
    return count


def _stream(
    output: av.container.OutputContainer,
    encoder: str,
    fps: float,
    shape: tuple[int, ...],
    options: Mapping[str, str] | None,
) -> Any:
    rate = Fraction(fps).limit_denominator(1001)
    chosen = options if options is not None and encoder == "libx264" else ENCODERS.get(encoder, {})
    stream: Any = output.add_stream(encoder, rate=rate, options=dict(chosen))
    stream.height, stream.width, stream.pix_fmt = shape[0], shape[1], "yuv420p"
    context = stream.codec_context
    context.gop_size = max(1, round(fps * KEYFRAME_SECONDS))
    context.colorspace = context.color_primaries = context.color_trc = _BT709
    context.color_range = _LIMITED
    return stream


def _even(frame_HW3: np.ndarray) -> np.ndarray:
    height, width = frame_HW3.shape[:2]
    if height % 2 or width % 2:
        frame_HW3 = np.pad(frame_HW3, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    return np.ascontiguousarray(frame_HW3)


def iter_frames(path: Path, width: int | None = None, height: int | None = None) -> Iterator[np.ndarray]:
    """Yield the video's frames, uint8 [H, W, 3], one at a time; cropped to width and height where given.

    Raises RequestError where the file is not a video, and DamagedTake where it cannot be decoded.
    """
    import av

    with _opened(path) as video:
        try:
            for picture in video.decode(video=0):
                yield _rgb(picture)[:height, :width]
        except av.FFmpegError as error:
            raise DamagedTake(f"the video {path} cannot be decoded", str(error)) from error


def _rgb(picture: av.VideoFrame) -> np.ndarray:
    # Without a tagged matrix the usual convention applies: BT.709 from 720 lines on, otherwise BT.601.
    named = {1: "ITU709", 5: "ITU601", 6: "ITU601"}.get(int(picture.colorspace))
    matrix = named or ("ITU709" if picture.height >= 720 else "ITU601")
    full = int(picture.color_range) == 2
    return picture.reformat(
        format="rgb24",
        src_colorspace=matrix,
        dst_colorspace=matrix,
        src_color_range="JPEG" if full else "MPEG",
        dst_color_range="JPEG",
    ).to_ndarray()


def read_frames(path: Path, width: int | None = None, height: int | None = None) -> np.ndarray:
    """Return all frames, uint8 [F, H, W, 3]; arguments and errors as for `iter_frames`."""
    return np.stack(list(iter_frames(path, width, height)))


def video_facts(path: Path) -> dict[str, float]:
    """Return width and height in pixels, fps, and frames (0 where the container does not state it)."""
    with _opened(path) as video:
        stream = video.streams.video[0]
        rate = stream.average_rate or Fraction(0)
        return {
            "width": stream.codec_context.width,
            "height": stream.codec_context.height,
            "fps": float(rate),
            "frames": stream.frames,
        }


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata tags of an MP4. Raises DamagedTake where they are not text."""
    try:
        with _opened(path) as video:
            return dict(video.metadata)
    except UnicodeDecodeError as error:
        raise DamagedTake(f"the metadata of {path} cannot be read", f"it is damaged: {error}") from None


def read_recipe(path: Path) -> dict[str, Any]:
    """Return what wanscope wrote into the MP4: `recipe`, `take`, `latents_sha256`, `environment`.

    Raises RequestError where the file is not a video or contains no recipe, and DamagedTake where it cannot be read.
    """
    written = read_metadata(path).get(METADATA_KEY)
    if written is None:
        raise RequestError(
            f"{path} contains no recipe",
            "wanscope did not make it, or a program that copied it dropped the metadata",
            "the take.json next to the original",
        )
    try:
        data = read_json(written)
    except ValueError:
        data = None
    if not isinstance(data, dict) or "recipe" not in data:
        raise DamagedTake(f"the recipe in {path} cannot be read", "its metadata is truncated or changed")
    return data


def _opened(path: Path) -> av.container.InputContainer:
    import av

    try:
        video = av.open(str(path))
    except (av.FFmpegError, OSError) as error:
        why = error.strerror or str(error)
        raise RequestError(
            f"{path} cannot be read as a video", why, f"a video file; `ffprobe {shlex.quote(str(path))}` tells more"
        ) from error
    if not video.streams.video:
        video.close()
        raise RequestError(f"{path} cannot be read as a video", "it has no video stream")
    return video


def write_poster(path: Path, frame_HW3: np.ndarray) -> None:
    """Write one frame, uint8 RGB [H, W, 3], as WebP."""
    from PIL import Image

    with guarded(path.parent):
        Image.fromarray(frame_HW3).save(path, "WEBP", quality=90, method=6)
