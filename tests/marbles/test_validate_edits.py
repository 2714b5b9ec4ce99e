"""The validation of edits: its cases, that it goes on where it was, its tables' arithmetic, and its real path."""

import json
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from wanscope.edit.amplify import MODES
from wanscope.edit.edits import Bend, Inject, Steer
from wanscope.errors import RequestError
from wanscope.marbles import world
from wanscope.marbles.validate import edit_cases, edit_tables
from wanscope.marbles.validate import edits as validate_edits
from wanscope.marbles.validate.edit_cases import Case
from wanscope.marbles.validate.edits import EditsSettings, Maker, make_rows
from wanscope.wan.load import load


@pytest.fixture(scope="module")
def model():
    return load("marbles", device="cpu")


def test_a_pair_differs_in_one_word_and_never_shows_a_held_out_combination():
    for attribute in ("color", "shape"):
        for pair in edit_cases.pairs(attribute, 40):
            thing = pair.scene.things[0]
            words = Counter(pair.prompt.split()) - Counter(pair.donor.split())
            assert words == Counter({getattr(thing, attribute): 1})
            assert pair.donor == pair.prompt.replace(getattr(thing, attribute), pair.value)
            assert not thing.held_out and not replace(thing, **{attribute: pair.value}).held_out
    assert all(pair.scene.things[0].motion == "still" for pair in edit_cases.pairs("shape", 10, still=True))
    for yes, no in edit_cases.direction_pairs("blue", 20):
        assert "blue" in yes and "blue" not in no and len(yes.split()) == len(no.split())


def test_a_short_donor_names_the_background_and_nothing_of_the_object():
    cases = list(edit_cases.styles(12))
    for case in cases:
        (value,) = case.wanted.values()
        assert case.wanted.keys() == {"background"} and value != case.scene.background in case.prompt.split()
        for edit in case.edits:
            assert isinstance(edit, Inject)
            if case.condition["donor"] == "short":
                assert edit.donor.prompt == f"on a {value} background" and len(case.prompt.split()) >= 3 * 3
            else:
                assert edit.donor.prompt == case.prompt.replace(case.scene.background, value)
    assert edit_tables.outcome(cases[0], {**SEEN, "background": cases[0].wanted["background"]})["turned"] == 1.0
    assert "background" not in edit_tables.outcome(cases[0], SEEN)


def test_a_bend_of_the_object_bends_all_words_that_say_what_it_is():
    for case in edit_cases.bends(6):
        thing = case.scene.things[0]
        said = (thing.size, thing.color, thing.shape) if case.condition["words"] == "object" else (thing.shape,)
        for edit in case.edits:
            assert isinstance(edit, Bend) and edit.words == said and set(said) <= set(case.prompt.split())
            assert edit.blocks == case.condition["blocks"]
        named = ", ".join(f"{e.operation} {e.factor:g}" if e.factor else f"{e.operation} x={e.x}" for e in case.edits
                          if e.operation != "region") or ("region, left half" if case.edits else "")  # fmt: skip
        assert named == case.condition["bend"]


def test_each_way_to_amplify_is_asked_for_the_same_difference():
    cases = list(edit_cases.amplifications(2, lambda prompt, donor: 0.4))
    ways = Counter((case.condition["amplify"], case.condition["times"]) for case in cases)
    assert ways == {("", 1.0): 4} | {(way, times): 4 for way in MODES for times in (1.5, 2.0)}
    for case in cases:
        (edit,) = case.edits
        assert isinstance(edit, Inject) and edit.strength == case.condition["strength"]
        if case.condition["amplify"]:
            assert edit.amplify == case.condition["amplify"] and edit.difference == 0.4 * case.condition["times"]
        else:
            assert edit.difference is None


def test_a_question_keeps_its_scenes_and_seeds_in_every_condition():
    seen: dict[int, set] = {}
    for case in edit_cases.modes(4):
        seen.setdefault(case.number, set()).add((case.prompt, case.seed))
    assert set(seen) == set(range(4)) and all(len(found) == 1 for found in seen.values())


def test_a_key_covers_what_makes_the_video_and_nothing_else():
    case = next(edit_cases.bends(1))
    assert case.key == replace(case, question="other", condition={"x": 1}, measured={"raw": 1.0}).key
    for other in (
        replace(case, seed=case.seed + 1),
        replace(case, prompt="a red circle"),
        replace(case, edits=(Inject("a red circle"),)),
        replace(case, edits=(Inject("a red circle", strength=0.5),)),
        replace(case, edits=(Inject("a red circle", blocks="late"),)),
    ):
        assert other.key != case.key
    steered = [replace(case, edits=(Steer(path, sha256="ab" * 32),)) for path in ("x.safetensors", "y.safetensors")]
    assert steered[0].key == steered[1].key


def _few(monkeypatch, stop_after=None):
    made = []

    def read(self, case):
        if stop_after is not None and len(made) == stop_after:
            raise KeyboardInterrupt
        made.append(case.key)
        return {"shape": "circle", "color": "red", "size": "small", "motion": "up", "background": "gray"}

    monkeypatch.setattr(validate_edits, "cases", lambda maker, settings, folder: edit_cases.bends(settings.pairs))
    monkeypatch.setattr(Maker, "read", read)
    return made


def test_a_stopped_run_goes_on_and_makes_nothing_twice(monkeypatch, tmp_path, model):
    settings = EditsSettings(pairs=4)
    first = _few(monkeypatch, stop_after=7)
    with pytest.raises(KeyboardInterrupt):
        make_rows(model, settings, tmp_path)
    (rows,) = tmp_path.glob("rows-*.jsonl")
    rows.write_text(rows.read_text() + '{"stamp": {"wei')  # killed while it wrote a line
    second = _few(monkeypatch)
    found, missing = make_rows(model, settings, tmp_path)
    assert len(first) == 7 and not set(first) & set(second)
    assert not missing and len(found) == 52 and {case.key for case, _ in found} == {*first, *second}
    third = _few(monkeypatch)
    assert not make_rows(model, settings, tmp_path)[1] and not third
    fourth = _few(monkeypatch)  # other settings make other videos
    make_rows(model, replace(settings, steps=3), tmp_path)
    assert len(fourth) == 52


def test_shares_divide_the_work(monkeypatch, tmp_path, model):
    one = _few(monkeypatch)
    _, missing = make_rows(model, EditsSettings(pairs=4, share=(0, 2)), tmp_path)
    assert len(missing) == 26 and len(one) == 26
    two = _few(monkeypatch)
    found, missing = make_rows(model, EditsSettings(pairs=4, share=(1, 2)), tmp_path)
    assert not missing and len(two) == 26 and not set(one) & set(two) and len(found) == 52


def test_a_video_of_two_questions_is_made_once_by_one_share(monkeypatch, tmp_path, model):
    made = _few(monkeypatch)
    both = lambda maker, settings, folder: [*edit_cases.modes(2), *edit_cases.injections(2)]  # noqa: E731
    monkeypatch.setattr(validate_edits, "cases", both)
    for share in range(3):
        found, missing = make_rows(model, EditsSettings(pairs=2, share=(share, 3)), tmp_path)
    assert not missing and len(made) == len(set(made)) == len({case.key for case, _ in found}) < len(found)


def test_a_stopped_run_has_asked_every_question_of_as_many_pairs(monkeypatch):
    cases = edit_cases.in_order([*edit_cases.bends(3), *edit_cases.injections(3), *edit_cases.hidden(3)])
    per_pair = len(cases) // 3
    assert [case.number for case in cases] == [n for n in range(3) for _ in range(per_pair)]
    figures = lambda prompt, donor: {"raw": 1.0}  # noqa: E731
    cases = edit_cases.in_order([*edit_cases.hidden(3), *edit_cases.distances(3, figures)])
    assert [case.number for case in cases if case.question == "distance"] == [0, 1, 2, 3, 4, 5]
    assert {case.question for case in cases[: len(cases) // 3]} == {"hidden", "distance"}


def test_so_far_makes_nothing_and_takes_whole_pairs_alone(monkeypatch, tmp_path, model):
    monkeypatch.setattr(validate_edits, "DIFFERENCE_PAIRS", 6)
    _few(monkeypatch)
    with pytest.raises(RequestError, match="no pair is complete yet"):
        validate_edits.validate(EditsSettings(pairs=4, so_far=True), folder=tmp_path, model=model)
    _few(monkeypatch, stop_after=28)  # two pairs of 13 videos, and two videos of the third
    with pytest.raises(KeyboardInterrupt):
        make_rows(model, EditsSettings(pairs=4), tmp_path)
    made = _few(monkeypatch)
    report = validate_edits.validate(EditsSettings(pairs=4, so_far=True), folder=tmp_path, model=model)
    assert not made and report is not None and report["videos"] == 28 and report["missing"] == 24
    assert [row["n"] for row in report["tables"][0]["rows"]] == [2] * 12 and report["difference"]["pairs"] == 6
    page = edit_tables.as_markdown(json.loads(json.dumps(report, allow_nan=False)))
    assert "**Partial**: 24 videos are still to be made" in page


def test_rows_do_not_outlive_a_change_of_the_sampler(monkeypatch, tmp_path, model):
    _few(monkeypatch)
    make_rows(model, EditsSettings(pairs=2), tmp_path)
    resolved = Maker.__init__

    def other(self, model, settings):
        resolved(self, model, settings)
        self.sampler = self.sampler.model_copy(update={"guidance": 2.5})

    monkeypatch.setattr(Maker, "__init__", other)
    again = _few(monkeypatch)
    make_rows(model, EditsSettings(pairs=2), tmp_path)
    assert len(again) == 26


def test_full_injection_makes_the_donors_own_video(model):
    """The whole real path: at strength 1 in all blocks the bits are those of the donor as the prompt."""
    pair = next(edit_cases.pairs("color", 1))
    maker = Maker(model, EditsSettings(frames=5, steps=2))
    case = Case("inject", {}, 0, pair.scene, pair.prompt, 3, (Inject(pair.donor),), {"color": pair.value})
    plain = replace(case, edits=())
    donor = replace(plain, prompt=pair.donor)
    edited = maker.pixels(case)
    assert edited.shape == (5, 128, 128, 3) and edited.dtype == np.uint8
    assert np.array_equal(edited, maker.pixels(donor)) and not np.array_equal(edited, maker.pixels(plain))
    assert set(maker.read(case)) >= {"shape", "color", "size", "motion", "background"}


def test_thresholds_are_those_of_the_curve_that_made_the_data():
    """Logistic around 0.4 with slope 20: half at 0.4, 80% at 0.4 + ln(4) / 20."""
    rng = np.random.default_rng(1)
    values = rng.uniform(0, 0.8, 3000)
    turned = (rng.random(3000) < 1 / (1 + np.exp(-20 * (values - 0.4)))).astype(float)
    note = edit_tables.threshold_note("projected", values, turned)
    half, most = (float(x) for x in re.findall(r"% from ([\d.]+) on", note))
    assert abs(half - 0.4) <= 0.015 and abs(most - (0.4 + np.log(4) / 20)) <= 0.02
    low, high = map(float, re.search(r"interval ([\d.]+) to ([\d.]+)", note).groups())  # type: ignore[union-attr]
    assert low <= 0.4 <= high and high - low < 0.05
    unrelated = (rng.random(3000) < 0.5).astype(float)
    assert "no threshold follows" in edit_tables.threshold_note("raw", values, unrelated)
    assert "No threshold can be fitted" in edit_tables.threshold_note("raw", values, np.ones(3000))


def test_the_median_has_its_interval():
    """Against the exact binomial bound: the interval misses the median in at most 5% of samples."""
    values = list(np.random.default_rng(3).permutation(200) + 1.0)
    low, high = edit_tables.median_interval(values)
    below = stats.binom(200, 0.5)
    assert 2 * below.cdf(low - 1) <= 0.05 < 2 * below.cdf(low) and high == 201 - low
    assert all(map(np.isnan, edit_tables.median_interval([1.0, 2.0])))


# tables


def _case(number=0, question="inject", condition=None, wanted=None, measured=None):
    thing = world.Thing("circle", "red", "small", "still", radius=12.0, x0=60.0, y0=60.0)
    scene = world.Scene((thing,), "gray")
    return Case(question, condition or {}, number, scene, "p", number, (), wanted or {}, measured or {})


SEEN = {"shape": "circle", "color": "blue", "size": "small", "motion": "still", "background": "gray"}


def test_outcomes():
    assert edit_tables.outcome(_case(wanted={"color": "blue"}), SEEN) == {
        "turned": 1.0,
        "shape": 1.0,
        "size": 1.0,
        "motion": 1.0,
        "background": 1.0,
    }
    half = edit_tables.outcome(_case(wanted={"color": "blue", "shape": "square"}), SEEN)
    assert half["turned"] == 0.5 and "shape" not in half
    assert edit_tables.outcome(_case(wanted={"not color": "blue"}), SEEN)["turned"] == 0.0
    assert edit_tables.outcome(_case(wanted={"not color": "red"}), SEEN)["turned"] == 1.0
    gone = [
        (_case(n, "ablate", {}, {"not color": "red"}), {**SEEN, "color": None if n < 3 else "red"}) for n in range(4)
    ]
    ((row,),) = (table["rows"] for table in edit_tables.tables(gone))
    assert row["turned"] == 0.0 and row["no object read"] == 0.75
    nothing = dict.fromkeys(SEEN)
    assert set(edit_tables.outcome(_case(wanted={"not color": "red"}), nothing).values()) == {0.0}


def test_shares_with_their_interval():
    found = [
        (_case(n, condition={"strength": 1.0}, wanted={"color": "blue"}), {**SEEN, "color": "blue" if n < 3 else "red"})
        for n in range(10)
    ]
    (table,) = edit_tables.tables(found)
    (row,) = table["rows"]
    low, high = stats.binomtest(3, 10).proportion_ci(method="wilson")
    assert row["turned"] == 0.3 and row["95% interval"] == f"{low:.2f} to {high:.2f}" and row["n"] == 10
    assert row["color kept"] == "" and row["shape kept"] == 1.0


def test_displacement_is_against_the_same_seed_without_the_edit():
    rng = np.random.default_rng(0)
    dx = rng.normal(-12, 3, 20)
    found = []
    for n in range(20):
        found.append((_case(n, "bend", {"bend": "", "blocks": "none"}), {**SEEN, "center": [50.0 + n, 40.0]}))
        found.append((_case(n, "bend", {"bend": "x", "blocks": "all"}), {**SEEN, "center": [50.0 + n + dx[n], 42.0]}))
    (table,) = edit_tables.tables(found)
    (row,) = table["rows"]
    low, high = stats.t.interval(0.95, 19, loc=dx.mean(), scale=stats.sem(dx))
    assert row["moved in x, px"] == round(dx.mean(), 1) and row["moved in y, px"] == 2.0
    assert row["95% interval"] == f"{low:.1f} to {high:.1f}"


def test_amplified_and_plain_are_compared_in_pairs():
    found = []
    for n in range(12):
        for way, times, right in (("", 1.0, n < 4), ("push_apart", 2.0, n < 10)):
            condition = {"amplify": way, "times": times, "strength": 0.5}
            case = _case(n, "amplify", condition, {"color": "blue"})
            found.append((case, {**SEEN, "color": "blue" if right else "red"}))
    (table,) = edit_tables.tables(found)
    (note,) = table["notes"]
    p = stats.binomtest(6, 6).pvalue
    assert (
        "2 times the difference by push_apart: turned in 6 pairs" in note
        and "failed in 0" in note
        and f"p = {p:.3g}" in note
    )


def test_success_by_distance():
    found = []
    for n in range(30):
        case = _case(n, "distance", {"changed": 1}, {"color": "blue"}, {"projected": n / 30, "raw": 1 - n / 30})
        found.append((case, {**SEEN, "color": "blue" if n >= 15 else "red"}))
    (table,) = edit_tables.tables(found)
    turned = [row["turned"] for row in table["rows"] if row["difference"] == "projected"]
    assert turned == [0.0, 0.5, 1.0] and sum(row["n"] for row in table["rows"]) == 60
    assert "projected difference and success: 0.87" in table["notes"][0]


def test_the_page_contains_every_figure(model):
    maker = Maker(model, EditsSettings())
    projection = model.transformer.condition_embedder.text_embedder
    figures = edit_tables.difference_figures(edit_cases.difference_pairs(6), maker.encoded, projection)
    found = [(_case(n, wanted={"color": "blue"}, condition={"strength": 1.0}), SEEN) for n in range(3)]
    report = {
        "tables": edit_tables.tables(found),
        "difference": figures,
        "settings": {"pairs": 3, "frames": 9, "steps": 10},
        "videos": 3,
        "machine": "an abacus",
    }
    page = edit_tables.as_markdown(json.loads(json.dumps(report)))
    assert "an abacus" in page and "| 1.0 | 1.0 |" in page and "projected / raw relative L2" in page
    low, _, middle, _, high = figures["quantiles"]["raw relative L2"]
    assert 0 < low <= middle <= high and -1 <= figures["rank correlation"] <= 1
