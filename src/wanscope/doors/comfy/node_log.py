"""What the nodes say: log lines by level, reports of what was applied, reports pushed to nodes on the page.

Levels: off, basic (a line a run), verbose (also what is set up, and what was applied in which blocks, passes and
steps), trace (also every model call). Nothing is logged unless a node or the environment asks:
`WAN_ACTIVATION_DEBUG=1` is basic, `WAN_ACTIVATION_VERBOSE=1` verbose. The loudest node of a chain speaks for all edits.
"""

from __future__ import annotations

import logging
import os
import sys

from wanscope.runtime.comfy.live import Live, LiveEdit
from wanscope.runtime.comfy.report import run_report

LEVELS = ("off", "basic", "verbose", "trace")
log = logging.getLogger("wanscope")


def level_from_environment() -> str:
    if os.environ.get("WAN_ACTIVATION_VERBOSE") == "1":
        return "verbose"
    return "basic" if os.environ.get("WAN_ACTIVATION_DEBUG") == "1" else "off"


class Logger:
    """What `Live` logs with: lines up to the level of the node or of the environment, whichever is higher."""

    def __init__(self, level: str) -> None:
        self.level = max(LEVELS.index(level), LEVELS.index(level_from_environment()))
        self.traces = self.level == LEVELS.index("trace")

    def __call__(self, at: str, text: str) -> None:
        if LEVELS.index(at) <= self.level:
            for line in text.splitlines():
                log.warning("wanscope: %s", line)  # ComfyUI shows warnings whatever its own level


def continued(now: Live | None, level: str = "off") -> Live:
    """The edits that a model has, to add to. level: of this node; a louder one before it goes on to hold."""
    before = now.log.level if now is not None and isinstance(now.log, Logger) else 0
    return Live(now.edits if now else (), Logger(LEVELS[max(before, LEVELS.index(level))]), now)


def with_edit(now: Live | None, edit: LiveEdit, level: str = "off") -> Live:
    """The edits that a model has, and one more."""
    return continued(now, level).with_edit(edit)


def live_report(live: Live | None) -> str:
    """The edits on a model and its last run."""
    if live is None or not live.edits:
        return "No edit is on this model."
    lines = [f"{e + 1}. {edit.name}{_when(edit.start, edit.end)}" for e, edit in enumerate(live.edits)]
    if live.runs:
        lines.append(run_report(live, live.runs[-1]))
    elif live.heard is not None:
        edits, run = live.heard
        lines.append(run_report(Live(edits), run))
    else:
        lines.append("Not sampled yet; what was applied is shown here after the run.")
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
