"""`expand`, `models`, `doctor` and `validate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from wanscope.doors.cli import output
from wanscope.prompt.template import expand
from wanscope.wan.doctor import Check
from wanscope.wan.variants import VARIANTS

TEMPLATE = "a [red|blue] (ball:1.5) moves [@way: left|(right)] @way"
HUGE = "[a|b]" * 300


def test_expand_shows_prompts_slots_and_marks(cli) -> None:
    ran = cli("expand", TEMPLATE)
    assert ran.status == 0
    lines = ran.out.splitlines()
    assert lines[0] == "4 variations"
    assert lines[1:4] == [
        "0  a red ball moves left left",
        "     slots: 1 = 'red', way = 'left'",
        "     marked: 'ball' weight 1.5",
    ]
    assert "     marked: 'ball' weight 1.5, 'right', 'right'" in lines
    assert cli("expand", "a ball").out == "1 variation\n0  a ball\n"


def test_expand_as_json_is_one_document(cli) -> None:
    shown = json.loads(cli("expand", TEMPLATE, "--json").out)
    assert shown["count"] == 4 and [slot["name"] for slot in shown["slots"]] == ["1", "way"]
    for got, variation in zip(shown["variations"], expand(TEMPLATE), strict=True):
        assert (got["prompt"], got["bindings"]) == (variation.text, variation.bindings)
        assert [(m["text"], m["weight"], m["start"]) for m in got["marks"]] == [
            (m.text, m.weight, m.start) for m in variation.marks
        ]
    assert len(json.loads(cli("expand", TEMPLATE, "--json", "--limit", 3).out)["variations"]) == 3


def test_a_template_of_any_size_can_be_looked_at(cli, monkeypatch) -> None:
    ran = cli("expand", HUGE, "--limit", 2)
    assert ran.status == 0 and ran.out.startswith("about 10^90 variations\n") and "more (--limit" in ran.out
    assert json.loads(cli("expand", HUGE, "--json", "-l", 1).out)["count"] == 2**300
    monkeypatch.setattr(output, "interactive", lambda stream=None: True)
    assert cli("expand", HUGE).out.count("\n") == 2 + 2 * 100


def test_a_wrong_template_shows_where(cli) -> None:
    ran = cli("expand", "a [red|blue")
    assert (ran.status, ran.out) == (2, "")
    template, caret = ran.err.splitlines()[1:3]
    assert template[caret.index("^")] == "["


def test_models_lists_every_variant(cli) -> None:
    ran = cli("models")
    assert ran.status == 0
    lines = {line.split()[0]: line for line in ran.out.splitlines() if line}
    assert set(VARIANTS) <= set(lines)
    # 1.4 and 14.3 billion, as published; bf16 is two bytes each
    assert "1.4 B" in lines["wan2.1-t2v-1.3b"] and "2.8 GB" in lines["wan2.1-t2v-1.3b"]
    assert "2 x 14.3 B" in lines["wan2.2-t2v-a14b"] and "57.2 GB" in lines["wan2.2-t2v-a14b"]
    listed = {row["name"]: row for row in json.loads(cli("models", "--json").out)}
    assert list(listed) == list(VARIANTS)
    assert listed["wan2.1-t2v-14b"]["hub_id"] == "Wan-AI/Wan2.1-T2V-14B-Diffusers"


@pytest.mark.parametrize(
    ("status", "exit_status", "said"),
    [("ok", 0, "All is well"), ("warn", 0, "1 to keep in mind"), ("fail", 1, "1 of 2 checks failed: disk")],
)
def test_doctor(cli, monkeypatch, tmp_path: Path, status: Any, exit_status: int, said: str) -> None:
    checks = [Check("Python", "ok", "3.11"), Check("disk", status, "12 bytes", "buy one" if status != "ok" else "")]
    asked: list[Path] = []
    monkeypatch.setattr("wanscope.wan.doctor.diagnose", lambda folder: asked.append(folder) or checks)
    ran = cli("doctor", "-o", tmp_path)
    assert ran.status == exit_status and said in ran.out and asked == [tmp_path]
    assert ("do: buy one" in ran.out) is (status != "ok")
    ran = cli("doctor", "--json")
    assert ran.status == exit_status
    assert json.loads(ran.out) == {"ok": status != "fail", "checks": [check.as_dict() for check in checks]}


def test_doctor_runs_here(cli, tmp_path: Path) -> None:
    ran = cli("doctor", "-o", tmp_path)
    assert ran.status in (0, 1)
    for name in ("Python", "torch", "memory", "marbles", "video"):
        assert name in ran.out


def report(passed: bool) -> dict[str, Any]:
    row = {"part": "readers", "what": "color", "value": 0.99, "count": 40, "low": 0.9, "high": 1.0, "bound": 0.995}
    return {
        "passed": passed,
        "rows": [{**row, "passed": passed}],
        "wrong": [],
        "model": {},
        "device": "cpu",
        "machine": "x",
        "seconds": 3.0,
    }


@pytest.mark.parametrize("passed", [True, False])
def test_validate(cli, monkeypatch, tmp_path: Path, passed: bool) -> None:
    asked: list[int] = []

    def validate(pairs: int, *, tell: Any) -> dict[str, Any]:
        asked.append(pairs)
        tell("half done")
        return report(passed)

    monkeypatch.setattr("wanscope.marbles.validate.model.validate", validate)
    ran = cli("validate", "marbles", "--pairs", 7, "--out", tmp_path / "new" / "report.json")
    assert ran.status == (0 if passed else 1) and asked == [7]
    assert "half done" in ran.out and ("Every bound is met" if passed else "1 bound") in ran.out
    assert json.loads((tmp_path / "new" / "report.json").read_text())["passed"] is passed
    assert (tmp_path / "new" / "report.md").is_file()
    ran = cli("validate", "marbles", "--json")
    assert json.loads(ran.out) == report(passed) and asked == [7, 200]


def test_validate_refuses(cli, tmp_path: Path) -> None:
    assert "marbles" in cli("validate", "marble").err
    assert cli("validate", "marble").status == 2
    assert cli("validate", "marbles", "--out", tmp_path / "report.txt").status == 2
    (tmp_path / "file").write_text("")
    ran = cli("validate", "marbles", "--out", tmp_path / "file" / "report.json")
    assert ran.status == 2 and "is not a folder" in ran.err and "--output-dir" in ran.err
