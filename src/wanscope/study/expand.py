"""Expands a study into recipes: all limits are checked first, then recipes are made one at a time.

    expansion = expand(study)              # all limits are checked
    len(expansion)                         # variations x sets of edits x seeds
    for item in expansion.items(weights): ...   # item.recipe, item.variation, item.seed, item.name

This needs no torch and no weights, and writes no files. What only a tokenizer can tell (a prompt that is too long,
words that a small model was not trained on) is checked when the study is run, before the transformer's weights are
loaded.
"""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

from wanscope.edit.edits import Edit, check_edits, with_hashes
from wanscope.edit.named_files import Find
from wanscope.edit.sweep import BASELINE, swept_edits
from wanscope.errors import ModelError, RecipeError
from wanscope.events import Note
from wanscope.prompt.template import Template, Variation, parse
from wanscope.recipe import (
    InitSpec,
    Keyframes,
    LoraSpec,
    MarkSpec,
    ModelIdentity,
    Recipe,
    SamplerSpec,
    Study,
    VideoSpec,
)
from wanscope.study.attention_capture import check_capture_indices
from wanscope.study.check_design import EDIT, check_design, check_edits_compared
from wanscope.wan.experts import expert_of_name
from wanscope.wan.identity import file_hash
from wanscope.wan.variants import Variant, check_video, latent_shape, resolve

MAX_TAKES = 100_000
EDITED = "edited"
DTYPE_NAMES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
NAME_LENGTH = 60


@dataclass(frozen=True)
class EditSet:
    """The edits that some of a study's takes share.

    label: "" where the study has no edits. values: the swept settings' values, as text.
    """

    edits: tuple[Edit, ...] = ()
    label: str = ""
    values: dict[str, str] = field(default_factory=dict)

    @property
    def labels(self) -> dict[str, str]:
        """The labels that recipes with these edits get."""
        return {EDIT: self.label, **self.values} if self.label else {}


@dataclass(frozen=True)
class Item:
    """One take to be made. `name` is its readable file name without the extension, unique in the study."""

    index: int
    variation: Variation
    edit_set: EditSet
    seed: int
    name: str
    recipe: Recipe


@dataclass(frozen=True)
class Expansion:
    """A study with every setting decided except the identity of the weights. `negative` is the prompt actually used."""

    study: Study
    variant: Variant
    template: Template
    video: VideoSpec
    sampler: SamplerSpec
    negative: str
    dtype: str
    init: InitSpec | None = None
    loras: tuple[LoraSpec, ...] = ()
    edit_sets: tuple[EditSet, ...] = (EditSet(),)

    def __len__(self) -> int:
        return self.template.count * len(self.edit_sets) * len(self.study.seeds)

    @property
    def notes(self) -> list[Note]:
        """What a user should know of the settings that were decided here."""
        left_out = self.study.negative is None and self.variant.negative_note
        return [Note(self.variant.negative_note)] if left_out else []

    @property
    def variations(self) -> int:
        """How many variations the prompt template has."""
        return self.template.count

    @property
    def counted(self) -> str:
        """The counts, such as `2 variations x 4 edits x 1 seed`.

        Edits include the baseline, and are left out for a study that has none.
        """
        counts = {"variation": self.variations, "edit": len(self.edit_sets), "seed": len(self.study.seeds)}
        if not self.study.edits:
            del counts["edit"]
        return " x ".join(f"{count} {name}{'s'[: count != 1]}" for name, count in counts.items())

    @property
    def states(self) -> int:
        """How many states each path has: the noise, and one after every step that is run."""
        return (self.sampler.steps or 0) - self.sampler.start_step + 1

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """The shape of the latents: (channels, latent frames, latent height, latent width)."""
        return latent_shape(self.variant, *size_of(self.video))

    def recipe(
        self, variation: Variation, seed: int, weights: Mapping[str, str], edit_set: EditSet | None = None
    ) -> Recipe:
        """Return the recipe of one variation, seed and set of edits (default: the study's first set).

        weights: each component's SHA-256 (study/recipe_model.py).
        """
        edit_set = edit_set or self.edit_sets[0]
        return Recipe(
            model=ModelIdentity(
                name=self.study.model,
                variant=self.variant.name,
                components=self.study.components,
                weights=dict(weights),
            ),
            loras=self.loras,
            dtype=self.dtype,  # type: ignore[arg-type]
            prompt=variation.text,
            negative=self.negative,
            marks=tuple(
                MarkSpec(text=m.text, start=m.start, end=m.end, weight=m.weight, weighted=m.weighted)
                for m in variation.marks
            ),
            weights=self._weight_mode(variation),
            seed=seed,
            video=self.video,
            sampler=self.sampler,
            init=self.init,
            edits=edit_set.edits,
            capture=self.study.capture,
            labels={**variation.bindings, **edit_set.labels},
        )

    @cached_property
    def first_recipe(self) -> Recipe:
        """The recipe of the first take, without weights; all takes share its model, video, sampler and captures."""
        return self.recipe(self.template.variation(0), self.study.seeds[0], {})

    def _weight_mode(self, variation: Variation) -> Any:
        if self.study.weights != "auto":
            return self.study.weights
        return "multiply" if any(mark.weighted for mark in variation.marks) else "none"

    def items(self, weights: Mapping[str, str]) -> Iterator[Item]:
        """Yield every take in order: variations in the outer loop, then sets of edits, then seeds."""
        index = 0
        for variation, name in zip(self.template.expand(), self.names, strict=True):
            for edit_set, ending in zip(self.edit_sets, self.edit_names, strict=True):
                for seed in self.study.seeds:
                    recipe = self.recipe(variation, seed, weights, edit_set)
                    yield Item(index, variation, edit_set, seed, f"{name}{ending}_seed{seed:02d}", recipe)
                    index += 1

    @cached_property
    def edit_names(self) -> tuple[str, ...]:
        """The part of the file names for each set of edits: `_baseline`, `_late-0.4`, or "" where there are none."""
        return tuple(f"_{name}" if name else "" for name in _unique(file_label(each.label) for each in self.edit_sets))

    @cached_property
    def names(self) -> tuple[str, ...]:
        """A readable name for every variation, unique and safe on every file system.

        The names do not depend on the seeds, so that adding seeds changes none of them.
        """
        return _unique(
            slug("-".join(variation.bindings.values()) or variation.text) or f"variation-{variation.index}"
            for variation in self.template.expand()
        )

    @cached_property
    def settings_hash(self) -> str:
        """A short hash of all settings except seeds, captures, name and design: adding seeds does not change it."""
        later = {"sweep", "baseline"} if not self.study.edits else set()  # fields that studies without edits lack
        data = self.study.model_dump_json(exclude={"seeds", "capture", "name", "design", *later})
        return hashlib.sha256(data.encode()).hexdigest()[:8]

    @property
    def name(self) -> str:
        """The study's own name, or one derived from its prompt and settings."""
        return self.study.name or f"{slug(self.template.source)[:40].rstrip('-')}-{self.settings_hash}"


def _unique(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names with -2, -3, ... appended to repeated ones."""
    used: set[str] = set()
    counts: dict[str, int] = {}
    out = []
    for base in names:
        name = base
        while name in used:
            counts[base] = counts.get(base, 1) + 1
            name = f"{base}-{counts[base]}"
        used.add(name)
        out.append(name)
    return tuple(out)


def file_label(label: str) -> str:
    """Return a label in a form that is safe in a file name: `late, strength 0.4` becomes `late-strength-0.4`.

    A minus sign becomes the word `minus`, because `-` separates words.
    """
    words = re.sub(r"(?<=\s)-(?=[0-9.])", "minus ", label)
    return slug(".".join(slug(part, 4 * NAME_LENGTH) for part in re.split(r"(?<=[0-9])\.(?=[0-9])", words)), kept=".")


def size_of(video: VideoSpec) -> tuple[int, int, int]:
    """Return (width, height, frames) of a resolved VideoSpec, in pixels and frames."""
    assert video.width and video.height and video.frames
    return video.width, video.height, video.frames


def slug(text: str, length: int = NAME_LENGTH, kept: str = "") -> str:
    """Return the text's letters and digits (of any script, in lower case) with '-' in place of everything else.

    length: the limit in bytes of UTF-8. kept: other characters that are kept between letters and digits.
    """
    plain = unicodedata.normalize("NFKC", text).lower()
    words = re.sub(rf"[^\w{re.escape(kept)}]+|_+", "-", plain).strip("-" + kept)
    while len(words.encode()) > length:
        shorter = words[:-1]
        # Whole words where there are several; a single long one is cut.
        words = shorter.rpartition("-")[0] if "-" in shorter else shorter
    return words.strip("-" + kept)


def expand(
    study: Study, variant: Variant | None = None, dtype: str | None = None, find: Find | None = None
) -> Expansion:
    """Check all limits of a study and decide every setting that it leaves open.

    variant: for a model that is already loaded, or that is a folder or file; by default it is looked up by name.
    dtype: what `auto` means for that model; by default the variant's own. find: looks up the stored embeddings that
    edits name. Raises RecipeError, TemplateError or ModelError.
    """
    variant = variant or resolve(study.model)
    if variant.image_conditioned:
        raise ModelError(f"{variant.name} cannot make a video from text", variant.note, "wanscope models")
    template = parse(study.prompt)
    _check_count(template, study)
    check_design(template, study)
    defaults = variant.defaults.values()
    video = study.video.resolved(defaults)
    check_video(variant, *size_of(video))
    sampler = study.sampler.resolved(defaults, variant.experts)
    _check_keyframes(sampler)
    if study.capture.inside:
        first = template.variation(0)
        check_capture_indices(study.capture, first.text, first.marks, sampler, variant)
    if study.init is None and sampler.start_step:
        raise RecipeError(
            f"sampler.start_step is {sampler.start_step}",
            "a path that starts later needs an init, a finished video to start from",
            "init: {take: ID}",
        )
    if study.init is not None and not sampler.start_step:
        raise RecipeError(
            "init is given and sampler.start_step is 0",
            "a path from step 0 starts from pure noise, so init would do nothing",
            "sampler.denoise=0.5",
        )
    negative = defaults["negative"] if study.negative is None else study.negative
    loras = tuple(_hashed(_with_expert(lora, variant.experts)) for lora in study.loras)
    edit_sets = _edit_sets(study, variant, sampler.steps or 0, find)
    if study.design is not None:
        check_edits_compared(study.design, [each.labels for each in edit_sets])
    own_dtype = dtype or DTYPE_NAMES[variant.dtype]
    chosen = own_dtype if study.dtype == "auto" else study.dtype
    return Expansion(study, variant, template, video, sampler, negative, chosen, study.init, loras, edit_sets)


def _with_expert(lora: LoraSpec, experts: int) -> LoraSpec:
    """Return the LoRA with the expert that its name says, where the study does not say one and the model has two."""
    if experts == 1 or "expert" in lora.model_fields_set:
        return lora
    named = expert_of_name(Path(lora.path).stem)
    return lora if named is None else lora.model_copy(update={"expert": named})


def _edit_sets(study: Study, variant: Variant, steps: int, find: Find | None) -> tuple[EditSet, ...]:
    """Return the baseline and every combination of a sweep, checked against the model's blocks and the run's steps."""
    if not study.edits:
        return (EditSet(),)
    hashes: dict[Path, str] = {}

    def hash_once(path: Path) -> str:
        if path not in hashes:
            hashes[path] = file_hash(path)
        return hashes[path]

    sets = [EditSet((), BASELINE)] if study.baseline else []
    for swept in swept_edits(study.edits, study.sweep):
        check_edits(swept.edits, variant.blocks, steps, variant.heads)
        edits = with_hashes(swept.edits, variant.text_dim, hash_once, find)
        sets.append(EditSet(edits, swept.label or EDITED, swept.values))
    return tuple(sets)


def _check_count(template: Template, study: Study) -> None:
    sets = prod(map(len, study.sweep.values())) + study.baseline if study.edits else 1
    total = template.count * sets * len(study.seeds)
    if total > MAX_TAKES:
        shown = f"{total:,}" if total < 10**15 else f"about 10^{len(str(total)) - 1}"
        edits = f" times {sets} sets of edits" if sets > 1 else ""
        raise RecipeError(
            f"this study has {shown} takes",
            f"{template.count if template.count < 10**15 else 'very many'} variations{edits} times {len(study.seeds)} "
            f"seeds; the limit is {MAX_TAKES:,}. Use fewer alternatives in the prompt or fewer seeds",
        )


def _check_keyframes(sampler: SamplerSpec) -> None:
    for key in ("guidance", "guidance_2"):
        value = getattr(sampler, key)
        if isinstance(value, Keyframes) and value.over == "steps" and value.keys[-1][0] >= (sampler.steps or 0):
            raise RecipeError(
                f"sampler.{key} has a keyframe at step {value.keys[-1][0]:g}",
                f"the last step is {(sampler.steps or 0) - 1}",
            )


def _hashed(lora: LoraSpec) -> LoraSpec:
    """Return the LoRA with its file's hash, which the recipe's id covers instead of its path."""
    path = Path(os.path.expanduser(lora.path))
    if not os.path.isfile(path):
        raise ModelError(f"there is no LoRA file {lora.path}", "a LoRA is given as the path of a .safetensors file")
    return lora.model_copy(update={"sha256": file_hash(path)})
