"""A whole analysis on made takes: tables, tests, summary, page, damage, metrics of other packages."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import wanscope as ws
from helpers.figures import draw_few
from helpers.paths import write_study
from wanscope.analysis import report
from wanscope.analysis.analyze import analyze
from wanscope.analysis.charts import charts
from wanscope.analysis.latent_pass import path_of
from wanscope.analysis.preview import Preview, make_previews
from wanscope.analysis.report import custom_figures, render_page
from wanscope.analysis.result import Analysis
from wanscope.capture.path_gram import increments
from wanscope.errors import NotCaptured, RequestError, TakeNotFound
from wanscope.events import Note
from wanscope.take.store import LATENTS, Take

COLORS = {"color": ("red", "blue")}


def larger_blue(labels: Mapping[str, str], states: np.ndarray) -> np.ndarray:
    out = states.copy()
    if labels["color"] == "blue":
        out[1:] = out[:1] + 1.3 * (out[1:] - out[:1])
    return out


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("analyze")
    write_study(folder, COLORS, 12, larger_blue)
    return folder


@pytest.fixture(scope="module")
def found(place: Path) -> Analysis:
    return analyze("made", workspace=place)


def test_the_table_is_tidy_and_equals_direct_computation(place: Path, found: Analysis) -> None:
    assert found.folder is not None
    rows = pq.read_table(found.folder / "metrics.parquet").to_pylist()
    assert {"take", "name", "group", "seed", "slot:color", "metric", "unit", "state", "sigma", "part", "value"} <= set(
        rows[0]
    )
    for member in found.members[:3] + found.members[-2:]:
        take = Take.open(member.take.folder)
        x = take.latents[:].astype(np.float64)
        v = increments(x)[1:]
        direct = np.linalg.norm(v, axis=1) / np.sqrt(v.shape[1])
        mine = [r for r in rows if r["take"] == member.id and r["metric"] == "velocity"]
        assert [r["state"] for r in mine] == [1, 2, 3, 4]
        assert [r["value"] for r in mine] == pytest.approx(direct, rel=1e-6)
        assert [r["sigma"] for r in mine] == pytest.approx(take.sigmas[1:])
        (length,) = [r for r in rows if r["take"] == member.id and r["metric"] == "path_length"]
        assert length["value"] == pytest.approx(direct.sum(), rel=1e-6)
        assert length["state"] is None and length["slot:color"] == member.labels["color"]
        variances = [r["value"] for r in rows if r["take"] == member.id and r["metric"] == "variance"]
        assert variances == pytest.approx([state.var() for state in x], rel=1e-6)


def test_an_existing_catalog_gets_the_metrics_and_keeps_them(tmp_path: Path) -> None:
    write_study(tmp_path, COLORS, 2, larger_blue)
    analyze("made", workspace=tmp_path, report=False)
    catalog = ws.Catalog(tmp_path)
    assert not catalog.exists  # an analysis does not create one
    catalog.index()
    found = analyze("made", workspace=tmp_path, report=False)
    numbers = [v.row.value for v in found.table.values]
    expected = int(np.isfinite(numbers).sum())
    kept = catalog.sql("SELECT * FROM metrics WHERE source = 'analyze'").to_pylist()
    assert len(kept) == expected > 0
    by_place = {(r["take"], r["name"], r["step"]): (r["value"], r["unit"]) for r in kept}
    take = found.members[0].id
    row = next(v for v in found.table.of("velocity").values if v.member == 0 and v.row.state == 2)
    assert by_place[take, "velocity", 2] == (row.row.value, row.metric.unit)
    assert by_place[take, "path_length", -1][0] == pytest.approx(
        sum(v.row.value for v in found.table.of("velocity").values if v.member == 0), rel=1e-6
    )
    analyze("made", workspace=tmp_path, report=False)
    catalog.index(rebuild=True)
    assert catalog.sql("SELECT * FROM metrics WHERE source = 'analyze'").num_rows == expected
    catalog.path.write_bytes(b"no database")
    said: list[Any] = []
    assert analyze("made", workspace=tmp_path, report=False, on_event=said.append).table.values
    assert any("not in the catalog" in getattr(event, "text", "") for event in said)


def test_csv_and_parquet_agree(found: Analysis) -> None:
    assert found.folder is not None
    for name in ("metrics", "tests", "courses", "groups"):
        table = pq.read_table(found.folder / f"{name}.parquet").to_pylist()
        with (found.folder / f"{name}.csv").open(newline="") as file:
            lines = list(csv.DictReader(file))
        assert len(lines) == len(table) > 0
        for line, row in zip(lines[:200], table[:200], strict=True):
            assert list(line) == list(row)
            for key, value in row.items():
                if isinstance(value, float):
                    assert float(line[key]) == value or np.isnan(value)
                else:
                    assert line[key] == ("" if value is None else str(value))


def test_a_true_difference_is_found_and_reported(found: Analysis) -> None:
    tests = {test.metric: test for test in found.tests.tests}
    length = tests["path_length"]
    assert length.found and length.units == 12 and (length.a, length.b) == ("red", "blue")
    assert length.difference is not None and length.difference < 0
    assert length.p == length.smallest_p == 2 / 4096
    assert length.p_corrected == length.p  # the most extreme of its family
    assert length.p_holm == pytest.approx(length.p * length.family)
    assert found.tests.size == sum(len(tests) for name, tests in found.tests.families.items() if name != "courses")
    assert length.interval == "BCa" and length.coverage is not None
    assert not tests["linearity"].found  # scaling a path leaves it as straight as it was
    assert "Path length is lower for red than for blue" in found.summary
    assert "these prompts" in found.summary
    assert "Exploratory" in found.summary


def test_p_values_equal_those_of_direct_enumeration(found: Analysis) -> None:
    by_take = {value.member: value.row.value for value in found.table.of("turning").values}
    members = found.members
    d = []
    for seed in range(12):
        pair = {m.labels["color"]: by_take[i] for i, m in enumerate(members) if m.seed == seed}
        d.append(pair["red"] - pair["blue"])
    bits = (np.arange(4096)[:, None] >> np.arange(12)) & 1
    sums = np.abs((1 - 2 * bits) @ np.array(d))
    mine = next(test for test in found.tests.tests if test.metric == "turning")
    expected = (sums >= abs(sum(d)) * (1 - 1e-9)).mean()
    # Scaling changes no angle: the difference is only rounding and counts as zero.
    assert mine.p in (pytest.approx(expected), 1.0)


def test_the_page_opens_without_a_network(found: Analysis) -> None:
    assert found.report is not None
    page = found.report.read_text(encoding="utf-8")
    ours = page.split("<script>", 1)[0]
    assert "default-src 'none'" in ours
    assert not re.findall(r"(?:src|href)=[\"']?(?!data:|#)[^\"'\s>]+", ours)
    assert page.count("data:video/mp4;base64,") == 24
    charts = json.loads(re.search(r'id="charts">(.*?)</script>', page, re.S).group(1))  # type: ignore[union-attr]
    drawn = set(re.findall(r'data-chart="([^"]+)"', page))
    assert drawn == set(charts) and len(drawn) > 20
    assert all(chart["data"] for chart in charts.values())
    assert found.summary.split("\n")[0] in page
    assert len(page) < 40e6
    assert found.folder is not None
    for key in drawn:
        assert (found.folder / "figures" / f"{key}.png").stat().st_size > 1000
        assert (found.folder / "figures" / f"{key}.svg").read_text().startswith("<?xml")


def test_facts_and_what_is_written(found: Analysis) -> None:
    assert found.folder is not None
    facts = json.loads((found.folder / "analysis.json").read_text())
    assert facts["study"] == "made" and len(facts["takes"]) == 24 and facts["tests"] == found.tests.size
    assert (found.folder / "summary.txt").read_text().strip() == found.summary


def test_a_damaged_take_is_named_and_left_out(tmp_path: Path) -> None:
    takes = write_study(tmp_path, COLORS, 3)
    shard = max((takes[1].folder / LATENTS).rglob("c.*"), key=lambda path: path.stat().st_size)
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(data)
    (takes[5].folder / "take.json").unlink()
    found = analyze("made", workspace=tmp_path, report=False)
    assert [left.name for left in found.left_out] == ["red_seed01", "blue_seed02"]
    assert "checksum" in found.left_out[0].why
    assert len(found.members) == 4
    assert "red_seed01" in found.summary
    texts = [found.summary, *(left.why for left in found.left_out)]
    assert f"takes/{takes[1].id}/" in texts[0] and not any(str(tmp_path) in text for text in texts)
    assert {test.units for test in found.tests.tests} == {1}  # only seed 0 has both


def test_a_page_of_sixty_takes_stays_under_forty_megabytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With as much video as the budgets for copies and maps allow, and all figures of sixty takes."""
    from wanscope.analysis import attention_section, preview, report

    write_study(tmp_path, {"color": ("red", "blue", "green")}, 20)
    found = analyze("made", workspace=tmp_path, write=False)
    assert len(found.members) == 60
    share = preview.BUDGET_BYTES // 60
    clips = [Preview("video/mp4", bytes(share), 320, 184)] * 60
    overlay = Preview("video/mp4", bytes(attention_section.BUDGET_BYTES), 640, 368)
    maps = {"notes": [], "overlays": [("red and blue, seed 0", overlay, "")], "more": 0, "in_pairs": True}
    monkeypatch.setattr(report, "attention_section", lambda analysis: maps)
    size = len(render_page(found, charts(found), clips).encode())
    assert (preview.BUDGET_BYTES // 60 * 60 + attention_section.BUDGET_BYTES) * 4 // 3 < size < 40_000_000


def test_videos_that_are_too_much_together_are_made_smaller_then_stills(
    place: Path, found: Analysis, monkeypatch: pytest.MonkeyPatch
) -> None:
    takes = [member.take for member in found.members[:3]]
    sizes = {320: 1_000, 240: 500, 160: 300}
    monkeypatch.setattr(
        "wanscope.analysis.preview._encode_video",
        lambda take, side, rate: Preview("video/mp4", bytes(sizes[side]), side, 1),
    )
    assert {clip.width for clip in make_previews(takes, 3_000)} == {320}
    assert {clip.width for clip in make_previews(takes, 2_999)} == {240}
    last = make_previews(takes, 700)
    assert [clip.kind for clip in last] == ["video/mp4", "video/mp4", "image/webp"] and "still" in last[2].note


def test_one_seed_is_analyzed_and_its_limits_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_few(monkeypatch)
    write_study(tmp_path, COLORS, 1)
    found = analyze("made", workspace=tmp_path)
    assert found.tests.size == 0 and all(test.p is None for test in found.tests.tests)
    assert "nothing can be tested" in found.summary
    assert found.report is not None and found.report.is_file()


def test_one_take_is_described(tmp_path: Path) -> None:
    write_study(tmp_path, {"color": ("red",)}, 1)
    found = analyze("made", workspace=tmp_path, report=False)
    assert "nothing to compare" in found.summary
    assert found.table.of("linearity").values


def test_with_four_seeds_it_is_reported_that_no_test_can_be_significant(tmp_path: Path) -> None:
    write_study(tmp_path, COLORS, 4)
    assert "no test can reach 5%" in analyze("made", workspace=tmp_path, report=False).summary


def test_without_recorded_paths_the_error_has_a_fix(tmp_path: Path) -> None:
    takes = write_study(tmp_path, COLORS, 2, latents=False)
    study, option = tmp_path / "studies" / "made" / "study.yaml", f"--output-dir {tmp_path}"
    first = takes[0].id
    for source in ("made", takes):
        with pytest.raises(NotCaptured) as refused:
            analyze(source, workspace=tmp_path)
        assert refused.value.fix == f"wanscope generate {first} {option} --store-latents"
    with pytest.raises(NotCaptured) as refused:
        path_of(takes[0])
    assert refused.value.fix == f"wanscope generate {first} {option} --store-latents"
    study.write_text("prompt: 'a [@color: red|blue] circle'\n")
    with pytest.raises(NotCaptured) as refused:
        analyze("made", workspace=tmp_path)
    assert refused.value.fix == f"wanscope generate {study} {option} --store-latents"


def test_a_study_without_a_readable_take_has_a_command_that_generates_it(tmp_path: Path) -> None:
    for take in write_study(tmp_path / "a b", COLORS, 1):
        (take.folder / "take.json").unlink()
    study = tmp_path / "a b" / "studies" / "made" / "study.yaml"
    with pytest.raises(TakeNotFound, match="no take that can be analyzed") as refused:
        analyze("made", workspace=tmp_path / "a b")
    assert refused.value.fix == f"wanscope takes --study made --output-dir '{tmp_path / 'a b'}'"
    study.write_text("prompt: 'a [@color: red|blue] circle'\n")
    with pytest.raises(TakeNotFound) as refused:
        analyze("made", workspace=tmp_path / "a b")
    assert refused.value.fix == f"wanscope generate '{study}' --output-dir '{tmp_path / 'a b'}'"


def test_every_way_to_name_a_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    takes = write_study(tmp_path, COLORS, 1)
    study = tmp_path / "studies" / "made"
    for source in (study, str(study), study / "study.yaml", tmp_path, takes):
        if str(source).endswith("yaml"):
            (study / "study.yaml").write_text("prompt: 'a [@color: red|blue] circle'\n")
        assert len(analyze(source, write=False).members) == 2
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TakeNotFound, match="did you mean 'made'"):
        analyze("mode", workspace=tmp_path)
    with pytest.raises(RequestError, match="nothing to analyze"):
        analyze([], workspace=tmp_path)


def test_takes_that_another_study_made_first_have_this_studys_names(tmp_path: Path) -> None:
    from wanscope.study.study_folder import IndexRow, StudyFolder
    from wanscope.workspace import Workspace

    space = Workspace(tmp_path)
    takes = write_study(tmp_path, {"1": ("red", "blue")}, 3)

    def analyzed(
        name: str, template: str, slots: tuple[dict[str, str], ...], edits: tuple[str, ...] = ("", ""), step: int = 1
    ) -> Analysis:
        rows = [
            IndexRow(str(i), t.id, i // 3 * step, i % 3, "complete", t.recipe.prompt, slots[i // 3], edit=edits[i // 3])
            for i, t in enumerate(takes)
        ]
        StudyFolder(space, name).record(rows)
        (tmp_path / "studies" / name / "study.yaml").write_text(f"prompt: '{template}'\n")
        return analyze(name, workspace=tmp_path, write=False)

    color = ({"color": "red"}, {"color": "blue"})
    named = analyzed("named", "a [@color: red|blue] circle", color)
    assert [(c.factor, c.a, c.b) for c in named.comparison.contrasts] == [("color", "red", "blue")]
    empty = analyzed("empty", "a [@color: red|blue] [@more: |big] circle", color, step=2)
    assert [dict(m.labels) for m in empty.members[::3]] == [
        {"color": "red", "more": ""},
        {"color": "blue", "more": ""},
    ]
    edited = analyzed("edited", "a circle", ({}, {}), ("baseline", "late"))
    assert {c.factor for c in edited.comparison.contrasts} == {"edit"}


def test_out_and_the_public_name(place: Path, tmp_path: Path) -> None:
    found = ws.analyze("made", workspace=place, out=tmp_path / "x", report=False, by="color")
    assert found.folder == tmp_path / "x"
    assert (tmp_path / "x" / "tests.csv").is_file() and not (tmp_path / "x" / "report.html").exists()


def test_takes_of_two_sizes_are_not_compared_value_by_value(tmp_path: Path) -> None:
    from wanscope.recipe import VideoSpec

    write_study(tmp_path, COLORS, 2)
    extra = write_study(
        tmp_path, {"color": ("green",)}, 1, name="other", video=VideoSpec(width=32, height=32, frames=9, fps=8)
    )
    takes = [Take.open(folder) for folder in (tmp_path / "takes").iterdir()]
    found = analyze(takes, write=False)
    assert len(found.compared) == 4
    assert any(extra[0].recipe.labels["color"] in note for note in found.notes)


def test_an_outdated_page_is_not_left_next_to_new_tables(place: Path, tmp_path: Path) -> None:
    notes: list[str] = []

    def run(**options: Any) -> None:
        notes.clear()
        analyze(
            "made",
            workspace=place,
            out=tmp_path,
            on_event=lambda event: notes.append(event.text) if isinstance(event, Note) else None,
            **options,
        )

    (tmp_path / "report.html").write_text("a user's own")
    run(report=False)
    assert (tmp_path / "report.html").read_text() == "a user's own"
    assert json.loads((tmp_path / "analysis.json").read_text())["report"] is None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "make_previews", lambda takes: [Preview("", b"", 0, 0, "none") for _ in takes])
        draw_few(patch)
        run()
    figures = tmp_path / "figures"
    (figures / "mine.png").write_bytes(b"mine")
    (tmp_path / "attention.csv").write_text("of maps that are gone")
    facts = json.loads((tmp_path / "analysis.json").read_text())
    assert "report.html" in facts["files"] and "figures/velocity.png" in facts["files"]
    facts["files"] += ["attention.csv", "../outside.txt"]
    (tmp_path / "analysis.json").write_text(json.dumps(facts))
    (tmp_path.parent / "outside.txt").write_text("not below the folder")
    run(report=False)
    (said,) = [note for note in notes if note.startswith("removed")]
    assert "attention.csv, report.html" in said and "figure files" in said
    assert not (tmp_path / "report.html").exists() and [path.name for path in figures.iterdir()] == ["mine.png"]
    assert (tmp_path.parent / "outside.txt").is_file() and (tmp_path / "tests.csv").is_file()
    assert json.loads((tmp_path / "analysis.json").read_text())["report"] is None
    run(report=False)
    assert not [note for note in notes if note.startswith("removed")]


# ---- metrics of other packages


def test_a_third_party_metric_appears_everywhere(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from wanscope.analysis import metric

    metric.all_metrics()  # the built-in metrics register themselves once and must stay
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "helpers" / "example_metric"))
    monkeypatch.setattr(metric, "REGISTRY", metric.REGISTRY)
    before = dict(metric.REGISTRY.metrics)
    try:
        found = analyze("made", workspace=place, out=tmp_path, report=False)
    finally:
        metric.REGISTRY.metrics.clear()
        metric.REGISTRY.metrics.update(before)
    values = found.table.of("example_last_step").values
    assert len(values) == 24
    first = found.members[0].take.latents[:].astype(np.float64)
    share = np.linalg.norm(first[-1] - first[-2]) / sum(np.linalg.norm(np.diff(first, axis=0).reshape(4, -1), axis=1))
    assert values[0].row.value == pytest.approx(share, rel=1e-6)
    assert any(test.metric == "example_last_step" for test in found.tests.tests)
    clips = [Preview("", b"", 0, 0, "none")] * 24
    page = render_page(found, charts(found), clips, custom_figures(found))
    assert "custom-example_last_step" in page and "Share of the last step" in page


def test_the_names_allowed_in_hypotheses_are_those_of_the_tests(place: Path) -> None:
    """Also in docs/statistics.md."""
    from wanscope.analysis.metric import REGISTRY, all_metrics
    from wanscope.spec.metric_names import OF_ATTENTION, OF_GROUPS, TESTED

    all_metrics()
    found = analyze("made", workspace=place, write=False)
    assert {test.metric for test in found.tests.tests} - set(REGISTRY.metrics) == set(OF_GROUPS)
    assert set(TESTED) <= {test.metric for test in found.tests.tests}
    page = " ".join((Path(__file__).parents[2] / "docs" / "statistics.md").read_text(encoding="utf-8").split())
    listed = page[page.index("Hypotheses can name") : page.index("and metrics from installed packages")]
    assert re.findall(r"`(\w+)`", listed) == [*TESTED, *OF_GROUPS, *OF_ATTENTION]


def test_errors_of_unusable_metrics_name_their_package() -> None:
    from wanscope.analysis.metric import Metric, Registry, Row, one

    def rows(subject: Any) -> list[Row]:
        return [1.0]  # type: ignore[list-item]

    bad = Metric("bad", "Bad", "1", "", ("path",), rows)
    with pytest.raises(RequestError, match="returned float instead of rows"):
        bad.of(None)  # type: ignore[arg-type]
    registry = Registry()
    registry.add(bad)
    other = Metric("bad", "Bad", "1", "", ("path",), one)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="two metrics are called 'bad'"):
        registry.add(other)
