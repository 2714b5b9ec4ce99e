"""`wanscope demo`: the built-in study, a grid of its videos, and what to do next."""

from __future__ import annotations

from pathlib import Path

from wanscope.doors.cli import out
from wanscope.doors.cli.compare import SIDE_BY_SIDE
from wanscope.recipe import CaptureSpec, LatentsCapture, Study
from wanscope.workspace import Workspace

TEMPLATE = "a [red|blue] (circle) moves [left|right] on a black background"
NEXT = """
Look at the grid: each row is a variation of the template, each column a seed.
Next: give it a template of your own, for example
  wanscope generate --template "a [red|green|blue] [circle|square] moves [left|up]" --videos-per-variation 2
The tiny model knows shapes, colors and motions only; `wanscope models` lists those that know the world."""
STUDY = Study(name="demo", prompt=TEMPLATE, seeds=(0, 1), capture=CaptureSpec(latents=LatentsCapture()))


def run_demo(output_dir: Path | None, device: str, json: bool) -> int:
    from wanscope.doors.cli.generate import complain_of_failures, run_study
    from wanscope.take.compare import side_by_side

    workspace = Workspace.find(output_dir)
    result = run_study(STUDY, workspace, device=device, memory="auto", json=json)
    status = complain_of_failures(result)
    if status or result.folder is None:
        return status
    grid = side_by_side(result.takes, result.folder / SIDE_BY_SIDE)
    if json:
        out.json_line({"event": "GridWritten", "video": str(grid.path), "rows": grid.rows, "columns": grid.columns})
        return 0
    out.say(f"\n{len(result.takes)} videos of: {TEMPLATE}")
    out.facts(
        [
            ("grid", out.shown_path(grid.path)),
            ("videos", out.shown_path(result.folder)),
            ("records", f"{out.shown_path(workspace.takes)} (recipe, latents, timings of each)"),
        ]
    )
    out.say(NEXT)
    return 0
