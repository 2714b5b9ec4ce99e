"""The renderer against geometry in closed form, and its promises about scenes."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wanscope.marbles import world


def thing(**kwargs) -> world.Thing:
    values = {"shape": "circle", "color": "red", "size": "large", "motion": "still", "radius": 19.0, "x0": 64, "y0": 64}
    return world.Thing(**{**values, **kwargs})


@pytest.mark.parametrize("shape", world.SHAPES)
@pytest.mark.parametrize("radius", [12.0, 15.3, 19.0])
def test_cover_sums_to_the_area_of_the_shape(shape, radius):
    clip = world.render(world.Scene((thing(shape=shape, radius=radius),), "black"), frames=1)
    assert clip.masks[0, 0].sum() == pytest.approx(np.pi * radius**2, rel=0.01)


@pytest.mark.parametrize("shape", world.SHAPES)
def test_center_of_mass_lies_on_the_path(shape):
    scene = world.Scene((thing(shape=shape, motion="left", speed=2.3, x0=90.4, y0=50.7),), "gray")
    clip = world.render(scene)
    y, x = np.mgrid[: world.HEIGHT, : world.WIDTH] + 0.5
    for frame, (cx, cy) in zip(clip.masks[:, 0], clip.paths[:, 0], strict=True):
        assert (frame * x).sum() / frame.sum() == pytest.approx(cx, abs=0.05)
        assert (frame * y).sum() / frame.sum() == pytest.approx(cy, abs=0.05)
    assert clip.paths[-1, 0, 0] == pytest.approx(90.4 - 16 * 2.3)


def test_colors_inside_and_outside_are_the_palettes():
    clip = world.render(world.Scene((thing(color="cyan"),), "brown"), frames=1)
    assert tuple(clip.video[0, 64, 64]) == world.COLORS["cyan"]
    assert tuple(clip.video[0, 2, 2]) == world.BACKGROUNDS["brown"]


def test_edges_are_anti_aliased():
    clip = world.render(world.Scene((thing(),), "black"), frames=1)
    partial = (clip.masks[0, 0] > 0.05) & (clip.masks[0, 0] < 0.95)
    assert partial.sum() > 60  # about one pixel for each of the circle's 119 of circumference


def test_palettes_are_distinguishable():
    colors = [np.array(c) for c in world.COLORS.values()]
    grounds = [np.array(c) for c in world.BACKGROUNDS.values()]
    # The distances that world.py states of its palettes.
    assert min(np.linalg.norm(a - b) for i, a in enumerate(colors) for b in colors[:i]) >= 130
    assert min(np.linalg.norm(a - b) for a in colors for b in grounds) >= 128
    assert min(np.linalg.norm(a - b) for i, a in enumerate(grounds) for b in grounds[:i]) >= 96
    corners = {tuple(round(channel / 255) for channel in color) for color in colors}
    assert len(corners) == 6 and not corners & {(0, 0, 0), (1, 1, 1)}


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), objects=st.sampled_from([1, 2]))
def test_scenes_stay_in_the_frame_and_apart(seed, objects):
    scene = world.sample_scene(np.random.default_rng(seed), objects)
    clip = world.render(scene)
    assert not clip.masks[:, :, :3].any() and not clip.masks[:, :, -3:].any()
    assert not clip.masks[..., :3].any() and not clip.masks[..., -3:].any()
    if objects == 2:
        assert not ((clip.masks[:, 0] > 0) & (clip.masks[:, 1] > 0)).any()
        dx, dy = (clip.paths[:, 0] - clip.paths[:, 1]).T
        holds = {"above": dy < 0, "below": dy > 0, "left of": dx < 0, "right of": dx > 0}
        assert holds[scene.relation].all()


@given(seed=st.integers(0, 2**32))
def test_held_out_combinations_are_kept_out_or_shown(seed):
    rng = np.random.default_rng(seed)
    assert not world.sample_scene(rng, 2, held_out=False).held_out
    assert world.sample_scene(rng, 1, held_out=True).held_out


@given(seed=st.integers(0, 2**32), objects=st.sampled_from([1, 2]))
def test_a_full_caption_says_every_attribute(seed, objects):
    rng = np.random.default_rng(seed)
    scene = world.sample_scene(rng, objects)
    words = f" {world.caption(scene, rng, full=True)} ".replace("wards ", " ").replace(",", " ")
    for one in scene.things:
        assert all(f" {value} " in words for value in (one.shape, one.color, one.size))
        assert one.motion == "still" or f" {one.motion} " in words
    assert f" {scene.background} background " in words
    assert scene.relation is None or scene.relation in words


FINITE = r"(moves|slides|drifts|stays|is|does)"
CLAUSE = rf"(?<!that ){FINITE} (left|right|up|down|still|not)"  # a verb that makes a sentence of what is before it


@given(seed=st.integers(0, 2**32), objects=st.sampled_from([1, 2]), full=st.booleans())
def test_captions_are_grammatical(seed, objects, full):
    rng = np.random.default_rng(seed)
    scene = world.sample_scene(rng, objects)
    words = world.caption(scene, rng, full=full)
    if words.startswith(("there is a ", "a video of a ")):
        rest = words.removeprefix("there is").removeprefix("a video of")
        assert not re.search(CLAUSE, rest), f"a verb too many: {words}"
    if scene.relation is not None and " and " not in words:
        # "a circle moves left above a square that moves up": what stands after a relation is a noun phrase
        after = re.split(r" (?:above|below|left of|right of) ", words, maxsplit=1)[1]
        assert not re.search(CLAUSE, after), f"a verb too many: {words}"


def test_the_same_seed_gives_the_same_scene_and_caption():
    def draw():
        rng = np.random.default_rng(5)
        scene = world.sample_scene(rng, 2)
        return scene, world.caption(scene, rng)

    assert draw() == draw()


def test_unknown_attributes_are_refused():
    with pytest.raises(ValueError, match="'blob' is not one of circle"):
        thing(shape="blob")


def test_color_weights_make_a_color_rarer_and_leave_draws_without_them_as_they_were():
    weights = {"red": 0.1}
    chances = world.color_chances(weights)
    assert chances == pytest.approx([0.1 / 5.1] + [1 / 5.1] * 5)
    drawn = [world.sample_scene(np.random.default_rng(seed), 1, colors=weights).things[0].color for seed in range(2000)]
    assert 0.4 * 2000 * chances[0] < drawn.count("red") < 1.8 * 2000 * chances[0]
    assert min(drawn.count(color) for color in world.COLORS if color != "red") > 320

    def plain(seed):  # as sample_thing drew before it knew weights
        rng = np.random.default_rng(seed)
        rng.choice(list(world.SIZES)), rng.choice(list(world.MOTIONS))
        return str(rng.choice(world.SHAPES)), str(rng.choice(list(world.COLORS)))

    for seed in range(50):
        thing = world.sample_thing(np.random.default_rng(seed))
        assert (thing.shape, thing.color) == plain(seed)
    for wrong in ({"pink": 1.0}, {"red": -1.0}, dict.fromkeys(world.COLORS, 0.0)):
        with pytest.raises(ValueError, match="weights are for red"):
            world.sample_scene(np.random.default_rng(0), colors=wrong)
