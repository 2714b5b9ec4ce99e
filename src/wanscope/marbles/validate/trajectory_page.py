"""The report of `wanscope validate trajectories` in words and tables. Nothing is said that the corrected tests do not
show."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from wanscope.marbles.validate.trajectory_tests import LATENTS

LISTED = 6


def summary(report: dict[str, Any]) -> list[str]:
    """What can be said, a sentence or two each; no difference is spoken of that the corrected tests do not show."""
    lines = [_said(contrast) for contrast in report["contrasts"]]
    lines.append(report["power"])
    nulls = report["nulls"]
    for name, what in (
        ("labels", "Groups that differ in nothing but their labels"),
        ("wordings_at_random", "Groups of one meaning, each take worded at random"),
    ):
        null = nulls[name]
        shares = [row["share"] for row in null["by_metric"].values()]
        corrected = null["any_after_holm"]
        lines.append(
            f"{what}: in {null['trials']} relabelings a test at 5% rejects in {null['mean']:.1%} of them "
            f"({min(shares):.1%} to {max(shares):.1%} over the metrics), and any of a family after Holm's correction "
            f"in {_share(corrected)}."
        )
    wording = nulls["wordings"]
    fixed = _share(wording["any_after_holm"])
    lines.append(
        f"One meaning in a fixed other wording: of {wording['tests']} tests in {wording['contrasts']} contrasts "
        f"{wording['rejected_uncorrected']:.1%} have p of at most 0.05 uncorrected, and {fixed} of the contrasts show "
        "something after correction. Where that is far above 5%, a metric answers to words, not to meaning alone, and "
        "a contrast of one prompt with another should be repeated in several wordings."
    )
    return lines


def _said(contrast: dict[str, Any]) -> str:
    rows = contrast["rows"]
    metrics = [row for row in rows if row["metric"] not in dict(LATENTS)]
    shown = [row for row in metrics if row["told_apart"]]
    name = f"{contrast['attribute'].capitalize()}, {contrast['name']}"
    tokens = contrast["tokens"]
    length = f" (text tokens: {tokens[0]:g} and {tokens[1]:g})" if tokens[0] != tokens[1] else ""
    if not shown:
        text = f"{name}{length}: no metric of the path or of the latents' statistics shows a difference."
    else:
        sized = sorted((row for row in shown if row["places"] == 1), key=_size, reverse=True)
        rest = [row for row in shown if row["places"] > 1]
        listed = ", ".join(f"{row['title'].lower()} {row['effect']:+.1f}" for row in sized[:LISTED] if row["effect"])
        listed += f", and {len(sized) - LISTED} more" if len(sized) > LISTED else ""
        text = f"{name}{length}: told apart by {len(shown)} of {len(metrics)} metrics"
        text += f"; of one value a take by {len(sized)}" + (f" ({listed})" if listed else "")
        text += f", of a course or a table by {len(rest)}."
        silent = [row["title"].lower() for row in metrics if row["places"] == 1 and not row["told_apart"]]
        text += f" Not shown by: {', '.join(silent)}." if silent else ""
    latents = [row["told_apart"] for row in rows if row["metric"] in dict(LATENTS)]
    word = "differ" if all(latents) else "are not shown to differ" if not any(latents) else "differ by one of two tests"
    return f"{text} The results' latents themselves {word}."


def _size(row: dict[str, Any]) -> float:
    return abs(row["effect"] or 0.0)


def _share(row: dict[str, float]) -> str:
    return f"{row['share']:.1%} (95% Wilson interval {row['low']:.1%} to {row['high']:.1%})"


def as_markdown(report: dict[str, Any]) -> str:
    """The report as a page."""
    own = report["settings"]
    lines = [
        "# Trajectories, validated in marbles",
        "",
        f"`wanscope validate trajectories`: {report['takes']} paths of {own['steps']} steps, not decoded. A "
        f"contrast has {own['pairs']} pairs: a scene said twice, one attribute changed, both from one seed. Tests flip "
        f"the signs of the pairs; all {report['family']} tests of the fixed contrasts are one family, corrected by "
        f"Holm's method (smallest uncorrected p: {report['smallest_p']:.2g}). Effects are mean differences over the "
        f"standard deviation of pair differences, with 95% intervals. Log-volumes are over {report['rank']} axes.",
        "",
        f"The machine: {report['machine']}.",
        "",
        "## What is told apart",
        "",
        *[f"- {line}" for line in report["summary"]],
        "",
        "What is said holds for scenes like these and for this model. That no difference is shown does not say that "
        "there is none.",
    ]
    if report["left_out"]:
        lines += ["", f"Left out, because they need the files of a take: {', '.join(report['left_out'])}."]
    lines += ["", "## Metrics of one value a take", "", *_matrix(report["contrasts"], lambda row: row["places"] == 1)]
    lines += [
        "",
        "## Courses and tables",
        "",
        "One test for all places of a metric (states, channels, bands): its largest difference against the largest "
        "under flipped signs. The effect is at the place of the largest; its interval holds at all places together.",
        "",
        *_matrix(report["contrasts"], lambda row: row["places"] > 1),
    ]
    return "\n".join([*lines, "", *_nulls(report)]) + "\n"


def _matrix(contrasts: Sequence[dict[str, Any]], wanted: Callable[[dict[str, Any]], bool]) -> list[str]:
    """Metrics by contrasts; bold is told apart after correction."""
    lines = [
        f"| metric | {' | '.join(contrast['name'] for contrast in contrasts)} |",
        f"|{'---|' * (len(contrasts) + 1)}",
    ]
    rows_of_metrics = zip(*(contrast["rows"] for contrast in contrasts), strict=True)
    lines += [
        f"| `{rows[0]['metric']}` | {' | '.join(map(_cell, rows))} |" for rows in rows_of_metrics if wanted(rows[0])
    ]
    return [*lines, "", "Bold: told apart (Holm's p at most 0.05)."]


def _cell(row: dict[str, Any]) -> str:
    if row["effect"] is None:
        text = "differ" if row["told_apart"] else "not shown" if row["metric"] in dict(LATENTS) else "equal"
        return f"**{text}**" if row["told_apart"] else text
    text = f"{row['effect']:+.2f}"
    text = f"**{text}**" if row["told_apart"] else text
    if row["effect_low"] is not None and row["effect_high"] is not None:
        text += f" ({row['effect_low']:+.2f} to {row['effect_high']:+.2f})"
    return text + (f" at {row['place']}" if row["place"] else "")


def _nulls(report: dict[str, Any]) -> list[str]:
    nulls, own = report["nulls"], report["settings"]
    labels, random = nulls["labels"], nulls["wordings_at_random"]
    lines = [
        "## Where there is nothing to find",
        "",
        f"*Labels*: {2 * own['pairs']} takes of `{report['pool_prompt']}`, paired and labeled at random. *Wordings at "
        "random*: of each scene two of the wordings below, drawn at random, from one seed. Shares of "
        f"{own['relabelings']} trials in which a test at 5% rejects ({own['null_draws']} sign patterns each), with 95% "
        "Wilson intervals; the trials relabel one pool, and the intervals speak of it.",
        "",
        "| metric | labels | wordings at random |",
        "|---|---|---|",
    ]
    lines += [
        f"| `{name}` | {_share_short(row)} | {_share_short(random['by_metric'][name])} |"
        for name, row in labels["by_metric"].items()
    ]
    corrected = (labels["any_after_holm"], random["any_after_holm"])
    lines.append(f"| any, after Holm | {' | '.join(map(_share_short, corrected))} |")
    lines += [
        "",
        "*Fixed wordings*: the same meaning, scene and seed, always the same change of words. This null is of meaning, "
        "not of words, and is reported, not assumed to hold. Each contrast is a family of its own.",
        "",
        *[f"{i + 1}. {form}" for i, form in enumerate(report["wordings"])],
        "",
        "| contrast | text tokens | told apart after Holm | by |",
        "|---|---|---|---|",
    ]
    for contrast in nulls["wordings"]["rows"]:
        shown = [row["metric"] for row in contrast["rows"] if row["told_apart"]]
        listed = ", ".join(f"`{name}`" for name in shown[:LISTED]) + (", ..." if len(shown) > LISTED else "")
        count = f"{len(shown)} of {len(contrast['rows'])}"
        tokens = " and ".join(f"{value:g}" for value in contrast["tokens"])
        lines.append(f"| {contrast['name']} | {tokens} | {count} | {listed} |")
    return lines


def _share_short(row: dict[str, float]) -> str:
    return f"{row['share']:.3f} ({row['low']:.3f} to {row['high']:.3f})"
