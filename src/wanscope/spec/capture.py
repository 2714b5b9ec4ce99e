"""What a study captures in addition to its videos: latents, predicted clean latents, cross- and self-attention maps.

Captures do not change a pixel, so a recipe's id does not cover them. Steps and blocks are written as in edits
(`all`, `late`, `0-9,20`, a list); what depends on the model is checked once the model is known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from wanscope.spec.branch import Branch
from wanscope.spec.settings import Spec

MARKED, ALL = "@marked", "@all"  # in a list of words: the prompt's marked words, and every token

Measure = Literal["probability", "contribution", "gramcol"]
MEASURES: tuple[Measure, ...] = ("probability", "contribution", "gramcol")
Recorded = Literal["probability", "contribution", "gramcol", "self"]  # self: self-attention, a separate capture
RECORDED: tuple[Recorded, ...] = (*MEASURES, "self")


class LatentsCapture(Spec):
    """Which latents are kept: every n-th state, always including the first and the last, as fp16 or fp32."""

    dtype: Literal["fp16", "fp32"] = "fp16"
    every: Annotated[int, Field(ge=1)] = 1


def _places(value: Any) -> Any:
    """Return blocks or steps as text: a list of numbers becomes `0,3,7`."""
    if isinstance(value, list | tuple) and value and all(type(item) is int for item in value):
        return ",".join(str(item) for item in value)
    if type(value) is int:
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise ValueError("it should be all, a preset such as late, ranges such as 0-9,20, or a list of numbers")
    return value.strip()


Places = Annotated[str, BeforeValidator(_places)]


class MapsCapture(Spec):
    """The settings that both kinds of attention capture share: where and when maps are taken, and what is kept.

    heads: `mean` over the heads, `all`, or a list. blocks, steps: as for edits. branch: of the guidance.
    evaluations: the first of a step's model evaluations, or all of them.
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
            raise ValueError("it should be mean, all, or a list of head numbers")
        return tuple(sorted(set(heads)))

    def _holds(self, asked: MapsCapture) -> bool:
        """Return whether a record of this capture includes all heads, blocks, steps and evaluations of `asked`."""
        return (
            (self.heads == asked.heads or (self.heads == "all" and asked._heads_can_be_picked))
            and self.blocks in ("all", asked.blocks)
            and self.steps in ("all", asked.steps)
            and self.branch == asked.branch
            and self.evaluations in ("all", asked.evaluations)
            # A stored mean covers fixed steps; from stored maps any mean can be computed.
            and (
                asked.keep == "nothing"
                or self.keep == "maps"
                or (self.keep == asked.keep and self._same_evaluations(asked))
            )
        )

    def _merged(self, asked: MapsCapture) -> dict[str, Any]:
        """Return the settings of a record that holds both. Raises ValueError where the branches differ."""
        if self.branch != asked.branch:
            raise ValueError("a take holds the maps of one branch, and it already holds those of the other")
        keeps = {self.keep, asked.keep}
        means = "mean" in keeps and "maps" not in keeps and self._same_evaluations(asked)
        return {
            "heads": self.heads if self.heads == asked.heads else "all",
            "blocks": self.blocks if self.blocks == asked.blocks else "all",
            "steps": self.steps if self.steps == asked.steps else "all",
            "branch": self.branch,
            "evaluations": self.evaluations if self.evaluations == asked.evaluations else "all",
            "keep": "nothing" if keeps == {"nothing"} else "mean" if means else "maps",
        }

    def _same_evaluations(self, other: MapsCapture) -> bool:
        """Return whether means are taken over the same steps and evaluations."""
        return self.steps == other.steps and self.evaluations == other.evaluations

    @property
    def _heads_can_be_picked(self) -> bool:
        """Whether this can be computed from maps of every head."""
        return True


class AttentionCapture(MapsCapture):
    """Which cross-attention maps are kept. The settings of `MapsCapture` apply as well.

    tokens: `marked` (the prompt's marked words), `all` (every token, and the marked words where there are any), or a
    list of words of the prompt, in which `@marked` and `@all` mean the same. A word of several tokens is summed, and
    its tokens are kept too (except with `keep: mean`). The padding is always kept as well.
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
            raise ValueError("gramcol compares whole hidden states, which have no heads; use heads: mean")
        return self

    @property
    def needs_marks(self) -> bool:
        """Whether a prompt without marked words is an error."""
        return self.tokens == "marked" or MARKED in self.tokens

    @property
    def marked(self) -> bool:
        """Whether the prompt's marked words are captured."""
        return self.needs_marks or self.everything

    @property
    def everything(self) -> bool:
        """Whether every token is captured."""
        return self.tokens == "all" or ALL in self.tokens

    @property
    def words(self) -> tuple[str, ...]:
        """The words that are named explicitly."""
        return tuple(w for w in self.tokens if w not in (MARKED, ALL)) if isinstance(self.tokens, tuple) else ()

    def covers(self, asked: AttentionCapture) -> bool:
        """Return whether a record of this capture holds everything that `asked` needs."""
        return (
            (self.everything or not asked.everything)
            and (self.marked or not asked.marked)
            and set(asked.words) <= set(self.words)
            and set(asked.measures) <= set(self.measures)
            and self._holds(asked)
        )

    def union(self, asked: AttentionCapture) -> AttentionCapture:
        """Return the capture whose record holds both.

        Raises ValueError where one record cannot: the branches differ, or one needs single heads and the other
        a measure of all heads together.
        """
        both = self._merged(asked)
        measures: tuple[Measure, ...] = tuple(m for m in MEASURES if m in (*self.measures, *asked.measures))
        if self.heads != asked.heads:
            mixed = "mean" in (self.heads, asked.heads)
            if "gramcol" in measures or (mixed and measures != ("probability",)):
                raise ValueError(f"{measures[-1]} of all heads together cannot be computed from single heads")
        return AttentionCapture(tokens=_merged_tokens(self, asked), measures=measures, **both)

    @property
    def _heads_can_be_picked(self) -> bool:
        """Whether this can be computed from maps of every head: single heads can, and so can mean probabilities."""
        return self.heads != "mean" or self.measures == ("probability",)


MIDDLE = 0.5


class SelfAttentionCapture(MapsCapture):
    """Which rows of self-attention are kept: what chosen positions of the video attend to.

    The settings of `MapsCapture` apply as well.
    positions: (x, y, t) in fractions of the width, height and length of the video, (0, 0, 0) at its top left and
    beginning; each selects the token that contains it. t defaults to 0.5. As text: `0.5,0.25` or `0.5,0.25,1`.
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
            raise ValueError("it should be a list of positions such as [[0.5, 0.25]]: x, y and optionally t")
        return tuple(dict.fromkeys(_position(value) for value in values))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"x{x:g} y{y:g} t{t:g}" for x, y, t in self.positions)

    def covers(self, asked: SelfAttentionCapture) -> bool:
        """Return whether a record of this capture holds everything that `asked` needs."""
        return set(asked.positions) <= set(self.positions) and self._holds(asked)

    def union(self, asked: SelfAttentionCapture) -> SelfAttentionCapture:
        """Return the capture whose record holds both. Raises ValueError where the branches differ."""
        return SelfAttentionCapture(positions=(*self.positions, *asked.positions), **self._merged(asked))


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


def _merged_tokens(a: AttentionCapture, b: AttentionCapture) -> Any:
    special = [MARKED] if a.needs_marks or b.needs_marks else []
    special += [ALL] if a.everything or b.everything else []
    return (*special, *dict.fromkeys((*a.words, *b.words)))


class CaptureSpec(Spec):
    """What to keep in addition to the video. The Gram matrix of the path is kept with the latents, in float64.

    x0: the clean latents that each step predicts, every n-th and the last. attention: from the video to the text.
    self_attention: from chosen positions of the video to all others. reduce: a Python function that receives the maps
    of each block as they are computed (`wanscope.capture.attention_sink.Seen`); it is not recorded in files, and a
    take is made again to run it.
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
            raise ValueError("it should be a list of positions such as [[0.5, 0.25]]: x and y in fractions")
        return value

    @model_validator(mode="after")
    def _for_reduce(self) -> Self:
        if self.reduce is not None and not self.inside:
            raise ValueError("reduce needs attention maps, and none are captured; add attention: {keep: nothing}")
        return self

    @property
    def inside(self) -> bool:
        """Whether anything is recorded inside the model."""
        return self.attention is not None or self.self_attention is not None
