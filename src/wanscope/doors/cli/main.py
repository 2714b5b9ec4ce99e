"""From arguments to an exit status: 0 done, 1 the work failed, 2 the request was wrong, 130 interrupted.

SIGTERM and SIGHUP end a command as Ctrl-C does, with 143 and 129.

Every WanscopeError becomes its own text on stderr, without a traceback. An unexpected error is one sentence and
a file with the traceback; `wanscope --debug ...` or WANSCOPE_DEBUG=1 prints the traceback directly.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Sequence
from typing import Any

from wanscope.errors import RequestError, StorageError, WanscopeError

DEBUG_VARIABLE = "WANSCOPE_DEBUG"
INTERRUPTED = 130
PIPE_CLOSED = 141  # 128 + SIGPIPE, as a shell reports it
PROGRAM = "wanscope"
COMPLETION_VARIABLE = "_WANSCOPE_COMPLETE"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    from wanscope.doors.cli.process import terminable

    with terminable() as came:
        status = _main(arguments)
        # What a stopped command prints is the same, whatever stopped it.
        return 128 + came[0] if came and status == INTERRUPTED else status


def _main(arguments: Sequence[str] | None) -> int:
    from wanscope.doors.cli import output
    from wanscope.doors.cli.process import Terminated

    output.make_safe()
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        status = _run(words)
        sys.stdout.flush()
    except WanscopeError as error:
        if debugging():
            raise
        return _refused(error)
    except Terminated as ended:
        output.complain(f"stopped by {signal.Signals(ended.number).name}; what was finished before stays.")
        return INTERRUPTED
    except KeyboardInterrupt:
        output.complain("interrupted.")
        return INTERRUPTED
    except BrokenPipeError:
        # The reader is gone (`wanscope takes | head`), so that buffered output is discarded.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except Exception as error:  # the last place where it can be reported plainly
        if _is_usage(error):
            return _misused(error)
        if debugging():
            raise
        plain = _of_the_disk(error) or _of_the_text(error, words)
        return _crashed(error) if plain is None else _refused(plain)
    return status


def _of_the_text(error: Exception, words: Sequence[str]) -> WanscopeError | None:
    """Return the plain error for an argument that is not text: a file may have such a name, but no record can."""
    if not re.search("surrogate", str(error)):
        return None
    for word in words:
        if re.search("[\ud800-\udfff]", word):
            shown = word.encode("utf-8", "backslashreplace").decode()
            return RequestError(f"{shown[:200]!r} is not text", "it has bytes that are not UTF-8", "--help")
    return None


def _of_the_disk(error: Exception) -> WanscopeError | None:
    """Return the plain error for a limit of the disk or the machine that no layer below has named."""
    from pathlib import Path

    from wanscope.take.disk import ending, guarded

    try:
        with guarded(Path(), "used"):
            raise error
    except StorageError as named:
        return named
    except Exception as other:  # noqa: BLE001 - the same error again
        return ending(other, Path())


def _run(arguments: list[str]) -> int:
    """Run the command and return its exit status.

    Typer's own `main` would turn Ctrl-C and closed pipes into its own exits.
    """
    import typer

    from wanscope.doors.cli.app import command

    if COMPLETION_VARIABLE in os.environ:  # the shell asks for words to complete
        command().main(args=arguments, prog_name=PROGRAM)
    try:
        with command().make_context(PROGRAM, arguments or ["--help"]) as context:
            status = context.command.invoke(context)
    except typer.Exit as done:  # --help and --version
        return done.exit_code
    return status or 0


def debugging() -> bool:
    return os.environ.get(DEBUG_VARIABLE, "") not in ("", "0")


def _refused(error: WanscopeError) -> int:
    from wanscope.doors.cli import output

    output.complain(output.error_text(error))
    return error.exit_status


def _is_usage(error: Exception) -> bool:
    """Return whether it is click's error for bad arguments, by name: some versions of typer bundle their own click."""
    return any(kind.__name__ == "ClickException" for kind in type(error).__mro__)


def _misused(error: Any) -> int:
    from wanscope.doors.cli import output

    context = getattr(error, "ctx", None)
    place = context.command_path if context is not None else PROGRAM
    text = error.format_message().strip().rstrip(".")
    output.complain(f"{text[:1].lower()}{text[1:]}.\nTry: {place} --help")
    return 2


def _crashed(error: Exception) -> int:
    from wanscope.doors.cli import output
    from wanscope.doors.cli.crash import write_report

    kind = type(error).__name__
    first_line = (str(error).strip().splitlines() or [""])[0][:300]
    said = f"{kind}: {first_line}" if first_line else kind
    place = write_report(error)
    where = f"the traceback is in {place}" if place else "the traceback could not be written to a file"
    output.complain(f"something went wrong that wanscope did not foresee ({said}); {where}.\nTry: wanscope --debug ...")
    return 1
