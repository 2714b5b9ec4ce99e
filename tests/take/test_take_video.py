"""Videos keep their colors, length and recipe; grids place every clip below its label."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from helpers.takes import frames_of, recipe, write_take
from wanscope.errors import DamagedTake, RequestError
from wanscope.take.compare import (
    GAP,
    Cell,
    _font,
    contact_sheet,
    grid_video,
    labels_of,
    side_by_side,
    table,
    wrapped,
)
from wanscope.take.video import (
    METADATA_KEY,
    encoder_name,
    read_frames,
    read_metadata,
    read_recipe,
    video_facts,
    write_video,
)

COLORS = [
    (255, 0, 0),
    (0, 255, 0),
    (0, 0, 255),
    (0, 255, 255),
    (255, 0, 255),
    (255, 255, 0),
    (255, 255, 255),
    (0, 0, 0),
]


def flat(color: tuple[int, int, int], frames: int = 3, height: int = 48, width: int = 64) -> np.ndarray:
    return np.broadcast_to(np.array(color, np.uint8), (frames, height, width, 3)).copy()


@pytest.mark.parametrize("color", COLORS)
def test_colors_come_back(tmp_path: Path, color: tuple[int, int, int]) -> None:
    write_video(tmp_path / "a.mp4", flat(color), 8)
    error = np.abs(read_frames(tmp_path / "a.mp4").astype(int) - np.array(color))
    assert error.max() <= 3  # 8-bit limited-range YUV; a wrong matrix is off by 20 and more


def test_the_file_states_its_color_matrix_and_range(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", flat((255, 0, 0)), 8)
    with av.open(str(tmp_path / "a.mp4")) as video:
        picture = next(video.decode(video=0))
        assert picture.format.name == "yuv420p"
        assert (int(picture.colorspace), int(picture.color_range)) == (1, 1)


def test_smooth_video_is_nearly_lossless(tmp_path: Path) -> None:
    frames = frames_of(recipe())
    write_video(tmp_path / "a.mp4", frames, 8)
    back = read_frames(tmp_path / "a.mp4")
    assert back.shape == frames.shape
    psnr = 10 * np.log10(255**2 / np.mean((back.astype(float) - frames) ** 2))
    assert psnr > 40


@pytest.mark.parametrize("fps", [8, 16, 23.976])
def test_length_and_rate_come_back(tmp_path: Path, fps: float) -> None:
    assert write_video(tmp_path / "a.mp4", flat((1, 2, 3), frames=9), fps) == 9
    facts = video_facts(tmp_path / "a.mp4")
    assert facts["fps"] == pytest.approx(fps, rel=1e-3) and facts["frames"] == 9


def test_odd_sizes_are_padded_and_can_be_cropped_back(tmp_path: Path) -> None:
    frames = flat((200, 100, 50), height=33, width=47)
    write_video(tmp_path / "a.mp4", frames, 8)
    assert video_facts(tmp_path / "a.mp4")["width"] == 48
    assert read_frames(tmp_path / "a.mp4", width=47, height=33).shape == frames.shape


def test_another_encoder_works_where_x264_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_video(tmp_path / "a.mp4", frames_of(recipe()), 8, {METADATA_KEY: "{}"}, encoder="mpeg4")
    error = read_frames(tmp_path / "a.mp4").astype(float) - frames_of(recipe())
    assert 10 * np.log10(255**2 / np.mean(error**2)) > 36
    assert read_metadata(tmp_path / "a.mp4")[METADATA_KEY] == "{}"
    real = av.Codec

    def without_x264(name: str, mode: str) -> av.Codec:
        if name != "mpeg4":
            raise av.codec.codec.UnknownCodecError(name)
        return real(name, mode)

    monkeypatch.setattr(av, "Codec", without_x264)
    assert encoder_name() == "mpeg4"


def test_the_recipe_is_stored_in_the_file(tmp_path: Path) -> None:
    prompt = 'a "quoted" prompt; 中文 = é \\ #; ' + "long " * 2000
    carried = {"recipe": {"prompt": prompt}, "take": "abc"}
    write_video(tmp_path / "a.mp4", flat((0, 0, 0)), 8, {METADATA_KEY: json.dumps(carried)})
    assert read_recipe(tmp_path / "a.mp4") == carried


def test_a_video_without_a_recipe_is_reported_as_such(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", flat((0, 0, 0)), 8)
    with pytest.raises(RequestError, match="contains no recipe"):
        read_recipe(tmp_path / "a.mp4")
    write_video(tmp_path / "b.mp4", flat((0, 0, 0)), 8, {METADATA_KEY: '{"recipe": '})
    with pytest.raises(DamagedTake, match="cannot be read"):
        read_recipe(tmp_path / "b.mp4")
    (tmp_path / "c.mp4").write_bytes(b"not a video")
    with pytest.raises(RequestError, match="cannot be read as a video"):
        read_recipe(tmp_path / "c.mp4")


def test_no_frames_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one frame"):
        write_video(tmp_path / "a.mp4", [], 8)


# grids


def clip(path: Path, color: tuple[int, int, int], frames: int = 4, fps: float = 8, **size: int) -> Path:
    write_video(path, flat(color, frames, **size), fps)
    return path


def close(pixel: np.ndarray, color: tuple[int, int, int]) -> bool:
    return bool(np.abs(pixel.astype(int) - np.array(color)).max() <= 6)


def test_every_clip_is_below_its_label(tmp_path: Path) -> None:
    size = {"height": 240, "width": 320}
    cells = [
        [Cell(clip(tmp_path / f"{y}{x}.mp4", COLORS[2 * y + x], **size), f"clip {y}{x}") for x in range(2)]
        for y in range(2)
    ]
    grid = grid_video(cells, tmp_path / "grid.mp4")
    assert (grid.rows, grid.columns, grid.notes) == (2, 2, ())
    frames = read_frames(tmp_path / "grid.mp4")
    assert len(frames) == 4
    height, width = frames.shape[1:3]
    assert width == 2 * 320 + 3 * GAP
    for y in range(2):
        for x in range(2):
            top = GAP + y * (height - GAP) // 2
            left = GAP + x * (320 + GAP)
            assert close(frames[0, top + (height - GAP) // 2 - GAP - 120, left + 160], COLORS[2 * y + x])
            label = frames[0, top : top + 16, left : left + 60]
            assert label.max() > 150 and label.min() < 60  # bright letters on a dark ground


def test_clips_of_unequal_size_and_length_are_padded_with_a_note(tmp_path: Path) -> None:
    cells = [
        Cell(clip(tmp_path / "a.mp4", (255, 0, 0), frames=2, fps=8, height=240, width=320), "short"),
        Cell(clip(tmp_path / "b.mp4", (0, 0, 255), frames=16, fps=16, height=120, width=160), "long"),
        None,
    ]
    grid = grid_video([cells], tmp_path / "grid.mp4")
    assert len(grid.notes) == 3
    assert "160 x 120 and 320 x 240" in grid.notes[0]
    assert "8 and 16 frames per second" in grid.notes[1]
    assert "hold their last frame" in grid.notes[2]
    frames = read_frames(tmp_path / "grid.mp4")
    assert len(frames) == 16 and video_facts(tmp_path / "grid.mp4")["fps"] == 16
    middle = frames.shape[1] - GAP - 120
    assert close(frames[-1, middle, GAP + 160], (255, 0, 0))  # still there after its end
    assert close(frames[-1, middle, GAP + 320 + GAP + 160], (0, 0, 255))
    assert close(frames[-1, middle, GAP + 320 + GAP + 20], (0, 0, 0))  # black next to the small clip


def test_clips_play_at_their_own_speed(tmp_path: Path) -> None:
    slow = np.concatenate([flat((255, 0, 0), 1), flat((0, 0, 255), 1)])
    write_video(tmp_path / "slow.mp4", slow, 4)
    fast = np.concatenate([flat((0, 255, 0), 1), flat((255, 255, 255), 7)])
    write_video(tmp_path / "fast.mp4", fast, 16)
    grid_video([[Cell(tmp_path / "slow.mp4", "s"), Cell(tmp_path / "fast.mp4", "f")]], tmp_path / "g.mp4")
    frames = read_frames(tmp_path / "g.mp4")
    y, x = frames.shape[1] - GAP - 20, GAP + 60
    red = [close(frame[y, x], (255, 0, 0)) for frame in frames]
    assert red == [True] * 4 + [False] * 4  # each of 2 frames at 4 fps is shown 4 times at 16 fps


def test_small_clips_are_enlarged_until_labels_fit(tmp_path: Path) -> None:
    clip(tmp_path / "a.mp4", (255, 0, 0), height=48, width=64)
    grid_video([[Cell(tmp_path / "a.mp4", "x")]], tmp_path / "g.mp4")
    assert video_facts(tmp_path / "g.mp4")["width"] >= 192


def test_a_grid_too_large_for_players_is_refused(tmp_path: Path) -> None:
    path = clip(tmp_path / "a.mp4", (255, 0, 0), height=240, width=320)
    with pytest.raises(RequestError, match="too large"):
        grid_video([[Cell(path, str(i)) for i in range(30)]], tmp_path / "g.mp4")


@pytest.mark.parametrize("width", [60, 120, 300])
@pytest.mark.parametrize("label", ["", "short", "a long label with many words " * 4, "x" * 200])
def test_labels_fit_their_width(label: str, width: int) -> None:
    lines = wrapped(label, width)
    assert 1 <= len(lines) <= 2
    assert all(_font().getlength(line) <= width for line in lines)
    assert (" ".join(lines) == label.strip()) or "..." in lines[-1] or "..." in lines[0]


def test_takes_are_compared_in_a_table_of_variations_and_seeds(tmp_path: Path) -> None:
    takes = [
        write_take(
            tmp_path / "takes",
            recipe(seed, f"a {color} circle moves {way}", latents=False, labels={"color": color, "2": way}),
        )
        for color, way in (("red", "left"), ("blue", "right"))
        for seed in (0, 7)
    ]
    assert table(takes) == [[0, 1], [2, 3]]
    assert labels_of(takes) == ["red left, seed 0", "red left, seed 7", "blue right, seed 0", "blue right, seed 7"]
    grid = side_by_side(takes, tmp_path / "grid.mp4")
    assert (grid.rows, grid.columns) == (2, 2)
    assert len(read_frames(grid.path)) == 9
    sheet = contact_sheet(takes, tmp_path / "sheet.png", frames=3)
    from PIL import Image

    assert Image.open(sheet).size[1] > 4 * 48
    with pytest.raises(RequestError, match="3 labels do not fit 4 takes"):
        side_by_side(takes, tmp_path / "g.mp4", labels=["a", "b", "c"])
    with pytest.raises(RequestError, match="nothing to compare"):
        side_by_side([], tmp_path / "g.mp4")


def test_a_long_prompt_does_not_push_the_seed_out_of_the_label(tmp_path: Path) -> None:
    takes = [
        write_take(tmp_path / "takes", recipe(seed, f"{'long ' * 40}{end}", latents=False))
        for end in ("red", "blue")
        for seed in (0, 7)
    ]
    assert [" ".join(wrapped(label, 224))[:8] for label in labels_of(takes)] == ["seed 0, ", "seed 7, "] * 2


def test_takes_that_differ_in_nothing_shown_are_labeled_by_id(tmp_path: Path) -> None:
    from wanscope.recipe import ModelIdentity

    other = ModelIdentity(name="tiny", variant="tiny", weights={"transformer": "1" * 64})
    a, b = (write_take(tmp_path / "takes", recipe(latents=False, **more)) for more in ({}, {"model": other}))
    assert labels_of([a, b]) == [a.id, b.id]
    assert table([a, b]) == [[0, 1]]


def test_takes_that_differ_only_in_settings_are_labeled_by_them(tmp_path: Path) -> None:
    from wanscope.recipe import InitSpec, Keyframes, SamplerSpec

    own = {"solver": "unipc", "steps": 4, "shift": 5.0, "guidance": 5.0}
    others = [
        {},
        {"solver": "euler", "shift": 3.5},
        {"guidance": Keyframes(keys=((0, 6.0), (2, 1.5)))},
        {"start_step": 2},
    ]
    takes = [
        write_take(
            tmp_path / "takes",
            recipe(
                latents=False,
                sampler=SamplerSpec(**{**own, **other}),
                **({"init": InitSpec(take="5d91", sha256="0" * 64)} if "start_step" in other else {}),
            ),
        )
        for other in others
    ]
    assert labels_of(takes[:2]) == ["solver unipc, shift 5", "solver euler, shift 3.5"]
    assert labels_of([takes[0], takes[2]]) == ["guidance 5", "guidance 0:6 2:1.5 linear"]
    assert labels_of([takes[0], takes[3]]) == ["from noise, start_step 0", "from take 5d91, start_step 2"]


def test_loras_are_distinguished_by_weight_and_a_long_negative_hides_nothing(tmp_path: Path) -> None:
    from wanscope.spec.settings import LoraSpec

    def labels(*changes: dict[str, Any]) -> list[str]:
        return labels_of([write_take(tmp_path / "takes", recipe(latents=False, **each)) for each in changes])

    paint = {"path": "loras/paint.safetensors", "sha256": "1" * 64}
    half, high = LoraSpec(**paint, weight=0.5), LoraSpec(**paint, expert="high")
    assert labels({"loras": (half,)}, {"loras": (high,)}) == ["loras paint:0.5", "loras paint:1 (high)"]
    long = {"negative": "blurry " * 40, "dtype": "bf16", "prompt": "a blue circle"}
    assert labels({}, long) == [
        "dtype fp32, a red circle, negative none",
        f"dtype bf16, a blue circle, negative {long['negative']}",
    ]
