"""This process while a command works: what is set before models' libraries load, and what signals do."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

from wanscope.doors.cli import output


def prepare_process() -> None:
    """Set the environment variables that torch and the model libraries read on import.

    Their own progress bars would mix with ours, and their control characters would end up in files.
    A download's bar stays at a terminal, since it is the only sign of progress for a long time.
    """
    from wanscope.wan.environment import prepare

    prepare()
    if not output.interactive(sys.stderr):
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP came: everything that Ctrl-C pressed twice ends, ends. `number` is the signal's."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(number)


# What a scheduler, `kill` and a closed terminal send. Windows has only the first.
ENDINGS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


@contextlib.contextmanager
def terminable() -> Iterator[list[int]]:
    """Raise Terminated at the first SIGTERM or SIGHUP inside the block; later ones wait for what it is cleaning up.

    Yields a list of the signals that came. A signal that this process was started to ignore, as `nohup` does, stays
    ignored.
    """
    came: list[int] = []

    def end(number: int, frame: object) -> None:
        came.append(number)
        if len(came) == 1:
            raise Terminated(number)

    if threading.current_thread() is not threading.main_thread():  # only the main thread may have handlers
        yield came
        return
    before = {number: signal.getsignal(number) for number in ENDINGS}
    taken = [number for number, handler in before.items() if handler == signal.SIG_DFL]
    for number in taken:
        signal.signal(number, end)
    try:
        yield came
    finally:
        for number in taken:
            signal.signal(number, before[number])


@contextlib.contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Yield a function that tells whether Ctrl-C was pressed; only the second Ctrl-C raises KeyboardInterrupt."""
    asked = threading.Event()

    def stop(number: int, frame: object) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        _say_stopping()

    if threading.current_thread() is not threading.main_thread():  # only the main thread may have handlers
        yield asked.is_set
        return
    before = signal.signal(signal.SIGINT, stop)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, before)


def _say_stopping() -> None:
    # A signal's handler may run in the middle of a print, where printing is not allowed.
    os.write(2, b"\nwanscope: stopping after this step; Ctrl-C again stops at once\n")
