"""What is recorded while a take is made: applied edits, latents, predicted clean latents, attention maps."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wanscope.capture.attention_sink import AttentionSink, Kept
from wanscope.capture.latents import CleanObserver, LatentsObserver
from wanscope.capture.moments import AroundCall, Observer
from wanscope.edit.plan import EditPlan
from wanscope.recipe import Recipe
from wanscope.runtime.diffusers.recorder import AttentionRecorder
from wanscope.runtime.diffusers.self_recorder import SelfAttentionRecorder
from wanscope.runtime.diffusers.session import attach
from wanscope.study.attention_capture import attention_plan, self_attention_plan
from wanscope.take.applied_edits import Counts, applied_edits
from wanscope.take.manifest import StoredAttention, StoredLatents
from wanscope.take.store import LATENTS, X0

if TYPE_CHECKING:
    from wanscope.wan.model import WanModel

SCRATCH = "path.scratch"


class Records:
    """The records that a recipe asks for, written below `folder` during the run; `stack` closes their files."""

    def __init__(self, recipe: Recipe, model: WanModel, folder: Path, stack: contextlib.ExitStack) -> None:
        capture = recipe.capture
        self.recipe, self.model = recipe, model
        self.applied: tuple[Counts, Counts] = ({}, {})
        self.plan: EditPlan | None = None
        self.latents = self.clean = self.sink = self.self_sink = None
        if capture.latents is not None:
            self.latents = LatentsObserver(folder / LATENTS, folder / SCRATCH, capture.latents)
            stack.callback(self.latents.close)
        if capture.x0 is not None:
            self.clean = CleanObserver(folder / X0, capture.x0)
        plan = attention_plan(recipe, model.variant, model.tokenizer, model.text_length)
        if plan is not None:
            self.sink = AttentionSink(plan, folder, capture.reduce)
            stack.callback(self.sink.close)
        itself = self_attention_plan(recipe, model.variant)
        if itself is not None:
            self.self_sink = AttentionSink(itself, folder, capture.reduce)
            stack.callback(self.self_sink.close)

    @property
    def observers(self) -> tuple[Observer, ...]:
        """The observers of the sampling loop, for latents and for predicted clean latents."""
        return tuple(observer for observer in (self.latents, self.clean) if observer is not None)

    @contextlib.contextmanager
    def attached(self, plan: EditPlan | None = None) -> Iterator[AroundCall | None]:
        """Attach edits and recorders to the model inside the `with` block.

        Yields the context manager that the loop wraps around each call of the model, or None where there is nothing to
        attach. Raises EditNotApplied at the end of a run in which an edit was not applied as planned.
        """
        recorder = itself = None
        self.plan = plan
        if self.sink is not None:
            recorder = AttentionRecorder(self.sink, self.model.device, self.model.dtype)
        if self.self_sink is not None:
            itself = SelfAttentionRecorder(self.self_sink, self.model.device)
        if plan is None or (plan.empty and recorder is None and itself is None):
            yield None
            return
        with attach(self.model, plan, recorder, self_capture=itself) as session:
            yield session.around_call
        session.verify()
        self.applied = session.planned(), session.counts()

    def finish(self) -> dict[str, Any]:
        """Finish all records and return the fields of take.json that describe them."""
        out: dict[str, Any] = {}
        if self.recipe.edits:
            notes = (self.plan.notes_on,) if self.plan is not None else ()
            out["applied_edits"] = applied_edits(self.recipe.edits, *self.applied, *notes)
        if self.latents is not None:
            spec = self.latents.spec
            out["latents"] = StoredLatents(dtype=spec.dtype, every=spec.every, states=self.latents.states)
            out["gram"] = tuple(tuple(row) for row in self.latents.gram().tolist())
        if self.clean is not None:
            spec = self.clean.spec
            out["x0"] = StoredLatents(dtype=spec.dtype, every=spec.every, states=self.clean.steps)
        if self.sink is not None:
            stored = _stored(self.sink.finish())
            out |= {} if stored is None else {"attention": stored}
        if self.self_sink is not None:
            stored = _stored(self.self_sink.finish())
            out |= {} if stored is None else {"self_attention": stored}
        return out


def _stored(kept: Kept) -> StoredAttention | None:
    plan, keep = kept.plan, kept.plan.spec.keep
    if keep == "nothing":
        return None
    words = tuple(row.name for row in plan.rows if row.kind in ("word", "position"))
    first = 1 if keep == "mean" else len(kept.evaluations)
    return StoredAttention(
        measures=plan.spec.measures,
        words=words or tuple(row.name for row in plan.rows if row.kind == "token"),
        rows=len(plan.rows),
        blocks=len(plan.blocks),
        evaluations=len(kept.evaluations),
        keep=keep,
        shape=(first, *plan.map_shape),
    )
