"""Progress events. The core emits them and the user interfaces listen to them; the core never prints.

Times are seconds, sizes bytes. Every event is a frozen dataclass, and `as_dict` makes it a line of JSON.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Event:
    """Base of all events."""

    def as_dict(self) -> dict[str, Any]:
        """Return the event as plain data, with its class name under `event`."""
        return {"event": type(self).__name__, **dataclasses.asdict(self)}


@dataclass(frozen=True)
class Note(Event):
    """Something that the user should know and that is not an error, such as a download's size and destination."""

    text: str


@dataclass(frozen=True)
class ModelLoading(Event):
    """A model is about to be loaded. model: as the user wrote it."""

    model: str


@dataclass(frozen=True)
class ModelReady(Event):
    """A model is loaded. model: the variant's name. seconds: of loading."""

    model: str
    device: str
    dtype: str
    seconds: float


@dataclass(frozen=True)
class PromptsEncoded(Event):
    """All prompts of a study are encoded.

    reused: how many texts were not encoded again because their embeddings were in the catalog.
    """

    prompts: int
    seconds: float
    reused: int = 0


@dataclass(frozen=True)
class StudyStarted(Event):
    """A run begins. folder: the study's, or that of the takes. takes: how many in all; complete: those already made."""

    name: str
    folder: str
    takes: int
    complete: int


@dataclass(frozen=True)
class TakeStarted(Event):
    """A take begins.

    edit: the name that the study gives to the take's edits, including `baseline`; "" where it has none.
    """

    take: str
    index: int
    takes: int
    prompt: str
    seed: int
    steps: int
    edit: str = ""

    @property
    def shown(self) -> str:
        """A description of the take in one line, such as `a red circle, late, seed 0`."""
        return ", ".join(filter(None, (self.prompt, self.edit, f"seed {self.seed}")))


@dataclass(frozen=True)
class StepDone(Event):
    """One step of the schedule, which may take several model evaluations."""

    take: str
    step: int
    steps: int
    sigma: float
    evaluations: int
    seconds: float
    device_bytes: int | None = None


@dataclass(frozen=True)
class TakeDone(Event):
    """A take is finished and in its folder. index: its position among `takes`, from 0."""

    take: str
    index: int
    takes: int
    folder: str
    seconds: float


@dataclass(frozen=True)
class TakeSkipped(Event):
    """The take was already complete, or another process is making it."""

    take: str
    index: int
    takes: int
    folder: str
    reason: str


@dataclass(frozen=True)
class TakeFailed(Event):
    """A take could not be made; the run continues with the next one."""

    take: str
    index: int
    takes: int
    error: str


@dataclass(frozen=True)
class StudyDone(Event):
    """A run has ended. made, skipped, failed: numbers of takes."""

    name: str
    folder: str
    made: int
    skipped: int
    failed: int
    seconds: float


Listener = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Do nothing with an event."""
