"""A study becomes recipes: checked whole first, made one at a time. No torch, no weights, no files written.

    expansion = expand(study)              # every limit has been checked
    len(expansion)                         # variations x seeds
    for item in expansion.items(weights): ...   # item.recipe, item.variation, item.seed, item.name

What only a tokenizer can say (a prompt that is too long, words a small model never saw) is checked when the study is
run, before any weight of the transformer is loaded.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from wanscope.errors import ModelError, RecipeError, nearest
from wanscope.prompt.template import Slot, Template, Variation, parse
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
from wanscope.wan.identity import file_hash
from wanscope.wan.variants import Variant, check_video, latent_shape, resolve

MAX_TAKES = 100_000
DTYPE_NAMES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
NAME_LENGTH = 60


@dataclass(frozen=True)
class Item:
    """One take to be made. `name` is its readable file name without ending, unique in the study."""

    index: int
    variation: Variation
    seed: int
    name: str
    recipe: Recipe


@dataclass(frozen=True)
class Expansion:
    """A study with nothing left open but the weights' identity. `negative` is the one in force."""

    study: Study
    variant: Variant
    template: Template
    video: VideoSpec
    sampler: SamplerSpec
    negative: str
    dtype: str
    init: InitSpec | None = None
    loras: tuple[LoraSpec, ...] = ()

    def __len__(self) -> int:
        return self.template.count * len(self.study.seeds)

    @property
    def variations(self) -> int:
        return self.template.count

    @property
    def states(self) -> int:
        """States of each path: the noise and one after every step that is run."""
        return (self.sampler.steps or 0) - self.sampler.start_step + 1

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """(channels, latent frames, latent height, latent width)."""
        return latent_shape(self.variant, *size_of(self.video))

    def recipe(self, variation: Variation, seed: int, weights: Mapping[str, str]) -> Recipe:
        """The recipe of one variation and seed. weights: each component's SHA-256 (study/models.py)."""
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
            edits=self.study.edits,
            capture=self.study.capture,
            labels=variation.bindings,
        )

    def _weight_mode(self, variation: Variation) -> Any:
        if self.study.weights != "auto":
            return self.study.weights
        return "multiply" if any(mark.weighted for mark in variation.marks) else "none"

    def items(self, weights: Mapping[str, str]) -> Iterator[Item]:
        """Every take in order: all seeds of the first variation, then of the next."""
        index = 0
        for variation, name in zip(self.template.expand(), self.names, strict=True):
            for seed in self.study.seeds:
                yield Item(index, variation, seed, f"{name}_seed{seed:02d}", self.recipe(variation, seed, weights))
                index += 1

    @cached_property
    def names(self) -> tuple[str, ...]:
        """A readable name for every variation, unique and safe on every file system. A longer list of seeds changes
        none of them."""
        used: set[str] = set()
        counts: dict[str, int] = {}
        out = []
        for variation in self.template.expand():
            base = slug("-".join(variation.bindings.values()) or variation.text) or f"variation-{variation.index}"
            name = base
            while name in used:
                counts[base] = counts.get(base, 1) + 1
                name = f"{base}-{counts[base]}"
            used.add(name)
            out.append(name)
        return tuple(out)

    @cached_property
    def settings_hash(self) -> str:
        """Names all that a study sets but its seeds, captures and name: the same for a study with more seeds."""
        data = self.study.model_dump_json(exclude={"seeds", "capture", "name", "design"})
        return hashlib.sha256(data.encode()).hexdigest()[:8]

    @property
    def name(self) -> str:
        """The study's own name, or one made of its prompt and settings."""
        return self.study.name or f"{slug(self.template.source)[:40].rstrip('-')}-{self.settings_hash}"


def size_of(video: VideoSpec) -> tuple[int, int, int]:
    """width, height and frames of a resolved size."""
    assert video.width and video.height and video.frames
    return video.width, video.height, video.frames


def slug(text: str, length: int = NAME_LENGTH) -> str:
    """Letters and digits of any script, lower case, with '-' between; at most `length` bytes in UTF-8."""
    plain = unicodedata.normalize("NFKC", text).lower()
    words = re.sub(r"[^\w]+|_+", "-", plain).strip("-")
    while len(words.encode()) > length:
        shorter = words[:-1]
        # Whole words where there are several; a single long one is cut.
        words = shorter.rpartition("-")[0] if "-" in shorter else shorter
    return words.strip("-")


def expand(study: Study, variant: Variant | None = None, dtype: str | None = None) -> Expansion:
    """Check all limits of a study and resolve what it leaves open.

    variant: of a model that is loaded already, or that is no variant's name (a folder, a file); else it is looked up.
    dtype: what `auto` means there, else the variant's own. Raises RecipeError, TemplateError or ModelError.
    """
    variant = variant or resolve(study.model)
    if variant.image_conditioned:
        raise ModelError(f"{variant.name} cannot make a video from text", variant.note, "wanscope models")
    template = parse(study.prompt)
    _check_count(template, study)
    _check_design(template, study)
    defaults = variant.defaults.values()
    video = study.video.resolved(defaults)
    check_video(variant, *size_of(video))
    sampler = study.sampler.resolved(defaults, variant.experts)
    _check_keyframes(sampler)
    if study.init is None and sampler.start_step:
        raise RecipeError(
            f"sampler.start_step is {sampler.start_step}",
            "a path that starts later starts from a finished video, and init names none",
            "init: {take: ID}",
        )
    if study.init is not None and not sampler.start_step:
        raise RecipeError(
            "init is given and sampler.start_step is 0",
            "a path from step 0 starts from pure noise, so that init would do nothing",
            "sampler.denoise=0.5",
        )
    negative = defaults["negative"] if study.negative is None else study.negative
    loras = tuple(_hashed(lora) for lora in study.loras)
    own_dtype = dtype or DTYPE_NAMES[variant.dtype]
    chosen = own_dtype if study.dtype == "auto" else study.dtype
    return Expansion(study, variant, template, video, sampler, negative, chosen, study.init, loras)


def _check_count(template: Template, study: Study) -> None:
    total = template.count * len(study.seeds)
    if total > MAX_TAKES:
        shown = f"{total:,}" if total < 10**15 else f"about 10^{len(str(total)) - 1}"
        raise RecipeError(
            f"this study has {shown} takes",
            f"{template.count if template.count < 10**15 else 'very many'} variations times {len(study.seeds)} seeds; "
            f"the limit is {MAX_TAKES:,}",
            "fewer alternatives in the prompt, or fewer seeds",
        )


def _check_design(template: Template, study: Study) -> None:
    design = study.design
    if design is None:
        return
    slots = {slot.name: slot for slot in template.slots}
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
    values = _values(slots[design.factor])
    for i, hypothesis in enumerate(design.hypotheses):
        for value in hypothesis.contrast or ():
            if values is not None and value not in values:
                raise RecipeError(
                    f"design.hypotheses.{i}.contrast names {value!r}",
                    f"{design.factor} takes {', '.join(map(repr, values))}; {nearest(value, values)}",
                )


def _values(slot: Slot) -> tuple[str, ...] | None:
    """What the slot can be bound to, or None where that depends on slots inside it."""
    return slot.values if slot.count == len(slot.values) else None


def _check_keyframes(sampler: SamplerSpec) -> None:
    for key in ("guidance", "guidance_2"):
        value = getattr(sampler, key)
        if isinstance(value, Keyframes) and value.keys[-1][0] >= (sampler.steps or 0):
            raise RecipeError(
                f"sampler.{key} has a keyframe at step {value.keys[-1][0]}",
                f"the last step is {(sampler.steps or 0) - 1}",
            )


def _hashed(lora: LoraSpec) -> LoraSpec:
    """With the file's hash: what the recipe's id covers instead of its path."""
    path = Path(lora.path).expanduser()
    if not path.is_file():
        raise ModelError(f"there is no LoRA file {lora.path}", "a LoRA is a .safetensors file with a path")
    return lora.model_copy(update={"sha256": file_hash(path)})
