"""`wanscope generate`: run a study, show its progress, and report what was made and what failed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wanscope.doors.cli import output, progress
from wanscope.doors.cli.options import MEMORY
from wanscope.doors.cli.process import interruptible, prepare_process
from wanscope.doors.cli.request import Options, wanted
from wanscope.errors import RequestError, WanscopeError, nearest
from wanscope.events import Note
from wanscope.workspace import Workspace

if TYPE_CHECKING:
    from wanscope.study.run import StudyResult


def run_generate(
    options: Options, output_dir: Path | None, *, dry_run: bool, device: str, memory: str, json: bool
) -> int:
    if memory not in MEMORY:
        raise RequestError(f"--memory {memory} is not known", nearest(memory, MEMORY), "--memory auto")
    workspace = Workspace.find(output_dir)
    asked = wanted(options, workspace)
    if dry_run:
        from wanscope.doors.cli.dry_run import run_dry

        return run_dry(asked.request, workspace, asked.notes, device=device, memory=memory, json=json)
    result = run_study(asked.request, workspace, asked.notes, device=device, memory=memory, json=json)
    if not json:
        _say_result(result, workspace)
    return complain_of_failures(result)


def run_study(
    source: Any, workspace: Workspace, notes: Sequence[Note] = (), *, device: str, memory: str, json: bool
) -> StudyResult:
    """Run `source` with its progress on stdout. The first Ctrl-C stops between two steps, the second at once."""
    prepare_process()
    with progress.make(json) as listener, interruptible() as interrupt:
        for note in notes:
            listener(note)
        from wanscope.study.run import run

        return run(source, workspace=workspace, memory=memory, device=device, on_event=listener, interrupt=interrupt)


def _say_result(result: StudyResult, workspace: Workspace) -> None:
    had = len(result.takes) - result.made
    parts = [f"{result.made} made", f"{had} complete before", f"{len(result.failed)} failed"]
    shown = [part for part in parts if not part.startswith("0 ")]
    if result.folder is None and not result.made and not result.failed:
        shown = ["made again and compared; the take that was there stays"]
    output.say(f"{', '.join(shown)}, {output.seconds_text(result.seconds)}")
    if result.folder is not None:
        output.say(f"videos: {output.shown_path(result.folder)}")
    else:
        for take in result.takes:
            output.say(f"video: {output.shown_path(take.video)}")
    if result.folder is not None and len(result.takes) > 1:
        output.say(f"next: wanscope compare {result.name}{workspace.option}")


def complain_of_failures(result: StudyResult) -> int:
    """Print the takes that failed to stderr and return the exit status."""
    for failure in result.failed:
        output.complain(f"{failure.name} ({failure.take}) failed: {failure.error}{_report(failure.exception)}")
    if not result.failed:
        return 0
    total = len(result.failed) + len(result.takes)
    output.complain(
        f"{len(result.failed)} of {total} take{'s'[: total != 1]} failed; run the same command to retry them."
    )
    return 1


def _report(error: Exception) -> str:
    """Return where the traceback of an unexpected error was written, or ""."""
    if isinstance(error, WanscopeError):
        return ""
    from wanscope.doors.cli.crash import write_report

    place = write_report(error)
    return f"; the traceback is in {place}" if place else ""
