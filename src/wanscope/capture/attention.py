"""Which attention maps of a run are kept, under what names, and where they go as they come.

    plan = plan_attention(spec, tokenizer, prompt, marks, facts)   # every limit checked, before any work
    sink = AttentionSink(plan, take_folder)
    ... the runtime's recorder calls sink.put(moment, {measure: maps}) after each model call that sink.wanted ...
    sink.finish()

A map's row is a word (the sum over its tokens), a token, or the padding. Maps go to zarr arrays [step, block, row, T,
Y, X], or [step, block, head, row, T, Y, X] where heads are kept, one array a measure, fp16, one shard a step.
Compressing and writing is a thread's work, one step behind; nothing but the step at hand is held.

fp16 ends at 6e-8, and a word that a block does not read gets less than that: its whole map would be zeros. So every map
is stored times a power of two that brings its largest value to between 2^14 and 2^15, and the exponents that undo it
are stored beside the maps: value = stored * 2^exponent.

Shape suffixes: S kept evaluations, L kept blocks, H kept heads, K rows, T latent frames, Y and X rows and columns of
tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from wanscope.capture.arrays import create_array
from wanscope.capture.base import Branch, Moment
from wanscope.capture_spec import AttentionCapture, Recorded, SelfAttentionCapture
from wanscope.edit.blocks import parse_blocks
from wanscope.errors import NumericalError, RecipeError, WorkError
from wanscope.prompt.tokens import MarkLike, count_tokens, token_columns, token_pieces

if TYPE_CHECKING:
    import zarr

PAD = "pad"
FOLDERS: dict[Recorded, str] = {
    "probability": "attention.zarr",
    "contribution": "attention-contribution.zarr",
    "gramcol": "attention-gramcol.zarr",
    "self": "self-attention.zarr",
}
TOP = 15  # stored values are below 2^TOP
FURTHEST = 100  # of exponents of a map's largest value: what lies further away is taken for that


def exponents_file(measure: Recorded) -> str:
    """The file, beside the array's folder, of the exponents of its maps: int8 [S, L, K] or [S, L, H, K]."""
    return Path(FOLDERS[measure]).with_suffix(".exponents.npy").name


def scaled(maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Maps [..., T, Y, X] as fp16 values and int8 exponents [...], value = stored * 2^exponent; NaN stays NaN."""
    top = np.fmax.reduce(np.abs(maps), axis=(-3, -2, -1), initial=0)
    exponent = np.where(np.isfinite(top), np.frexp(top)[1], 0).clip(-FURTHEST, FURTHEST) - TOP
    with np.errstate(over="ignore"):  # the sink says where maps are not finite
        return np.ldexp(maps, -exponent[..., None, None, None]).astype(np.float16), exponent.astype(np.int8)


@dataclass(frozen=True)
class Row:
    """What one map shows. columns: the text positions whose shares it sums; the pad's is the first behind the text.

    Of self-attention a row is a position of the video, and `columns` is its token, counted frame by frame, row by row.
    """

    name: str
    kind: Literal["word", "token", "pad", "position"]
    columns: tuple[int, ...]


@dataclass(frozen=True)
class ModelFacts:
    """What a plan needs to know of the model and the run. grid: (latent frames, rows, columns) of tokens.

    guided: whether there is a pass for the negative prompt.
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
    """A capture with nothing left open. heads: None where they are averaged. real: the text's tokens, and its end."""

    spec: AttentionCapture | SelfAttentionCapture
    rows: tuple[Row, ...]
    real: int
    blocks: tuple[int, ...]
    heads: tuple[int, ...] | None
    steps: tuple[int, ...]
    grid: tuple[int, int, int]

    @property
    def branch(self) -> Branch:
        return self.spec.branch

    @property
    def map_shape(self) -> tuple[int, ...]:
        """Of one evaluation's maps: [L, K, T, Y, X], or [L, H, K, T, Y, X]."""
        heads = () if self.heads is None else (len(self.heads),)
        return (len(self.blocks), *heads, len(self.rows), *self.grid)

    @property
    def bytes(self) -> int:
        """Of what is stored, at most: fp16, uncompressed. More where a step's later evaluations are kept too."""
        kept = {"maps": len(self.steps), "mean": 1, "nothing": 0}[self.spec.keep]
        return kept * int(np.prod(self.map_shape)) * 2 * len(self.spec.measures)


def plan_attention(
    spec: AttentionCapture, tokenizer: Any, prompt: str, negative: str, marks: Sequence[MarkLike], facts: ModelFacts
) -> AttentionPlan:
    """The plan of a capture on one recipe. RecipeError, with what to do, for all that cannot be met."""
    rows, real = text_rows_of(spec, tokenizer, prompt, negative, marks, facts.text_length)
    if spec.branch == "uncond" and not facts.guided:
        raise RecipeError(
            "capture.attention.branch is uncond", "guidance is 1, so the negative prompt has no pass", "branch: cond"
        )
    return _planned(spec, rows, real, facts, "capture.attention")


def plan_self_attention(spec: SelfAttentionCapture, facts: ModelFacts) -> AttentionPlan:
    """The plan of a capture of self-attention. RecipeError, with what to do, for all that cannot be met."""
    if spec.branch == "uncond" and not facts.guided:
        raise RecipeError(
            "capture.self_attention.branch is uncond",
            "guidance is 1, so the negative prompt has no pass",
            "branch: cond",
        )
    rows = tuple(
        Row(name, "position", (token_at(position, facts.grid),))
        for name, position in zip(spec.names, spec.positions, strict=True)
    )
    return _planned(spec, rows, 0, facts, "capture.self_attention")


def token_at(position: tuple[float, float, float], grid_TYX: tuple[int, int, int]) -> int:
    """The number of the token that a position (x, y, t) lies in."""
    x, y, t = position
    at_TYX = (min(int(part * size), size - 1) for part, size in zip((t, y, x), grid_TYX, strict=True))
    return int(np.ravel_multi_index(tuple(at_TYX), grid_TYX))


def _planned(
    spec: AttentionCapture | SelfAttentionCapture, rows: tuple[Row, ...], real: int, facts: ModelFacts, name: str
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
    """RecipeError for a head that the model has not."""
    if not isinstance(spec.heads, str) and spec.heads[-1] >= heads:
        raise RecipeError(f"{name}.heads names {spec.heads[-1]}", f"this model's heads are 0 to {heads - 1}")


def chosen(text: str, count: int, what: str, name: str = "capture.attention") -> tuple[int, ...]:
    """The blocks, or steps, that a capture names. RecipeError where it names none or one that is not there."""
    try:
        found = tuple(i for i, on in enumerate(parse_blocks(text, count).mask) if on)
    except RecipeError as error:
        said = (f"{part}".replace("block", what[:-1]) for part in (error.what, error.why, error.fix))
        raise RecipeError(f"{name}.{what}: {next(said)}", *said) from None
    if not found:
        raise RecipeError(f"{name}.{what} is {text!r}", f"it names none of {count} {what}", f"{what}: all")
    return found


def text_rows_of(
    spec: AttentionCapture,
    tokenizer: Any,
    prompt: str,
    negative: str,
    marks: Sequence[MarkLike],
    text_length: int,
) -> tuple[tuple[Row, ...], int]:
    """The rows of a capture's maps, and how many real tokens the branch's text has."""
    if spec.branch == "uncond":
        text, marks = negative, ()
        if spec.needs_marks:
            raise RecipeError(
                "capture.attention asks for the marked words of the negative prompt",
                "words are marked in the prompt only",
                "capture: {attention: {branch: uncond, tokens: all}}",
            )
    else:
        text = prompt
        require_marks(spec, prompt, marks)
    wanted: list[Any] = [*(marks if spec.marked else ()), *spec.words]
    found = token_columns(tokenizer, text, wanted, text_length)
    real = count_tokens(tokenizer, text)
    names = _Names()
    rows = [Row(names.unique(words.text), "word", words.columns) for words in found]
    pieces = token_pieces(tokenizer, text)
    if spec.everything:
        rows += [Row(names.unique(pieces[column]), "token", (column,)) for column in range(real)]
    elif spec.keep != "mean":
        columns = dict.fromkeys(c for words in found if len(words.columns) > 1 for c in words.columns)
        rows += [Row(names.unique(pieces[column]), "token", (column,)) for column in columns]
    if real < text_length:
        rows.append(Row(names.unique(PAD), "pad", (real,)))
    return tuple(rows), real


def require_marks(spec: AttentionCapture, prompt: str, marks: Iterable[MarkLike]) -> None:
    """RecipeError where the prompt's marked words are asked for and it marks none."""
    if not spec.needs_marks or any(True for _ in marks):
        return
    words = [word.strip(".,;:!?\"'") for word in prompt.split()]
    first = next((word for word in words if len(word) > 3), words[0])
    raise RecipeError(
        "attention of the marked words is asked for, and the prompt marks none",
        "a word in parentheses is marked and tracked; words can be named instead, and all tokens kept",
        f"{prompt.replace(first, f'({first})', 1)!r}, or --set 'capture.attention.tokens=[{first}]' (or =all)",
    )


class _Names:
    """Rows' names, each once: the second of two equal ones is `red (2)`."""

    def __init__(self) -> None:
        self.used: set[str] = set()

    def unique(self, name: str) -> str:
        plain, number = name, 1
        while name in self.used:
            number += 1
            name = f"{plain} ({number})"
        self.used.add(name)
        return name


@dataclass(frozen=True)
class Seen:
    """What a `reduce` function is called with: the maps of one block in one evaluation, before they are rounded.

    maps: float32 [K, T, Y, X], or [H, K, T, Y, X] where heads are kept; copy what is to stay. rows: what K counts.
    """

    step: int
    evaluation: int
    sigma: float
    expert: int
    branch: Branch
    block: int
    measure: Recorded
    rows: tuple[Row, ...]
    maps: np.ndarray


@dataclass(frozen=True)
class Kept:
    """What was stored. evaluations: (step, evaluation) of the arrays' first axis; one entry, None, for a mean."""

    plan: AttentionPlan
    evaluations: tuple[tuple[int, int], ...]


class AttentionSink:
    """Takes a run's maps and keeps what the plan says, in zarr arrays below `folder`. One run each."""

    def __init__(self, plan: AttentionPlan, folder: Path, reduce: Callable[[Seen], Any] | None = None) -> None:
        self.plan, self.folder, self.reduce = plan, folder, reduce
        self.evaluations: list[tuple[int, int]] = []
        self._sigmas: list[float] = []
        self._experts: list[int] = []
        self._arrays: dict[Recorded, zarr.Array] = {}
        self._exponents: dict[Recorded, list[np.ndarray]] = {}
        self._sums: dict[Recorded, np.ndarray] = {}
        self._thread = ThreadPoolExecutor(1, "wanscope-attention")
        self._writing: Future[None] | None = None

    @property
    def exact(self) -> bool:
        """Whether maps should come in float32: somebody sees or sums them before they are rounded."""
        return self.reduce is not None or self.plan.spec.keep == "mean"

    def wanted(self, moment: Moment) -> bool:
        """Whether this call's maps are to be recorded."""
        return (
            self.plan.branch in moment.branches
            and moment.step in self.plan.steps
            and (moment.evaluation == 0 or self.plan.spec.evaluations == "all")
        )

    def put(
        self,
        moment: Moment,
        maps: Mapping[Recorded, np.ndarray],
        exponents: Mapping[Recorded, np.ndarray] | None = None,
    ) -> None:
        """The maps of one model call, [L, K, T, Y, X] or [L, H, K, T, Y, X]; NaN in blocks that did not run.

        exponents: where maps come as fp16 already, as `scaled` gives them; maps have to be fp32 where the sink is
        `exact`. The arrays may be written to again after this returns.
        """
        self.evaluations.append((moment.step, moment.evaluation))
        self._sigmas.append(moment.sigma)
        self._experts.append(moment.expert)
        if self.reduce is not None:
            self._show(moment, maps)
        if self.plan.spec.keep == "mean":
            for measure, found in maps.items():
                if measure in self._sums:
                    self._sums[measure] += found
                else:
                    self._sums[measure] = np.array(found, dtype=np.float32)
        elif self.plan.spec.keep == "maps":
            place = len(self.evaluations) - 1
            stored: dict[Recorded, np.ndarray] = {}
            for measure, found in maps.items():
                half, exponent = scaled(found) if exponents is None else (found.copy(), exponents[measure].copy())
                stored[measure] = _finite(half, moment)
                self._exponents.setdefault(measure, []).append(exponent)
            self._wait()
            self._writing = self._thread.submit(self._write, place, stored)

    def finish(self) -> Kept:
        """Write what is left. WorkError where a planned step was not recorded.

        Where guidance is 1 at some steps, the negative prompt has no pass there and no maps.
        """
        self._wait()
        missing = sorted(set(self.plan.steps) - {step for step, _ in self.evaluations})
        if missing and (self.plan.branch == "cond" or not self.evaluations):
            raise WorkError(
                f"attention was not recorded at step {missing[0]}",
                f"{len(missing)} of the {len(self.plan.steps)} planned steps had no {self.plan.branch} pass",
            )
        for measure, total in self._sums.items():
            mean, exponent = scaled(total / len(self.evaluations))
            self._array(measure, 1)[0] = mean
            self._exponents[measure] = [exponent]
        for measure, found in self._exponents.items():
            np.save(self.folder / exponents_file(measure), np.stack(found), allow_pickle=False)
        for array in self._arrays.values():
            array.attrs.update(
                {
                    "evaluations": [list(pair) for pair in self.evaluations],
                    "sigmas": self._sigmas,
                    "experts": self._experts,
                }
            )
        self.close()
        return Kept(self.plan, tuple(self.evaluations))

    def close(self) -> None:
        """Let the writing thread end, also after a run that failed."""
        self._thread.shutdown(wait=True)

    def _show(self, moment: Moment, maps: Mapping[Recorded, np.ndarray]) -> None:
        assert self.reduce is not None
        for measure, found in maps.items():
            for block, shown in zip(self.plan.blocks, found, strict=True):
                self.reduce(
                    Seen(
                        moment.step,
                        moment.evaluation,
                        moment.sigma,
                        moment.expert,
                        self.plan.branch,
                        block,
                        measure,
                        self.plan.rows,
                        shown,
                    )
                )

    def _wait(self) -> None:
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def _write(self, place: int, maps: Mapping[Recorded, np.ndarray]) -> None:
        for measure, found in maps.items():
            array = self._array(measure, len(self.plan.steps))
            if place >= array.shape[0]:
                array.resize((place + 1, *array.shape[1:]))
            array[place] = found

    def _array(self, measure: Recorded, length: int) -> zarr.Array:
        if measure not in self._arrays:
            plan = self.plan
            chunk = (*(1 for _ in plan.map_shape[:-3]), *plan.grid)
            self._arrays[measure] = create_array(
                self.folder / FOLDERS[measure], (length, *plan.map_shape), chunk, "fp16", _attributes(plan, measure)
            )
        return self._arrays[measure]


def _attributes(plan: AttentionPlan, measure: Recorded) -> dict[str, Any]:
    return {
        "measure": measure,
        "keep": plan.spec.keep,
        "branch": plan.branch,
        "rows": [{"name": row.name, "kind": row.kind, "columns": list(row.columns)} for row in plan.rows],
        "blocks": list(plan.blocks),
        "heads": None if plan.heads is None else list(plan.heads),
        "real_tokens": plan.real,
        "exponents": exponents_file(measure),
    }


def _finite(stored: np.ndarray, moment: Moment) -> np.ndarray:
    if np.isinf(stored).any():
        raise NumericalError(
            f"attention maps of step {moment.step} are infinite",
            "the model's states are not finite there, or too large for what is recorded of them",
            "--dtype fp32, or fewer capture.attention.measures",
        )
    return stored
