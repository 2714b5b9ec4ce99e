"""What the nodes say: log lines by level, reports of what was applied, reports pushed to nodes on the page.

Levels: off, basic (a line a run), verbose (what was applied in which blocks), trace (every model call). Nothing is
logged unless a node or the environment asks: `WAN_ACTIVATION_DEBUG=1` is basic, `WAN_ACTIVATION_VERBOSE=1` verbose.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable

from wanscope.edit.blocks import Blocks
from wanscope.runtime.live import Live, Run

LEVELS = ("off", "basic", "verbose", "trace")
log = logging.getLogger("wanscope")


def level_from_environment() -> str:
    if os.environ.get("WAN_ACTIVATION_VERBOSE") == "1":
        return "verbose"
    return "basic" if os.environ.get("WAN_ACTIVATION_DEBUG") == "1" else "off"


def logger(level: str) -> Callable[[str, str], None]:
    """What `Live` logs with: lines up to the level of the node or of the environment, whichever is higher."""
    wanted = max(LEVELS.index(level), LEVELS.index(level_from_environment()))

    def say(at: str, text: str) -> None:
        if LEVELS.index(at) <= wanted:
            log.warning("wanscope: %s", text)  # ComfyUI shows warnings whatever its own level

    return say


def run_report(live: Live, run: Run) -> str:
    """What one run applied: per edit its blocks, branches, steps and count."""
    lines = [f"run {run.number}: {len(run.steps)} noise levels{_range(run)}"]
    for e, edit in enumerate(live.edits):
        sites = [site for site, count in run.applied.items() if site[0] == e and count]
        total = run.applied_in(e)
        head = f"{e + 1}. {edit.name}: applied {total} of {run.due_in(e)} due"
        if not sites:
            due_here = run.in_range.get(e)
            why = "not due in this range" if due_here is False else "strength 0" if due_here is None else "did not act"
            lines.append(f"{head} ({why})")
            continue
        depth = max(site[1] for site in sites) + 1
        blocks = Blocks(tuple(i in {site[1] for site in sites} for i in range(depth)))
        branches = ", ".join(sorted({site[2] for site in sites}))
        steps = sorted({site[3] for site in sites})
        lines.append(f"{head}: blocks {blocks.ranges}; {branches}; steps {steps[0]} to {steps[-1]}")
    lines += [f"{reason} ({count} times)" for reason, count in run.skipped.items()]
    return "\n".join([*lines, *run.notes])


def _range(run: Run) -> str:
    levels = list(run.steps)
    return f", sigma {max(levels):.3f} to {min(levels):.3f}" if levels else ""


def live_report(live: Live | None) -> str:
    """The edits on a model and its last run."""
    if live is None or not live.edits:
        return "No edit is on this model."
    lines = [f"{e + 1}. {edit.name}{_when(edit.start, edit.end)}" for e, edit in enumerate(live.edits)]
    last = live.runs[-1] if live.runs else None
    lines.append(run_report(live, last) if last else "Not sampled yet; what was applied is shown here after the run.")
    return "\n".join(lines)


def _when(start: float, end: float) -> str:
    return "" if (start, end) == (0, 1) else f", from {start:.0%} to {end:.0%} of the sampling"


def server() -> object | None:
    """ComfyUI's server, None where the nodes are used without one."""
    module = sys.modules.get("server")
    return getattr(getattr(module, "PromptServer", None), "instance", None)


def push(node: str | None, text: str) -> None:
    """Shows a text in a node that is on the page, also after it has run."""
    instance = server()
    if instance is not None and node is not None:
        instance.send_sync("wanscope.text", {"node": node, "text": text})  # type: ignore[attr-defined]


def follow(live: Live | None, node: str | None, head: str = "") -> None:
    """Keeps a node's text up to date with the runs of these edits."""
    if live is not None and node is not None:
        live.listeners[node] = lambda live, run: push(node, "\n".join(filter(None, [head, run_report(live, run)])))
