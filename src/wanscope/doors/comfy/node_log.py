"""The nodes' log lines by level, reports of what was applied, and reports sent to nodes on the page.

Levels: off, basic (one line per run), verbose (also what a node sets up, and what was applied in which blocks, passes
and steps), trace (also every model call). Nothing is logged unless a node or the environment asks for it:
`WAN_ACTIVATION_DEBUG=1` is basic, `WAN_ACTIVATION_VERBOSE=1` verbose. The most verbose node of a chain sets the level
for all edits in the chain.
"""

from __future__ import annotations

import logging
import os
import sys

from wanscope.runtime.comfy.live import Live, LiveEdit
from wanscope.runtime.comfy.report import run_report

LEVELS = ("off", "basic", "verbose", "trace")
log = logging.getLogger("wanscope")


def environment_level() -> str:
    """Return the log level that the environment variables ask for."""
    if os.environ.get("WAN_ACTIVATION_VERBOSE") == "1":
        return "verbose"
    return "basic" if os.environ.get("WAN_ACTIVATION_DEBUG") == "1" else "off"


class Logger:
    """The log function of `Live`: logs lines up to the level of the node or the environment, whichever is higher."""

    def __init__(self, level: str) -> None:
        self.level = max(LEVELS.index(level), LEVELS.index(environment_level()))
        self.traces = self.level == LEVELS.index("trace")

    def __call__(self, at: str, text: str) -> None:
        if LEVELS.index(at) <= self.level:
            for line in text.splitlines():
                log.warning("wanscope: %s", line)  # ComfyUI shows warnings whatever its own level


def continue_edits(now: Live | None, level: str = "off") -> Live:
    """Return a new `Live` with the edits that a model has, to which a node adds its own.

    level: this node's log level; a more verbose one of an earlier node is kept.
    """
    before = now.log.level if now is not None and isinstance(now.log, Logger) else 0
    return Live(now.edits if now else (), Logger(LEVELS[max(before, LEVELS.index(level))]), now)


def add_edit(now: Live | None, edit: LiveEdit, level: str = "off") -> Live:
    """Return a new `Live` with the edits that a model has and one more."""
    return continue_edits(now, level).with_edit(edit)


def live_report(live: Live | None) -> str:
    """Return a text that lists the edits on a model and reports its last run."""
    if live is None or not live.edits:
        return "This model has no edits."
    lines = [f"{e + 1}. {edit.name}{_time_range(edit.start, edit.end)}" for e, edit in enumerate(live.edits)]
    if live.runs:
        lines.append(run_report(live, live.runs[-1]))
    elif live.last_downstream is not None:
        edits, run = live.last_downstream
        lines.append(run_report(Live(edits), run))
    else:
        lines.append("Not sampled yet; what was applied will be shown here after the run.")
    return "\n".join(lines)


def _time_range(start: float, end: float) -> str:
    return "" if (start, end) == (0, 1) else f", from {start:.0%} to {end:.0%} of the sampling"


def server() -> object | None:
    """Return ComfyUI's server, or None if none is running."""
    module = sys.modules.get("server")
    return getattr(getattr(module, "PromptServer", None), "instance", None)


def send_text(node: str | None, text: str) -> None:
    """Show a text in a node on the page; this also works after the node has run."""
    instance = server()
    if instance is not None and node is not None:
        instance.send_sync("wanscope.text", {"node": node, "text": text})  # type: ignore[attr-defined]


def show_runs_in_node(live: Live | None, node: str | None, head: str = "") -> None:
    """Update a node's text on the page after every run of these edits. head: the part before the run's report."""
    if live is not None and node is not None:
        live.listeners[node] = lambda live, run: send_text(node, "\n".join(filter(None, [head, run_report(live, run)])))
