"""A study's `design:` against what the study has: a claim that no test could answer is refused before any work."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from wanscope.errors import RecipeError, nearest
from wanscope.prompt.template import Slot, Template
from wanscope.recipe import Study
from wanscope.spec.metric_names import why_untested
from wanscope.spec.settings import DesignSpec, Hypothesis

EDIT = "edit"  # the label that says which of a study's edits a take has


def check_design(template: Template, study: Study) -> None:
    """The factor, the blocks and the hypotheses, but for values of edits (check_edits_compared). RecipeError."""
    slots: dict[str, Slot | None] = {slot.name: slot for slot in template.slots}
    if study.edits:
        if EDIT in slots:
            raise RecipeError(
                f"the prompt has a slot {EDIT!r}",
                "in a study with edits that name says which edits a take has",
                "@what",
            )
        slots |= dict.fromkeys((EDIT, *study.sweep))
    design = study.design
    if design is None:
        return
    have = ", ".join(slots) or "none"
    if design.factor not in slots:
        raise RecipeError(
            f"design.factor is {design.factor!r}",
            f"the prompt has no such slot; its slots are {have}",
            f"design: {{factor: {next(iter(slots))}}}" if slots else f"prompt: 'a [@{design.factor}: red|blue] circle'",
        )
    for block in design.blocks:
        if block != "seed" and block not in slots:
            raise RecipeError(f"design.blocks names {block!r}", f"there is 'seed', and the slots {have}")
        if block == design.factor:
            raise RecipeError(f"design.blocks names {block!r}", "it is the factor that is compared")
    for i, hypothesis in enumerate(design.hypotheses):
        _check_hypothesis(f"design.hypotheses.{i}", hypothesis, study)
    slot = slots[design.factor]
    if slot is not None and any(hypothesis.contrast for hypothesis in design.hypotheses):
        _check_contrasts(design, _values(template, slot))


def check_edits_compared(design: DesignSpec, labels: Sequence[Mapping[str, str]]) -> None:
    """Contrasts of a factor that is no slot of the prompt: `edit`, or a setting that is swept.

    labels: of each set of edits. RecipeError for a value that none of them has.
    """
    values = dict.fromkeys(label[design.factor] for label in labels if design.factor in label)
    if values:
        _check_contrasts(design, values)


def _check_hypothesis(place: str, hypothesis: Hypothesis, study: Study) -> None:
    contrast, metric = hypothesis.contrast, hypothesis.metric
    if contrast is not None and contrast[0] == contrast[1]:
        raise RecipeError(f"{place}.contrast compares {contrast[0]!r} with itself", "a contrast is of two values")
    if metric is None:
        return
    why = why_untested(metric)
    if why:
        raise RecipeError(f"{place}.metric is {metric!r}", why)
    if study.capture.latents is None:
        raise RecipeError(
            f"{place}.metric is {metric!r}, and the study keeps no latents",
            "every metric is of a take's path, which is recorded with them",
            "--store-latents, or capture: {latents: true} in the study file",
        )


def _check_contrasts(design: DesignSpec, values: Iterable[str]) -> None:
    known = list(values)
    for i, hypothesis in enumerate(design.hypotheses):
        for value in hypothesis.contrast or ():
            if value not in known:
                raise RecipeError(
                    f"design.hypotheses.{i}.contrast names {value!r}",
                    f"{design.factor} takes {', '.join(map(repr, known))}; {nearest(value, known)}",
                )


def _values(template: Template, slot: Slot) -> Iterable[str]:
    """What the slot is bound to. Where that depends on slots inside it, the variations are asked."""
    if slot.count == len(slot.values):
        return slot.values
    bound = (variation.bindings.get(slot.name) for variation in template.expand())
    return dict.fromkeys(value for value in bound if value is not None)
