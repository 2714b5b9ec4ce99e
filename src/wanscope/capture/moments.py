"""What the sampling loop reports to its observers. Capture, runtime and doors build on these types.

Shape suffixes: C latent channels, T latent frames, h and w latent height and width.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wanscope.spec.branch import Branch

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Moment:
    """Identifies one model call.

    step: index in the whole schedule, from 0. evaluation: index within the step, from 0. branches: those in the batch,
    in their order; two only where guidance is batched. expert: 0, or 1 for the low-noise expert of Wan 2.2.
    sigma: the noise level of this evaluation.
    """

    step: int
    steps: int
    evaluation: int
    branches: tuple[Branch, ...]
    expert: int
    sigma: float


# Called before every model call; the call runs inside the context manager that it returns.
AroundCall = Callable[[Moment], AbstractContextManager[Any]]


@dataclass(frozen=True, slots=True)
class StepState:
    """One finished step of the schedule, reported once however many model evaluations it took.

    The tensors belong to the loop: read or copy them, never write.

    step: index in the whole schedule, from 0 (a run with start_step k begins at k). sigma: where the step began;
    sigma_next: where it ended, the noise level of `latents`. latents: float32 [1, C, T, h, w], after the step.
    denoised: the clean latents [1, C, T, h, w] that the step's first evaluation predicts, x - sigma * velocity, guided.
    evaluations: model evaluations in this step (a guided one runs two branches and counts once). seconds: wall time.
    """

    step: int
    steps: int
    sigma: float
    sigma_next: float
    latents: Tensor
    denoised: Tensor | None
    evaluations: int
    seconds: float


class Observer:
    """Base class of observers of a run. Both methods do nothing here; override what is needed."""

    def start(self, latents: Tensor, sigmas: tuple[float, ...]) -> None:
        """Called before the first step, with the float32 latents [1, C, T, h, w] it starts from, at `sigmas[0]`.

        sigmas: the noise levels of all states of this run: the k-th `step` after this one ends at `sigmas[k]`.
        """

    def step(self, state: StepState) -> None:
        """Called after each step."""
