"""`wanscope validate trajectories`: which metrics of a denoising path distinguish what is known to differ.

Pairs of prompts that differ in one attribute are denoised from the same seed, and every registered metric is tested on
the pairs: color, shape, motion and size, with all tests in one family. The tests are also calibrated where there is no
difference: takes of one prompt with arbitrary group labels, and the same meaning in other words.

Paths are stored in a folder as they are made (paths.py), so that an interrupted run can be resumed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wanscope.analysis.metric import all_metrics
from wanscope.analysis.permutation_tests import smallest_p
from wanscope.analysis.power import ALPHA, power_sentence
from wanscope.marbles.validate import trajectory_cases as cases
from wanscope.marbles.validate import trajectory_page
from wanscope.marbles.validate import trajectory_tests as tests
from wanscope.marbles.validate.model import machine_text, packaged, wilson
from wanscope.marbles.validate.paths import Walk, Walker
from wanscope.marbles.validate.trajectory_cases import Contrast, Video

if TYPE_CHECKING:
    from wanscope.wan.model import WanModel


@dataclass(frozen=True)
class TrajectoriesSettings:
    """pairs: of a contrast, and half the pool. steps: of the sampler, the model's default where None.

    relabelings: for each null, trajectory_tests.RELABELINGS where None.
    """

    pairs: int = 24
    steps: int | None = None
    relabelings: int | None = None


def validate(
    settings: TrajectoriesSettings = TrajectoriesSettings(),
    *,
    folder: Path,
    model: WanModel | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Return the whole report as plain data.

    folder: where paths are stored. tell: called with progress messages.
    """
    model = model or packaged()
    began = time.monotonic()
    fixed, worded = cases.fixed(settings.pairs), cases.worded(settings.pairs)
    pool, phrased = cases.pool(settings.pairs), cases.wordings(settings.pairs)
    videos = list(dict.fromkeys([*_videos(fixed), *_videos(worded), *pool]))
    walker = Walker(model, folder, settings.steps)
    walks = _make_walks(walker, videos, tell)
    found = tests.measured(walks, all_metrics())
    number = {video: i for i, video in enumerate(videos)}
    tell("paths measured")
    contrasts = [_contrast(contrast, found, number, walks) for contrast in fixed]
    family = tests.corrected([contrast["rows"] for contrast in contrasts])
    wording = [_contrast(contrast, found, number, walks) for contrast in worded]
    for contrast in wording:
        tests.corrected([contrast["rows"]])
    tell("contrasts tested")
    trials = settings.relabelings or tests.RELABELINGS
    labels = tests.null_of_labels(found, [number[video] for video in pool], trials)
    takes = [[number[video] for video in row] for row in phrased]
    nulls = {"labels": labels, "wordings_at_random": tests.null_of_wordings(found, takes, trials)}
    report = {
        "contrasts": contrasts,
        "family": family,
        "smallest_p": smallest_p(settings.pairs),
        "power": power_sentence(settings.pairs, family, correction="holm"),
        "nulls": {**nulls, "wordings": _wordings(wording)},
        "wordings": list(cases.WORDINGS),
        "pool_prompt": cases.POOL_PROMPT,
        "rank": found.rank,
        "left_out": list(found.left_out),
        "settings": {
            "pairs": settings.pairs,
            "steps": walker.sampler.steps,
            "relabelings": trials,
            "null_draws": tests.NULL_DRAWS,
        },
        "takes": len(videos),
        "model": model.identity,
        "device": str(model.device),
        "machine": machine_text(model),
        "seconds": round(time.monotonic() - began, 1),
    }
    return {**report, "summary": trajectory_page.summary(report)}


def _videos(contrasts: Sequence[Contrast]) -> list[Video]:
    return [video for contrast in contrasts for pair in contrast.pairs for video in pair]


def _make_walks(walker: Walker, videos: Sequence[Video], tell: Callable[[str], None]) -> list[Walk]:
    walks, began, made = [], time.monotonic(), 0
    missing = [not walker.file(video.prompt, video.seed).exists() for video in videos]
    tell(f"{len(videos)} paths, of which {len(videos) - sum(missing)} exist already")
    for video, absent in zip(videos, missing, strict=True):
        walks.append(walker.walk(video.prompt, video.seed))
        made += absent
        if absent and (made in (1, 5) or made % 20 == 0):
            each = (time.monotonic() - began) / made
            left = each * (sum(missing) - made) / 60
            tell(f"{made} of {sum(missing)} paths, {each:.2f} s each, {left:.0f} min left")
    return walks


def _contrast(
    contrast: Contrast, found: tests.Measured, number: dict[Video, int], walks: Sequence[Walk]
) -> dict[str, Any]:
    a, b = (np.array([number[pair[side]] for pair in contrast.pairs]) for side in (0, 1))
    return {
        "attribute": contrast.attribute,
        "name": contrast.name,
        "a": contrast.a,
        "b": contrast.b,
        "pairs": len(contrast.pairs),
        "tokens": [round(float(np.mean([walks[i].tokens for i in side])), 2) for side in (a, b)],
        "rows": tests.tested(found, a, b),
    }


def _wordings(contrasts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Summarize fixed changes of wording. The contrasts share their takes, so the interval is only approximate."""
    any_share = float(np.mean([any(row["told_apart"] for row in contrast["rows"]) for contrast in contrasts]))
    p = [row["p"] for contrast in contrasts for row in contrast["rows"]]
    low, high = wilson(any_share, len(contrasts))
    return {
        "contrasts": len(contrasts),
        "tests": len(p),
        "rejected_uncorrected": round(float(np.mean(np.array(p) <= ALPHA)), 4),
        "any_after_holm": {"share": round(any_share, 4), "low": round(low, 4), "high": round(high, 4)},
        "rows": list(contrasts),
    }
