"""Makes the plan of a run's edits from its settings: which steps, evaluations and passes it will run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from wanscope.edit.edits import Edit
from wanscope.edit.encoded_texts import DonorTexts
from wanscope.edit.plan import EditPlan, make_plan
from wanscope.edit.planned import Passes, PlannedEdit
from wanscope.recipe import SamplerSpec
from wanscope.sample.guidance import Guidance
from wanscope.sample.solvers import make_solver

if TYPE_CHECKING:
    from wanscope.edit.direction import Direction
    from wanscope.wan.model import Size, WanModel


def passes_of(model: WanModel, sampler: SamplerSpec) -> Passes:
    """Return the model calls that `denoise` makes with a resolved sampler."""
    solver = make_solver(sampler, model.scheduler_config, model.device)
    guidance = Guidance(sampler, solver.sigmas)
    steps = range(len(solver.evaluations))
    guided = tuple(
        frozenset(step for step in steps if guidance.scale(step, expert) is not None)
        for expert in range(len(model.experts()))
    )
    return Passes(tuple(solver.sigmas[:-1]), tuple(solver.evaluations), guided, sampler.start_step)


def grid_of(model: WanModel, video: Size) -> tuple[int, int, int]:
    """Return the size of a video in tokens: frames, rows, columns."""
    _, *sizes = model.latent_shape(video)
    frames, rows, columns = (-(-size // patch) for size, patch in zip(sizes, model.variant.patch, strict=True))
    return frames, rows, columns


def edit_plan(model: WanModel, edits: Sequence[Edit], texts: DonorTexts, sampler: SamplerSpec, video: Size) -> EditPlan:
    """Return the plan of a run's edits on a loaded model. Its notes include those that need the model's weights.

    Raises RecipeError, which names the edit, for an edit that cannot work.
    """
    plan = make_plan(
        edits,
        texts,
        passes_of(model, sampler),
        blocks=model.blocks,
        heads=model.variant.heads,
        grid=grid_of(model, video),
        directions=_directions(model, edits),
    )
    notes = [f"edits.{edit.index}: {text}" for edit in plan.edits if edit.acts for text in _model_notes(model, edit)]
    return replace(plan, notes=tuple(dict.fromkeys((*plan.notes, *notes))))


def _model_notes(model: WanModel, edit: PlannedEdit) -> Iterator[str]:
    """Yield a note if a direction was learned from other weights, and how far a boost moves the donor's context."""
    from wanscope.edit.direction import Direction, weights_behind

    if isinstance(edit.direction, Direction):
        note = edit.direction.weights_mismatch_note(weights_behind(model.identity, model.loras))
        if note:
            yield note
    from wanscope.runtime.projection import Projection

    experts = len(model.experts())
    for branch, table_SL in edit.tables.items():
        text = edit.donor.get(branch)
        if text is None or text.boost is None or not table_SL.any():
            continue
        projection = Projection(
            model.experts(), text.real
        )  # tokens are projected independently, so padding is not needed
        for expert in range(experts):
            names = [f"expert {expert}"] * (experts > 1) + ["uncond"] * (branch == "uncond")
            where = f" ({', '.join(names)})" if names else ""
            yield projection.boosted(expert, text).describe() + where


def _directions(model: WanModel, edits: Sequence[Edit]) -> Mapping[str, Direction]:
    found: dict[str, Direction] = {}
    for i, edit in enumerate(edits):
        if (name := edit.stored_direction()) is not None:
            from wanscope.edit.direction import read_direction

            direction = read_direction(name)
            direction.require_model(len(model.experts()), model.blocks, model.variant.dim, f"edits.{i}")
            found[getattr(edit, "sha256", None) or ""] = direction
    return found
