"""Which attention maps of a run are kept, and under which names. Every limit is checked before any work.

    plan = plan_attention(spec, tokenizer, prompt, marks, facts)

A map's row is a word (the sum over its tokens), a token, or the padding.

Shape suffixes: S kept evaluations, L kept blocks, H kept heads, K rows, T latent frames, Y and X rows and columns of
tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from wanscope.edit.blocks import parse_blocks
from wanscope.errors import RecipeError
from wanscope.prompt.tokens import MarkLike, count_tokens, token_columns, token_pieces
from wanscope.spec.branch import Branch
from wanscope.spec.capture import AttentionCapture, SelfAttentionCapture

PAD = "pad"


@dataclass(frozen=True)
class MapRow:
    """What one map shows.

    columns: the text positions whose attention it sums; for the padding, the first one after the text. For
    self-attention a row is a position of the video, and `columns` is its token, counted frame by frame, row by row.
    """

    name: str
    kind: Literal["word", "token", "pad", "position"]
    columns: tuple[int, ...]


@dataclass(frozen=True)
class ModelFacts:
    """What a plan needs to know about the model and the run.

    grid: (latent frames, rows, columns) of tokens. guided: whether there is a pass for the negative prompt.
    """

    blocks: int
    heads: int
    steps: int
    start_step: int
    grid: tuple[int, int, int]
    text_length: int
    guided: bool = True


@dataclass(frozen=True)
class AttentionPlan:
    """A capture resolved for one model and run.

    heads: None where they are averaged. real: how many real tokens the text has, including the end token.
    """

    spec: AttentionCapture | SelfAttentionCapture
    rows: tuple[MapRow, ...]
    real: int
    blocks: tuple[int, ...]
    heads: tuple[int, ...] | None
    steps: tuple[int, ...]
    grid: tuple[int, int, int]

    @property
    def branch(self) -> Branch:
        """The pass whose maps are kept."""
        return self.spec.branch

    @property
    def map_shape(self) -> tuple[int, ...]:
        """The shape of one evaluation's maps: [L, K, T, Y, X], or [L, H, K, T, Y, X]."""
        heads = () if self.heads is None else (len(self.heads),)
        return (len(self.blocks), *heads, len(self.rows), *self.grid)

    @property
    def bytes(self) -> int:
        """The size of what is stored, uncompressed in fp16; more where a step's later evaluations are kept too."""
        kept = {"maps": len(self.steps), "mean": 1, "nothing": 0}[self.spec.keep]
        return kept * int(np.prod(self.map_shape)) * 2 * len(self.spec.measures)


def plan_attention(
    spec: AttentionCapture, tokenizer: Any, prompt: str, negative: str, marks: Sequence[MarkLike], facts: ModelFacts
) -> AttentionPlan:
    """Return the plan of a capture of cross-attention. Raises RecipeError, with a fix, where it is not possible."""
    rows, real = text_rows_of(spec, tokenizer, prompt, negative, marks, facts.text_length)
    if spec.branch == "uncond" and not facts.guided:
        raise RecipeError(
            "capture.attention.branch is uncond", "guidance is 1, so the negative prompt has no pass", "branch: cond"
        )
    return _plan(spec, rows, real, facts, "capture.attention")


def plan_self_attention(spec: SelfAttentionCapture, facts: ModelFacts) -> AttentionPlan:
    """Return the plan of a capture of self-attention. Raises RecipeError, with a fix, where it is not possible."""
    if spec.branch == "uncond" and not facts.guided:
        raise RecipeError(
            "capture.self_attention.branch is uncond",
            "guidance is 1, so the negative prompt has no pass",
            "branch: cond",
        )
    rows = tuple(
        MapRow(name, "position", (token_at(position, facts.grid),))
        for name, position in zip(spec.names, spec.positions, strict=True)
    )
    return _plan(spec, rows, 0, facts, "capture.self_attention")


def token_at(position: tuple[float, float, float], grid_TYX: tuple[int, int, int]) -> int:
    """Return the index of the token that contains a position (x, y, t), each a fraction from 0 to 1.

    grid_TYX: how many latent frames, rows and columns of tokens there are.
    """
    x, y, t = position
    at_TYX = (min(int(part * size), size - 1) for part, size in zip((t, y, x), grid_TYX, strict=True))
    return int(np.ravel_multi_index(tuple(at_TYX), grid_TYX))


def _plan(
    spec: AttentionCapture | SelfAttentionCapture, rows: tuple[MapRow, ...], real: int, facts: ModelFacts, name: str
) -> AttentionPlan:
    blocks = chosen(spec.blocks, facts.blocks, "blocks", name)
    steps = [step for step in chosen(spec.steps, facts.steps, "steps", name) if step >= facts.start_step]
    if not steps:
        raise RecipeError(
            f"{name}.steps is {spec.steps!r}", f"this run begins at step {facts.start_step}", "steps: all"
        )
    heads = None
    if spec.heads != "mean":
        heads = tuple(range(facts.heads)) if spec.heads == "all" else spec.heads
        require_heads(spec, facts.heads, name)
    return AttentionPlan(spec, rows, real, blocks, heads, tuple(steps), facts.grid)


def require_heads(spec: AttentionCapture | SelfAttentionCapture, heads: int, name: str) -> None:
    """Raise RecipeError for a head that the model does not have."""
    if not isinstance(spec.heads, str) and spec.heads[-1] >= heads:
        raise RecipeError(f"{name}.heads names head {spec.heads[-1]}", f"this model's heads are 0 to {heads - 1}")


def chosen(text: str, count: int, what: str, name: str = "capture.attention") -> tuple[int, ...]:
    """Return the blocks, or steps, that a capture selects.

    what: `blocks` or `steps`. Raises RecipeError where the text selects none, or one that does not exist.
    """
    try:
        found = tuple(i for i, on in enumerate(parse_blocks(text, count).mask) if on)
    except RecipeError as error:
        parts = (f"{part}".replace("block", what[:-1]) for part in (error.what, error.why, error.fix))
        raise RecipeError(f"{name}.{what}: {next(parts)}", *parts) from None
    if not found:
        raise RecipeError(f"{name}.{what} is {text!r}", f"it selects none of {count} {what}", f"{what}: all")
    return found


def text_rows_of(
    spec: AttentionCapture,
    tokenizer: Any,
    prompt: str,
    negative: str,
    marks: Sequence[MarkLike],
    text_length: int,
) -> tuple[tuple[MapRow, ...], int]:
    """Return the rows of a capture's maps, and the number of real tokens of the branch's text.

    Raises RecipeError if a word does not occur in the text, or if marked words are needed and there are none.
    """
    if spec.branch == "uncond":
        text, marks = negative, ()
        if spec.needs_marks:
            raise RecipeError(
                "capture.attention needs marked words in the negative prompt",
                "only the prompt can have marked words",
                "capture: {attention: {branch: uncond, tokens: all}}",
            )
    else:
        text = prompt
        require_marks(spec, prompt, marks)
    wanted: list[Any] = [*(marks if spec.marked else ()), *spec.words]
    found = token_columns(tokenizer, text, wanted, text_length)
    real = count_tokens(tokenizer, text)
    names = _Names()
    rows = [MapRow(names.unique(words.text), "word", words.columns) for words in found]
    pieces = token_pieces(tokenizer, text)
    if spec.everything:
        rows += [MapRow(names.unique(pieces[column]), "token", (column,)) for column in range(real)]
    elif spec.keep != "mean":
        columns = dict.fromkeys(c for words in found if len(words.columns) > 1 for c in words.columns)
        rows += [MapRow(names.unique(pieces[column]), "token", (column,)) for column in columns]
    if real < text_length:
        rows.append(MapRow(names.unique(PAD), "pad", (real,)))
    return tuple(rows), real


def require_marks(spec: AttentionCapture, prompt: str, marks: Iterable[MarkLike]) -> None:
    """Raise RecipeError where a capture needs the prompt's marked words and it has none."""
    if not spec.needs_marks or any(True for _ in marks):
        return
    words = [word.strip(".,;:!?\"'") for word in prompt.split()]
    first = next((word for word in words if len(word) > 3), words[0])
    raise RecipeError(
        "attention to the marked words is to be kept, and the prompt marks none",
        f"parentheses mark a word, as in {prompt.replace(first, f'({first})', 1)!r}; words can also be named",
        f"--set 'capture.attention.tokens=[{first}]'",
    )


class _Names:
    """Unique row names: the second of two equal ones becomes `red (2)`."""

    def __init__(self) -> None:
        self.used: set[str] = set()

    def unique(self, name: str) -> str:
        plain, number = name, 1
        while name in self.used:
            number += 1
            name = f"{plain} ({number})"
        self.used.add(name)
        return name
