"""Do paths of what is rare in training have less volume? The statistics and the report of the rarity experiment.

There are two colors A and B, and models that differ in which of the two was rare in training. For every scene, every
model makes the path of a prompt with A and that of the same prompt with B from the same seed; V is the log-volume of a
path:

    d_A = V(A) - V(B) in the model in which A is rare = color + rarity
    d_B = V(A) - V(B) in the model in which B is rare = color - rarity

The effect of rarity (rare minus common) is (d_A - d_B) / 2, that of the color itself is (d_A + d_B) / 2, and an effect
that a model has on all its prompts cancels in both.

Shape suffixes: R repeats of the training, V variants (v has colors[v] rare), C colors, n scenes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from wanscope.analysis.confidence_intervals import mean_interval, t_interval
from wanscope.analysis.effect_size import paired_effect
from wanscope.analysis.permutation_tests import paired_permutation, smallest_p
from wanscope.analysis.power import ALPHA, power_sentence
from wanscope.marbles import world
from wanscope.marbles.validate.trajectory_cases import Video

_STREAM = 5_000_003  # of its own, so that no scene is a training or another validation's scene


def prompts(colors: Sequence[str], count: int) -> list[tuple[Video, ...]]:
    """Return the prompts of `count` scenes, one per color in the same phrasing; scene i has seed i.

    No combination is held out of training.
    """
    out = []
    for number in range(count):
        rng = np.random.default_rng([_STREAM, number])
        while True:
            scene = world.sample_scene(rng, 1, held_out=False)
            scenes = [replace(scene, things=(replace(scene.things[0], color=color),)) for color in colors]
            if not any(found.held_out for found in scenes):
                break
        phrasing = int(rng.integers(1 << 30))
        captions = [world.caption(found, np.random.default_rng(phrasing), full=True) for found in scenes]
        out.append(tuple(Video(text, number) for text in captions))
    return out


def parts(volumes_RVCn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the effects of rarity and of the color on log-volumes for each scene, both [R, n]; see the module.

    volumes_RVCn: log-volumes in nats. Raises ValueError unless there are two variants and two colors.
    """
    if volumes_RVCn.ndim != 4 or volumes_RVCn.shape[1:3] != (2, 2):
        raise ValueError(f"two variants and two colors are compared, not an array of shape {volumes_RVCn.shape}")
    d_RVn = volumes_RVCn[:, :, 0] - volumes_RVCn[:, :, 1]
    return (d_RVn[:, 0] - d_RVn[:, 1]) / 2, (d_RVn[:, 0] + d_RVn[:, 1]) / 2


def estimate(values_n: np.ndarray) -> dict[str, Any]:
    """Return the mean over scenes with its interval, p by sign flips, and the effect size with its interval.

    values_n: one value per scene, [n].
    """
    interval = mean_interval(values_n)
    effect = paired_effect(values_n[:, None])
    return {
        "mean": _number(values_n.mean()),
        "low": _number(interval.low),
        "high": _number(interval.high),
        "interval": interval.method,
        "p": _number(paired_permutation(values_n[:, None])[0]),
        "effect": _number(effect.size[0]),
        "effect_low": _number(effect.low[0]),
        "effect_high": _number(effect.high[0]),
        "scenes": len(values_n),
    }


def measured(volumes_RVCn: np.ndarray, colors: Sequence[str]) -> dict[str, Any]:
    """Return the experiment's figures: over all repeats together, for each repeat, and a test over the repeats.

    volumes_RVCn: log-volumes in nats.
    """
    rarity_Rn, color_Rn = parts(volumes_RVCn)
    of_repeats = rarity_Rn.mean(axis=1)
    out: dict[str, Any] = {
        "rarity": estimate(rarity_Rn.mean(axis=0)),
        "color": estimate(color_Rn.mean(axis=0)),
        "repeats": [estimate(values_n) for values_n in rarity_Rn],
        "over_repeats": None,
        "cells": [
            {"rare": colors[v], "color": colors[c], "log_volume": _number(volumes_RVCn[:, v, c].mean())}
            for v in range(2)
            for c in range(2)
        ],
    }
    if len(of_repeats) > 1:
        low, high = t_interval(of_repeats)
        p = paired_permutation(of_repeats[:, None])[0]
        out["over_repeats"] = {
            "mean": float(of_repeats.mean()),
            "low": low,
            "high": high,
            "p": float(p),
            "smallest_p": smallest_p(len(of_repeats)),
        }
    return out


def summary(report: dict[str, Any]) -> list[str]:
    """Return the conclusions in sentences, whatever the result."""
    found, own = report["figures"], report["settings"]
    colors, rare = own["colors"], found["rarity"]
    bounds = _bounds(rare)
    if rare["mean"] is None or rare["p"] is None:
        first = "No volume could be measured: no eigenvalue of the paths is above the rounding error."
    elif rare["p"] <= ALPHA:
        word, verdict = ("less", "in line with") if rare["mean"] < 0 else ("more", "contrary to")
        first = (
            f"In these models, paths of the rare color have {word} volume than paths of the common one: "
            f"{rare['mean']:+.3f} nats{bounds}, {verdict} the hypothesis that frequent content has more."
        )
    else:
        first = (
            f"These models show no effect of rarity on the volume of paths: {rare['mean']:+.3f} nats{bounds}. "
            f"{power_sentence(rare['scenes'], 1)}"
        )
    lines = [first]
    color = found["color"]
    if color["p"] is not None and color["p"] <= ALPHA:
        lines.append(
            f"The color itself makes a difference, whichever is rare: {colors[0]} minus {colors[1]} "
            f"{color['mean']:+.3f} nats{_bounds(color)}."
        )
    over = found["over_repeats"]
    if over is None:
        lines.append(
            "The interval is over scenes, with one training per variant: another training could give another result. "
            "--repeats trains more pairs of models and tests over trainings."
        )
    else:
        shown = "there is an effect" if over["p"] <= ALPHA else "no effect is shown"
        lines.append(
            f"Over {len(found['repeats'])} pairs of trainings, {shown}: {over['mean']:+.3f} nats (95% t interval "
            f"{over['low']:+.3f} to {over['high']:+.3f}; p = {over['p']:.2g}, the smallest possible is "
            f"{over['smallest_p']:.2g})."
        )
    right = [f"{row['rare']} rare: {row['color']} {row['read']:.0%}" for row in report["read"]]
    lines += [
        f"Videos in which the prompt's color was read: {'; '.join(right)}. Where a model fails to produce its rare "
        "color, its volume is that of something else.",
        "Only the transformers were trained on different data: text encoder and VAE are the packaged ones, trained on "
        "all colors equally.",
    ]
    return lines


def _bounds(row: dict[str, Any]) -> str:
    p = f"p = {row['p']:.2g}, {row['scenes']} scenes"
    if row["low"] is None or row["high"] is None:
        return f" ({p})"
    return f" (95% {row['interval']} interval {row['low']:+.3f} to {row['high']:+.3f}, {p})"


def as_markdown(report: dict[str, Any]) -> str:
    """Return the report as a Markdown page."""
    own, found = report["settings"], report["figures"]
    lines = [
        "# Rarity and volume, in marbles",
        "",
        f"`python -m wanscope.marbles.train rarity`: {2 * own['repeats']} transformers of {own['layers']} blocks, "
        f"{own['steps']} steps on {own['clips']} clips of one object each. In half of them {own['colors'][0]} is "
        f"{own['factor']:g} times rarer than every other color, in the other half {own['colors'][1]}. Paths of "
        f"{own['scenes']} scenes, each described with both colors, from the same seed; log-volumes over "
        f"{report['rank']} axes, the same for all.",
        "",
        f"The machine: {report['machine']}.",
        "",
        *[f"- {line}" for line in report["summary"]],
        "",
        "| trained with | prompt's color | mean log-volume, nats | color read | clips with it |",
        "|---|---|---|---|---|",
    ]
    for cell, read in zip(found["cells"], report["read"], strict=True):
        volume = "" if cell["log_volume"] is None else f"{cell['log_volume']:.3f}"
        lines.append(f"| {cell['rare']} rare | {cell['color']} | {volume} | {read['read']:.2f} | {read['clips']} |")
    lines += ["", "| nats | mean | 95% interval | p | effect |", "|---|---|---|---|---|"]
    named = [("rare minus common", found["rarity"]), (" minus ".join(own["colors"]), found["color"])]
    named += [(f"rare minus common, training {i}", row) for i, row in enumerate(found["repeats"])]
    for name, row in named:
        cells = [_text(row["mean"]), f"{_text(row['low'])} to {_text(row['high'])}", _text(row["p"], "{:.3g}")]
        effect = f"{_text(row['effect'])} ({_text(row['effect_low'])} to {_text(row['effect_high'])})"
        lines.append(f"| {name} | {' | '.join(cells)} | {effect} |")
    return "\n".join(lines) + "\n"


def _text(value: float | None, form: str = "{:+.3f}") -> str:
    return "none" if value is None else form.format(value)


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
