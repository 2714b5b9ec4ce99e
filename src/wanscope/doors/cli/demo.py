"""`wanscope demo`: the built-in study, a grid of its videos, its analysis, and what to do next."""

from __future__ import annotations

from pathlib import Path

from wanscope.doors.cli import output
from wanscope.doors.cli.compare import SIDE_BY_SIDE
from wanscope.recipe import CaptureSpec, LatentsCapture, Study
from wanscope.spec.capture import AttentionCapture
from wanscope.workspace import Workspace

TEMPLATE = "a [red|blue] (circle) moves [left|right] on a black background"
NEXT = """
Look at the grid: each row is a variation of the template, each column a seed. The report opens in any browser: how
the paths to the videos differ, where the word circle was attended to, and why two seeds cannot prove anything yet.
Next: give it a template of your own, for example
  wanscope generate --template "a [red|green|blue] [circle|square] moves [left|up]" --videos-per-variation 2
The tiny model knows shapes, colors and motions only; `wanscope models` lists those that know the world."""
CAPTURE = CaptureSpec(latents=LatentsCapture(), attention=AttentionCapture())
STUDY = Study(name="demo", prompt=TEMPLATE, seeds=(0, 1), capture=CAPTURE)


def run_demo(output_dir: Path | None, device: str, json: bool) -> int:
    from wanscope.analysis.analyze import analyze
    from wanscope.doors.cli.generate import complain_of_failures, run_study
    from wanscope.take.compare import side_by_side

    workspace = Workspace.find(output_dir)
    result = run_study(STUDY, workspace, device=device, memory="auto", json=json)
    status = complain_of_failures(result)
    if status or result.folder is None:
        return status
    grid = side_by_side(result.takes, result.folder / SIDE_BY_SIDE)
    if json:
        output.json_line({"event": "GridWritten", "video": str(grid.path), "rows": grid.rows, "columns": grid.columns})
    else:
        output.say("analyzing what the latents and the attention did")
    analysis = analyze(result)
    if json:
        output.json_line({"event": "ReportWritten", "report": str(analysis.report)})
        return 0
    output.say(f"\n{len(result.takes)} videos of: {TEMPLATE}")
    output.facts(
        [
            ("grid", output.shown_path(grid.path)),
            ("report", output.shown_path(analysis.report) if analysis.report is not None else ""),
            ("videos", output.shown_path(result.folder)),
            ("records", f"{output.shown_path(workspace.takes)} (recipe, latents, maps, timings of each)"),
        ]
    )
    output.say(NEXT)
    return 0
