"""Reports of a run of live edits: one line, or each edit with its blocks, branches and steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from wanscope.edit.blocks import Blocks
from wanscope.edit.sites import Branch, Site
from wanscope.runtime.comfy.live import Live, Run


def summary(run: Run, live: Live) -> str:
    """Return one line: the number of steps, and how often each edit was applied."""
    parts = [f"{edit.name}: {run.applied_in(i)} applied" for i, edit in enumerate(live.edits)]
    return f"run {run.number}, {len(run.steps)} steps; " + "; ".join(parts)


def run_report(live: Live, run: Run) -> str:
    """Return a text with the blocks, branches, steps and count of each edit, then what was skipped, and notes."""
    lines = [f"run {run.number}: {len(run.steps)} noise levels{_range(run)}"]
    for e, edit in enumerate(live.edits):
        sites = [site for site, count in run.applied.items() if site[0] == e and count]
        total = run.applied_in(e)
        head = f"{e + 1}. {edit.name}: applied {total} of {run.due_in(e)} due"
        if not sites:
            due_here = run.in_range.get(e)
            why = "not due in this range" if due_here is False else "strength 0" if due_here is None else "did not act"
            if due_here and e in run.silenced:
                why = "another edit overrides it"
            lines.append(f"{head} ({why})")
            continue
        branches = ", ".join(sorted({site[2] for site in sites}))
        steps = sorted({site[3] for site in sites})
        lines.append(
            f"{head}: blocks {_ranges(site[1] for site in sites)}; {branches}; steps {steps[0]} to {steps[-1]}"
        )
    lines += [f"{reason} ({count} times)" for reason, count in run.skipped.items()]
    return "\n".join([*lines, *run.notes])


def check_stages(live: Live, runs: Sequence[Run], depth: int, before: int = 0) -> tuple[list[str], list[str]]:
    """Check that each edit acted in every stage of a sampling in which it was due.

    runs: the stages. depth: the model's number of blocks. before: the number of stages before these runs. Returns one
    sentence per edit, and one per fault.
    """
    sentences, faults = [], []
    for e, edit in enumerate(live.edits):
        name = f"edit {e + 1} ({edit.name})"
        if not any(edit.strengths(depth)):
            sentences.append(f"{name}: strength 0, nothing to do")
            continue
        parts, acted = [], False
        for stage, run in enumerate(runs, before + 1):
            applied, due = run.applied_in(e), bool(run.in_range.get(e))
            if applied:
                acted = True
                parts.append(f"acted in stage {stage}")
            elif due and e in run.silenced:
                by = " and ".join(f"edit {other + 1}" for other in sorted(run.silenced[e]))
                parts.append(f"did not act in stage {stage}, where it is overridden by {by}")
            elif due:
                parts.append(f"was due in stage {stage} and did not act")
                faults.append(f"{name} was due in stage {stage} and did not act")
            else:
                parts.append(f"was not due in stage {stage}")
        whole = "" if acted or any(run.in_range.get(e) for run in runs) else "never acted: it "
        sentences.append(f"{name}: {whole}{', '.join(parts)}")
    return sentences, faults


def call_line(
    live: Live,
    run: Run,
    sigma: float,
    branches: Sequence[Branch | None],
    due: Counter[Site],
    applied: Counter[Site],
) -> str:
    """Return one line on a model call: the passes of its batch rows, and what was due and applied for each edit."""
    passes = ", ".join(branch or "other" for branch in branches)
    parts = [f"run {run.number}, step {run.step(sigma)}, sigma {sigma:.4f}, rows {passes}"]
    for e, edit in enumerate(live.edits):
        wanted, found = (sum(n for site, n in counts.items() if site[0] == e) for counts in (due, applied))
        blocks = {site[1] for site, n in applied.items() if site[0] == e and n}
        where = f" in blocks {_ranges(blocks)}" if blocks else ""
        parts.append(f"{e + 1}. {edit.name}: applied {found} of {wanted} due{where}")
    return "; ".join(parts)


def log_run(live: Live, run: Run) -> None:
    """Log the end of a run: one line at level basic, the full report at level verbose."""
    live.log("basic", summary(run, live))
    live.log("verbose", run_report(live, run))


def _range(run: Run) -> str:
    levels = list(run.steps)
    return f", sigma {max(levels):.3f} to {min(levels):.3f}" if levels else ""


def _ranges(blocks: Iterable[int]) -> str:
    chosen = set(blocks)
    return Blocks(tuple(i in chosen for i in range(max(chosen) + 1))).ranges
