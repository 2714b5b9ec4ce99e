"""Studies small enough for tests: a tiny random model, 32 x 32 pixels, 5 frames, 3 steps."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from helpers.tiny import tiny_model
from wanscope.events import Event
from wanscope.wan.model import WanModel

STUDY: dict[str, Any] = {
    "name": "small",
    "prompt": "a [@color: red|blue] (circle)",
    "negative": "",
    "seeds": 2,
    "video": {"width": 32, "height": 32, "frames": 5, "fps": 8},
    "sampler": {"steps": 3},
}


@lru_cache(maxsize=1)
def model() -> WanModel:
    return tiny_model("2.1", blocks=2, heads=2)


class Events(list[Event]):
    """Collects the events of a run; `of(kind)` returns those of one kind."""

    def __call__(self, event: Event) -> None:
        self.append(event)

    def of(self, kind: type) -> list[Any]:
        return [event for event in self if isinstance(event, kind)]
