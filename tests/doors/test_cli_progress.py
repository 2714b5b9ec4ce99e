"""Output while a study runs: bars, lines, JSON, and the time left."""

from __future__ import annotations

import io
import json

import pytest

from wanscope import events
from wanscope.doors.cli import output, progress


def of(take: str, index: int, takes: int = 3) -> list[events.Event]:
    """Return the events of a take of four steps of two seconds."""
    return [
        events.TakeStarted(take, index, takes, f"prompt {index}", index, 4),
        *(events.StepDone(take, step, 4, 0.5, 1, 2.0) for step in range(4)),
        events.TakeDone(take, index, takes, f"takes/{take}", 10.0),
    ]


START = events.StudyStarted("mine", "studies/mine", 3, 0)
STUDY = [
    events.ModelLoading("tiny"),
    events.ModelReady("tiny", "cpu", "fp32", 1.5),
    events.Note("something\x1b[31m"),
    START,
    *of("a", 0),
    events.TakeFailed("b", 1, 3, "NaN after step 2\nand more"),
    events.TakeSkipped("c", 2, 3, "takes/c", "complete"),
    events.StudyDone("mine", "studies/mine", 1, 1, 1, 20.0),
]


class Time:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_clock_has_no_estimate_at_first() -> None:
    clock = progress.Clock(Time())
    assert clock.seconds_left() is None
    clock(START)
    clock(of("a", 0)[0])
    assert clock.seconds_left() is None


def test_the_clock_counts_steps_until_a_take_is_done() -> None:
    time = Time()
    clock = progress.Clock(time)
    clock(START)
    started, first, *_ = of("a", 0)
    clock(started)
    clock(first)
    assert clock.seconds_left() == 3 * 2.0 + 2 * 8.0
    for event in of("a", 0)[2:]:
        clock(event)
    assert clock.seconds_left() == 2 * 10.0
    clock(of("b", 1)[0])
    time.now = 4.0
    assert clock.seconds_left() == 6.0 + 10.0
    time.now = 400.0
    assert clock.seconds_left() == 10.0
    clock(events.TakeSkipped("b", 1, 3, "", "complete"))
    clock(events.TakeFailed("c", 2, 3, "x"))
    assert clock.seconds_left() == 0


def test_a_path_that_starts_later_has_fewer_steps() -> None:
    clock = progress.Clock(Time())
    clock(events.StudyStarted("x", "x", 2, 0))
    clock(events.TakeStarted("a", 0, 2, "p", 0, 10))
    clock(events.StepDone("a", 6, 10, 0.5, 1, 2.0))
    assert clock.step == 7
    assert clock.seconds_left() == 3 * 2.0 + 4 * 2.0


def test_lines_are_short_and_plain() -> None:
    lines: list[str] = []
    with progress.Lines(Time(), lines.append) as listener:
        for event in STUDY:
            listener(event)
    assert lines == [
        "loading tiny",
        "tiny is ready on cpu, fp32 (1.5 s)",
        "note: something\x1b[31m",
        "mine: 3 takes",
        "1/3 a  10 s  prompt 0, seed 0",
        "2/3 b  FAILED: NaN after step 2",
    ]


def test_a_long_take_reports_its_progress() -> None:
    time, lines = Time(), []
    listener = progress.Lines(time, lines.append)
    for event in [START, *of("a", 0)[:-1]]:
        listener(event)
        time.now += 20
    assert [line for line in lines if "step" in line] == ["step 2 of 4, 20 s left", "step 4 of 4, 16 s left"]


def test_json_lines_are_the_events(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.JsonLines() as listener:
        for event in STUDY:
            listener(event)
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [e.as_dict() for e in STUDY]


def test_bars_show_takes_steps_and_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    screen = Console(file=io.StringIO(), force_terminal=True, width=120, markup=False, highlight=False, emoji=False)
    monkeypatch.setattr(output, "console", lambda: screen)
    with progress.Bars() as listener:
        for event in STUDY[:-3]:
            listener(event)
            listener._progress.refresh()
        shown = "".join(s.text for s in screen.render(listener._progress.get_renderable()))
    assert "1/3" in shown and "step 4/4" in shown and "20 s left" in shown and "prompt 0, seed 0" in shown
    text = screen.file.getvalue()  # type: ignore[attr-defined]
    assert "\\x1b[31m" in text  # a control character in a note is escaped
    assert "1/3 a  10 s  prompt 0, seed 0" in text


def test_the_listener_matches_the_output(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(progress.make(json=True), progress.JsonLines)
    monkeypatch.setattr(output, "interactive", lambda stream=None: False)
    assert isinstance(progress.make(json=False), progress.Lines)
    monkeypatch.setattr(output, "interactive", lambda stream=None: True)
    assert isinstance(progress.make(json=False), progress.Bars)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.00 s"),
        (0.001, "under 0.01 s"),
        (0.02, "0.02 s"),
        (3.44, "3.4 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (125, "2 min 05 s"),
        (4320, "1 h 12 min"),
        (86400 * 3 + 3600 * 4, "3 d 04 h"),
    ],
)
def test_seconds_text(seconds: float, text: str) -> None:
    assert output.seconds_text(seconds) == text
