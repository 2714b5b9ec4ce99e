"""Recipes and studies: everything that determines a video, checked and hashed.

A :class:`Study` is what a user writes (YAML): a template, seeds, and only the settings that differ from the variant's
defaults. A :class:`Recipe` determines one video completely. The hash of its canonical JSON is the take's id and covers
what determines the video: weights, text, edits, sampler, size and seed, but not captures or names.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from wanscope.edit.edits import Edit
from wanscope.edit.shorthand import edit_from
from wanscope.edit.sweep import Sweep, sweep_values, swept_edits
from wanscope.spec.capture import AttentionCapture, CaptureSpec, LatentsCapture
from wanscope.spec.settings import (
    Components,
    DesignSpec,
    Finite,
    Guidance,
    Hypothesis,
    InitSpec,
    Keyframes,
    LoraSpec,
    SamplerSpec,
    Spec,
    VideoSpec,
)

__all__ = [
    "DTYPES",
    "MAX_SEED",
    "RECIPE_VERSION",
    "AttentionCapture",
    "CaptureSpec",
    "Components",
    "DesignSpec",
    "Finite",
    "Guidance",
    "Hypothesis",
    "InitSpec",
    "Keyframes",
    "LatentsCapture",
    "LoraSpec",
    "MarkSpec",
    "ModelIdentity",
    "Recipe",
    "SamplerSpec",
    "Seed",
    "Spec",
    "Study",
    "VideoSpec",
    "WeightMode",
]

RECIPE_VERSION = 1
DTYPES = ("auto", "fp32", "bf16", "fp16")
MAX_SEED = 2**63 - 1

Seed = Annotated[int, Field(ge=0, le=MAX_SEED, strict=True)]
WeightMode = Literal["auto", "multiply", "interpolate", "none"]


def _repeats(values: tuple[int, ...]) -> bool:
    return len(set(values)) != len(values)


_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{i}" for port in ("com", "lpt") for i in range(10))}


def _can_be_folder(name: str) -> bool:
    """Return whether a folder can have this name on Linux, macOS and Windows."""
    return (
        0 < len(name.encode(errors="replace")) <= 120
        and name.isprintable()
        and not any(c in name for c in '/\\:*?"<>|')
        and name == name.strip(" .")
        and name.partition(".")[0].lower() not in _RESERVED
    )


def _as_list(edits: Any) -> Any:
    """Return edits as a list: a single edit becomes a list of one, and None an empty tuple."""
    if edits is None:
        return ()
    return edits if isinstance(edits, list | tuple) else (edits,)


def _without_paths(data: Any) -> Any:
    """Return plain data without the paths of files whose hash is recorded, because the hash identifies the file."""
    if isinstance(data, list):
        return [_without_paths(item) for item in data]
    if not isinstance(data, dict):
        return data
    left_out = ("embedding", "direction") if "sha256" in data else ()
    return {key: _without_paths(value) for key, value in data.items() if key not in left_out}


class Study(Spec):
    """What a user writes. Everything except the prompt has a default; None means the variant's own default."""

    version: Literal[1] = 1
    name: str | None = None
    model: str = "marbles"
    components: Components = Components()
    loras: tuple[LoraSpec, ...] = ()
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    prompt: str
    negative: str | None = None
    weights: WeightMode = "auto"
    seeds: tuple[Seed, ...] = (0, 1)
    design: DesignSpec | None = None
    video: VideoSpec = VideoSpec()
    sampler: SamplerSpec = SamplerSpec()
    init: InitSpec | None = None
    edits: tuple[Edit, ...] = ()
    sweep: Sweep = Field(default_factory=dict)
    baseline: bool = True
    capture: CaptureSpec = CaptureSpec()

    @field_validator("prompt")
    @classmethod
    def _some_prompt(cls, prompt: str) -> str:
        if not prompt.strip():
            raise ValueError("a study needs a prompt")
        return prompt

    @field_validator("prompt", "negative")
    @classmethod
    def _unicode(cls, text: str | None) -> str | None:
        if text is not None and any("\ud800" <= c <= "\udfff" for c in text):
            raise ValueError("it contains a lone surrogate, which is not valid Unicode")
        return text

    @field_validator("seeds", mode="before")
    @classmethod
    def _count(cls, seeds: Any) -> Any:
        if isinstance(seeds, bool) or not isinstance(seeds, int | list | tuple | range):
            raise ValueError("it should be a number (4 means seeds 0 to 3) or a list of numbers ([0, 7, 11])")
        if isinstance(seeds, int):
            if not 1 <= seeds <= 100_000:
                raise ValueError("it should be from 1 to 100000; seeds: 4 means seeds 0 to 3")
            return tuple(range(seeds))
        return tuple(seeds)

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if not seeds:
            raise ValueError("at least one seed is needed")
        twice = next((seed for i, seed in enumerate(seeds) if seed in seeds[:i]), None) if _repeats(seeds) else None
        if twice is not None:
            raise ValueError(f"seed {twice} is listed twice and would make the same video twice")
        return seeds

    @field_validator("edits", mode="before")
    @classmethod
    def _one_line_each(cls, edits: Any) -> Any:
        return [edit_from(edit) if isinstance(edit, str) else edit for edit in _as_list(edits)]

    @field_validator("sweep", mode="before")
    @classmethod
    def _values(cls, sweep: Any) -> Any:
        return sweep_values(sweep)

    @field_validator("sweep")
    @classmethod
    def _sweep_makes_edits(cls, sweep: Sweep, info: ValidationInfo) -> Sweep:
        if sweep and "edits" in info.data:  # otherwise `edits` itself has an error, which is reported
            swept_edits(info.data["edits"], sweep)
        return sweep

    @field_validator("name")
    @classmethod
    def _file_name(cls, name: str | None) -> str | None:
        if name is not None and not _can_be_folder(name):
            raise ValueError("it is not a valid folder name on every system; use letters, digits, '-' and '_'")
        return name


class ModelIdentity(Spec):
    """Which weights a recipe uses: where to find them (name, components), and a hash of each component's content.

    `weights` also has `settings`, a hash of what the model's folder determines besides its weights (scheduler, expert
    boundary).
    """

    name: str
    variant: str
    components: Components = Components()
    weights: dict[str, str] = Field(default_factory=dict)


class MarkSpec(Spec):
    """A marked span of the prompt with its weight. start, end: in characters; weighted: whether a weight was given."""

    text: str
    start: int
    end: int
    weight: Finite = 1.0
    weighted: bool = False


class Recipe(Spec):
    """Everything that determines one video. Its id does not cover `capture`, `labels` or the paths of files."""

    version: Literal[1] = 1
    model: ModelIdentity
    loras: tuple[LoraSpec, ...] = ()
    dtype: Literal["fp32", "bf16", "fp16"]
    prompt: str
    negative: str
    marks: tuple[MarkSpec, ...] = ()
    weights: WeightMode = "auto"
    seed: Seed
    video: VideoSpec
    sampler: SamplerSpec
    init: InitSpec | None = None
    edits: tuple[Edit, ...] = ()
    capture: CaptureSpec = CaptureSpec()
    labels: dict[str, str] = Field(default_factory=dict)

    def canonical(self) -> str:
        """Return the JSON that is hashed: sorted keys, no spaces, and no fields that have their default value.

        Leaving defaults out means that a field added later does not change existing ids.
        """
        data = self.model_dump(mode="json", exclude_defaults=True, exclude={"capture", "labels"})
        data["version"] = self.version
        data["model"] = self.model.weights or {"variant": self.model.variant}  # in a dry run the weights may be unknown
        if not any(mark.weighted for mark in self.marks) or self.weights == "none":
            data.pop("marks", None)  # marks without weights only select what is recorded
            data.pop("weights", None)
        for lora in data.get("loras", ()):
            lora.pop("path", None)
        if "init" in data:
            data["init"] = {"sha256": data["init"].get("sha256")}
        if "edits" in data:
            data["edits"] = _without_paths(data["edits"])
        return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)

    @property
    def hash(self) -> str:
        """SHA-256 of the canonical JSON, in hex."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()

    @property
    def id(self) -> str:
        """The take's id: the first 16 digits of the hash."""
        return self.hash[:16]
