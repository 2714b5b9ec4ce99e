"""The validation of trajectories: its pairs, its tests against enumeration, its nulls, and that it goes on."""

import json
import zlib
from collections import Counter
from itertools import product

import numpy as np
import pytest

from wanscope.analysis.effect_size import paired_effect
from wanscope.analysis.latent_statistics import latent_statistics
from wanscope.analysis.permutation_tests import paired_permutation, sign_patterns, smallest_p
from wanscope.capture.path_gram import increments
from wanscope.doors.cli.validate import run_validate
from wanscope.errors import RequestError
from wanscope.marbles import world
from wanscope.marbles.validate import trajectories as validate_trajectories
from wanscope.marbles.validate import trajectory_cases, trajectory_page, trajectory_tests
from wanscope.marbles.validate.paths import Walk, Walker
from wanscope.marbles.validate.trajectory_tests import Columns, Measured
from wanscope.wan.load import load


@pytest.fixture(scope="module")
def model():
    return load("marbles", device="cpu")


def test_a_pair_shares_its_seed_and_all_words_but_those_of_its_attribute():
    for contrast in trajectory_cases.fixed(30):
        assert len(contrast.pairs) == 30 and len({pair[0].prompt for pair in contrast.pairs}) > 20
        for number, (a, b) in enumerate(contrast.pairs):
            assert a.seed == b.seed == number
            gone, come = (Counter(x.prompt.split()) - Counter(y.prompt.split()) for x, y in ((a, b), (b, a)))
            if contrast.b != trajectory_cases.MOVING:
                assert [word.removesuffix("wards") for word in gone] == [contrast.a]
                assert [word.removesuffix("wards") for word in come] == [contrast.b]
            else:
                assert not {"left", "right", "up", "down"} & gone.keys()
                assert any(word.removesuffix("wards") in ("left", "right", "up", "down") for word in come)
                assert not {*world.COLORS, *world.SHAPES, *world.SIZES} & (gone.keys() | come.keys())
            for text in (a.prompt.split(), b.prompt.split()):
                for color, other in world.HELD_OUT:
                    assert not (color in text and (other in text or f"{other}wards" in text))


def test_wordings_say_the_same_in_words_that_the_model_knows(model):
    said = trajectory_cases.wordings(8)
    for scene in zip(*said, strict=True):
        assert len({video.seed for video in scene}) == 1 and len({video.prompt for video in scene}) == len(said)
        for video in scene:
            assert model.tokenizer.unk_token_id not in model.tokenizer(video.prompt)["input_ids"]
            attributes = [{*video.prompt.replace("wards", "").split()} & {*names} for names in _VALUES]
            assert attributes == [{*scene[0].prompt.split()} & {*names} for names in _VALUES]
            assert all(len(found) == 1 for found in attributes)
    assert len(trajectory_cases.worded(3)) == 15
    pool = trajectory_cases.pool(5)
    assert len({video.prompt for video in pool}) == 1 and len({video.seed for video in pool}) == 10


_VALUES = (world.COLORS, world.SHAPES, world.SIZES, world.MOTIONS, world.BACKGROUNDS)


def test_the_largest_over_places_is_tested_as_enumeration_says():
    d = np.random.default_rng(3).normal(0.5, 1, (7, 4))

    def largest(signs):
        return max(
            abs(sum(s * x for s, x in zip(signs, d[:, m], strict=True))) / (d[:, m] ** 2).sum() ** 0.5 for m in range(4)
        )

    every = [largest(signs) for signs in product((1, -1), repeat=7)]
    expected = np.mean([value >= largest((1,) * 7) - 1e-12 for value in every])
    signs = sign_patterns(7).astype(float)
    assert trajectory_tests.p_of_largest(trajectory_tests.shares(d, signs)) == pytest.approx(expected)
    for m in range(4):
        single = trajectory_tests.p_of_largest(trajectory_tests.shares(d[:, [m]], signs))
        assert single == pytest.approx(paired_permutation(d[:, [m]])[0])
    nothing = trajectory_tests.shares(np.zeros((7, 2)), signs)
    assert trajectory_tests.p_of_largest(nothing) == 1.0
    missing = np.vstack([d, np.full((1, 4), np.nan)])
    there = trajectory_tests.p_of_largest(trajectory_tests.shares(missing, sign_patterns(8).astype(float)))
    assert there == pytest.approx(expected)


def _measured(values: dict[str, np.ndarray], final: np.ndarray | None = None) -> Measured:
    columns = tuple(
        Columns(name, name, "1", tuple(f"state {k}" for k in range(v.shape[1])) if v.shape[1] > 1 else ("",), v)
        for name, v in values.items()
    )
    final = np.random.default_rng(9).normal(size=(len(columns[0].values_NM), 6)) if final is None else final
    return Measured(columns, final @ final.T, final.shape[1], 3, ())


def test_rows_have_the_effect_at_the_place_of_the_largest_difference():
    rng = np.random.default_rng(0)
    course = rng.normal(size=(24, 5))
    course[:12, 3] += 2.0
    rounded = 1.0 + 1e-9 * rng.normal(size=(24, 1))
    final = rng.normal(size=(24, 6))
    final[:12] += 3.0
    found = _measured({"single": course[:, [3]], "course": course, "rounded": rounded}, final)
    a, b = np.arange(12), np.arange(12, 24)
    single, many, none, permanova, energy = trajectory_tests.tested(found, a, b)
    d = course[:12, 3] - course[12:, 3]
    assert single["difference"] == pytest.approx(d.mean()) and single["low"] < d.mean() < single["high"]
    assert single["p"] == pytest.approx(paired_permutation(d[:, None])[0])
    effect = paired_effect(d[:, None])
    assert (single["effect"], single["effect_low"]) == pytest.approx((effect.size[0], effect.low[0]))
    assert many["place"] == "state 3" and many["effect"] == single["effect"] and "low" not in many
    wide = paired_effect(d[:, None], confidence=1 - 0.05 / 5)
    assert many["effect_low"] == pytest.approx(wide.low[0]) and many["effect_low"] < single["effect_low"]
    assert many["p"] >= single["p"]
    assert none["p"] == 1.0 and none["effect"] is None
    assert permanova["p"] == energy["p"] == smallest_p(12)
    within = final[:12] - final[12:]
    assert permanova["difference"] == pytest.approx((within.sum(0) ** 2).sum() / 12 / (within**2).sum())

    family = trajectory_tests.corrected([[single, many], [none, permanova, energy]])
    assert family == 5 and permanova["p_holm"] == pytest.approx(5 * permanova["p"])
    assert permanova["told_apart"] and not none["told_apart"]


def test_relabeled_pools_and_random_wordings_reject_as_often_as_they_should():
    rng = np.random.default_rng(1)
    values = {"heavy": rng.standard_t(3, size=(40, 1)), "course": rng.normal(size=(40, 6))}
    found = _measured(values, rng.normal(size=(40, 5)))
    labels = trajectory_tests.null_of_labels(found, range(40), trials=400)
    assert list(labels["by_metric"]) == ["heavy", "course", "permanova", "energy"]
    for row in (*labels["by_metric"].values(), labels["any_after_holm"]):
        assert row["low"] <= 0.05 and row["share"] <= 0.085
    assert 0.02 < labels["mean"] < 0.08
    # A wording that moves every take shows where it is fixed, and not where wordings are drawn at random.
    shifted = {"course": np.repeat([0.0, 3.0], 20)[:, None] + rng.normal(size=(40, 3))}
    found = _measured(shifted)
    random = trajectory_tests.null_of_wordings(found, [range(20), range(20, 40)], trials=400)
    assert random["by_metric"]["course"]["share"] < 0.085
    assert trajectory_tests.p_values(found, np.arange(20), np.arange(20, 40))[0] == pytest.approx(1 / 1000)


def test_rates_are_shares_with_their_intervals():
    p = np.array([[0.01, 0.9], [0.04, 0.9], [0.5, 0.9], [0.6, 0.02]])
    found = trajectory_tests.rates(p, ["a", "b"])
    assert [found["by_metric"][name]["share"] for name in "ab"] == [0.5, 0.25]
    assert found["mean"] == 0.375 and found["any_after_holm"]["share"] == 0.5  # 0.01 and 0.02 times two
    assert found["any_after_holm"]["low"] == pytest.approx(0.15, abs=0.01)


def test_a_walk_is_the_path_in_float64_and_is_not_made_twice(model, monkeypatch, tmp_path):
    from wanscope.sample import loop

    states = []
    real = loop.denoise

    def watched(*arguments, observers, **more):
        class Keep(loop.Observer):
            def start(self, latents, sigmas):
                states.append(latents[0].numpy().copy())

            def step(self, state):
                states.append(state.latents[0].numpy().copy())

        return real(*arguments, observers=[*observers, Keep()], **more)

    monkeypatch.setattr(loop, "denoise", watched)
    walker = Walker(model, tmp_path, steps=2)
    walk = walker.walk("a red circle moves left", 4)
    flat = np.stack(states).reshape(3, -1).astype(np.float64)
    v = np.diff(flat, axis=0, prepend=0)
    assert walk.gram == pytest.approx(v @ v.T, rel=1e-12)
    assert walk.sigmas[0] == pytest.approx(1.0, abs=1e-5) and walk.sigmas[-1] == 0.0
    assert walk.path.dimension == flat.shape[1] and walk.tokens == 6
    assert walk.statistics[2].variance == pytest.approx(flat[2].var(), rel=1e-6)
    assert np.array_equal(walk.final_CThw, states[2])

    monkeypatch.setattr(Walker, "_made", lambda *_: pytest.fail("it is there already"))
    again = Walker(model, tmp_path, steps=2).walk("a red circle moves left", 4)
    assert np.array_equal(again.gram, walk.gram) and np.array_equal(again.final_CThw, walk.final_CThw)
    for k in range(3):
        for name in ("mean_C", "correlation_CC", "power_R", "entropy"):
            np.testing.assert_array_equal(getattr(again.statistics[k], name), getattr(walk.statistics[k], name))
    assert [path.suffix for path in tmp_path.rglob("*") if path.is_file()] == [".npz"]
    assert Walker(model, tmp_path, steps=3).folder != walker.folder


def _made_walk(self, prompt, seed, scratch):
    """Noise from the seed, a little from the prompt; what is red ends further out."""
    own = np.random.default_rng([seed, 5])
    said = np.random.default_rng([seed, zlib.crc32(prompt.encode())])
    states = own.normal(size=(4, 3, 2, 6, 6)) + 0.05 * said.normal(size=(4, 3, 2, 6, 6))
    states[0] = own.normal(size=(3, 2, 6, 6))
    if "red" in prompt.split():
        states[-1] *= 1.2
    states = states.astype(np.float32)
    v = increments(states)
    sigmas = np.array([1.0, 0.7, 0.4, 0.0])
    return Walk(v @ v.T, sigmas, states[-1], tuple(map(latent_statistics, states)), len(prompt.split()))


def test_the_report_claims_what_the_tests_show_and_no_more(model, monkeypatch, tmp_path):
    monkeypatch.setattr(Walker, "_made", _made_walk)
    monkeypatch.setattr(trajectory_cases, "WORDINGS", trajectory_cases.WORDINGS[:3])
    settings = validate_trajectories.TrajectoriesSettings(pairs=15, relabelings=5)
    report = validate_trajectories.validate(settings, folder=tmp_path, model=model)
    report = json.loads(json.dumps(report))
    assert report["takes"] == 6 * 30 + 3 * 15 + 30
    assert report["family"] == sum(len(contrast["rows"]) for contrast in report["contrasts"])
    color, *others = report["contrasts"]
    shown = {row["metric"]: row for row in color["rows"] if row["told_apart"]}
    assert {"displacement", "final_variance", "drift", "energy"} <= shown.keys()
    assert shown["final_variance"]["effect"] > 2 and shown["drift"]["place"] == "state 3"
    assert not any(row["told_apart"] for contrast in others for row in contrast["rows"])
    first, *rest = report["summary"]
    assert first.startswith("Color, red against blue: ") and "metrics distinguish them" in first
    assert "differ in one of two tests" in first
    for line in rest[:5]:
        assert "no metric of the path or of the latents' statistics shows a difference" in line
    page = trajectory_page.as_markdown(report)
    assert "| `final_variance` | **+" in page and "| any, after Holm |" in page
    assert "wording 2 against wording 3" in page and page.count("**differ**") == 1

    monkeypatch.setattr(Walker, "_made", lambda *_: pytest.fail("it is there already"))
    again = validate_trajectories.validate(settings, folder=tmp_path, model=model)
    assert json.dumps(again["contrasts"]) == json.dumps(report["contrasts"]) and again["nulls"] == report["nulls"]


def test_the_command_writes_its_report_and_few_pairs_say_that_nothing_can_be_shown(monkeypatch, tmp_path):
    monkeypatch.setattr(Walker, "_made", _made_walk)
    monkeypatch.setattr(trajectory_tests, "RELABELINGS", 2)
    monkeypatch.setattr(trajectory_cases, "WORDINGS", trajectory_cases.WORDINGS[:2])
    out, work = tmp_path / "report.json", tmp_path / "work"
    assert run_validate("trajectories", 2, out, work, "1/1", False, False) == 0
    report = json.loads(out.read_text())
    assert report["settings"]["pairs"] == 2 and len(list(work.rglob("*.npz"))) == report["takes"]
    assert any("no test can reach 5%" in line for line in report["summary"])
    assert not any("metrics distinguish them" in line for line in report["summary"])
    assert out.with_suffix(".md").read_text() == trajectory_page.as_markdown(report)
    with pytest.raises(RequestError, match="--share is for"):
        run_validate("trajectories", 2, None, work, "1/2", False, False)
