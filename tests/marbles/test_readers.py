"""The readers against the renderer's truth, also on degraded pixels."""

import math

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


RADIUS = 12.0  # of the circle of the same area, as of the small objects
HALF = RADIUS * math.sqrt(math.pi) / 2


def read_drawn(inside):
    """The object that `inside(x, y)` draws, in pixels around the center: 8 x 8 points a pixel, not the world's way."""
    points = (np.arange(128 * 8) + 0.5) / 8 - 64
    share = inside(*np.meshgrid(points, points)).reshape(128, 8, 128, 8).mean(axis=(1, 3))[..., None]
    ground, color = np.array(world.BACKGROUNDS["black"]), np.array(world.COLORS["red"])
    return readers.read(np.rint(ground + share * (color - ground)).astype(np.uint8)[None].repeat(2, 0), 1).things[0]


def superellipse(power):
    """|x|^power + |y|^power < 1: a circle at 2, a square without end; 0.883 of its box is filled at 3, 0.927 at 4."""
    side = RADIUS * math.sqrt(math.pi * math.gamma(1 + 2 / power) / 4) / math.gamma(1 + 1 / power)
    return lambda x, y: np.abs(x / side) ** power + np.abs(y / side) ** power < 1


@pytest.mark.parametrize(
    ("power", "shape"), [(2, "circle"), (2.5, "circle"), (3, "circle"), (4, "square"), (8, "square")]
)
def test_both_readings_find_the_same_corners_too_soft(power, shape):
    seen = read_drawn(superellipse(power))
    assert (seen.shape, seen.shape_by_box) == (shape, shape)


@pytest.mark.parametrize("lean", [0.0, 0.15, 0.3])
def test_a_leaning_square_is_a_square_and_a_leaning_circle_a_circle(lean):
    square = read_drawn(lambda x, y: (np.abs(x - lean * y) < HALF) & (np.abs(y) < HALF))
    circle = read_drawn(lambda x, y: (x - lean * y) ** 2 + y**2 < RADIUS**2)
    assert (square.shape, circle.shape) == ("square", "circle")
    assert square.shape_by_box == ("circle" if lean else "square") and circle.shape_by_box == "circle"


@pytest.mark.parametrize("degrees", [0, 5, 10])
def test_a_turned_square_is_a_square_until_it_is_turned_far(degrees):
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    seen = read_drawn(lambda x, y: (np.abs(c * x - s * y) < HALF) & (np.abs(s * x + c * y) < HALF))
    assert seen.shape == "square" and seen.shape_by_box == ("circle" if degrees else "square")


def test_both_readings_of_drawn_objects_agree():
    rng = np.random.default_rng(9)
    for _ in range(60):
        scene = world.sample_scene(rng, 1)
        seen = readers.read(world.render(scene).video, 1).things[0]
        assert seen.shape == seen.shape_by_box == scene.things[0].shape


def test_an_empty_frame_shows_nothing_and_scores_nothing():
    video = np.full((17, 128, 128, 3), world.BACKGROUNDS["gray"], np.uint8)
    seen = readers.read(video)
    assert seen.things == () and seen.background == "gray"
    score = readers.compare(world.sample_scene(np.random.default_rng(0), 1), seen)
    assert score["shape"] == score["motion"] == 0.0


def with_things(scene, *things):
    """The scene's video with further objects drawn into it."""
    return world.render(world.Scene((*scene.things, *things), scene.background)).video


@pytest.mark.parametrize("shape", world.SHAPES)
def test_an_object_too_many_is_counted_whatever_else_is_right(shape):
    scene = world.Scene((world.Thing("circle", "red", "large", "still", 18.0, 30.0, 30.0),), "gray")
    extra = world.Thing(shape, "red", "small", "up", world.least_radius(), 95.0, 105.0, 2.0)
    seen = readers.read(with_things(scene, extra), 1)
    score = readers.compare(scene, seen)
    assert score.pop("count") == 0.0 and set(score.values()) == {1.0}
    assert seen.count == 2 and len(seen.things) == 1 and seen.words.endswith("2 objects in all")


def test_an_object_too_few_is_counted_and_three_are_three():
    rng = np.random.default_rng(8)
    pair, single = world.sample_scene(rng, 2), world.sample_scene(rng, 1)
    assert readers.compare(pair, readers.read(world.render(single).video))["count"] == 0.0
    spots = [world.Thing("circle", "blue", "small", "still", 12.0, x, 64.0) for x in (20.0, 64.0, 108.0)]
    assert readers.read(with_things(world.Scene((), "white"), *spots)).count == 3


@pytest.mark.parametrize(("radius", "counted"), [(2.0, 1), (5.0, 1), (6.5, 4), (11.4, 4)])
def test_specks_are_not_counted_as_objects(radius, counted):
    """Three of them next to an object. The smallest object has a radius of 11.4 pixels, a quarter of its area 5.7."""
    scene = world.Scene((world.Thing("square", "cyan", "large", "still", 19.0, 64.0, 64.0),), "black")
    specks = [world.Thing("circle", "red", "small", "still", radius, x, y) for x, y in ((20, 20), (108, 20), (20, 108))]
    assert readers.read(with_things(scene, *specks)).count == counted


@pytest.mark.parametrize(("frames", "counted"), [(2, 1), (4, 1), (5, 2), (11, 2)])
def test_flicker_is_not_an_object_and_what_persists_is(frames, counted):
    scene = world.Scene((world.Thing("square", "cyan", "large", "still", 19.0, 40.0, 40.0),), "black")
    extra = world.Thing("circle", "red", "large", "still", 18.0, 100.0, 100.0)
    video = world.render(scene).video
    video[6 : 6 + frames] = with_things(scene, extra)[6 : 6 + frames]
    assert readers.read(video).count == counted


def test_softness_does_not_change_the_count():
    """Blurred by a pixel and a half and noisy, which is softer than the VAE leaves it."""

    def soft(video, rng):
        from scipy.ndimage import gaussian_filter

        out = gaussian_filter(video.astype(float), (0, 1.5, 1.5, 0)) + rng.normal(0, 5, video.shape)
        return np.clip(out, 0, 255).astype(np.uint8)

    assert scores(1, 20, soft)["count"] == scores(2, 20, soft)["count"] == 1.0


def test_input_that_is_not_a_video_is_refused():
    with pytest.raises(ValueError, match="uint8"):
        readers.read(np.zeros((17, 128, 128, 3), np.float32))
