"""Edits on a model that ComfyUI's or WanVideoWrapper's sampler runs: where they are due, and where they were applied.

Which passes such a sampler will make is not known beforehand: guidance may be off, batched or split, a solver may
evaluate a step twice, a cache may skip calls, a step range may be one of two stages. Therefore an edit is *due*
wherever a pass of its branch is made at a noise level at which it has a nonzero strength, and in every call the due
sites are compared with those where it was applied. Noise levels are those of the whole schedule, not of a stage's part.

A node stores a `Live` in its own copy of the model's options. ComfyUI copies these options deeply, tensors included; a
`Live` returns itself when it is copied. Its edits never change: a node that adds an edit makes a new `Live`.

Shape suffixes: L tokens, D text dim.
"""

from __future__ import annotations

import itertools
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from wanscope.edit.edits import Bend, Inject, Prompts, Skip, Steer
from wanscope.edit.embedding_algebra import between
from wanscope.edit.rules import Silence
from wanscope.edit.schedule import parse_schedule
from wanscope.edit.sites import Branch, Site
from wanscope.errors import EditNotApplied, RecipeError
from wanscope.runtime.comfy.live_kinds import Guide, Watch

if TYPE_CHECKING:
    from wanscope.edit.direction import Direction

CONNECTED = "(connected)"  # the donor's name in an edit whose donor came through a socket
KEEP_RUNS = 8  # the runs that a `Live` keeps
ROUNDING = 1e-6  # tolerance for noise levels, which samplers hold in float32
_numbers = itertools.count(1)


@dataclass(frozen=True, eq=False)
class LiveEdit:
    """An edit with the tensors that it needs.

    donor_LD, donor_negative_LD: raw embeddings of the real tokens, for cond and for uncond.
    columns: for bend and watch, the token columns of each word in the prompt. words: these words.
    pairs: for steer, raw embeddings [L, D] (with, without) from which a direction is learned. direction: a direction
    of one expert that was learned earlier, used instead.
    keyed: for prompts, (start, text [L, D]) in order; a text is used from its start, a fraction of the sampling, on.
    start, end: when the edit acts, as fractions of the whole sampling, 0 to 1.
    after_block: inject the donor's state after this many blocks, instead of its state at each block.
    provisional: the edit is replaced by a later injection.
    keep_context: project the donor's text once per run, not once per call.
    """

    edit: Inject | Bend | Steer | Skip | Prompts | Watch | Guide
    donor_LD: Tensor | None = None
    donor_negative_LD: Tensor | None = None
    columns: tuple[tuple[int, ...], ...] = ()
    words: tuple[str, ...] = ()
    pairs: tuple[tuple[Tensor, Tensor], ...] = ()
    direction: Direction | None = None
    keyed: tuple[tuple[float, Tensor], ...] = ()
    start: float = 0.0
    end: float = 1.0
    after_block: int | None = None
    provisional: bool = False
    keep_context: bool = False

    def __post_init__(self) -> None:
        if self.edit.schedule is not None and parse_schedule(self.edit.schedule).over != "sigma":
            raise RecipeError(
                "the schedule is over steps", "this sampler's steps are not known beforehand", "over: sigma"
            )
        if not 0 <= self.start <= self.end <= 1:
            raise RecipeError(
                f"the edit acts from {self.start:g} to {self.end:g} of the sampling",
                "both must be from 0 to 1, and the start must not be after the end",
                "start_percent: 0, end_percent: 1",
            )
        starts = [start for start, _ in self.keyed]
        in_order = starts and starts == sorted(set(starts)) and starts[0] == self.start
        if self.edit.sets_prompt and not in_order:
            raise RecipeError(
                f"the prompts begin at {', '.join(f'{start:g}' for start in starts) or 'no time'}",
                "there must be at least one, and each must begin later than the one before it",
                "begin_1: 0, begin_2: 0.3, begin_3: 0.6",
            )

    def strengths(self, count: int) -> tuple[float, ...]:
        """Return the strength in each of `count` blocks, before the schedule. Raises RecipeError."""
        values = self.edit.acting_strengths(count)
        if self.after_block is not None:
            values = tuple(0.0 if i < self.after_block else v for i, v in enumerate(values))
        return values

    def factor(self, sigma: float, sigma_at: Callable[[float], float]) -> float:
        """Return the factor of the strengths at a noise level. sigma_at: the level at a fraction of the sampling."""
        if not sigma_at(self.end) - ROUNDING <= sigma <= sigma_at(self.start) + ROUNDING:
            return 0.0
        if self.edit.schedule is None:
            return 1.0
        return parse_schedule(self.edit.schedule).at(0, 1, min(max(sigma, 0.0), 1.0))

    def branches(self) -> tuple[Branch, ...]:
        """Return the branches that it acts in."""
        return self.edit.branches

    def donor(self, branch: Branch) -> Tensor | None:
        """Return the donor's raw embedding [L, D] for a branch, or None."""
        other = self.donor_negative_LD
        return other if branch == "uncond" and other is not None else self.donor_LD

    def text_at(self, fraction: float) -> Tensor:
        """Return the text [L, D] of `prompts` at a fraction of the sampling; before the first key, the first text."""
        at = max(i for i, (start, _) in enumerate(self.keyed) if start <= fraction or i == 0)
        start, text_LD = self.keyed[at]
        method = self.edit.interpolate if isinstance(self.edit, Prompts) else "step"
        if method == "step" or at + 1 == len(self.keyed) or fraction <= start:
            return text_LD
        end, next_LD = self.keyed[at + 1]
        return between(text_LD, next_LD, (fraction - start) / (end - start), method).embedding

    @property
    def name(self) -> str:
        """Its name in reports."""
        return self.edit.title


@dataclass
class Run:
    """One sampling run and its counts, by (edit, block, branch, step). Steps are numbered in order of appearance.

    sigmas: the noise levels of the sampler's steps, where known. steps: the number of each noise level. passes: calls
    per branch. skipped: reasons why blocks or calls did not run. in_range: whether each edit is due in the run's range.
    silenced: for each edit, those that override it. maps: for each edit, [number of maps, their sum [K, Q], grid].
    contexts: projected texts that are kept for the run. sigma_at: the noise level at a fraction of the whole sampling.
    """

    number: int = field(default_factory=lambda: next(_numbers))
    prompt: str | None = None
    sigmas: tuple[float, ...] = ()
    steps: dict[float, int] = field(default_factory=dict)
    due: Counter[Site] = field(default_factory=Counter)
    applied: Counter[Site] = field(default_factory=Counter)
    passes: Counter[Branch] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    in_range: dict[int, bool] = field(default_factory=dict)
    silenced: dict[int, set[int]] = field(default_factory=dict)
    maps: dict[int, list[Any]] = field(default_factory=dict)
    contexts: dict[Any, Tensor] = field(default_factory=dict)
    sigma_at: Callable[[float], float] = field(default=lambda fraction: 1 - fraction)
    finished: bool = False

    def step(self, sigma: float) -> int:
        """Return the number of the step at a noise level, a new one if it was not seen before."""
        return self.steps.setdefault(round(sigma, 6), len(self.steps))

    def note(self, text: str) -> None:
        """Add a note to the run's report, once."""
        if text not in self.notes:
            self.notes.append(text)

    def applied_in(self, edit: int) -> int:
        """Return how often an edit was applied."""
        return sum(n for (e, *_), n in self.applied.items() if e == edit)

    def silence(self, silence: Silence, names: Sequence[str]) -> None:
        """Note that an edit does not act where another overrides it. names: the edits' names."""
        self.silenced.setdefault(silence.silent, set()).add(silence.by)
        silent, by = (f"edit {e + 1} ({names[e]})" for e in (silence.silent, silence.by))
        self.note(silence.sentence(silent, by))

    def due_in(self, edit: int) -> int:
        """Return how often an edit was due."""
        return sum(n for (e, *_), n in self.due.items() if e == edit)


class Live:
    """The edits on one copy of a model, and the last runs made with it.

    after: the `Live` that these edits were added to. It is notified of the runs too, so that a node before the last
    edit of a chain can show what was applied. last_downstream: the last run it was notified of, with that run's edits.
    log: a function of (level, text). listeners: functions called after each run, by node id.
    """

    def __init__(
        self,
        edits: Iterable[LiveEdit] = (),
        log: Callable[[str, str], None] | None = None,
        after: Live | None = None,
    ) -> None:
        self.edits = tuple(edits)
        self.after = after
        self.last_downstream: tuple[tuple[LiveEdit, ...], Run] | None = None
        self.runs: deque[Run] = deque(maxlen=KEEP_RUNS)
        self.log = log or (lambda level, text: None)
        self.current: Run | None = None
        self.listeners: dict[str, Callable[[Live, Run], None]] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Live:
        return self  # holds tensors, and its counts are read after the run

    def __copy__(self) -> Live:
        return self

    def with_edit(self, edit: LiveEdit) -> Live:
        """Return a new `Live` with one more edit. An injection replaces a provisional one and takes over its boost."""
        kept = self.edits
        if edit.edit.takes_donor and not edit.provisional:
            waiting = [e for e in kept if e.provisional]
            kept = tuple(e for e in kept if not e.provisional)
            for e in waiting:
                given, waiting_edit = edit.edit, e.edit
                if isinstance(given, Inject) and isinstance(waiting_edit, Inject):
                    donor = edit.donor_LD if edit.donor_LD is not None else e.donor_LD
                    boost = {"boost": waiting_edit.boost, "keep_norm": waiting_edit.keep_norm}
                    edit = replace(edit, edit=given.model_copy(update=boost), donor_LD=donor)
        return Live((*kept, edit), self.log, self)

    def notify(self, run: Run) -> None:
        """Call the listeners with a run, here and on each `Live` that these edits were added to."""
        one: Live | None = self
        while one is not None:
            one.last_downstream = (self.edits, run)
            for listener in list(one.listeners.values()):
                listener(self, run)
            one = one.after

    def check(self, blocks: int, heads: int, text_dim: int | None = None) -> None:
        """Raise RecipeError if an edit does not fit a model with these numbers of blocks, heads and text dimensions."""
        for e, edit in enumerate(self.edits, 1):
            edit.strengths(blocks)
            texts = (edit.donor_LD, edit.donor_negative_LD, *(t for _, t in edit.keyed), *itertools.chain(*edit.pairs))
            width = next((t.shape[1] for t in texts if t is not None and t.shape[1] != text_dim), None)
            if text_dim is not None and width is not None:
                raise RecipeError(
                    f"edit {e} ({edit.name}) has a prompt with {width} dimensions per token",
                    f"this model reads {text_dim}",
                    "use a prompt from the model's own text encoder",
                )
            edit.edit.check(blocks, 10**9, heads)  # the number of steps is not known

    def begin(self, sigmas: Sequence[float] = (), prompt: str | None = None) -> Run:
        """Start and return a new run.

        sigmas: the noise levels of this sampler's steps, without the final one, where known. prompt: ComfyUI's id of
        the prompt that is executed. Earlier runs are kept only if they belong to the same prompt (its other stages), so
        that memory does not grow.
        """
        for run in self.runs:
            run.contexts.clear()
        if prompt is not None:
            kept = [run for run in self.runs if run.prompt == prompt]
            self.runs.clear()
            self.runs.extend(kept)
        self.current = Run(sigmas=tuple(sigmas), prompt=prompt)
        self.runs.append(self.current)
        return self.current

    def finish(self, run: Run, sigma_at: Callable[[float], float], blocks: int) -> None:
        """End a run that was not interrupted. Raises EditNotApplied for an edit that was due and did not act.

        blocks: the model's number of blocks.
        """
        run.finished = True
        run.contexts.clear()
        self.current = None
        for i, edit in enumerate(self.edits):
            if not any(edit.strengths(blocks)):
                continue
            run.in_range[i] = any(edit.factor(sigma, sigma_at) for sigma in run.sigmas)
            if run.in_range[i] and not run.due_in(i) and run.passes and i not in run.silenced:
                missing = [branch for branch in edit.branches() if not run.passes[branch]]
                why = f"no {missing[0]} pass was made" if missing else "its blocks never ran"
                fix = "branch: cond" if missing == ["uncond"] else ""
                raise EditNotApplied(f"edit {i + 1} ({edit.name}) was due and did not act", why, fix)
        if len(run.steps) < len(run.sigmas):
            missed = len(run.sigmas) - len(run.steps)
            run.note(f"{missed} of {len(run.sigmas)} steps made no model call: another node's cache skipped them.")

    def check_call(self, run: Run, due: Counter[Site], applied: Counter[Site]) -> None:
        """Add the counts of a model call to the run. Raises EditNotApplied if due and applied differ at a site."""
        run.due.update(due)
        run.applied.update(applied)
        for site, count in due.items():
            if applied[site] != count:
                e, block, branch, step = site
                raise EditNotApplied(
                    f"edit {e + 1} ({self.edits[e].name}) did not act in block {block}",
                    f"due {count} times in the {branch} pass of step {step}, applied {applied[site]}",
                    "remove nodes that replace the model's attention or blocks, or choose other blocks",
                )


def fraction_at_sigma(sigma: float, sigma_at: Callable[[float], float]) -> float:
    """Return the fraction of the sampling at which a noise level is reached, by bisection.

    sigma_at: the noise level at a fraction of the sampling; it decreases from 0 to 1.
    """
    low, high = 0.0, 1.0
    sigma -= ROUNDING
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if sigma_at(middle) >= sigma else (low, middle)
    return high if sigma_at(high) >= sigma else low
