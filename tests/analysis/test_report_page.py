"""The report's page as a browser parses it: texts that look like HTML, stills, missing clips, links, its template."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pytest

from helpers.paths import write_study
from wanscope.analysis import report
from wanscope.analysis.analyze import analyze
from wanscope.analysis.charts import charts
from wanscope.analysis.collection import LeftOut
from wanscope.analysis.preview import Preview
from wanscope.analysis.report import render_page
from wanscope.analysis.test_result import Test

HOSTILE = """</pre></script>"'><script>alert("1")</script><img src=x onerror='alert(2)'> {{ 7 * 7 }} &amp;"""
NO_CLIP = Preview("", b"", 0, 0, "none")


class Page(HTMLParser):
    """Elements with their attributes, and the text of each."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.inside = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.inside = tag

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        self.texts.append((self.inside, data))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def said(self, tag: str) -> list[str]:
        return [text for name, text in self.texts if name == tag]


def test_texts_that_look_like_html_are_shown_and_never_run(tmp_path: Path) -> None:
    """In a prompt, a value, a clip's note, a name, a hypothesis, a damaged take and the study file."""
    write_study(tmp_path, {"x": (HOSTILE, "b")}, 2)
    path = tmp_path / "studies" / "made" / "study.yaml"
    claim = {"text": HOSTILE, "metric": "linearity", "contrast": [HOSTILE, "b"]}
    path.write_text(json.dumps({"prompt": "a [@x: a|b] circle", "design": {"factor": "x", "hypotheses": [claim]}}))
    os.utime(path, (1_800_000_000, 1_800_000_000))  # after the takes: the hypothesis is named in the summary
    found = analyze("made", workspace=tmp_path, report=False)
    assert "<script>" in found.summary
    collection = replace(found.collection, name=HOSTILE, left_out=(LeftOut(HOSTILE, HOSTILE),))
    clips = [Preview("video/mp4", b"x", 64, 48, HOSTILE)] * 2 + [Preview("image/webp", b"x", 64, 48), NO_CLIP]
    text = render_page(replace(found, collection=collection), charts(found), clips)
    page = Page(text)
    assert [a.get("type") for a in page.all("script")] == [None, "application/json", None]
    assert not [a for _, a in page.elements for name in a if name.startswith("on")]
    assert {a["src"].partition(";")[0] for _, a in page.elements if a.get("src")} == {  # type: ignore[union-attr]
        "data:video/mp4",
        "data:image/webp",
    }
    # and their text is complete
    assert page.said("title") == [f"Study {HOSTILE}"] and f"Study {HOSTILE}" in page.said("h1")
    prompt = f"a {HOSTILE} circle"
    label = f"{found.members[0].name}: {prompt}, seed 0"
    video, image = page.all("video"), page.all("img")
    assert video[0]["title"] == video[0]["aria-label"] == label
    assert len(image) == 1 and image[0]["alt"] == f"{found.members[2].name}: a b circle, seed 0"
    assert HOSTILE in page.said("th") and prompt in page.said("td")
    assert f"b minus {HOSTILE}" in page.said("td") or f"{HOSTILE} minus b" in page.said("td")
    assert f"{HOSTILE}: {HOSTILE}" in page.said("li")
    assert any("hypothesis" in line and "alert" in line for line in page.said("p") + page.said("li"))
    assert page.said("pre") == [path.read_text()]
    figures = json.loads(page.said("script")[1])
    assert set(figures) == {a["data-chart"] for a in page.all("div") if "data-chart" in a}


def test_a_still_and_a_missing_clip_say_why(tmp_path: Path) -> None:
    write_study(tmp_path, {"color": ("red", "blue")}, 1)
    found = analyze("made", workspace=tmp_path, report=False)
    page = Page(render_page(found, [], [Preview("image/webp", b"x", 300, 20, "a still"), NO_CLIP]))
    assert [(a["width"], a["src"]) for a in page.all("img")] == [("300", "data:image/webp;base64,eA==")]
    assert "a still" in page.said("div") and "blue_seed00: none" in page.said("p")
    assert not page.all("video")


def test_every_link_of_the_page_leads_to_a_section(tmp_path: Path) -> None:
    def larger_blue(labels: Mapping[str, str], states: np.ndarray) -> np.ndarray:
        return states[:1] + (1.3 if labels["color"] == "blue" else 1.0) * (states - states[:1])

    write_study(tmp_path, {"color": ("red", "blue")}, 3, larger_blue)
    found = analyze("made", workspace=tmp_path, report=False)
    page = Page(render_page(found, charts(found), [NO_CLIP] * 6))
    assert [a["href"] for a in page.all("a")] == [f"#{a['id']}" for a in page.all("section")]
    titles = page.said("h2")
    assert page.said("a") == titles
    assert titles[:4] == ["What was found", "Summary", "Videos", "Tests"]
    assert titles[-2:] == ["How to repeat this", "Definitions"]


def test_a_missing_template_value_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not leave a gap on the page."""
    write_study(tmp_path, {"color": ("red", "blue")}, 1)
    found = analyze("made", workspace=tmp_path, report=False)
    monkeypatch.setattr(report, "_tests", lambda results: {"results": results})
    with pytest.raises(jinja2.UndefinedError, match="families"):
        render_page(found, [], [NO_CLIP] * 2)


def test_identical_takes_are_reported_as_no_difference() -> None:
    """PERMANOVA's R2 is undefined if the takes of every pair are identical; the table must not show "+nan R2"."""
    blank: dict[str, Any] = dict.fromkeys(Test.__annotations__)
    texts = {"kind": "group", "title": "Latents", "a": "a", "b": "b", "part": "", "measure": "R2", "note": ""}
    test = Test(**{**blank, **texts, "difference": float("nan"), "p": 1.0, "units": 3})
    assert report._row(test)["numbers"][0] == "no difference"
    assert report._row(replace(test, difference=0.5))["numbers"][0] == "+0.5 R2"
