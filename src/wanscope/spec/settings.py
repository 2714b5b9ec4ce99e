"""The settings that studies and recipes consist of: sampler, video, LoRAs, initial latents, design.

All are frozen and reject unknown keys. None means the variant's default; `resolved` fills it in.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    field_validator,
    model_serializer,
    model_validator,
)

from wanscope.errors import RecipeError
from wanscope.spec import solver_facts
from wanscope.spec.interpolation import value_at
from wanscope.spec.validation import validated

Finite = Annotated[float, Field(allow_inf_nan=False)]


class Spec(BaseModel):
    """Base of all settings: frozen, and unknown keys are rejected.

    written_as: the field whose content is written in place of the whole model, as in `{0: 6.5}` for keyframes. Errors
    leave its name out of the path (validation.py).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)
    written_as: ClassVar[str | None] = None


class Keyframes(Spec):
    """A number over steps: `{0: 6.5, 10: 3.5, interpolate: linear}`, constant before the first and after the last.

    `step` holds a value until the next key; `cosine` eases in and out between two keys. over: `steps`, or `sigma`, the
    noise level, which falls from 1 to 0 and does not depend on the number of steps: `{1.0: 8, 0.9: 2, over: sigma}`.
    keys: in the order of the run.
    """

    written_as: ClassVar[str | None] = "keys"

    keys: tuple[tuple[Annotated[float, Field(ge=0, allow_inf_nan=False)], Finite], ...] = Field(min_length=1)
    interpolate: Literal["linear", "step", "cosine"] = "linear"
    over: Literal["steps", "sigma"] = "steps"

    @model_validator(mode="before")
    @classmethod
    def _from_mapping(cls, value: Any) -> Any:
        if not isinstance(value, Mapping) or "keys" in value:
            return value
        rest = dict(value)
        out: dict[str, Any] = {name: rest.pop(name) for name in ("interpolate", "over") if name in rest}
        sigma = out.get("over") == "sigma"
        keys = []
        for key, number in rest.items():
            try:
                keys.append((float(key) if sigma else int(key), number))
            except (TypeError, ValueError):
                what = "a noise level; write keyframes as {1.0: 8, 0.9: 2, over: sigma}"
                what = what if sigma else "a step number; write keyframes as {0: 6.5, 10: 3.5}"
                raise ValueError(f"{key!r} is not {what}") from None
        return {**out, "keys": keys}

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        places = [place for place, _ in self.keys]
        if self.over == "sigma" and max(places) > 1:
            raise ValueError(f"there is no noise level {max(places):g}; sigma falls from 1 to 0")
        if self.over == "steps" and any(place != int(place) for place in places):
            raise ValueError("a step is a whole number; for noise levels add over: sigma")
        if len(set(places)) != len(places):
            raise ValueError(f"two keyframes name the same {'noise level' if self.over == 'sigma' else 'step'}")
        ordered = tuple(sorted(self.keys, key=lambda key: self._forward(key[0])))
        if ordered != self.keys:
            object.__setattr__(self, "keys", ordered)
        return self

    @model_serializer
    def _as_mapping(self) -> dict[str, Any]:
        keys = {f"{place:g}" if self.over == "sigma" else str(int(place)): number for place, number in self.keys}
        return {**keys, "interpolate": self.interpolate, **({"over": "sigma"} if self.over == "sigma" else {})}

    def _forward(self, place: float) -> float:
        """Return a place as a number that increases along the run."""
        return 1 - place if self.over == "sigma" else place

    def at(self, step: int, sigma: float | None = None) -> float:
        """Return the number at a step that begins at noise level `sigma`, which is used only with `over: sigma`.

        Raises ValueError where that needs a sigma and none is given.
        """
        if self.over == "sigma":
            if sigma is None:
                raise ValueError("keyframes over sigma need the step's sigma")
            here = 1 - sigma
        else:
            here = float(step)
        keys = [(self._forward(place), number) for place, number in self.keys]
        return value_at(keys, here, self.interpolate)


Guidance = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] | Keyframes


class SamplerSpec(Spec):
    """How noise becomes latents. None means the variant's default; in a recipe it remains only for what is off.

    steps: of the schedule (Heun and res_2s evaluate the model about twice per step). shift: of the flow schedule.
    guidance: classifier-free guidance; exactly 1 skips the second pass. guidance_2: for the low-noise expert of Wan
    2.2 (None: the same as guidance). sigmas: explicit, from high to low, used unshifted; a final 0 is added where it
    is missing. start_step: skip this many steps and begin from the noised `init`; denoise: 1 - start_step / steps,
    another way to write it.
    cfg_per_expert: decide for each expert whether guidance is off, instead of once as WanPipeline does.
    cfg_batched: both branches in one batch. skim: scale of skimmed CFG (None: off). zero_star: CFG-Zero*.
    """

    solver: str | None = None
    steps: Annotated[int, Field(ge=1, le=1000)] | None = None
    shift: Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)] | None = None
    guidance: Guidance | None = None
    guidance_2: Guidance | None = None
    sigmas: tuple[Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)], ...] | None = None
    start_step: Annotated[int, Field(ge=0)] = 0
    denoise: Annotated[float, Field(gt=0, le=1)] | None = None
    cfg_per_expert: bool = True
    cfg_batched: bool = False
    skim: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] | None = None
    zero_star: bool = False

    @field_validator("guidance", "guidance_2")
    @classmethod
    def _guidance_range(cls, value: float | Keyframes | None) -> float | Keyframes | None:
        if isinstance(value, Keyframes):
            for place, number in value.keys:
                if not 0 <= number <= 100:
                    unit = "sigma" if value.over == "sigma" else "step"
                    raise ValueError(f"guidance {number:g} at {unit} {place:g} should be from 0 to 100")
        return value

    @field_validator("solver", mode="before")
    @classmethod
    def _known_solver(cls, value: Any) -> Any:
        if value is not None:
            solver_facts.require_known(str(value))
        return value

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.denoise is not None and self.start_step:
            raise ValueError("start_step and denoise are the same control; give one of them")
        if self.sigmas is not None:
            if self.solver is not None and not solver_facts.facts(self.solver).takes_sigmas:
                taking = ", ".join(solver_facts.names_that_take_sigmas())
                raise ValueError(f"solver {self.solver!r} takes no explicit sigmas; these do: {taking}")
            falling = all(a > b for a, b in zip(self.sigmas, self.sigmas[1:], strict=False))
            if not self.sigmas or not falling or self.sigmas[0] <= 0:
                raise ValueError("sigmas must fall strictly, from at most 1 to at least 0")
            count = len(self.sigmas) - (self.sigmas[-1] == 0)
            if self.steps is not None and self.steps != count:
                raise ValueError(f"{count} sigmas make {count} steps, but steps is {self.steps}; leave steps out")
        return self

    def resolved(self, defaults: Mapping[str, Any], experts: int = 1) -> SamplerSpec:
        """Return these settings with open values filled from `defaults` and `denoise` turned into `start_step`.

        Everything is checked again. Raises RecipeError where the settings do not fit together or do not fit a model
        with this many experts.
        """
        values = {k: v for k, v in self.model_dump().items() if v is not None}
        if self.sigmas is not None:
            values["sigmas"] = sigmas = (*(s for s in self.sigmas if s > 0), 0.0)
            values["steps"] = len(sigmas) - 1
        for key in ("solver", "steps", "shift", "guidance"):
            values.setdefault(key, defaults[key])
        if experts == 2:
            fallback = defaults.get("guidance_2") if self.guidance is None else values["guidance"]
            values.setdefault("guidance_2", values["guidance"] if fallback is None else fallback)
        elif self.guidance_2 is not None:
            raise RecipeError(
                "sampler.guidance_2 is set", "this model has one expert, which uses guidance", "remove guidance_2"
            )
        denoise = values.pop("denoise", None)
        if denoise is not None:
            values["start_step"] = round(values["steps"] * (1 - denoise))
        if values["start_step"] >= values["steps"]:
            raise RecipeError(
                f"sampler.start_step is {values['start_step']}",
                f"only steps 0 to {values['steps'] - 1} exist",
                f"start_step: {values['steps'] - 1}",
            )
        return validated(SamplerSpec, values, where="sampler")


class VideoSpec(Spec):
    """Size in pixels and length. frames is 4n + 1; duration, in seconds, is rounded to the nearest such number."""

    width: Annotated[int, Field(ge=16, le=8192)] | None = None
    height: Annotated[int, Field(ge=16, le=8192)] | None = None
    frames: Annotated[int, Field(ge=1, le=10_000)] | None = None
    duration: Annotated[float, Field(gt=0, le=3600)] | None = None
    fps: Annotated[int, Field(ge=1, le=240)] | None = None

    @field_validator("frames")
    @classmethod
    def _four_n_plus_one(cls, frames: int | None) -> int | None:
        if frames is not None and frames % 4 != 1:
            low = (frames - 1) // 4 * 4 + 1
            near = f"{low + 4}" if low < 1 else f"{low} or {low + 4}"
            raise ValueError(f"{frames} is not 4n + 1, the numbers of frames that Wan can make; use {near}")
        return frames

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.frames is not None and self.duration is not None:
            raise ValueError("frames and duration both set the length; give one of them")
        return self

    def resolved(self, defaults: Mapping[str, Any]) -> VideoSpec:
        values = {k: v for k, v in self.model_dump().items() if v is not None}
        for key in ("width", "height", "fps"):
            values.setdefault(key, defaults[key])
        duration = values.pop("duration", None)
        if duration is not None:
            values["frames"] = max(0, round((duration * values["fps"] - 1) / 4)) * 4 + 1
        values.setdefault("frames", defaults["frames"])
        return validated(VideoSpec, values, where="video")


class LoraSpec(Spec):
    """A LoRA file and its weight.

    expert: which of Wan 2.2's two experts it is applied to. sha256: of the file; filled in for the recipe.
    """

    path: str
    weight: Finite = 1.0
    expert: Literal["both", "high", "low"] = "both"
    sha256: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        path, colon, weight = value.rpartition(":")
        try:
            return {"path": path, "weight": float(weight)} if colon else {"path": value}
        except ValueError:
            return {"path": value}


class InitSpec(Spec):
    """What a partial denoising starts from: a take (id or folder), a file of latents, or a video.

    sha256: of the latents' values, or of the video file's bytes; filled in for the recipe.
    """

    take: str | None = None
    latents: str | None = None
    video: str | None = None
    sha256: str | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(x is not None for x in (self.take, self.latents, self.video)) != 1:
            raise ValueError("init names exactly one of take, latents and video")
        return self


class Hypothesis(Spec):
    """A claim stated before the run; the report marks its test as confirmatory and all others as exploratory."""

    text: str = Field(min_length=1)
    metric: str | None = None
    contrast: tuple[str, str] | None = None

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, value: Any) -> Any:
        return {"text": value} if isinstance(value, str) else value


class DesignSpec(Spec):
    """What is compared (`factor`, a slot's name) and what is random (`blocks`: the seed, and further slots)."""

    factor: str
    blocks: tuple[str, ...] = ("seed",)
    hypotheses: tuple[Hypothesis, ...] = ()


class Components(Spec):
    """Files or folders of components to use instead of the model's own; needed for a single-file transformer."""

    text_encoder: str | None = None
    vae: str | None = None
    tokenizer: str | None = None
