"""Printing: for a person at a terminal, for a file or pipe, or as JSON.

Results go to stdout, complaints to stderr. Where stdout is not a terminal, lines are plain: no control characters, no
boxes, nothing cut to a width. With --json stdout holds JSON and nothing else.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from wanscope.errors import WanscopeError

if TYPE_CHECKING:
    from rich.console import Console

_setting = re.compile(r"[a-z_0-9]+(\.[a-z_0-9]+)*=\S")


def make_safe() -> None:
    """Make stdout and stderr escape characters that their encoding lacks instead of raising an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def interactive(stream: TextIO | None = None) -> bool:
    """Return whether the stream is a terminal that can move its cursor."""
    stream = stream or sys.stdout
    return stream is not None and stream.isatty() and os.environ.get("TERM") != "dumb"


@cache
def console() -> Console:
    """Return rich's console on stdout, without markup: prompts are full of brackets."""
    from rich.console import Console

    return Console(markup=False, highlight=False, emoji=False)


def printable(text: str) -> str:
    """Return the text on one line and without control characters, which could steer the terminal."""
    return "".join(c if c.isprintable() else " " if c.isspace() else f"\\x{ord(c):02x}" for c in text)


def say(text: str = "") -> None:
    """Print lines for a person, each made printable."""
    print("\n".join(printable(line) for line in text.split("\n")), flush=True)


def complain(text: str) -> None:
    """Print an error or a warning to stderr."""
    sys.stdout.flush()
    lines = [printable(line) for line in f"wanscope: {text}".split("\n")]
    if interactive(sys.stderr) and "NO_COLOR" not in os.environ:
        lines[0] = f"\x1b[31m{lines[0]}\x1b[0m"
    print("\n".join(lines), file=sys.stderr, flush=True)


def error_text(error: WanscopeError) -> str:
    """Return the error's text; a fix that is a setting is shown as the --set option for it."""
    if error.fix and _setting.match(error.fix):
        return str(error)[: -len(error.fix)] + f"--set {error.fix}"
    return str(error)


def document(data: Any) -> None:
    """Print one JSON document."""
    print(json_text(data, indent=1))


def json_line(data: Mapping[str, Any]) -> None:
    """Print one JSON object on its own line and flush."""
    print(json_text(data), flush=True)


def json_text(data: Any, indent: int | None = None) -> str:
    return json.dumps(data, ensure_ascii=not _writes_unicode(), indent=indent, allow_nan=False, default=str)


def _writes_unicode() -> bool:
    return (sys.stdout.encoding or "").lower().replace("-", "") in ("utf8", "utf16", "utf32")


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = ()) -> None:
    """Print rows under headings; `right` names the columns that are aligned to the right."""
    shown = [[printable(value) for value in row] for row in rows]
    if interactive():
        _rich_table(columns, shown, right)
        return
    widths = [max(len(text) for text in texts) for texts in zip(columns, *shown, strict=True)]
    for row in (columns, *shown):
        cells = [
            text.rjust(width) if name in right else text.ljust(width)
            for name, text, width in zip(columns, row, widths, strict=True)
        ]
        print("  ".join(cells).rstrip())


def _rich_table(columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str]) -> None:
    from rich import box
    from rich.table import Table

    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        shown.add_column(name, justify="right" if name in right else "left", overflow="fold")
    for row in rows:
        shown.add_row(*row)
    console().print(shown)


def facts(pairs: Sequence[tuple[str, str]], indent: str = "") -> None:
    """Print `name  value` lines with the values aligned."""
    width = max(len(name) for name, _ in pairs)
    for name, value in pairs:
        print(f"{indent}{name.ljust(width)}  {printable(value)}".rstrip())


def shown_path(path: Path) -> str:
    """Return the path relative to the current folder where it is below it, else unchanged."""
    with contextlib.suppress(ValueError):
        return str(path.relative_to(Path.cwd()))
    return str(path)


def seconds_text(seconds: float) -> str:
    """Format a duration: `0.02 s`, `3.4 s`, `2 min 05 s`, `1 h 12 min`, `3 d 04 h`."""
    if seconds < 0.1:
        return f"{seconds:.2f} s" if seconds >= 0.01 or seconds == 0 else "under 0.01 s"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600:02d} h"
