"""A training's state in one file, whole or not there, so that a run goes on where it was stopped."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from wanscope.marbles.train.optim import Average


class Checkpoint:
    """Weights, their average, the optimiser, the step and the seconds spent, in `path`.

    resume() puts all of it back; due() says after which steps to save(). `part` is the weights' key in the file.
    """

    def __init__(
        self, path: Path, model: nn.Module, average: Average, optimiser: torch.optim.Optimizer, part: str = "model"
    ) -> None:
        self.path, self.model, self.average, self.optimiser, self.part = path, model, average, optimiser, part
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Spent on this training, in all its runs."""
        return time.monotonic() - self._began

    def resume(self, device: str) -> int:
        """The step to go on with: 0, with nothing changed, where there is no file."""
        self._began = time.monotonic()
        if not self.path.exists():
            return 0
        saved: dict[str, Any] = torch.load(self.path, map_location=device, weights_only=True)
        self.model.load_state_dict(saved[self.part])
        self.average.model.load_state_dict(saved["average"])
        self.average.count = saved["count"]
        self.optimiser.load_state_dict(saved["optimiser"])
        self._began -= saved["seconds"]
        return saved["step"]

    @staticmethod
    def due(step: int, steps: int, every: int) -> bool:
        return (step + 1) % every == 0 or step == steps - 1

    def save(self, step: int) -> None:
        """After `step` was made."""
        state = {
            self.part: self.model.state_dict(),
            "average": self.average.model.state_dict(),
            "count": self.average.count,
            "optimiser": self.optimiser.state_dict(),
            "step": step + 1,
            "seconds": self.seconds,
        }
        beside = self.path.with_suffix(".tmp")
        torch.save(state, beside)
        beside.replace(self.path)
