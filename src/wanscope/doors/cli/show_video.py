"""`wanscope show ID --steps` and `--maps`: videos of how a take was denoised and where its words were attended to."""

from __future__ import annotations

from pathlib import Path

from wanscope.doors.cli import output
from wanscope.doors.cli.process import prepare_process
from wanscope.errors import RequestError, nearest
from wanscope.take.disk import require_writable
from wanscope.take.store import Take
from wanscope.workspace import Workspace

BY = ("word", "block", "step")


def run_show_steps(name: str, path: Path | None, device: str, output_dir: Path | None, json: bool) -> int:
    take, target = _take_and_target(name, path, output_dir, "denoising")
    prepare_process()
    from wanscope.study.denoising import denoising_video

    steps = denoising_video(take, target, device)
    if json:
        output.document({"video": str(target), "take": take.id, "steps": steps})
    else:
        output.say(f"{steps} steps of take {take.id}: {output.shown_path(target)}")
    return 0


def run_show_maps(
    name: str, words: str, by: str, measure: str, path: Path | None, output_dir: Path | None, json: bool
) -> int:
    from wanscope.analysis.overlay import make_panels, overlay_video
    from wanscope.spec.capture import RECORDED

    if by not in BY:
        raise RequestError(f"--by {by} is not known", nearest(by, BY), "--by block")
    if measure not in RECORDED:
        raise RequestError(f"--measure {measure} is not known", nearest(measure, RECORDED), "--measure probability")
    take, target = _take_and_target(name, path, output_dir, f"maps-{by}")
    attention = take.attention_of(measure)  # type: ignore[arg-type]
    chosen = () if words == "all" else tuple(word.strip() for word in words.split(",") if word.strip())
    shown = make_panels(attention, chosen, by)  # type: ignore[arg-type]
    rows, columns = overlay_video(take, shown, target)
    if json:
        labels = [panel.label for panel in shown]
        output.document({"video": str(target), "take": take.id, "rows": rows, "columns": columns, "panels": labels})
    else:
        output.say(f"{len(shown)} maps over take {take.id}: {output.shown_path(target)}")
    return 0


def _take_and_target(name: str, path: Path | None, output_dir: Path | None, what: str) -> tuple[Take, Path]:
    if path is not None and path.suffix.lower() != ".mp4":
        raise RequestError(f"--out {path} is not an MP4 file", "the output is a video", f"--out {path}.mp4")
    workspace = Workspace.find(output_dir)
    take = Take.open(workspace.find_take(name))
    target = path or workspace.folder / f"{what}-{take.id}.mp4"
    require_writable(target.parent)
    return take, target
