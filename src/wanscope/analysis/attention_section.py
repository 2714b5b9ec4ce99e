"""The attention part of an analysis: a tidy table, and overlay videos in the report.

For every take with maps, the table has each word's mass, concentration and travel at every step and block. For its mean
map (step and block empty) it has the center in each frame and the overlap with every other word's mean map. See
attention.py for the definitions. The report shows one take per variation; `wanscope show ID --maps` shows any other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from wanscope.analysis.attention import of_means, profile
from wanscope.analysis.collection import Member, from_takes
from wanscope.analysis.overlay import Panel, overlay_video, panels
from wanscope.analysis.preview import Preview, scaled
from wanscope.analysis.result import Analysis
from wanscope.analysis.table import SLOT
from wanscope.errors import DamagedTake, NotCaptured
from wanscope.take.video import iter_frames, video_facts, write_video

SHOWN = 8  # variations in the report
WORDS = 6  # panels in a video
SIDE = 640  # pixels
RATE = 28  # constant rate factor
BUDGET_BYTES = 3_000_000  # for all overlay videos in the report; the first one is always shown


def with_maps(members: Sequence[Member]) -> list[Member]:
    """Return the takes that have maps of attention probabilities."""
    kept = [(member, member.take.manifest.attention) for member in members]
    return [member for member, stored in kept if stored is not None and "probability" in stored.measures]


def rows(members: Sequence[Member]) -> list[dict[str, Any]]:
    """Return tidy rows for all takes with maps, except those with damaged maps, which `damaged` names."""
    out = []
    for member in with_maps(members):
        try:
            attention = member.take.attention
            found = [*profile(attention).rows(), *of_means(attention)]
        except (DamagedTake, NotCaptured):
            continue
        slots = {SLOT + slot: value for slot, value in member.labels.items()}
        who = {"take": member.id, "name": member.name, "group": member.group, "seed": member.seed, **slots}
        out += [{**who, **row} for row in found]
    return out


def damaged(members: Sequence[Member]) -> list[str]:
    """Return one sentence for each take whose maps cannot be used, with the reason."""
    return [
        f"the attention maps of {member.name} are left out: {why}"
        for member in with_maps(members)
        if (why := _why(member))
    ]


def _why(member: Member) -> str:
    """Return why the maps of a take cannot be used, or "" if they can."""
    try:
        _ = member.take.attention
    except DamagedTake as error:
        return from_takes(str(error).splitlines()[0], member.take.folder)
    return ""


def section(analysis: Analysis) -> dict[str, Any] | None:
    """Return the data of the report's section: notes, overlays (title and video), and how many more variations exist.

    None if no take has maps.
    """
    members = with_maps(analysis.members)
    if not members:
        return None
    chosen: dict[str, Member] = {}
    for member in members:
        if not _why(member):
            chosen.setdefault(member.group, member)
    overlays = list(_overlays(list(chosen.values())[:SHOWN]))
    return {"notes": damaged(members), "overlays": overlays, "more": len(chosen) - len(overlays)}


def _overlays(members: list[Member]) -> Iterator[tuple[str, Preview]]:
    """Yield the title and video of each take whose maps can be read, until the budget is used up."""
    used = 0
    for member in members:
        try:
            attention = member.take.attention
            clip = _clip(member, panels(attention, list(attention.words)[:WORDS]))
        except (DamagedTake, NotCaptured):
            continue
        if used and used + len(clip.data) > BUDGET_BYTES:
            return
        used += len(clip.data)
        yield f"{member.group}, seed {member.seed}", clip


def _clip(member: Member, shown: Sequence[Panel]) -> Preview:
    """Return a small overlay video of a take."""
    from PIL import Image

    with TemporaryDirectory(prefix="wanscope-maps-") as folder:
        whole, small = Path(folder) / "whole.mp4", Path(folder) / "small.mp4"
        overlay_video(member.take, shown, whole)
        facts = video_facts(whole)
        size = scaled(int(facts["width"]), int(facts["height"]), SIDE)
        frames = (
            np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS)) for frame in iter_frames(whole)
        )
        write_video(small, frames, facts["fps"] or 8, options={"crf": str(RATE), "preset": "medium"})
        return Preview("video/mp4", small.read_bytes(), *size)
