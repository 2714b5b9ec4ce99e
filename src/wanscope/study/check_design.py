"""Checks a study's `design:` against the study: a hypothesis that could not be tested is refused before any work."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from wanscope.errors import RecipeError, nearest
from wanscope.prompt.template import Slot, Template
from wanscope.recipe import Study
from wanscope.spec.metric_names import OF_ATTENTION, why_untested
from wanscope.spec.settings import DesignSpec, Hypothesis

EDIT = "edit"  # the label that names the set of edits of a take


def check_design(template: Template, study: Study) -> None:
    """Check the factor, the blocks and the hypotheses, except for values of edits (see check_edits_compared).

    Raises RecipeError.
    """
    slots: dict[str, Slot | None] = {slot.name: slot for slot in template.slots}
    if study.edits:
        if EDIT in slots:
            raise RecipeError(
                f"the prompt has a slot {EDIT!r}",
                "in a study with edits, that name is the label of a take's edits. Give the slot another name",
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
            raise RecipeError(f"design.blocks names {block!r}", f"a block is 'seed' or one of the slots {have}")
        if block == design.factor:
            raise RecipeError(f"design.blocks names {block!r}", "it is the factor that is compared")
    for i, hypothesis in enumerate(design.hypotheses):
        _check_hypothesis(f"design.hypotheses.{i}", hypothesis, study)
    slot = slots[design.factor]
    if slot is not None and any(hypothesis.contrast for hypothesis in design.hypotheses):
        _check_contrasts(design, _values(template, slot))


def check_edits_compared(design: DesignSpec, labels: Sequence[Mapping[str, str]]) -> None:
    """Check contrasts of a factor that is not a slot of the prompt: `edit`, or a swept setting.

    labels: those of each set of edits. Raises RecipeError for a value that none of them has.
    """
    values = dict.fromkeys(label[design.factor] for label in labels if design.factor in label)
    if values:
        _check_contrasts(design, values)


def _check_hypothesis(place: str, hypothesis: Hypothesis, study: Study) -> None:
    contrast, metric = hypothesis.contrast, hypothesis.metric
    if contrast is not None and contrast[0] == contrast[1]:
        raise RecipeError(f"{place}.contrast compares {contrast[0]!r} with itself", "a contrast needs two values")
    if metric is None:
        return
    why = why_untested(metric)
    if why:
        raise RecipeError(f"{place}.metric is {metric!r}", why)
    if study.capture.latents is None:
        raise RecipeError(
            f"{place}.metric is {metric!r}, and the study keeps no latents",
            "every metric is computed from a take's path, which is stored with them",
            "capture: {latents: true}",
        )
    if metric in OF_ATTENTION and study.capture.attention is None:
        raise RecipeError(
            f"{place}.metric is {metric!r}, and the study keeps no attention maps",
            "it is computed from the maps of marked words",
            "capture: {latents: true, attention: marked}",
        )


def _check_contrasts(design: DesignSpec, values: Iterable[str]) -> None:
    known = list(values)
    for i, hypothesis in enumerate(design.hypotheses):
        for value in hypothesis.contrast or ():
            if value not in known:
                hint = nearest(value, known)  # without a close match, it would list the values a second time
                raise RecipeError(
                    f"design.hypotheses.{i}.contrast names {value!r}",
                    f"the values of {design.factor} are {', '.join(map(repr, known))}"
                    + (f"; {hint}" if hint.startswith("did you mean") else ""),
                )


def _values(template: Template, slot: Slot) -> Iterable[str]:
    """Return the values that the slot takes. Where they depend on nested slots, they come from the variations."""
    if slot.count == len(slot.values):
        return slot.values
    bound = (variation.bindings.get(slot.name) for variation in template.expand())
    return dict.fromkeys(value for value in bound if value is not None)
