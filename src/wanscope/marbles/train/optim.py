"""Optimizer, weight average and learning-rate schedule, shared by the three trainings."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn


def _orthogonalized(matrices_NOI: torch.Tensor, iterations: int = 5) -> torch.Tensor:
    """Return approximately the nearest semi-orthogonal matrices, [N, out, in].

    The method is the quintic Newton-Schulz iteration of Muon (Jordan et al., 2024), in bfloat16, which it tolerates
    because singular values only need to be near one.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices_NOI / (matrices_NOI.norm(dim=(1, 2), keepdim=True) + 1e-7)
    transposed = x.shape[1] > x.shape[2]
    x = (x.mT if transposed else x).bfloat16()
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    x = x.to(matrices_NOI.dtype)
    return x.mT if transposed else x


class Muon(torch.optim.Optimizer):
    """Muon on weight matrices (convolutions flattened to [out, in * kernel]), AdamW on everything else.

    `lr` is Muon's; AdamW uses `lr * adam_ratio`. Learning rates are comparable across matrix shapes.
    """

    def __init__(self, model: nn.Module, lr: float, adam_ratio: float = 0.1, momentum: float = 0.95) -> None:
        matrices, others = [], []
        for name, p in model.named_parameters():
            if not p.requires_grad:
                continue
            plain = p.ndim >= 2 and min(p.shape[0], p[0].numel()) >= 8 and "embed" not in name and "shared" not in name
            (matrices if plain else others).append(p)
        groups = [{"params": matrices, "kind": "muon"}, {"params": others, "kind": "adam"}]
        super().__init__(groups, {"lr": lr, "momentum": momentum, "adam_ratio": adam_ratio})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            if group["kind"] == "muon":
                self._muon(group)
                continue
            for p in group["params"]:
                if p.grad is not None:
                    self._adam(p, self.state[p], group)

    def _muon(self, group: dict) -> None:
        updates: dict[tuple[int, ...], list[tuple[torch.Tensor, torch.Tensor]]] = {}
        for p in group["params"]:
            if p.grad is None:
                continue
            buffer = self.state[p].setdefault("momentum", torch.zeros_like(p))
            buffer.lerp_(p.grad, 1 - group["momentum"])
            update = p.grad.lerp(buffer, group["momentum"]).reshape(p.shape[0], -1)
            updates.setdefault(tuple(update.shape), []).append((p, update))
        for (rows, columns), pairs in updates.items():  # all matrices of a shape together: one by one is slow
            scale = max(1.0, rows / columns) ** 0.5
            for (p, _), update in zip(pairs, _orthogonalized(torch.stack([u for _, u in pairs])), strict=True):
                p.mul_(1 - group["lr"] * 0.01)
                p.add_(update.reshape(p.shape), alpha=-group["lr"] * scale)

    @staticmethod
    def _adam(p: torch.Tensor, state: dict, group: dict) -> None:
        assert p.grad is not None
        mean = state.setdefault("mean", torch.zeros_like(p))
        square = state.setdefault("square", torch.zeros_like(p))
        state["count"] = count = state.get("count", 0) + 1
        mean.lerp_(p.grad, 0.1)
        square.lerp_(p.grad.square(), 0.01)
        step = (mean / (1 - 0.9**count)) / ((square / (1 - 0.99**count)).sqrt() + 1e-8)
        p.add_(step, alpha=-group["lr"] * group["adam_ratio"])


class Average:
    """An exponential moving average of a model's weights, warmed up so that early weights are forgotten."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model: Any = copy.deepcopy(model).requires_grad_(False).eval()
        self.decay = decay
        self.count = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        self.count += 1
        decay = min(self.decay, (1 + self.count) / (10 + self.count))
        for mine, theirs in zip(self.model.parameters(), model.parameters(), strict=True):
            mine.lerp_(theirs, 1 - decay)


def set_lr(optimizer: torch.optim.Optimizer, lr: float, step: int, warmup: int, total: int, decay: int) -> None:
    """Set the learning rate: linear warm-up, constant, then linear to 2% over the last `decay` steps.

    The constant part lets a run be extended at any time.
    """
    factor = min(1.0, (step + 1) / warmup, max(0.02, (total - step) / max(1, decay)))
    for group in optimizer.param_groups:
        group["lr"] = lr * factor


def count_parameters(parameters: Iterable[nn.Parameter]) -> int:
    """Return the total number of values of parameters of any shape."""
    return sum(p.numel() for p in parameters)
