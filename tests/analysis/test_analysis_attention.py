"""Figures of attention maps against closed forms, and overlays against the maps they are made from."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from helpers.takes import recipe, write_take
from wanscope.analysis import attention as maps_of
from wanscope.analysis.overlay import OPACITY, latent_frame, make_panels, overlay_frame, overlay_video
from wanscope.capture.arrays import create_array, open_array
from wanscope.errors import NotCaptured, RecipeError, RequestError
from wanscope.take import attention_maps as take_attention
from wanscope.take.attention_maps import Attention
from wanscope.take.video import read_frames

GRID = (3, 6, 8)
ROWS = [("circle", "word"), ("red", "word"), ("pad", "pad")]


def attention(
    folder: Path, values: np.ndarray, heads: list[int] | None = None, chunk: tuple[int, ...] | None = None, **about
) -> Attention:
    """Write maps as an array. chunk: for the axes between the step and the map; 1 for each by default."""
    array = create_array(folder, values.shape, (*(chunk or [1] * (values.ndim - 4)), *GRID), "fp16", {})
    array[:] = values.astype(np.float16)
    array.attrs.update(
        {
            "measure": "probability",
            "keep": "maps",
            "branch": "cond",
            "rows": [{"name": n, "kind": k, "columns": [i]} for i, (n, k) in enumerate(ROWS)],
            "blocks": list(range(values.shape[1])),
            "heads": heads,
            "real_tokens": 2,
            "evaluations": [[step, 0] for step in range(values.shape[0])],
            "sigmas": [1.0] * values.shape[0],
            "experts": [0] * values.shape[0],
            **about,
        }
    )
    return Attention(open_array(folder))


def point(frame_xy: list[tuple[int, int]]) -> np.ndarray:
    out = np.zeros(GRID)
    for frame, (x, y) in enumerate(frame_xy):
        out[frame, y, x] = 1
    return out


def test_closed_forms() -> None:
    flat, spot = np.ones(GRID), point([(0, 0), (2, 0), (2, 3)])
    assert maps_of.concentration(flat) == pytest.approx(0, abs=1e-12)
    assert maps_of.concentration(spot) == pytest.approx(1 - math.log(3) / math.log(np.prod(GRID)))
    single = np.zeros(GRID)
    single[1, 2, 3] = 0.2
    assert maps_of.concentration(single) == pytest.approx(1)
    assert np.isnan(maps_of.concentration(np.zeros(GRID)))
    assert np.allclose(maps_of.centers(flat), 0.5)
    assert np.allclose(maps_of.centers(spot), [[0.5 / 8, 0.5 / 6], [2.5 / 8, 0.5 / 6], [2.5 / 8, 3.5 / 6]])
    assert maps_of.travel(spot) == pytest.approx(2 / 8 + 3 / 6)
    assert maps_of.overlap(flat, 5 * flat) == pytest.approx(1)
    assert maps_of.overlap(spot, point([(1, 1)] * 3)) == 0
    assert maps_of.overlap(spot, flat) == pytest.approx(3 / np.prod(GRID))


def test_a_profile_reads_every_map(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((4, 2, 3, *GRID))
    values[1, 1] = np.nan  # a skipped block
    found = attention(tmp_path / "a", values)
    profile = maps_of.profile(found)
    half = values.astype(np.float16).astype(np.float64)
    assert np.allclose(profile.mass, half.mean((3, 4, 5)), equal_nan=True, atol=1e-6)
    assert np.allclose(profile.concentration[2, 0, 1], maps_of.concentration(half[2, 0, 1]))
    assert profile.center.shape == (4, 2, 3, 3, 2)
    assert np.allclose(profile.by_step("mass")[1], profile.mass[1, 0]) and np.isnan(profile.mass[1, 1]).all()
    rows = list(profile.rows())
    assert len(rows) == 4 * 2 * 3 * 3 and rows[0]["measure"] == "mass" and rows[0]["word"] == "circle"
    assert np.allclose(maps_of.pad_mass(found)[0], half[0, :, 2].mean((1, 2, 3)))
    shared = maps_of.overlaps(found)
    assert np.allclose(np.diag(shared), 1) and np.allclose(shared, shared.T)


def test_heads_are_averaged_and_means_leave_out_what_did_not_run(tmp_path: Path) -> None:
    values = np.random.default_rng(1).random((2, 3, 4, 3, *GRID))
    values[0, 2] = np.nan
    found = attention(tmp_path / "a", values, heads=[0, 1, 2, 5])
    half = values.astype(np.float16).astype(np.float64)
    assert found.dims[2] == "head" and maps_of.profile(found).mass.shape == (2, 3, 3)
    assert np.allclose(found.mean("red"), np.nanmean(half[:, :, :, 1], (0, 1, 2)), atol=1e-6)
    assert np.allclose(found.mean("red", blocks=[1], steps=[1]), half[1, 1, :, 1].mean(0), atol=1e-6)
    with pytest.raises(NotCaptured, match="no map"):
        found.mean("red", blocks=[2], steps=[0])
    with pytest.raises(NotCaptured, match="did you mean 'circle'"):
        found.word("cirle")


@pytest.mark.parametrize(("chunk", "heads"), [((1, 1), None), ((2, 3), None), ((4, 1), None), ((2, 2, 3), [0, 1])])
@pytest.mark.parametrize("maps", [1, 2, 5, 1000])
def test_every_row_is_averaged_and_each_chunk_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: tuple[int, ...], heads: list[int] | None, maps: int
) -> None:
    """For any memory budget of a part and any number of maps per chunk."""
    shape = (3, 4, *([2] if heads else []), 3, *GRID)
    values = np.random.default_rng(0).random(shape).astype(np.float16).astype(np.float64)
    values[1, 2] = np.nan  # a skipped block
    found = attention(tmp_path / "a", values, heads, chunk)
    monkeypatch.setattr(take_attention, "PART_BYTES", maps * 4 * math.prod(GRID))
    others = tuple(axis for axis in range(len(shape) - 4))
    assert np.allclose(found.means(), np.nanmean(values, axis=others), atol=1e-6)
    some = values[[0, 2]][:, [0, 2, 3]]
    assert np.allclose(found.means([0, 2, 3], [0, 2]), np.nanmean(some, axis=others), atol=1e-6)
    assert np.array_equal(found.means()[1], found.mean("red"))
    of_one = maps_of.profile(found).mass
    truth = values.mean((-3, -2, -1))
    assert np.allclose(of_one, truth.mean(2) if heads else truth, atol=1e-6, equal_nan=True)
    seen = np.zeros(shape[1:2] + shape[-4:-3], int)
    largest = 0
    for blocks, rows, part in found.parts(0):
        seen[blocks, rows] += 1
        largest = max(largest, part.size)
        for at, size, whole in ((blocks, chunk[0], shape[1]), (rows, chunk[-1], shape[-4])):
            assert at.start % size == 0 and (at.stop % size == 0 or at.stop == whole)
    assert (seen == 1).all() and largest <= max(maps, math.prod(chunk) * (1 if not heads else 2)) * math.prod(GRID)


def test_means_without_a_map_are_refused(tmp_path: Path) -> None:
    values = np.ones((2, 2, 3, *GRID))
    values[:, 1] = np.nan
    found = attention(tmp_path / "a", values)
    with pytest.raises(NotCaptured, match="no map of 'circle' to average"):
        found.means(blocks=[1])
    with pytest.raises(NotCaptured, match="no map of 'red' to average"):
        found.mean("red", steps=[7])


def test_panels_that_do_not_fit_are_refused_with_options_that_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wanscope.analysis import overlay

    take = write_take(tmp_path / "takes", recipe())
    found = attention(tmp_path / "a", np.ones((2, 2, 3, *GRID)))
    out = tmp_path / "maps.mp4"
    with pytest.raises(RequestError, match="there are no panels to show"):
        overlay_video(take, [], out)
    words, blocks = make_panels(found), make_panels(found, ["red"], "block")
    for setting, value in (("MAX_PANELS", 1), ("MAX_SIDE", 300)):
        with monkeypatch.context() as patch:
            patch.setattr(overlay, setting, value)
            with pytest.raises(RequestError) as refused:
                overlay_video(take, words, out)
            assert refused.value.fix == "--maps circle"
            with pytest.raises(RequestError) as refused:
                overlay_video(take, blocks, out)
            assert refused.value.fix == "--by word"
            assert overlay_video(take, make_panels(found, ["circle"]), out) == (1, 1)


def test_names_without_maps_are_listed_once(tmp_path: Path) -> None:
    found = attention(tmp_path / "a", np.ones((2, 2, 3, *GRID)))
    for name, hint in (("cirle", "; did you mean 'circle'?"), ("zzz", ".")):
        with pytest.raises(NotCaptured) as refused:
            found.word(name)
        what = f"no attention maps of {name!r} were kept: there are maps of {', '.join(found.names)}{hint}"
        assert str(refused.value).splitlines()[0] == what


def test_overlays_show_the_map_where_it_is(tmp_path: Path) -> None:
    take = write_take(tmp_path / "takes", recipe())
    values = np.zeros((2, 2, 3, *GRID))
    values[:, :, 0, :, :3, :4] = 0.5  # the top left quarter
    found = attention(tmp_path / "a", values)
    by_block = make_panels(found, ["circle"], "block")
    assert [p.label for p in by_block] == ["circle, block 0: 12%", "circle, block 1: 12%"]
    assert [p.label.split(":")[0] for p in make_panels(found)] == ["circle", "red"]
    assert len(make_panels(found, ["red"], "step", steps=[1])) == 1
    with pytest.raises(RequestError, match="show one word, and 2 are given"):
        make_panels(found, (), "block")
    with pytest.raises(RecipeError, match="by word, block or step"):
        make_panels(found, ["red"], "head")  # type: ignore[arg-type]
    out = tmp_path / "maps.mp4"
    assert overlay_video(take, by_block, out) == (1, 2)
    assert len(read_frames(out)) == len(take.frames)

    frame = take.frames[0]
    picture = overlay_frame(frame, values[0, 0, 0, 0], 0.5)
    assert picture.shape == frame.shape
    bright = np.array([250, 250, 150]) * OPACITY + frame[5, 5] * (1 - OPACITY)
    assert np.abs(picture[5, 5] - bright).max() <= 1
    assert np.abs(picture[-3, -3] - 0.6 * frame[-3, -3]).max() <= 1
    assert [latent_frame(f) for f in (0, 1, 4, 5, 8, 9)] == [0, 1, 1, 2, 2, 3]
