"""The edits: what a person declares to be done inside the model while it denoises. Plain data, no torch.

    Inject    a donor's text (or hidden states) into chosen blocks
    Bend      the cross-attention maps of chosen words: moved, scaled, turned, amplified, masked
    Steer     along a concept direction: add it, take it out, turn toward it
    Skip      a block, or only its cross-attention
    Prompts   other prompts at other steps

All are frozen and refuse keys that they do not know. Blocks, strengths and schedules are written as `edit/blocks.py`,
`strengths.py` and `schedule.py` read them, and are kept in one canonical form, so that equal edits have equal ids.
What depends on the model (how many blocks, steps and heads it has) is said by `check`, what depends on its tokenizer
by `edit/donors.py`, both before any work.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_serializer,
    model_validator,
)

from wanscope.edit.base import BlocksText, EditBase, EditInBlocks, EditWithStrength, Heads, Text, Words
from wanscope.edit.canonical_fields import spoken
from wanscope.edit.expression import parse_expression
from wanscope.errors import RecipeError, nearest
from wanscope.spec.settings import Finite, Spec

MAX_DIFFERENCE = 10.0


class Donor(Spec):
    """What is injected: a prompt, an expression over prompts and embeddings, or a stored embedding.

    expression: as `edit/expression.py` reads it; names: what its names mean, prompts or `{embedding: file}`.
    embedding: a .safetensors file with one token matrix [L, D] of the model's own text encoder; sha256 is filled in for
    the recipe. after_block: inject the state that the donor's own pass has after this many blocks, in every chosen
    block, instead of the state at each block's own place.
    """

    prompt: Text | None = None
    expression: str | None = None
    names: dict[str, Donor] = Field(default_factory=dict)
    embedding: str | None = None
    sha256: str | None = None
    after_block: Annotated[int, Field(ge=0, strict=True)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, value: Any) -> Any:
        return {"prompt": value} if isinstance(value, str) else value

    @model_serializer(mode="wrap")
    def _short(self, handler: Any) -> Any:
        if self == Donor.model_construct(prompt=self.prompt):
            return self.prompt
        return {key: value for key, value in handler(self).items() if value is not None and value != {}}

    @model_validator(mode="after")
    def _one(self) -> Self:
        given = [name for name in ("prompt", "expression", "embedding") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError("a donor is exactly one of a prompt, an expression and an embedding")
        if self.expression is None and self.names:
            raise ValueError("names belong to an expression, and there is none")
        if self.sha256 is not None and self.embedding is None:
            raise ValueError("sha256 belongs to an embedding, and there is none")
        if self.expression is not None:
            with spoken():
                parsed = parse_expression(self.expression)
                parsed.check_names(self.names)
            unused = [name for name in self.names if name not in parsed.names]
            if unused:
                raise ValueError(f"the expression does not use {unused[0]!r}; {nearest(unused[0], parsed.names)}")
            for name, inner in self.names.items():
                if inner.expression is not None or inner.after_block is not None:
                    raise ValueError(f"the name {name!r} stands for a prompt or a stored embedding, nothing else")
        return self

    def prompts(self) -> list[str]:
        """The texts that it is made of."""
        if self.prompt is not None:
            return [self.prompt]
        return [text for inner in self.names.values() for text in inner.prompts()]

    def files(self) -> list[Donor]:
        """Itself or its parts that are stored embeddings."""
        return [self] if self.embedding is not None else [d for inner in self.names.values() for d in inner.files()]


class Inject(EditWithStrength):
    """A donor's text into chosen blocks, or its hidden states.

    on: `context` (what cross-attention reads), `hidden` (a block's input, from the donor's own pass on the same
    latents), or `both`.
    mode, on the context: `mix` the outputs of the two cross-attentions, `append` the donor's tokens to the prompt's
    with weight `strength`, or blend `tokens` place by place.
    operation, of tokens and hidden states a with the donor's b at strength s: `blend` (1 - s) a + s b, `replace` b
    wherever s is above 0, `add` a + s b.
    words: limit mode `tokens` to the places of these words of the prompt.
    difference: move the donor first, to this relative L2 distance from the prompt (raw embeddings, exact), by the
    amplifier's mode `amplify`. boost: multiply the difference after projection. keep_norm: whether the two keep every
    token's length; left out, boost does and difference does not.
    donor_negative: with branch `both`, what the other pass gets.
    """

    kind: Literal["inject"] = "inject"
    donor: Donor
    donor_negative: Text | None = None
    on: Literal["context", "hidden", "both"] = "context"
    mode: Literal["mix", "append", "tokens"] = "mix"
    operation: Literal["blend", "replace", "add"] = "blend"
    words: Words = ()
    difference: Annotated[float, Field(gt=0, le=MAX_DIFFERENCE, allow_inf_nan=False)] | None = None
    amplify: Literal["push_apart", "maximize_diff", "orthogonalize"] = "push_apart"
    boost: Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)] | None = None
    keep_norm: bool | None = None

    def __init__(self, donor: Any = None, /, **data: Any) -> None:
        super().__init__(**(data if donor is None else {"donor": donor, **data}))

    @property
    def strength_range(self) -> tuple[float, float]:
        # A mix is a share and an append a weight, beside whatever state they are asked for `on: both`.
        adds_alone = self.operation == "add" and (self.mode == "tokens" or self.on == "hidden")
        return (-10.0, 10.0) if adds_alone else (0.0, 1.0)

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.operation != "blend" and self.on == "context" and self.mode != "tokens":
            raise ValueError(f"operation {self.operation} works on tokens or hidden states; mode: tokens or on: hidden")
        if self.mode != "mix" and self.on == "hidden":
            raise ValueError(f"mode {self.mode} is about the context, and on is hidden; on: context")
        if self.words and (self.mode != "tokens" or self.on != "context"):
            raise ValueError("words limit an injection of tokens into the context; mode: tokens")
        if self.boost is not None and self.on == "hidden":
            raise ValueError("boost multiplies a difference of contexts, and on is hidden; on: context")
        if self.amplify != "push_apart" and self.difference is None:
            raise ValueError(f"amplify {self.amplify} says how a difference is reached, and none is asked for")
        if self.keep_norm is not None and self.difference is None and self.boost is None:
            raise ValueError("keep_norm belongs to difference or boost, and neither is given")
        if self.donor_negative is not None and self.branch != "both":
            raise ValueError("donor_negative is what the uncond pass gets beside the donor; branch: both")
        return self

    def texts(self) -> dict[str, str]:
        out = dict.fromkeys(self.donor.prompts(), "donor")
        if self.donor_negative is not None:
            out.setdefault(self.donor_negative, "donor's negative prompt")
        return out

    def check(self, blocks: int, steps: int, heads: int) -> None:
        super().check(blocks, steps, heads)
        after = self.donor.after_block
        if after is not None and after > blocks:
            raise RecipeError(
                f"the donor is captured after block {after}", f"the model has {blocks} blocks", f"after_block: {blocks}"
            )


# What each operation of Bend needs, and what it may have beside that.
BENDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "amplify": (("factor",), ()),
    "suppress": (("factor",), ()),
    "scale": (("factor",), ()),
    "rotate": (("angle",), ()),
    "translate": ((), ("x", "y")),
    "flip": ((), ("axis",)),
    "blur": (("sigma",), ()),
    "region": (("box",), ()),
}
FACTORS = {"amplify": (1.0, 1e6), "suppress": (1.0, 1e6), "scale": (0.01, 100.0)}
BEND_PARAMETERS = ("factor", "x", "y", "angle", "axis", "sigma", "box")


class Bend(EditWithStrength):
    """The cross-attention maps of chosen words, changed.

    amplify: multiplied by `factor`, from 1 on. suppress: divided by it. scale: about the frame's center, `factor` 2 is
    twice as large. rotate: by `angle` degrees about the center, counterclockwise as seen. translate: by `x` (to the
    right) and `y` (down) in shares of the frame. flip: along `axis` x (left and right change places) or y. blur:
    Gaussian, `sigma` in tokens. region: kept inside `box` (left, top, right, bottom in shares of the frame), 0 outside.
    strength: from the map as it is (0) to the changed one (1). heads: () for all. renormalize: whether the changed
    attention still sums to 1.
    """

    kind: Literal["bend"] = "bend"
    words: Words
    operation: Literal["amplify", "suppress", "scale", "rotate", "translate", "flip", "blur", "region"]
    factor: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    x: Annotated[float, Field(ge=-1, le=1, allow_inf_nan=False)] | None = None
    y: Annotated[float, Field(ge=-1, le=1, allow_inf_nan=False)] | None = None
    angle: Annotated[float, Field(ge=-360, le=360, allow_inf_nan=False)] | None = None
    axis: Literal["x", "y"] | None = None
    sigma: Annotated[float, Field(ge=0, le=64, allow_inf_nan=False)] | None = None
    box: tuple[Finite, Finite, Finite, Finite] | None = None
    heads: Heads = ()
    renormalize: bool = True

    def __init__(self, words: Any = None, operation: Any = None, /, **data: Any) -> None:
        given = {"words": words, "operation": operation}
        super().__init__(**{key: value for key, value in given.items() if value is not None}, **data)

    @field_validator("words")
    @classmethod
    def _some_word(cls, words: tuple[str, ...]) -> tuple[str, ...]:
        if not words:
            raise ValueError("it names no word whose attention is bent")
        return words

    @field_validator("heads")
    @classmethod
    def _distinct(cls, heads: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(heads)) != len(heads):
            raise ValueError("a head is named twice")
        return tuple(sorted(heads))

    @field_validator("box")
    @classmethod
    def _box(cls, box: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if box is not None and not (0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1):
            raise ValueError("a box is [left, top, right, bottom] in shares of the frame, such as [0, 0, 0.5, 1]")
        return box

    @model_validator(mode="after")
    def _agree(self) -> Self:
        needed, allowed = BENDS[self.operation]
        for name in BEND_PARAMETERS:
            given = getattr(self, name) is not None
            if name in needed and not given:
                raise ValueError(f"{self.operation} needs {name}")
            if given and name not in (*needed, *allowed):
                has = " and ".join((*needed, *allowed))
                raise ValueError(f"{self.operation} has no {name}; it has {has}")
        if self.operation == "translate" and self.x is None and self.y is None:
            raise ValueError("translate needs x, y or both, in shares of the frame")
        low, high = FACTORS.get(self.operation, (0.0, 0.0))
        if self.factor is not None and not low <= self.factor <= high:
            raise ValueError(f"the factor of {self.operation} is from {low:g} to {high:g}, not {self.factor:g}")
        return self

    @property
    def changes_nothing(self) -> bool:
        """Factor 1, angle 0 and their kin: the map would be the one that is there, so it is not planned at all."""
        if self.operation in ("amplify", "suppress", "scale"):
            return self.factor == 1
        if self.operation == "rotate":
            return (self.angle or 0.0) % 360 == 0
        if self.operation == "translate":
            return not self.x and not self.y
        return self.sigma == 0 if self.operation == "blur" else self.box == (0, 0, 1, 1)

    def check(self, blocks: int, steps: int, heads: int) -> None:
        super().check(blocks, steps, heads)
        for head in self.heads:
            if head >= heads:
                raise RecipeError(f"there is no head {head}", f"heads are numbered from 0 to {heads - 1}", "heads: []")


class Steer(EditWithStrength):
    """Along a concept direction, learned from pairs of prompts and stored in a file.

    add: the direction times `strength`, in units of the length that the learned difference had. ablate: take its part
    out (strength 1: all of it). rotate: turn toward it (strength 1: all the way).
    """

    kind: Literal["steer"] = "steer"
    direction: Annotated[str, Field(min_length=1)]
    sha256: str | None = None
    operation: Literal["add", "ablate", "rotate"] = "add"
    on: Literal["context", "hidden"] = "context"

    def __init__(self, direction: Any = None, /, **data: Any) -> None:
        super().__init__(**(data if direction is None else {"direction": str(direction), **data}))

    @property
    def strength_range(self) -> tuple[float, float]:
        return (-100.0, 100.0) if self.operation == "add" else (0.0, 1.0)


class Skip(EditInBlocks):
    """A block, or only its cross-attention. schedule: skipped at the steps where it is not zero."""

    kind: Literal["skip"] = "skip"
    blocks: BlocksText  # type: ignore[reportGeneralTypeIssues]  # no default: all of them should be asked for
    part: Literal["block", "cross_attention"] = "block"

    def __init__(self, blocks: Any = None, /, **data: Any) -> None:
        super().__init__(**(data if blocks is None else {"blocks": blocks, **data}))


class Prompts(EditBase):
    """Other prompts at other steps: `{0: "a red circle", 10: "a blue circle"}`.

    Before the first key the prompt itself holds, from the last key on the last one does. interpolate between two keys:
    `step` holds each until the next, `linear` and `spherical` go from one embedding to the next token by token.
    """

    kind: Literal["prompts"] = "prompts"
    keys: dict[int, Text]
    interpolate: Literal["step", "linear", "spherical"] = "step"
    schedule: ClassVar[None] = None  # type: ignore[assignment]  # its keys say when

    def __init__(self, keys: Any = None, /, **data: Any) -> None:
        super().__init__(**(data if keys is None else {"keys": keys, **data}))

    @field_validator("keys", mode="before")
    @classmethod
    def _steps(cls, keys: Any) -> Any:
        if not isinstance(keys, Mapping) or not keys:
            raise ValueError('it maps steps to prompts, such as {0: "a red circle", 10: "a blue circle"}')
        try:
            out = {int(step): prompt for step, prompt in keys.items() if not isinstance(step, bool | float)}
        except (TypeError, ValueError):
            out = {}
        if len(out) != len(keys) or min(out) < 0:
            raise ValueError("its keys are steps: whole numbers from 0, each named once")
        return dict(sorted(out.items()))

    def texts(self) -> dict[str, str]:
        return {prompt: f"prompt at step {step}" for step, prompt in self.keys.items()}

    def check(self, blocks: int, steps: int, heads: int) -> None:
        last = max(self.keys)
        if last >= steps:
            raise RecipeError(f"a prompt is given for step {last}", f"the run has steps 0 to {steps - 1}", "")


KINDS: dict[str, type[EditBase]] = {"inject": Inject, "bend": Bend, "steer": Steer, "skip": Skip, "prompts": Prompts}


def _kind_of(value: Any) -> str | None:
    return value.get("kind") if isinstance(value, Mapping) else getattr(value, "kind", None)


def text_keys(value: Any) -> Any:
    """A mapping with text for keys. In YAML a bare `on` is the truth value; here nothing else can be meant by it."""
    if isinstance(value, Mapping) and not all(isinstance(key, str) for key in value):
        return {("on" if key is True else str(key)): item for key, item in value.items()}
    return value


Edit = Annotated[
    Annotated[Inject, Tag("inject")]
    | Annotated[Bend, Tag("bend")]
    | Annotated[Steer, Tag("steer")]
    | Annotated[Skip, Tag("skip")]
    | Annotated[Prompts, Tag("prompts")],
    Discriminator(_kind_of),
    BeforeValidator(text_keys),
]
