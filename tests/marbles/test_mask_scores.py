"""Scores of maps against masks: closed forms, and average precision written out."""

import numpy as np
import pytest

from wanscope.marbles import world
from wanscope.marbles.validate import mask_scores
from wanscope.marbles.validate.mask_scores import THRESHOLDS

GRID = (5, 8, 8)


def test_token_masks_and_centers_of_a_rendered_clip():
    thing = world.Thing("square", "red", "large", "right", radius=19.0, x0=40.0, y0=56.0, speed=2.0)
    clip = world.render(world.Scene((thing,), "black"))
    share = mask_scores.token_masks(clip.masks[:, 0], GRID)
    assert share.shape == GRID
    # what is covered is what is drawn, frame by frame: the first latent frame is frame 0, the last frames 13 to 16
    pixels = clip.masks[:, 0].sum((1, 2))
    assert share[0].sum() * 256 == pytest.approx(pixels[0]) and share[4].sum() * 256 == pytest.approx(
        pixels[13:].mean()
    )
    centers = mask_scores.token_centers(clip.paths[:, 0], 128, 128)
    assert centers[0] == pytest.approx([40 / 128, 56 / 128])
    assert centers[2] == pytest.approx([(40 + 2 * 6.5) / 128, 56 / 128])  # frames 5 to 8
    with pytest.raises(ValueError, match="do not fit"):
        mask_scores.token_masks(clip.masks[:16, 0], GRID)


def test_frames_not_seen_stay_out_of_a_center():
    path = np.array([[64.0, 64.0], [np.nan, np.nan], [32.0, 64.0], [32.0, 64.0], [np.nan, np.nan], *[[np.nan] * 2] * 4])
    centers = mask_scores.token_centers(path, 128, 128)
    assert centers[1] == pytest.approx([0.25, 0.5]) and np.isnan(centers[2]).all()


def _mask(seed=0, count=20):
    rng = np.random.default_rng(seed)
    share = np.zeros(320)
    share[rng.permutation(320)[:count]] = 1.0
    return share.reshape(GRID)


def test_a_perfect_map_and_a_flat_one():
    share = _mask()
    maps = np.stack([share, np.ones(GRID), np.zeros(GRID), -share])
    assert mask_scores.average_precision(maps, share) == pytest.approx([1.0, 20 / 320, 20 / 320, 20 / 320])
    iou = mask_scores.overlaps(maps, share)
    assert (iou[0] == 1).all() and iou[1] == pytest.approx(20 / 320) and (iou[2] == 0).all()
    assert mask_scores.pointing(maps, share)[0] == 1.0
    assert np.isnan(mask_scores.average_precision(maps, np.zeros(GRID))).all()


def test_average_precision_is_the_sum_over_the_ranking():
    rng = np.random.default_rng(1)
    share = _mask(2, 31)
    values = rng.integers(0, 40, GRID).astype(np.float64)  # with many equal values
    positive = (share >= mask_scores.COVERED).ravel()
    expected, before = 0.0, 0
    for value in sorted(set(values.ravel()), reverse=True):
        chosen = values.ravel() >= value
        hits = int((chosen & positive).sum())
        expected += (hits - before) / positive.sum() * hits / chosen.sum()
        before = hits
    assert mask_scores.average_precision(values[None], share)[0] == pytest.approx(expected)


def test_overlap_at_a_threshold_counts_tokens():
    share, maps = np.zeros(GRID), np.zeros(GRID)
    share[0, 0, :4] = 1
    maps[0, 0, 2:6] = [10.0, 6.0, 5.0, 1.0]  # divided by the largest: 1, .6, .5, .1
    iou = mask_scores.overlaps(maps[None], share)[0]
    at = {round(float(t), 2): value for t, value in zip(THRESHOLDS, iou, strict=True)}
    assert at[0.95] == 1 / 4 and at[0.55] == 2 / 4 and at[0.4] == 2 / 5 and at[0.05] == 2 / 6


def test_pointing_counts_frames_that_show_the_object():
    share, maps = np.zeros(GRID), np.zeros(GRID)
    share[0, 3, 3] = share[1, 4, 4] = 1.0
    maps[0, 3, 3] = maps[1, 0, 0] = maps[2, 1, 1] = 1.0
    assert mask_scores.pointing(maps[None], share)[0] == 0.5


def test_path_correlation_of_maps_that_follow_and_of_maps_that_do_not():
    rng = np.random.default_rng(3)
    cells = rng.integers(0, 8, (12, 5, 2))
    maps = np.zeros((12, *GRID))
    for n in range(12):
        for t in range(5):
            maps[n, t, cells[n, t, 1], cells[n, t, 0]] = 1.0
    true = (cells + 0.5) / 8
    assert mask_scores.path_correlation(maps, true) == pytest.approx(1.0)
    assert mask_scores.path_correlation(maps, 1 - true) == pytest.approx(-1.0)
    assert np.isnan(mask_scores.path_correlation(np.ones((12, *GRID)), true))
