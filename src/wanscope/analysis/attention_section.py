"""The attention part of an analysis: a tidy table, and overlay videos in the report.

For every take with maps, the table has each word's mass, concentration and travel at every step and block. For its mean
map (step and block empty) it has the center in each frame and the overlap with every other word's mean map. See
attention.py for the definitions. The report shows one pair of takes per contrast; `wanscope show ID --maps` shows any
take.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from wanscope.analysis.attention import of_means, profile
from wanscope.analysis.collection import Member, from_takes
from wanscope.analysis.overlay import PERCENTILE, Panel, make_panels, overlay_video
from wanscope.analysis.paired_columns import PADDING, compared_names
from wanscope.analysis.pairing import Contrast, factor_value, find_pairs
from wanscope.analysis.preview import Preview, fit_size
from wanscope.analysis.result import Analysis
from wanscope.analysis.table import SLOT
from wanscope.errors import DamagedTake, NotCaptured
from wanscope.take.video import iter_frames, video_facts, write_video

SHOWN = 8  # variations in the report, if there is no contrast
CONTRASTS = 6  # in the report
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
    """Return the data of the report's section: notes, overlays (title, video, caption), and how many are not shown.

    Each overlay compares the two sides of a contrast in one pair of takes; without a contrast, it shows one take per
    variation. None if no take has maps.
    """
    members = with_maps(analysis.members)
    if not members:
        return None
    read = {row["take"] for row in analysis.attention}
    readable = [member for member in members if member.id in read]
    found = list(_pair_overlays(analysis, readable))
    overlays = list(islice(_within_budget(clips() for clips in found), CONTRASTS)) if found else []
    more = len(found) - len(overlays)
    if not found:
        chosen: dict[str, Member] = {}
        for member in readable:
            chosen.setdefault(member.group, member)
        overlays = list(islice(_within_budget(_take_overlay(member) for member in chosen.values()), SHOWN))
        more = len(chosen) - len(overlays)
    return {"notes": damaged(members), "overlays": overlays, "more": more, "in_pairs": bool(found)}


Overlay = tuple[str, Preview, str]


def _within_budget(overlays: Iterator[Overlay]) -> Iterator[Overlay]:
    """Yield overlays until the budget is used up; the first one in any case."""
    used = 0
    for overlay in overlays:
        size = len(overlay[1].data)
        if used and used + size > BUDGET_BYTES:
            return
        used += size
        yield overlay


def _take_overlay(member: Member) -> Overlay:
    attention = member.take.attention
    clip = _clip(member, make_panels(attention, list(attention.words)[:WORDS]))
    return f"{member.group}, seed {member.seed}", clip, ""


def _pair_overlays(analysis: Analysis, readable: Sequence[Member]) -> Iterator[Callable[[], Overlay]]:
    """Yield for each contrast a function that makes the overlay of its first pair with maps of the same words."""
    names = compared_names(analysis.members, analysis.attention)
    shares = group_shares(analysis, names)
    for contrast in analysis.comparison.contrasts:
        pairs = find_pairs(readable, contrast, analysis.comparison.scenes)
        for i, j in zip(pairs.a, pairs.b, strict=True):
            a, b = readable[i], readable[j]
            words = [word for word in _words(a, names) if word in _words(b, names)][:WORDS]
            if words and a.take.frames.shape == b.take.frames.shape:
                yield partial(_pair_overlay, contrast, a, b, words, names, shares)
                break


def _words(member: Member, names: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Return a take's words by the name under which they are compared."""
    return {names[member.id].get(word, word): word for word in member.take.attention.words}


def _pair_overlay(
    contrast: Contrast,
    a: Member,
    b: Member,
    words: Sequence[str],
    names: Mapping[str, Mapping[str, str]],
    shares: Mapping[tuple[str, str], Mapping[str, float]],
) -> Overlay:
    """Return the maps of two takes, one row per take and one column per word, each word on one scale for both."""
    found = [{word: member.take.attention.mean(_words(member, names)[word]) for word in words} for member in (a, b)]
    shown = []
    for member, value, maps in ((a, contrast.a, found[0]), (b, contrast.b, found[1])):
        for word in words:
            top = max(float(np.nanpercentile(each[word], PERCENTILE)) for each in found)
            label = f"{value}: {_words(member, names)[word]}"
            shown.append(Panel(label, maps[word], member.take.frames, top))
    sides = [shares.get((contrast.factor, value), {}) for value in (contrast.a, contrast.b)]
    parts = [
        f"{word} {sides[0][word]:.3%} and {sides[1][word]:.3%}"
        for word in (*words, PADDING)
        if all(word in side for side in sides)
    ]
    caption = f"Share of all attention, mean over the takes of {contrast.a} and of {contrast.b}: {'; '.join(parts)}."
    title = f"{contrast.a} and {contrast.b}, seed {a.seed}"
    return title, _clip(a, shown, columns=len(words)), caption


def group_shares(analysis: Analysis, names: Mapping[str, Mapping[str, str]]) -> dict[tuple[str, str], dict[str, float]]:
    """Return the mean share of attention of each word and of the padding, by (factor, value)."""
    found: dict[tuple[str, str], dict[str, list[float]]] = {}
    member_of = {member.id: member for member in analysis.members}
    factors = dict.fromkeys(contrast.factor for contrast in analysis.comparison.contrasts)
    for row in analysis.attention:
        if row["measure"] != "mass" or not np.isfinite(row["value"]):
            continue
        word = names[row["take"]][row["word"]]
        for factor in factors:
            value = factor_value(member_of[row["take"]], factor)
            if value is not None:
                found.setdefault((factor, value), {}).setdefault(word, []).append(row["value"])
    return {key: {word: float(np.mean(values)) for word, values in by.items()} for key, by in found.items()}


def _clip(member: Member, shown: Sequence[Panel], columns: int | None = None) -> Preview:
    """Return a small overlay video of a take."""
    from PIL import Image

    with TemporaryDirectory(prefix="wanscope-maps-") as folder:
        whole, small = Path(folder) / "whole.mp4", Path(folder) / "small.mp4"
        overlay_video(member.take, shown, whole, columns)
        facts = video_facts(whole)
        size = fit_size(int(facts["width"]), int(facts["height"]), SIDE)
        frames = (
            np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS)) for frame in iter_frames(whole)
        )
        write_video(small, frames, facts["fps"] or 8, options={"crf": str(RATE), "preset": "medium"})
        return Preview("video/mp4", small.read_bytes(), *size)
