"""Edits on a model that another program samples (ComfyUI's samplers, WanVideoWrapper's): what is asked, and what fired.

Such a sampler cannot be asked beforehand which passes it will make: guidance may be off, batched or split, a solver may
evaluate a step twice, a cache may leave calls out, a step range may be one of two stages. So an edit is *due* where a
pass of its branch is made at a noise level at which it has strength, and every due site is compared with what was
applied, call by call. Noise levels are those of the whole schedule, never of a stage's own slice.

`Live` is what a node puts on its own copy of the model's options. It is never copied with them (ComfyUI copies options
deeply, tensors and all) and never changed: a node that adds an edit makes a new one.

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

CONNECTED = "(connected)"  # stands in an edit for the donor that came through a socket
KEEP_RUNS = 8
ROUNDING = 1e-6  # of noise levels, which samplers hold in float32
_numbers = itertools.count(1)


@dataclass(frozen=True, eq=False)
class LiveEdit:
    """An edit with the tensors that it needs.

    donor_LD, donor_negative_LD: raw embeddings of the real tokens, for cond and for uncond. columns: token columns of
    the words in the prompt (bend, watch); groups of them for several words. pairs: raw embeddings (with, without) from
    which a direction is learned (steer). direction: one that was learned before, of one expert, instead. keyed: the
    text from each share of the sampling on, in rising order (prompts). start, end: when, in shares of the whole
    sampling, 0 to 1. after_block: the donor's state after so many blocks, instead of its state at each block.
    provisional: replaced by a later injection. keep_context: project the donor's text once a run, not once a call.
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
                "the schedule counts steps", "this sampler's steps are not known beforehand", "over: sigma, or percent"
            )
        if not 0 <= self.start <= self.end <= 1:
            raise RecipeError(
                f"the edit acts from {self.start:g} to {self.end:g} of the sampling",
                "both are shares from 0 to 1, the start first",
                "start_percent: 0, end_percent: 1",
            )
        shares = [share for share, _ in self.keyed]
        in_order = shares and shares == sorted(set(shares)) and shares[0] == self.start
        if self.edit.sets_prompt and not in_order:
            raise RecipeError(
                f"prompts begin at {', '.join(f'{share:g}' for share in shares) or 'no time'}",
                "each begins later than the one before it",
                "0, 0.3, 0.6",
            )

    def strengths(self, count: int) -> tuple[float, ...]:
        """Of each of `count` blocks, before the schedule. Raises RecipeError."""
        values = self.edit.acting_strengths(count)
        if self.after_block is not None:
            values = tuple(0.0 if i < self.after_block else v for i, v in enumerate(values))
        return values

    def factor(self, sigma: float, sigma_at: Callable[[float], float]) -> float:
        """What multiplies the strengths at a noise level. sigma_at: the level at a share of the sampling."""
        if not sigma_at(self.end) - ROUNDING <= sigma <= sigma_at(self.start) + ROUNDING:
            return 0.0
        if self.edit.schedule is None:
            return 1.0
        return parse_schedule(self.edit.schedule).at(0, 1, min(max(sigma, 0.0), 1.0))

    def branches(self) -> tuple[Branch, ...]:
        return self.edit.branches

    def donor(self, branch: Branch) -> Tensor | None:
        other = self.donor_negative_LD
        return other if branch == "uncond" and other is not None else self.donor_LD

    def text_at(self, share: float) -> Tensor:
        """[L, D]: of `prompts`, the text at a share of the sampling, from the first key on."""
        at = max(i for i, (start, _) in enumerate(self.keyed) if start <= share or i == 0)
        start, text_LD = self.keyed[at]
        method = self.edit.interpolate if isinstance(self.edit, Prompts) else "step"
        if method == "step" or at + 1 == len(self.keyed) or share <= start:
            return text_LD
        end, next_LD = self.keyed[at + 1]
        return between(text_LD, next_LD, (share - start) / (end - start), method).embedding

    @property
    def name(self) -> str:
        """What reports call it."""
        return self.edit.title


@dataclass
class Run:
    """What one sampling did. Counts are by (edit, block, branch, step); steps are numbered as they are first seen."""

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
    contexts: dict[Any, Tensor] = field(default_factory=dict)  # projected texts that are kept for the run
    sigma_at: Callable[[float], float] = field(default=lambda share: 1 - share)
    finished: bool = False

    def step(self, sigma: float) -> int:
        return self.steps.setdefault(round(sigma, 6), len(self.steps))

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def applied_in(self, edit: int) -> int:
        return sum(n for (e, *_), n in self.applied.items() if e == edit)

    def silence(self, told: Silence, names: Sequence[str]) -> None:
        """Notes that an edit does not act where another leaves nothing of it."""
        self.silenced.setdefault(told.silent, set()).add(told.by)
        silent, by = (f"edit {e + 1} ({names[e]})" for e in (told.silent, told.by))
        self.note(told.sentence(silent, by))

    def due_in(self, edit: int) -> int:
        return sum(n for (e, *_), n in self.due.items() if e == edit)


class Live:
    """The edits on one copy of a model, and the last runs made with it.

    after: the one that these edits were added to. It hears of the runs too: a node before the last edit of a chain
    shows what that run applied. heard: the last such run, with the edits that its counts are of.
    """

    def __init__(
        self,
        edits: Iterable[LiveEdit] = (),
        log: Callable[[str, str], None] | None = None,
        after: Live | None = None,
    ) -> None:
        self.edits = tuple(edits)
        self.after = after
        self.heard: tuple[tuple[LiveEdit, ...], Run] | None = None
        self.runs: deque[Run] = deque(maxlen=KEEP_RUNS)
        self.log = log or (lambda level, text: None)
        self.current: Run | None = None
        self.listeners: dict[str, Callable[[Live, Run], None]] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Live:
        return self  # holds tensors, and its counts are read after the run

    def __copy__(self) -> Live:
        return self

    def with_edit(self, edit: LiveEdit) -> Live:
        """A new one with one more edit. An injection takes the place of a provisional one."""
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

    def tell(self, run: Run) -> None:
        """Hands a run's counts to those who show them, here and on what these edits were added to."""
        one: Live | None = self
        while one is not None:
            one.heard = (self.edits, run)
            for listener in list(one.listeners.values()):
                listener(self, run)
            one = one.after

    def check(self, blocks: int, heads: int, text_dim: int | None = None) -> None:
        """RecipeError for what a model of so many blocks and heads, which reads so wide a text, cannot do."""
        for e, edit in enumerate(self.edits, 1):
            edit.strengths(blocks)
            texts = (edit.donor_LD, edit.donor_negative_LD, *(t for _, t in edit.keyed), *itertools.chain(*edit.pairs))
            width = next((t.shape[1] for t in texts if t is not None and t.shape[1] != text_dim), None)
            if text_dim is not None and width is not None:
                raise RecipeError(
                    f"edit {e} ({edit.name}) has a prompt of {width} dimensions a token",
                    f"this model reads {text_dim}",
                    "a prompt of the model's own text encoder",
                )
            edit.edit.check(blocks, 10**9, heads)  # how many steps a sampler makes is not known

    def begin(self, sigmas: Sequence[float] = (), prompt: str | None = None) -> Run:
        """A new run. sigmas: the noise levels of this sampler's own steps, without the closing one, where known.

        Of earlier runs those of the same prompt are kept (its other stages), so that memory does not grow.
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
        """The end of a run that was not interrupted. Raises EditNotApplied for an edit that was due and did not act."""
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
                fix = "a cfg above 1, or branch cond" if missing == ["uncond"] else ""
                raise EditNotApplied(f"edit {i + 1} ({edit.name}) was due and did not act", why, fix)
        if len(run.steps) < len(run.sigmas):
            missed = len(run.sigmas) - len(run.steps)
            run.note(f"{missed} of {len(run.sigmas)} steps made no model call: another node's cache left them out.")

    def check_call(self, run: Run, due: Counter[Site], applied: Counter[Site]) -> None:
        """After one model call: adds its counts. Raises EditNotApplied where they differ."""
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


def share_at(sigma: float, sigma_at: Callable[[float], float]) -> float:
    """The share of the sampling at which a noise level is reached; sigma_at falls from share 0 to 1. By bisection."""
    low, high = 0.0, 1.0
    sigma -= ROUNDING
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if sigma_at(middle) >= sigma else (low, middle)
    return high if sigma_at(high) >= sigma else low
