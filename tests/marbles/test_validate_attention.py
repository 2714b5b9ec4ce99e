"""The validation of attention maps: clips on the real path, and choices that are scored where they were not made."""

import json

import numpy as np
import pytest

from wanscope.marbles.validate import attention as validate_attention
from wanscope.marbles.validate.attention import KINDS, AttentionSettings, Clip, Recorder
from wanscope.spec.capture import MEASURES
from wanscope.wan.load import load


@pytest.fixture(scope="module")
def model():
    return load("marbles", device="cpu")


def test_clips_of_both_kinds_are_kept_and_not_made_again(monkeypatch, tmp_path, model):
    settings = AttentionSettings(clips=1, steps=2)
    made = {kind: next(validate_attention.clips(model, settings, kind, tmp_path, print)) for kind in KINDS}
    for clip in made.values():
        assert clip.maps.shape == (len(MEASURES), 2, 2, 10, 5, 8, 8) and np.isfinite(clip.maps).all()
        probability = clip.maps[0]
        assert (probability > 0).all() and (probability.sum(0) < 1).all()
        assert clip.share_TYX.shape == (5, 8, 8)
    scene, _ = Recorder(model, settings).scene("rendered", 0)
    path = scene.things[0].path(17)
    assert made["rendered"].centers_T2[0] == pytest.approx(path[0] / 128)

    monkeypatch.setattr(Recorder, "clip", lambda *_: pytest.fail("it is there already"))
    for kind in KINDS:
        (again,) = validate_attention.clips(model, settings, kind, tmp_path, print)
        assert np.array_equal(again.maps, made[kind].maps) and np.array_equal(again.share_TYX, made[kind].share_TYX)


def _made_clips(count=40):
    """Maps of noise, but for block 3 at step 1, which is the mask with noise on top."""
    rng = np.random.default_rng(0)
    clips = []
    for _ in range(count):
        share = np.zeros((5, 8, 8))
        y, x = rng.integers(0, 6, 2)
        share[:, y : y + 2, x : x + 2] = 1.0
        maps = rng.random((len(MEASURES), 2, 2, 10, 5, 8, 8)).astype(np.float32)
        maps[:, :, 1, 3] = 0.2 * maps[:, :, 1, 3] + share
        centers = np.tile([(x + 1) / 8, (y + 1) / 8], (5, 1))
        clips.append(Clip(maps, share, centers))
    return clips


def test_the_setting_that_follows_the_object_is_found_and_scored_on_the_other_half():
    clips = _made_clips()
    for row in validate_attention.scores(clips, 2, 2, 10):
        assert row["n"] == 20 and row["chance precision"] == round(4 / 64, 3)
        if row["setting"] == "best":
            assert (row["step"], row["block"]) == (1, 3)
            assert row["mIoU"] == 1.0 and row["average precision"] == 1.0 and row["pointing"] == 1.0
            assert row["path r"] > 0.9
    by_block = [p for p in validate_attention.profiles(clips) if p["by"] == "block"]
    assert all(int(np.argmax(p[score])) == 3 for p in by_block for score in validate_attention.SCORES)
    for grid in validate_attention.grids(clips):
        for score in validate_attention.SCORES:
            values = np.array(grid[score])
            assert values.shape == (2, 10) and values[1, 3] == 1.0 and np.delete(values, 13).max() < 0.3


def test_maps_of_noise_score_what_chance_gives():
    clips = [
        Clip(np.random.default_rng(n).random(clip.maps.shape), clip.share_TYX, clip.centers_T2)
        for n, clip in enumerate(_made_clips())
    ]
    for row in validate_attention.scores(clips, 2, 2, 10):
        assert row["average precision"] < 0.13 and row["mIoU"] < 0.13 and row["pointing"] < 0.25
        assert abs(row["path r"]) < 0.35


def test_a_clip_without_its_object_is_left_out():
    clips = _made_clips(8)
    clips[2] = Clip(clips[2].maps, np.zeros((5, 8, 8)), np.full((5, 2), np.nan))
    rows = validate_attention.scores(clips, 2, 2, 10)
    assert rows[0]["n"] == 3  # 7 are usable, 4 to choose on and 3 to score on
    report = {
        "tables": {
            "rendered": {
                "clips": 8,
                "usable": 7,
                "rows": rows,
                "profiles": validate_attention.profiles(clips),
                "grids": validate_attention.grids(clips),
            }
        },
        "settings": {"clips": 8, "steps": 2, "covered": 0.25},
        "sigmas": [0.999, 0.8],
        "machine": "an abacus",
    }
    page = validate_attention.as_markdown(json.loads(json.dumps(report)))
    assert "7 of 8 show an object" in page and "an abacus" in page and "| gramcol | color | best |" in page
