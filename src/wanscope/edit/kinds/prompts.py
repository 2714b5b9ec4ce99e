"""Prompts: uses different prompts at different steps (prompt scheduling)."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import field_validator

from wanscope.edit.base import EditBase
from wanscope.edit.field_types import Text
from wanscope.edit.line import Line
from wanscope.edit.line_tokens import Token, contents, is_quoted, quoted
from wanscope.edit.operations import Operation, ReadInstead
from wanscope.edit.planned import Passes, PlannedEdit, Resolved, ResolveInputs
from wanscope.edit.planned_texts import PlannedText
from wanscope.edit.sites import Branch, Part
from wanscope.errors import RecipeError

if TYPE_CHECKING:
    import numpy as np


class Prompts(EditBase):
    """Uses different prompts at different steps (prompt scheduling).

    keys: maps steps to prompts, `{0: "a red circle", 10: "a blue circle"}`. The recipe's own prompt is used before the
    first key, the last one from the last key on. interpolate: `step` keeps a prompt until the next key; `linear` and
    `spherical` interpolate from one embedding to the next, token by token.
    """

    kind: Literal["prompts"] = "prompts"
    keys: dict[int, Text]
    interpolate: Literal["step", "linear", "spherical"] = "step"
    schedule: ClassVar[None] = None  # type: ignore[assignment]  # replaced by its keys

    example: ClassVar[str] = "prompts 0 'a red circle', 10 'a blue circle'"
    sets_prompt: ClassVar[bool] = True

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
            raise ValueError("its keys are steps: whole numbers from 0, without repetition")
        return dict(sorted(out.items()))

    @property
    def title(self) -> str:
        return "prompts over time"

    @property
    def parts(self) -> tuple[Part, ...]:
        return ("context",)

    def table(self, passes: Passes, blocks: int, where: str) -> np.ndarray:
        """Return 1 in every block from the first key's step on, float64 [S, L]."""
        import numpy as np

        from_step = np.arange(passes.steps) >= min(self.keys)
        return np.repeat(from_step[:, None].astype(np.float64), blocks, axis=1)

    def replaces(self, table: Any) -> Any:
        return table != 0

    def operation_at(self, planned: PlannedEdit, part: Part, branch: Branch, step: int, strength: float) -> Operation:
        text = planned.keyed[step]
        assert text is not None
        return ReadInstead(text)

    def resolve(self, inputs: ResolveInputs) -> Resolved:
        """Return the text of each step: that of the last key, or an interpolation to the next; None before the first
        key."""
        from wanscope.edit.embedding_algebra import interpolate

        at_key = {step: PlannedText(inputs.texts.raw[text], frozenset((text,))) for step, text in self.keys.items()}
        keyed: list[PlannedText | None] = [None] * min(self.keys)
        for start, end in pairwise([*self.keys, inputs.passes.steps]):
            keyed.append(at_key[start])
            if self.interpolate == "step" or end not in at_key:
                keyed += [at_key[start]] * (end - start - 1)
                continue
            both = at_key[start].prompts | at_key[end].prompts
            ends = [at_key[start].embedding, at_key[end].embedding]
            path = interpolate(ends, end - start + 1, self.interpolate)
            keyed += [PlannedText(embedding, both, passing=True) for embedding in path.embeddings[1:-1]]
        return Resolved(keyed=tuple(keyed))

    def prompts_brought(self) -> list[str]:
        return list(self.keys.values())

    def texts(self) -> dict[str, str]:
        return {prompt: f"prompt at step {step}" for step, prompt in self.keys.items()}

    def check(self, blocks: int, steps: int, heads: int) -> None:
        last = max(self.keys)
        if last >= steps:
            why = f"the run has steps 0 to {steps - 1}"
            raise RecipeError(f"a prompt is given for step {last}", why, f"steps: {last + 1}")

    # ---- the one-line form

    @classmethod
    def read_beginning(cls, line: Line) -> None:
        keys: dict[str, str] = {}
        while (token := line.here()) and token.text[:1].isdigit():
            step, _, rest = line.take().text.partition(":")
            prompt = Token(rest, token.at + len(step) + 1) if rest else line.here()
            if not step.isdigit() or prompt is None or not is_quoted(prompt.text):
                line.fail(prompt or line.end(), "each step needs to be followed by its prompt in quotes", cls.example)
            if not rest:
                line.take()
            if str(int(step)) in keys:
                line.fail(token, f"step {step} is given twice")
            keys[str(int(step))] = contents(prompt.text)
        if not keys:
            line.fail(token or line.end(), "the first step and its prompt are missing", cls.example)
        line.data["keys"] = keys
        if (token := line.here()) and token.text in ("step", "linear", "spherical"):
            line.data["interpolate"] = line.take().text

    def write_beginning(self, data: dict[str, Any]) -> list[str]:
        del data["keys"]
        keys = ", ".join(f"{step} {quoted(prompt)}" for step, prompt in self.keys.items())
        return [keys, *([self.interpolate] if data.pop("interpolate", None) else [])]
