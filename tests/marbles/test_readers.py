"""The readers against the renderer's truth, also on degraded pixels."""

import numpy as np
import pytest

from wanscope.marbles import readers, world


def scores(objects, count, change=lambda video, rng: video, seed=3):
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        scene = world.sample_scene(rng, objects)
        rows.append(readers.compare(scene, readers.read(change(world.render(scene).video, rng))))
    return {name: np.mean([row[name] for row in rows]) for name in rows[0]}


@pytest.mark.parametrize("objects", [1, 2])
def test_every_attribute_is_read_back_from_rendered_truth(objects):
    assert min(scores(objects, 60).values()) == 1.0


def test_noise_of_a_codec_does_not_change_what_is_read():
    def noisy(video, rng):
        return np.clip(video + rng.normal(0, 6, video.shape), 0, 255).astype(np.uint8)

    assert min(scores(1, 30, noisy).values()) >= 0.96


def test_paths_are_read_to_a_tenth_of_a_pixel():
    rng = np.random.default_rng(4)
    for _ in range(20):
        clip = world.render(world.sample_scene(rng, 1))
        assert np.abs(readers.read(clip.video, 1).things[0].path - clip.paths[:, 0]).max() < 0.1


def test_masks_overlap_the_truth():
    rng = np.random.default_rng(5)
    for _ in range(10):
        clip = world.render(world.sample_scene(rng, 1))
        seen, truth = readers.read(clip.video, 1).things[0].masks, clip.masks[:, 0] > 0.5
        assert (seen & truth).sum() / (seen | truth).sum() > 0.93


def test_a_wrong_attribute_is_scored_as_wrong():
    rng = np.random.default_rng(6)
    scene = world.sample_scene(rng, 1)
    other = next(
        s for s in iter(lambda: world.sample_scene(rng, 1), None) if s.things[0].color != scene.things[0].color
    )
    score = readers.compare(scene, readers.read(world.render(other).video))
    assert score["color"] == 0.0


def test_a_mirrored_video_moves_the_other_way():
    scene = world.Scene((world.Thing("square", "blue", "large", "left", 19.0, 90.0, 60.0, 2.2),), "white")
    video = world.render(scene).video
    assert readers.read(video).things[0].motion == "left"
    assert readers.read(video[:, :, ::-1]).things[0].motion == "right"
    assert readers.read(video[::-1]).things[0].motion == "right"
    assert readers.read(video.transpose(0, 2, 1, 3)).things[0].motion == "up"


def test_an_empty_frame_shows_nothing_and_scores_nothing():
    video = np.full((17, 128, 128, 3), world.BACKGROUNDS["gray"], np.uint8)
    seen = readers.read(video)
    assert seen.things == () and seen.background == "gray"
    score = readers.compare(world.sample_scene(np.random.default_rng(0), 1), seen)
    assert score["shape"] == score["motion"] == 0.0


def test_what_is_not_a_video_is_refused():
    with pytest.raises(ValueError, match="uint8"):
        readers.read(np.zeros((17, 128, 128, 3), np.float32))
