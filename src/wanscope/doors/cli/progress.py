"""The progress of a running study: bars at a terminal, short lines in a file or pipe, or JSON lines.

Each is a listener (events.py) and a context manager.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Self

from wanscope import events
from wanscope.doors.cli import output

STEP_LINE_SECONDS = 30.0  # in a file, a long take reports its step this often


class Clock:
    """Count takes and steps, and estimate the time left from the time they took."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self.takes = self.ended = 0
        self.steps = self.step = 0  # of the current take: how many it has, how many are done
        self._made: list[float] = []
        self._step_seconds: list[float] = []
        self._started: float | None = None

    def __call__(self, event: events.Event) -> None:
        if isinstance(event, events.StudyStarted):
            self.takes = event.takes
        elif isinstance(event, events.TakeStarted):
            self.steps, self.step, self._step_seconds, self._started = event.steps, 0, [], self._now()
        elif isinstance(event, events.StepDone):
            self.step = event.step + 1
            self._step_seconds.append(event.seconds)
        elif isinstance(event, events.TakeDone | events.TakeSkipped | events.TakeFailed):
            self.ended += 1
            self._started = None
            if isinstance(event, events.TakeDone):
                self._made.append(event.seconds)

    def seconds_left(self) -> float | None:
        """Return the estimated seconds left, or None before any step is done.

        Until one take is done, decoding is not included.
        """
        a_step = sum(self._step_seconds) / len(self._step_seconds) if self._step_seconds else None
        if self._made:
            a_take = sum(self._made) / len(self._made)
        elif a_step is not None:
            skipped = self.step - len(self._step_seconds)  # a path may start at a later step
            a_take = a_step * (self.steps - skipped)
        else:
            return None
        waiting = max(0, self.takes - self.ended - (self._started is not None))
        if self._started is None:
            return waiting * a_take
        current = (self.steps - self.step) * a_step if a_step is not None else a_take
        if self._made:
            current = max(0.0, a_take - (self._now() - self._started))
        return waiting * a_take + current


class JsonLines(AbstractContextManager):
    """Print every event as a JSON object on its own line."""

    def __call__(self, event: events.Event) -> None:
        output.json_line(event.as_dict())

    def __exit__(self, *problem: object) -> None:
        return None


class Lines(AbstractContextManager):
    """Print one short line per event that matters."""

    def __init__(self, now: Callable[[], float] = time.monotonic, write: Callable[[str], None] = output.say) -> None:
        self.clock, self._now, self._write, self._said = Clock(now), now, write, now()
        self._prompts: dict[str, str] = {}

    def __call__(self, event: events.Event) -> None:
        self.clock(event)
        if isinstance(event, events.TakeStarted):
            self._said = self._now()
            self._prompts[event.take] = event.shown
        text = line_of(event, self._prompts)
        if isinstance(event, events.StepDone) and self._now() - self._said >= STEP_LINE_SECONDS:
            left = self.clock.seconds_left()
            text = f"step {event.step + 1} of {event.steps}" + (f", {output.seconds_text(left)} left" if left else "")
        if text:
            self._said = self._now()
            self._write(text)

    def __exit__(self, *problem: object) -> None:
        return None


def line_of(event: events.Event, prompts: dict[str, str]) -> str | None:
    """Return the event as a line, or None for one that needs none. prompts: {take: what it shows}."""
    if isinstance(event, events.Note):
        return f"note: {event.text}"
    if isinstance(event, events.ModelLoading):
        return f"loading {event.model}"
    if isinstance(event, events.ModelReady):
        return f"{event.model} is ready on {event.device}, {event.dtype} ({output.seconds_text(event.seconds)})"
    if isinstance(event, events.PromptsEncoded) and event.reused:
        encoded = f"{event.prompts} encoded" if event.prompts else "none is encoded"
        return f"texts: {event.reused} taken from the catalog, {encoded}"
    if isinstance(event, events.StudyStarted):
        done = f", {event.complete} complete already" if event.complete else ""
        return f"{event.name}: {event.takes} take{'s'[: event.takes != 1]}{done}"
    if isinstance(event, events.TakeDone | events.TakeSkipped | events.TakeFailed):
        place = f"{event.index + 1:{len(str(event.takes))}d}/{event.takes} {event.take}"
        shown = f"  {prompts[event.take]}" if event.take in prompts else ""
        if isinstance(event, events.TakeDone):
            return f"{place}  {output.seconds_text(event.seconds)}{shown}"
        if isinstance(event, events.TakeSkipped):
            # Complete ones are counted when the study starts.
            return None if event.reason == "complete" else f"{place}  skipped: {event.reason}"
        return f"{place}  FAILED: {event.error.splitlines()[0] if event.error else ''}{shown}"
    return None


class Bars(AbstractContextManager):
    """rich's progress at a terminal: a bar for the takes, one for the steps of the current take, and the time left.

    Lines about finished takes go above the bars and stay.
    """

    def __init__(self) -> None:
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

        self.clock, self._prompts = Clock(), {}
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[count]}", markup=False),
            TextColumn("{task.fields[left]}", markup=False),
            console=output.console(),
            transient=True,
        )
        empty: dict[str, Any] = {"total": None, "count": "", "left": ""}
        self._takes = self._progress.add_task("starting", **empty)
        self._steps = self._progress.add_task("", visible=False, **empty)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def __call__(self, event: events.Event) -> None:
        self.clock(event)
        clock = self.clock
        if isinstance(event, events.ModelLoading):
            self._progress.update(self._takes, description=f"loading {output.printable(event.model)}")
        elif isinstance(event, events.StudyStarted):
            self._progress.update(self._takes, description="takes", total=event.takes)
        elif isinstance(event, events.TakeStarted):
            shown = event.shown
            self._prompts[event.take] = shown
            self._progress.update(self._takes, description="takes")
            self._progress.update(
                self._steps, description=_short(shown), total=event.steps, completed=0, visible=True, count="step 0"
            )
        elif isinstance(event, events.StepDone):
            # A take that starts at a later step has its bar filled up to there.
            self._progress.update(self._steps, completed=clock.step, count=f"step {clock.step}/{event.steps}")
        line = None if isinstance(event, events.ModelLoading) else line_of(event, self._prompts)
        if line:
            self._progress.console.print(output.printable(line))
        left = clock.seconds_left()
        self._progress.update(
            self._takes,
            completed=clock.ended,
            count=f"{clock.ended}/{clock.takes}" if clock.takes else "",
            left="" if left is None else f"{output.seconds_text(left)} left",
        )


def _short(text: str, length: int = 48) -> str:
    text = output.printable(text)
    return text if len(text) <= length else text[: length - 3] + "..."


def make(json: bool) -> JsonLines | Lines | Bars:
    """Return the listener that fits stdout."""
    if json:
        return JsonLines()
    return Bars() if output.interactive(sys.stdout) else Lines()
