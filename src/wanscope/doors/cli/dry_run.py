"""`wanscope generate --dry-run`: what would be made, how large and how long. Loads no model and writes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from math import prod
from typing import TYPE_CHECKING, Any

from wanscope.doors.cli import output
from wanscope.doors.cli.estimate import Estimate, estimate
from wanscope.doors.cli.process import prepare_process
from wanscope.doors.cli.show import settings_text
from wanscope.edit.edits import Edit, Steer
from wanscope.edit.shorthand import shorthand
from wanscope.errors import MemoryPlanError, ModelError
from wanscope.events import Note
from wanscope.recipe import Recipe
from wanscope.spec.settings import Hypothesis
from wanscope.take.disk import require_space, size_text
from wanscope.workspace import Workspace

if TYPE_CHECKING:
    import torch

    from wanscope.study.prepare import StudyPlan
    from wanscope.wan.memory_plan import MemoryPlan
    from wanscope.wan.variant import Variant

SHOWN = 20  # takes, at a terminal or in a file; --json lists all


@dataclass(frozen=True)
class Planned:
    """One take. `take` and `status` are None where the weights are not here, so that its id is not known."""

    name: str
    prompt: str
    seed: int
    take: str | None
    status: str | None


def run_dry(source: Any, workspace: Workspace, notes: Sequence[Note], *, device: str, memory: str, json: bool) -> int:
    prepare_process()
    from wanscope.study.prepare import plan

    planned = plan(source, workspace)
    variant, recipe = _variant_and_recipe(planned)
    if planned.model_of(recipe) is not None:
        _check_prompts(planned, recipe, variant)
    notes = [*notes, *_checked_directions(planned, variant, recipe), *_too_few_units(planned)]
    if planned.expansion is not None:
        notes += planned.expansion.notes

    from wanscope.wan.load import pick_device  # with torch: what is refused is refused before it is imported

    place = pick_device(device)
    placing = _placing(variant, recipe, place, memory)
    time = estimate(workspace, variant, recipe, place)
    takes = _takes(planned)
    if json:
        output.document(_document(planned, recipe, list(takes), placing, time, workspace, notes))
    else:
        for note in notes:
            output.say(f"note: {note.text}")
        _print(planned, variant, recipe, placing, time, workspace)
        _print_takes(planned, takes)
    if isinstance(placing, MemoryPlanError):
        raise placing
    count = planned.missing
    if count:
        require_space(workspace.takes, planned.needed_bytes, count)
    return 0


def _variant_and_recipe(planned: StudyPlan) -> tuple[Variant, Recipe]:
    """Return the model's variant and the first take's recipe, whose weights are not filled in."""
    expansion = planned.expansion
    if expansion is not None:
        return expansion.variant, expansion.first_recipe
    from wanscope.wan.variants import VARIANTS

    recipe = planned.recipes[0]
    if recipe.model.variant in VARIANTS:
        return VARIANTS[recipe.model.variant], recipe
    model = planned.model_of(recipe)
    if model is None:
        raise ModelError(f"the model {recipe.model.name} is not on this machine", "its dims are not known without it")
    return model.variant, recipe


def _check_prompts(planned: StudyPlan, recipe: Recipe, variant: Variant) -> None:
    """Raise RecipeError for what only the tokenizer can tell: prompts too long, words missing or unknown to it."""
    from wanscope.study.check_takes import check_inputs
    from wanscope.study.recipe_model import ModelKey, tokenizer_of

    tokenizer, length = tokenizer_of(ModelKey.of(recipe))
    expansion, recipes = planned.expansion, planned.recipes
    if expansion is not None:
        seed = expansion.study.seeds[0]
        recipes = [
            expansion.recipe(variation, seed, {}, edit_set)
            for variation in expansion.template.expand()
            for edit_set in expansion.edit_sets
        ]
    check_inputs(recipes, variant, tokenizer, length)


def _checked_directions(planned: StudyPlan, variant: Variant, recipe: Recipe) -> list[Note]:
    """Return a note for each direction learned on other weights, where the model's weights are on this machine.

    Raises RecipeError for a direction that does not fit the model; that check needs no weights.
    """
    from wanscope.study.check_directions import check_directions, weights_mismatch_note

    recipes, expansion = planned.recipes, planned.expansion
    if expansion is not None:
        recipes = tuple(recipe.model_copy(update={"edits": edit_set.edits}) for edit_set in expansion.edit_sets)
    check_directions(recipes, variant)
    steers = {edit.direction: edit for one in recipes for edit in one.edits if isinstance(edit, Steer)}
    model = planned.model_of(recipe)
    if model is None:
        return []
    told = ((name, weights_mismatch_note(edit, recipe, model.weights)) for name, edit in steers.items())
    return [Note(f"{name}: {text}") for name, text in told if text]


def _takes(planned: StudyPlan) -> Iterator[Planned]:
    for each in planned.keyed.each():
        recipe = each.recipe
        status = None if each.id is None else "complete" if each.complete else "missing"
        if each.item is not None:
            yield Planned(each.item.name, recipe.prompt, recipe.seed, each.id, status)
        else:
            yield Planned(recipe.id, recipe.prompt, recipe.seed, each.id, "made again" if each.complete else status)


def _placing(variant: Variant, recipe: Recipe, device: torch.device, memory: str) -> MemoryPlan | MemoryPlanError:
    from wanscope.wan.memory_plan import plan_memory
    from wanscope.wan.placement import capacity

    have, video = capacity(device), recipe.video
    assert video.width and video.height and video.frames
    try:
        return plan_memory(
            variant,
            recipe.dtype,
            video.width,
            video.height,
            video.frames,
            have.device_bytes,
            have.host_bytes,
            memory,
            batch=2 if recipe.sampler.cfg_batched else 1,
        )
    except MemoryPlanError as error:
        return error


def _print(
    planned: StudyPlan,
    variant: Variant,
    recipe: Recipe,
    placing: MemoryPlan | MemoryPlanError,
    time: Estimate,
    workspace: Workspace,
) -> None:
    video = recipe.video
    output.say(f"{planned.name}: {_counted(planned)}. Nothing is made: this is a dry run.")
    rows = [
        ("model", f"{recipe.model.name}: {variant.title}, {recipe.dtype}"),
        ("video", f"{video.width} x {video.height}, {video.frames} frames, {video.fps} fps"),
        ("sampler", settings_text(recipe)),
        ("negative", recipe.negative or "(none)"),
        *_edit_rows(planned, variant.blocks),
        *_design_rows(planned),
        ("workspace", output.shown_path(workspace.folder)),
        ("complete", _complete(planned)),
        ("size", _size_text(planned)),
        *_time_rows(planned, time),
        ("memory", _memory_text(placing)),
    ]
    output.facts(rows, indent="  ")


def _edit_rows(planned: StudyPlan, blocks: int) -> list[tuple[str, str]]:
    """Return each edit in one line, with the reason where its blocks or strengths leave it without effect."""
    expansion = planned.expansion

    def line_of(edit: Edit) -> str:
        reason = edit.inactive_reason(blocks)
        return shorthand(edit) + (f" (acts nowhere: {reason})" if reason else "")

    if expansion is None:
        return [("edit", line_of(edit)) for edit in planned.recipes[0].edits]
    edits = dict.fromkeys(line_of(edit) for each in expansion.edit_sets for edit in each.edits)
    shown = [("edit", text) for text in islice(edits, SHOWN)]
    return shown + ([("", f"and {len(edits) - SHOWN} more")] if len(edits) > SHOWN else [])


def _design_rows(planned: StudyPlan) -> list[tuple[str, str]]:
    """Each hypothesis with what will test it, so that an untested one is seen while it can still be fixed."""
    study = planned.expansion.study if planned.expansion is not None else None
    if study is None or study.design is None:
        return []
    alone = len(study.seeds) == 1 and set(study.design.blocks) <= {"seed"}

    def described(hypothesis: Hypothesis) -> str:
        if hypothesis.metric is None or hypothesis.contrast is None:
            lacking = "metric" if hypothesis.metric is None else "contrast"
            return f"{hypothesis.text} (no test answers it: it names no {lacking})"
        if alone:
            return f"{hypothesis.text} (no test answers it: a single seed repeats nothing; --seeds 12)"
        return f"{hypothesis.text} (tested: {hypothesis.metric}, {' less '.join(hypothesis.contrast)})"

    return [("hypothesis", described(each)) for each in study.design.hypotheses]


def _too_few_units(planned: StudyPlan) -> list[Note]:
    """Return a note if the study stores latents but has too few units for any test of two values to reach 5%."""
    expansion = planned.expansion
    if expansion is None or expansion.study.capture.latents is None:
        return []
    if expansion.variations * len(expansion.edit_sets) < 2:
        return []  # nothing is compared
    from wanscope.analysis.pairing import MIN_SCENES
    from wanscope.analysis.permutation_tests import smallest_p
    from wanscope.analysis.power import ALPHA, pairs_needed

    study = expansion.study
    sizes = {slot.name: slot.count for slot in expansion.template.slots}
    scenes = [sizes[name] for name in (study.design.blocks if study.design else ()) if name in sizes]
    unit, units = "seed", len(study.seeds)
    if scenes and prod(scenes) >= MIN_SCENES:
        unit, units = "scene", prod(scenes)
    if smallest_p(units) <= ALPHA:
        return []
    needed = pairs_needed(ALPHA)
    fix = f"--seeds {needed}" if unit == "seed" else f"{needed} scenes in the prompt"
    return [
        Note(
            f"with {units} {unit}{'s'[: units != 1]}, no difference between two values can be significant at "
            f"{ALPHA:.0%}, because the smallest p is {smallest_p(units):.3g}; {fix} is the least that can"
        )
    ]


def _counted(planned: StudyPlan) -> str:
    expansion = planned.expansion
    if expansion is None:
        return f"{planned.takes} take to make again"
    return f"{planned.takes} take{'s'[: planned.takes != 1]}, {expansion.counted}"


def _complete(planned: StudyPlan) -> str:
    if planned.complete is None:
        return "not known: the weights are not here yet and will be downloaded first"
    return f"{planned.complete} of {planned.takes}"


def _to_make(planned: StudyPlan) -> int:
    """Return how many takes to make. A take given by name is made again even if complete; it then adds no bytes."""
    return planned.missing if planned.expansion is not None else planned.takes


def _size_text(planned: StudyPlan) -> str:
    free = f"{size_text(planned.free_bytes)} are free"
    return f"about {size_text(planned.needed_bytes)}; {free}" if planned.missing else f"nothing to add; {free}"


def _time_rows(planned: StudyPlan, time: Estimate) -> list[tuple[str, str]]:
    count = _to_make(planned)
    if not count:
        return [("time", "nothing to make")]
    if time.seconds is None:
        return [("time", f"no estimate: {time.basis}")]
    total, each = output.seconds_text(count * time.seconds), output.seconds_text(time.seconds)
    return [("time", f"about {total} ({each} per take)"), ("", f"from {time.basis}")]


def _memory_text(placing: MemoryPlan | MemoryPlanError) -> str:
    if isinstance(placing, MemoryPlanError):
        return "does not fit (see below)"
    worst = max(placing.phases, key=lambda phase: phase.bytes)
    have = placing.host_bytes if placing.device_bytes is None else placing.device_bytes
    where = "this machine" if placing.device_bytes is None else "the device"
    kind = "blocks are offloaded, " if placing.placement == "offload" else ""
    return f"{kind}at most {size_text(worst.bytes)} of {size_text(have)} of {where}, to {worst.name}"


def _print_takes(planned: StudyPlan, takes: Iterator[Planned]) -> None:
    output.say()
    rows = [(take.name, take.status or "", take.take or "", take.prompt) for take in islice(takes, SHOWN)]
    output.table(("name", "status", "take", "prompt"), rows)
    if planned.takes > SHOWN:
        output.say(f"... and {planned.takes - SHOWN:,} more (--json lists all)")


def _document(
    planned: StudyPlan,
    recipe: Recipe,
    takes: list[Planned],
    placing: MemoryPlan | MemoryPlanError,
    time: Estimate,
    workspace: Workspace,
    notes: Sequence[Note],
) -> dict[str, Any]:
    fits = not isinstance(placing, MemoryPlanError)
    return {
        "name": planned.name,
        "workspace": str(workspace.folder),
        "takes": planned.takes,
        "complete": planned.complete,
        "missing": planned.missing,
        "model": {"name": recipe.model.name, "variant": recipe.model.variant, "dtype": recipe.dtype},
        "video": recipe.video.model_dump(exclude_none=True),
        "sampler": recipe.sampler.model_dump(mode="json", exclude_none=True),
        "negative": recipe.negative,
        "bytes": {"needed": planned.needed_bytes, "free": planned.free_bytes},
        "seconds": {
            "a_take": time.seconds,
            "total": None if time.seconds is None else time.seconds * _to_make(planned),
            "basis": time.basis,
        },
        "memory": {
            "fits": fits,
            "placement": placing.placement if fits else None,
            "phases": [{"name": phase.name, "bytes": phase.bytes} for phase in placing.phases] if fits else [],
            "problem": None if fits else str(placing),
        },
        "notes": [note.text for note in notes],
        "planned": [asdict(take) for take in takes],
    }
