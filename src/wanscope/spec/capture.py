"""What a study asks to be kept beside its videos: latents, predicted clean latents, attention maps of both kinds.

None of it changes a pixel, so a recipe's id does not cover it. Steps and blocks are written as edits write blocks
(`all`, `late`, `0-9,20`, a list); what depends on the model is checked where the model is known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from wanscope.spec.branch import Branch
from wanscope.spec.settings import Spec

MARKED, ALL = "@marked", "@all"  # among words: the prompt's marked ones, and every token

Measure = Literal["probability", "contribution", "gramcol"]
MEASURES: tuple[Measure, ...] = ("probability", "contribution", "gramcol")
Recorded = Literal["probability", "contribution", "gramcol", "self"]  # and self-attention, a capture of its own
RECORDED: tuple[Recorded, ...] = (*MEASURES, "self")


class LatentsCapture(Spec):
    """Which latents stay: every n-th state (first and last always), as fp16 or fp32."""

    dtype: Literal["fp16", "fp32"] = "fp16"
    every: Annotated[int, Field(ge=1)] = 1


def _places(value: Any) -> Any:
    """Blocks or steps as text: a list of numbers becomes `0,3,7`."""
    if isinstance(value, list | tuple) and value and all(type(item) is int for item in value):
        return ",".join(str(item) for item in value)
    if type(value) is int:
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise ValueError("it should be all, a preset such as late, ranges such as 0-9,20, or a list of numbers")
    return value.strip()


Places = Annotated[str, BeforeValidator(_places)]


class MapsCapture(Spec):
    """What captures of maps have in common: where, when and how they are kept.

    heads: `mean` over the heads, `all`, or a list. blocks, steps: as for edits. branch: of guidance.
    evaluations: of a step that takes several, the first or all.
    keep: the `maps` of every step, their `mean` over the steps, or `nothing` (for a `reduce` function).
    """

    heads: Literal["mean", "all"] | tuple[Annotated[int, Field(ge=0, strict=True)], ...] = "mean"
    blocks: Places = "all"
    steps: Places = "all"
    branch: Branch = "cond"
    evaluations: Literal["first", "all"] = "first"
    keep: Literal["maps", "mean", "nothing"] = "maps"

    @field_validator("heads", mode="before")
    @classmethod
    def _heads(cls, value: Any) -> Any:
        if value in ("mean", "all"):
            return value
        heads = [value] if type(value) is int else value
        if not isinstance(heads, list | tuple) or not heads or not all(type(head) is int for head in heads):
            raise ValueError("it should be mean, all, or a list of heads' numbers")
        return tuple(sorted(set(heads)))

    def _holds(self, asked: MapsCapture) -> bool:
        """Whether records made for this are of all heads, blocks, steps and evaluations that `asked` wants."""
        return (
            (self.heads == asked.heads or (self.heads == "all" and asked._heads_can_be_picked))
            and self.blocks in ("all", asked.blocks)
            and self.steps in ("all", asked.steps)
            and self.branch == asked.branch
            and self.evaluations in ("all", asked.evaluations)
            # a mean is of certain steps; of maps any mean can be taken
            and (asked.keep == "nothing" or self.keep == "maps" or (self.keep == asked.keep and self._over(asked)))
        )

    def _both(self, asked: MapsCapture) -> dict[str, Any]:
        """The settings of records that hold both. ValueError for two branches."""
        if self.branch != asked.branch:
            raise ValueError("a take holds the maps of one branch, and those of the other are there")
        keeps = {self.keep, asked.keep}
        means = "mean" in keeps and "maps" not in keeps and self._over(asked)
        return {
            "heads": self.heads if self.heads == asked.heads else "all",
            "blocks": self.blocks if self.blocks == asked.blocks else "all",
            "steps": self.steps if self.steps == asked.steps else "all",
            "branch": self.branch,
            "evaluations": self.evaluations if self.evaluations == asked.evaluations else "all",
            "keep": "nothing" if keeps == {"nothing"} else "mean" if means else "maps",
        }

    def _over(self, other: MapsCapture) -> bool:
        """Whether means are taken over the same evaluations."""
        return self.steps == other.steps and self.evaluations == other.evaluations

    @property
    def _heads_can_be_picked(self) -> bool:
        """Whether what is asked for can be had from maps of every head."""
        return True


class AttentionCapture(MapsCapture):
    """Which cross-attention maps stay; what is not said here is as for all maps.

    tokens: `marked` (the prompt's marked words), `all` (every token, and the marked words where there are any), or a
    list of words of the prompt, in which `@marked` and `@all` stand for those. A word of several tokens is summed, and
    its tokens are kept too (but not of means). The padding is always kept beside them.
    measures: `probability`, `contribution` (value-weighted), `gramcol` (see docs/attention.md).
    """

    tokens: Literal["marked", "all"] | tuple[str, ...] = "marked"
    measures: tuple[Measure, ...] = ("probability",)

    @field_validator("tokens", mode="before")
    @classmethod
    def _tokens(cls, value: Any) -> Any:
        if value in ("marked", "all"):
            return value
        words = [value] if isinstance(value, str) else value
        if not isinstance(words, list | tuple) or not words or not all(isinstance(w, str) and w.strip() for w in words):
            raise ValueError("it should be marked, all, or a list of words of the prompt")
        distinct = tuple(dict.fromkeys(word.strip() for word in words))
        return "marked" if distinct == (MARKED,) else "all" if distinct == (ALL,) else distinct

    @field_validator("measures", mode="before")
    @classmethod
    def _measures(cls, value: Any) -> Any:
        names = [value] if isinstance(value, str) else value
        if not isinstance(names, list | tuple) or not names or any(name not in MEASURES for name in names):
            raise ValueError(f"it should be a list of {', '.join(MEASURES)}")
        return tuple(name for name in MEASURES if name in names)

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if "gramcol" in self.measures and self.heads != "mean":
            raise ValueError("gramcol compares whole hidden states, which belong to no head; use heads: mean")
        return self

    @property
    def needs_marks(self) -> bool:
        """Whether a prompt without marked words is an error."""
        return self.tokens == "marked" or MARKED in self.tokens

    @property
    def marked(self) -> bool:
        """Whether the prompt's marked words are among those asked for."""
        return self.needs_marks or self.everything

    @property
    def everything(self) -> bool:
        """Whether every token is asked for."""
        return self.tokens == "all" or ALL in self.tokens

    @property
    def words(self) -> tuple[str, ...]:
        """The words that are named."""
        return tuple(w for w in self.tokens if w not in (MARKED, ALL)) if isinstance(self.tokens, tuple) else ()

    def covers(self, asked: AttentionCapture) -> bool:
        """Whether records made for this hold all that `asked` wants."""
        return (
            (self.everything or not asked.everything)
            and (self.marked or not asked.marked)
            and set(asked.words) <= set(self.words)
            and set(asked.measures) <= set(self.measures)
            and self._holds(asked)
        )

    def union(self, asked: AttentionCapture) -> AttentionCapture:
        """Records that hold both. ValueError where one store cannot: two branches, or heads single and together."""
        both = self._both(asked)
        measures: tuple[Measure, ...] = tuple(m for m in MEASURES if m in (*self.measures, *asked.measures))
        if self.heads != asked.heads:
            mixed = "mean" in (self.heads, asked.heads)
            if "gramcol" in measures or (mixed and measures != ("probability",)):
                raise ValueError(f"{measures[-1]} of all heads together is not made of those of single heads")
        return AttentionCapture(tokens=_tokens_of_both(self, asked), measures=measures, **both)

    @property
    def _heads_can_be_picked(self) -> bool:
        """Whether what is asked for can be had from maps of every head: single ones, or the mean of probabilities."""
        return self.heads != "mean" or self.measures == ("probability",)


MIDDLE = 0.5


class SelfAttentionCapture(MapsCapture):
    """Which rows of self-attention stay: where in the video chosen positions look. As for all maps, and:

    positions: (x, y, t) in fractions of the width, height and length of the video, (0, 0, 0) at its top left and
    beginning; each means the token that it lies in. t is 0.5 where it is left out. As text: `0.5,0.25` or `0.5,0.25,1`.
    """

    measures: ClassVar[tuple[Recorded, ...]] = ("self",)
    positions: tuple[tuple[float, float, float], ...]

    @field_validator("positions", mode="before")
    @classmethod
    def _positions(cls, value: Any) -> Any:
        single = isinstance(value, str) or (
            isinstance(value, list | tuple) and bool(value) and all(isinstance(v, int | float) for v in value)
        )
        values = [value] if single else value
        if not isinstance(values, list | tuple) or not values:
            raise ValueError("it should be a list of positions such as [[0.5, 0.25]]: x, y and, if wanted, t")
        return tuple(dict.fromkeys(_position(value) for value in values))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"x{x:g} y{y:g} t{t:g}" for x, y, t in self.positions)

    def covers(self, asked: SelfAttentionCapture) -> bool:
        """Whether records made for this hold all that `asked` wants."""
        return set(asked.positions) <= set(self.positions) and self._holds(asked)

    def union(self, asked: SelfAttentionCapture) -> SelfAttentionCapture:
        """Records that hold both. ValueError for two branches."""
        return SelfAttentionCapture(positions=(*self.positions, *asked.positions), **self._both(asked))


def _position(value: Any) -> tuple[float, float, float]:
    parts = value.split(",") if isinstance(value, str) else value
    try:
        numbers = [float(part) for part in parts]
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) not in (2, 3) or not all(0 <= number <= 1 for number in numbers):
        raise ValueError(f"{value!r} is not x,y or x,y,t, each from 0 to 1; the middle of the video is 0.5,0.5,0.5")
    x, y, t = (*numbers, MIDDLE)[:3]
    return x, y, t


def _tokens_of_both(a: AttentionCapture, b: AttentionCapture) -> Any:
    special = [MARKED] if a.needs_marks or b.needs_marks else []
    special += [ALL] if a.everything or b.everything else []
    return (*special, *dict.fromkeys((*a.words, *b.words)))


class CaptureSpec(Spec):
    """What to keep beside the video. The Gram matrix of the path is kept with the latents, in float64.

    x0: the clean latents that each step predicts, every n-th and the last. attention: of the video on the text.
    self_attention: of chosen positions of the video on all others. reduce: a function of Python that sees the maps of
    each block as they come (`wanscope.capture.attention_sink.Seen`); it is not written down, and a take is made again
    for it.
    """

    latents: LatentsCapture | None = None
    x0: LatentsCapture | None = None
    attention: AttentionCapture | None = None
    self_attention: SelfAttentionCapture | None = None
    reduce: Callable[..., Any] | None = Field(default=None, exclude=True, repr=False)

    @field_validator("latents", "x0", mode="before")
    @classmethod
    def _switch(cls, value: Any) -> Any:
        if value is not None and not isinstance(value, bool | Mapping | LatentsCapture):
            raise ValueError("it should be true, false or a mapping such as {dtype: fp16, every: 2}")
        return LatentsCapture() if value is True else None if value is False else value

    @field_validator("attention", mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        if value is None or isinstance(value, Mapping | AttentionCapture):
            return value
        if isinstance(value, bool):
            return AttentionCapture() if value else None
        if isinstance(value, str | list | tuple):
            return {"tokens": value}
        raise ValueError("it should be true, false, marked, all, a list of words or a mapping such as {tokens: marked}")

    @field_validator("self_attention", mode="before")
    @classmethod
    def _short_self(cls, value: Any) -> Any:
        if value is None or value is False:
            return None
        if isinstance(value, str | list | tuple):
            return {"positions": value}
        if value is True:
            raise ValueError("it should say of which positions, such as [[0.5, 0.25]]: x and y in fractions")
        return value

    @model_validator(mode="after")
    def _for_reduce(self) -> Self:
        if self.reduce is not None and not self.inside:
            raise ValueError("reduce sees attention maps, and none are captured; add attention: {keep: nothing}")
        return self

    @property
    def inside(self) -> bool:
        """Whether anything is recorded inside the model."""
        return self.attention is not None or self.self_attention is not None
