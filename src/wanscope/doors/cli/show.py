"""`wanscope show`: everything that a take's take.json records."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Any

from wanscope.doors.cli import output
from wanscope.doors.cli.takes import bytes_of
from wanscope.edit.shorthand import shorthand
from wanscope.recipe import Recipe
from wanscope.take.disk import size_text
from wanscope.take.manifest import Manifest, StoredAttention, check_sizes, read_manifest
from wanscope.take.store import VIDEO, Take
from wanscope.workspace import Workspace


def run_show(take: str, verify: bool, output_dir: Path | None, json: bool) -> int:
    folder = Workspace.find(output_dir).find_take(take)
    manifest = read_manifest(folder)
    check_sizes(folder, manifest.files)
    if verify:
        Take(folder, manifest).verify()
    if json:
        data = json_module.loads(manifest.dumped())
        output.document({"folder": str(folder), "verified": verify, **data})
        return 0
    output.facts(_facts(folder, manifest))
    output.say("\nfiles")
    output.facts(_files(manifest), indent="  ")
    output.say("\ntime")
    output.facts([(name, output.seconds_text(value)) for name, value in manifest.seconds.items()], indent="  ")
    output.say("\nmade with")
    output.facts([(key, value) for key, value in manifest.environment.flat().items() if value], indent="  ")
    output.say(f"\nsigmas ({len(manifest.sigmas)}): {' '.join(f'{sigma:.4f}' for sigma in manifest.sigmas)}")
    output.say(
        "\nEvery file matches its checksum." if verify else "\nChecksums were not compared; every file has its size."
    )
    return 0


def _facts(folder: Path, manifest: Manifest) -> list[tuple[str, str]]:
    recipe = manifest.recipe
    video = recipe.video
    pairs = [
        ("take", manifest.id),
        ("folder", str(folder)),
        ("prompt", recipe.prompt),
        ("negative", recipe.negative or "(none)"),
        ("seed", str(recipe.seed)),
        ("model", f"{recipe.model.name} ({recipe.model.variant}), {recipe.dtype}"),
        ("video", f"{video.width} x {video.height}, {video.frames} frames, {video.fps} fps"),
        ("sampler", settings_text(recipe)),
    ]
    if recipe.labels:
        pairs.insert(3, ("slots", ", ".join(f"{name} = {value}" for name, value in recipe.labels.items())))
    if recipe.marks:
        shown = (m.text + (f" (weight {m.weight:g})" if m.weighted else "") for m in recipe.marks)
        pairs.insert(3, ("marked", ", ".join(shown)))
    pairs += [("LoRA", f"{lora.path}, weight {lora.weight:g}") for lora in recipe.loras]
    pairs += edit_facts(manifest)
    if recipe.init is not None:
        pairs.append(("started from", recipe.init.take or recipe.init.latents or recipe.init.video or ""))
    if manifest.latents is not None:
        pairs.append(("latents", f"{len(manifest.latents.states)} states, {manifest.latents.dtype}"))
    if manifest.x0 is not None:
        pairs.append(("predicted x0", f"{len(manifest.x0.states)} steps, {manifest.x0.dtype}"))
    if manifest.attention is not None:
        pairs.append(("attention", _attention_text(manifest.attention)))
    if manifest.self_attention is not None:
        pairs.append(("self-attention", _attention_text(manifest.self_attention)))
    pairs += [
        ("evaluations", str(manifest.evaluations)),
        ("peak memory", ", ".join(f"{name} {size_text(peak)}" for name, peak in manifest.peak_bytes.items())),
        ("made", manifest.made),
        ("size", size_text(bytes_of(manifest))),
    ]
    for earlier in manifest.earlier:
        changed = "; ".join(earlier.environment.differences(manifest.environment))
        pairs.append(("earlier bits", f"made {earlier.made}, elsewhere: {changed}"))
    return pairs


def edit_facts(manifest: Manifest) -> list[tuple[str, str]]:
    """Return each edit in one line, followed by how often and where it acted, and its notes."""
    pairs = []
    for i, edit in enumerate(manifest.recipe.edits):
        pairs.append(("edit", shorthand(edit)))
        if i < len(manifest.applied_edits):
            done = manifest.applied_edits[i]
            pairs += [("", text) for text in (done.describe(), *done.notes)]
    return pairs


def _attention_text(kept: StoredAttention) -> str:
    steps = f"{'the mean over' if kept.keep == 'mean' else 'each of'} {kept.evaluations} steps"
    what = "rows" if kept.measures == ("self",) else ", ".join(kept.measures)
    return f"{what} of {', '.join(kept.words)}: {kept.blocks} blocks, {steps}"


def settings_text(recipe: Recipe) -> str:
    """Return the sampler's settings that are not at their default, as one line."""
    settings: dict[str, Any] = recipe.sampler.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    settings.pop("sigmas", None)  # listed separately
    return ", ".join(f"{key} {_value(value)}" for key, value in settings.items())


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_value(inner)}" for key, inner in value.items()) + "}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _files(manifest: Manifest) -> list[tuple[str, str]]:
    """Return names and sizes of the files, the many files of an array as one."""
    sizes: dict[str, int] = {}
    for record in manifest.files:
        folder, below, _ = record.path.partition("/")
        name = folder + below
        sizes[name] = sizes.get(name, 0) + record.bytes
    return [(name, size_text(sizes[name])) for name in sorted(sizes, key=lambda name: (name != VIDEO, name))]
