"""Notes of an analysis: hypotheses that confirm nothing, damaged maps, tokens, detectable effects."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.paths import write_study
from wanscope.analysis import attention_section
from wanscope.analysis.analyze import analyze
from wanscope.analysis.attention import centers, overlaps, profile
from wanscope.analysis.attention_charts import attention_charts
from wanscope.analysis.bundle import methods
from wanscope.analysis.preview import Preview, make_previews
from wanscope.analysis.report import render_page
from wanscope.capture.arrays import create_array
from wanscope.doors.cli.analyze import _cells
from wanscope.take.manifest import MANIFEST, StoredAttention, list_files
from wanscope.take.store import Take

COLORS = {"color": ("red", "blue")}
GRID = (3, 6, 8)
BEFORE = 1_700_000_000  # the helper's takes are of January 2025


def with_hypotheses(folder: Path, hypotheses: str, made: float = BEFORE) -> None:
    path = folder / "studies" / "made" / "study.yaml"
    path.write_text(f"prompt: 'a [@color: red|blue] circle'\ndesign:\n  factor: color\n  hypotheses: [{hypotheses}]\n")
    os.utime(path, (made, made))


@pytest.mark.parametrize(
    ("hypothesis", "said"),
    [
        ("blue is longer", "'blue is longer' has no confirmatory test: it names no metric"),
        ("{text: t, metric: path_length}", "it names no contrast"),
        ("{text: t, metric: path_lenght, contrast: [red, blue]}", "did you mean 'path_length'?"),
    ],
)
def test_a_hypothesis_that_no_test_covers_is_named(hypothesis: str, said: str, tmp_path: Path) -> None:
    write_study(tmp_path, COLORS, 2)
    with_hypotheses(tmp_path, hypothesis)
    found = analyze("made", workspace=tmp_path, write=False)
    assert said in found.summary and not any(test.confirmatory for test in found.tests.tests)
    assert "name none of the tests" in methods(found)


def test_a_hypothesis_that_came_late_is_named_and_one_that_is_tested_is_not(tmp_path: Path) -> None:
    write_study(tmp_path, COLORS, 2)
    good = "{text: t, metric: path_length, contrast: [blue, red]}"
    with_hypotheses(tmp_path, good, made=BEFORE * 2)
    assert "so it is exploratory" in analyze("made", workspace=tmp_path, write=False).summary
    with_hypotheses(tmp_path, good)
    found = analyze("made", workspace=tmp_path, write=False)
    assert [test.metric for test in found.tests.tests if test.confirmatory] == ["path_length"]
    assert "the hypothesis" not in found.summary.lower()


def test_token_counts_are_shown_next_to_differences_of_all_values(tmp_path: Path) -> None:
    takes = write_study(tmp_path, {"who": ("men", "women", "people")}, 2)
    for take in takes:
        count = 3 + (take.recipe.labels["who"] == "women")
        changed = take.manifest.model_copy(update={"prompt_tokens": count})
        (take.folder / MANIFEST).write_text(changed.dumped())
    found = analyze("made", workspace=tmp_path, write=False)
    whole = [test for test in found.tests.tests if test.kind == "omnibus"]
    assert whole and all(test.note.endswith("tokens 3, 4, 3") for test in whole)
    pair = next(test for test in found.tests.tests if (test.a, test.b) == ("men", "women"))
    assert _cells(pair)[-1] == "3, 4"


def test_detectable_effects_are_reported_next_to_the_findings(tmp_path: Path) -> None:
    def longer(labels: Mapping[str, str], states: np.ndarray) -> np.ndarray:
        return states[:1] + (1.3 if labels["color"] == "blue" else 1.0) * (states - states[:1])

    write_study(tmp_path, COLORS, 12, longer)
    found = analyze("made", workspace=tmp_path, out=tmp_path / "out", report=False)
    assert "significant after correction" in found.summary and found.tests.power in found.summary
    assert "is found four times in five" in found.tests.power
    assert found.facts()["report"] is None  # none was asked for


def test_a_requested_unit_with_few_scenes_suggests_no_other(tmp_path: Path) -> None:
    write_study(tmp_path, {"color": ("red", "blue"), "where": ("home", "beach", "park")}, 2)
    path = tmp_path / "studies" / "made" / "study.yaml"
    path.write_text("prompt: 'a circle'\ndesign: {factor: color, blocks: [seed, where]}\n")
    found = analyze("made", workspace=tmp_path, unit="scene", write=False)
    assert found.tests.units == 3 and "hold for these prompts" in found.summary
    assert "scenes like these" not in found.summary


def test_a_damaged_poster_is_named(tmp_path: Path) -> None:
    (take,) = write_study(tmp_path, {"color": ("red",)}, 1)
    take.poster.write_bytes(b"no picture")
    (shown,) = make_previews([take], budget_bytes=0)
    assert not shown.data and "poster.webp is damaged" in shown.note and str(tmp_path) not in shown.note


# ---- attention maps


ATTENTION = ("mass", "concentration", "travel", "center_x", "center_y")


def add_maps(take: Take, values: np.ndarray, words: tuple[str, str] = ("circle", "red")) -> None:
    """Add maps [S, L, 3, T, Y, X] of two words and the padding to a take."""
    shutil.rmtree(take.folder / "attention.zarr", ignore_errors=True)
    array = create_array(take.folder / "attention.zarr", values.shape, (1, 1, *GRID), "fp16", {})
    array[:] = values.astype(np.float16)
    rows: list[dict[str, Any]] = [
        {"name": name, "kind": kind, "columns": [i]}
        for i, (name, kind) in enumerate([(words[0], "word"), (words[1], "word"), ("pad", "pad")])
    ]
    array.attrs.update(
        {
            "measure": "probability",
            "keep": "maps",
            "branch": "cond",
            "rows": rows,
            "blocks": list(range(values.shape[1])),
            "heads": None,
            "real_tokens": 2,
            "evaluations": [[step, 0] for step in range(len(values))],
            "sigmas": [1.0] * len(values),
            "experts": [0] * len(values),
        }
    )
    kept = StoredAttention(
        measures=("probability",),
        words=words,
        rows=3,
        blocks=values.shape[1],
        evaluations=len(values),
        keep="maps",
        shape=values.shape,
    )
    changed = take.manifest.model_copy(update={"attention": kept, "files": list_files(take.folder)})
    (take.folder / MANIFEST).write_text(changed.dumped())


@pytest.fixture
def with_maps(tmp_path: Path) -> list[Take]:
    takes = write_study(tmp_path, COLORS, 2)
    for number, take in enumerate(takes):
        add_maps(take, np.random.default_rng(number).random((4, 2, 3, *GRID)) * [[[[[[0.2]]], [[[0.1]]], [[[0.9]]]]]])
    return takes


def test_damaged_maps_are_named_and_those_of_another_seed_shown(with_maps: list[Take], tmp_path: Path) -> None:
    shard = next(path for path in sorted((with_maps[0].folder / "attention.zarr").rglob("c.*")))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    found = analyze("made", workspace=tmp_path, write=False)
    assert len(found.members) == 4 and not found.left_out
    assert "The attention maps of red_seed00 are left out" in found.summary and shard.name in found.summary
    assert str(tmp_path) not in found.summary
    assert {row["name"] for row in found.attention} == {"red_seed01", "blue_seed00", "blue_seed01"}
    shown = attention_section.section(found)
    assert shown is not None
    # the pair of seed 0 has damaged maps, so the report shows that of seed 1
    assert [title for title, _, _ in shown["overlays"]] == ["red and blue, seed 1"] and shown["more"] == 0
    assert shown["in_pairs"]
    assert len(shown["notes"]) == 1 and "red_seed00 are left out" in shown["notes"][0]
    page = render_page(found, [], [Preview("", b"", 0, 0, "none")] * 4)
    assert page.count("data:video/mp4;base64,") == 1 and shown["notes"][0] in page
    assert "<h3>red and blue, seed 1</h3>" in page


def test_centers_overlaps_and_profiles_are_in_the_tables_and_drawn(with_maps: list[Take], tmp_path: Path) -> None:
    found = analyze("made", workspace=tmp_path, write=False)
    rows = found.attention
    takes = [Take.open(take.folder) for take in with_maps]
    maps = takes[0].attention
    mine = [row for row in rows if row["take"] == takes[0].id]
    path = [[r["value"] for r in mine if r["word"] == "circle" and r["measure"] == f"center_{a}"] for a in "xy"]
    assert np.allclose(np.transpose(path), centers(maps.mean("circle")))
    (shared,) = [r["value"] for r in mine if r["measure"] == "overlap" and (r["word"], r["other"]) == ("circle", "pad")]
    assert shared == pytest.approx(overlaps(maps)[0, 2])

    drawn = {chart.key: chart for chart in attention_charts(found)}
    plain = {f"attention-{m}-by-{o}" for m in ("mass", "concentration") for o in ("block", "step")}
    assert set(drawn) == plain | {f"{key}-difference-{word}" for key in plain for word in ("circle", "red")}
    profiles = [profile(take.attention) for take in takes]
    lines = {series.name: series for series in drawn["attention-mass-by-block"].series}
    assert list(lines) == ["circle", "red", "pad"] and list(lines["pad"].x) == [0, 1]
    assert np.allclose(np.array(lines["pad"].y, float), np.mean([p.by_block("mass")[:, 2] for p in profiles], axis=0))
    steps = {series.name: series for series in drawn["attention-concentration-by-step"].series}["red"]
    assert list(steps.x) == [1, 2, 3, 4]
    assert np.allclose(np.array(steps.y, float), np.mean([p.by_step("concentration")[:, 1] for p in profiles], axis=0))
    assert attention_charts(replace(found, attention=())) == []
    assert drawn["attention-mass-by-step"].log_y and not drawn["attention-concentration-by-step"].log_y
    none = {"measure": "mass", "word": "circle", "block": 0, "step": 0, "value": 0.0}
    assert attention_charts(replace(found, attention=(none,)))[0].series[0].y == [None]


def opened(takes: list[Take]) -> list[Take]:
    """Return the takes read again, with the maps that were added."""
    return [Take.open(take.folder) for take in takes]


def test_attention_is_tested_in_pairs_like_every_other_number(with_maps: list[Take], tmp_path: Path) -> None:
    found = analyze("made", workspace=tmp_path, write=False)
    tests = {(test.metric, test.part): test for test in found.tests.families["attention"]}
    assert set(tests) == {
        *((f"attention_{m}", word) for m in ATTENTION for word in ("circle", "red")),
        ("attention_mass", "padding"),
        ("attention_overlap", "circle and red"),
    }
    profiles = {
        take.recipe.labels["color"] + str(take.recipe.seed): profile(take.attention) for take in opened(with_maps)
    }
    differences = [profiles[f"red{s}"].mass[..., 0].mean() - profiles[f"blue{s}"].mass[..., 0].mean() for s in (0, 1)]
    mass = tests["attention_mass", "circle"]
    assert mass.difference == pytest.approx(np.mean(differences)) and mass.units == 2 and mass.p is not None
    # and at each step and block, as courses
    at = [t for t in found.tests.courses if (t.metric, t.part) == ("attention_mass", "circle")]
    assert [(t.state, t.block) for t in at if t.block is None] == [(s, None) for s in range(4)]
    assert [(t.state, t.block) for t in at if t.state is None] == [(None, b) for b in range(2)]
    third = [profiles[f"red{s}"].mass[2, :, 0].mean() - profiles[f"blue{s}"].mass[2, :, 0].mean() for s in (0, 1)]
    assert next(t for t in at if t.state == 2).difference == pytest.approx(np.mean(third))
    assert "by the step-down max-T method" in found.summary and "attention to words" in found.summary


def test_words_that_are_values_of_a_slot_are_compared_with_each_other(with_maps: list[Take], tmp_path: Path) -> None:
    """In the blue takes the second word is "blue": it is the color's word in both groups."""
    for take in with_maps:
        if take.recipe.labels["color"] == "blue":
            add_maps(take, np.asarray(Take.open(take.folder).attention[:]), ("circle", "blue"))
    found = analyze("made", workspace=tmp_path, write=False)
    parts = {test.part for test in found.tests.families["attention"]}
    assert parts == {"circle", "[color]", "padding", "[color] and circle"}
    test = next(t for t in found.tests.tests if (t.metric, t.part) == ("attention_mass", "[color]"))
    maps = {(take.recipe.labels["color"], take.recipe.seed): take.attention for take in opened(with_maps)}
    differences = [maps["red", s].word("red").mean() - maps["blue", s].word("blue").mean() for s in (0, 1)]
    assert test.difference == pytest.approx(np.mean(differences), rel=1e-5)
    shown = attention_section.section(found)
    assert shown is not None and "[color]" in shown["overlays"][0][2] and "padding" in shown["overlays"][0][2]
