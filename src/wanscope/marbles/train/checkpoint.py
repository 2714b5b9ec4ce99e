"""The state of a training in one file, written atomically, so that a run resumes where it was stopped."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from wanscope.marbles.train.optim import Average


class Checkpoint:
    """Weights, their average, the optimizer, the step and the seconds spent, in the file `path`.

    resume() restores all of it; due() says after which steps to save(). `part` is the key of the weights in the file.
    """

    def __init__(
        self, path: Path, model: nn.Module, average: Average, optimizer: torch.optim.Optimizer, part: str = "model"
    ) -> None:
        self.path, self.model, self.average, self.optimizer, self.part = path, model, average, optimizer, part
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """The time spent on this training, in all its runs."""
        return time.monotonic() - self._began

    def resume(self, device: str) -> int:
        """Restore the state and return the next step; where there is no file, change nothing and return 0."""
        self._began = time.monotonic()
        if not self.path.exists():
            return 0
        saved: dict[str, Any] = torch.load(self.path, map_location=device, weights_only=True)
        self.model.load_state_dict(saved[self.part])
        self.average.model.load_state_dict(saved["average"])
        self.average.count = saved["count"]
        self.optimizer.load_state_dict(saved["optimiser"])  # the key's spelling is that of existing checkpoints
        self._began -= saved["seconds"]
        return saved["step"]

    @staticmethod
    def due(step: int, steps: int, every: int) -> bool:
        """Return whether to save after `step`: every `every` steps, and after the last of `steps`."""
        return (step + 1) % every == 0 or step == steps - 1

    def save(self, step: int) -> None:
        """Save the state after `step`."""
        state = {
            self.part: self.model.state_dict(),
            "average": self.average.model.state_dict(),
            "count": self.average.count,
            "optimiser": self.optimizer.state_dict(),
            "step": step + 1,
            "seconds": self.seconds,
        }
        temporary = self.path.with_suffix(".tmp")
        torch.save(state, temporary)
        temporary.replace(self.path)
