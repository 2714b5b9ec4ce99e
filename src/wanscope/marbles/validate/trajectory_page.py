"""The report of `wanscope validate trajectories` in sentences and tables; it claims only what corrected tests show."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from wanscope.marbles.validate.trajectory_tests import LATENTS

LISTED = 6


def summary(report: dict[str, Any]) -> list[str]:
    """Return the conclusions, one or two sentences each; only differences that the corrected tests show are claimed."""
    lines = [_contrast_text(contrast) for contrast in report["contrasts"]]
    lines.append(report["power"])
    nulls = report["nulls"]
    for name, what in (
        ("labels", "Groups that differ only in their labels"),
        ("wordings_at_random", "Groups with the same meaning, each take in a random wording"),
    ):
        null = nulls[name]
        shares = [row["share"] for row in null["by_metric"].values()]
        corrected = null["any_after_holm"]
        lines.append(
            f"{what}: over {null['trials']} relabelings, a test at the 5% level rejects in {null['mean']:.1%} of them "
            f"({min(shares):.1%} to {max(shares):.1%} over the metrics), and any test of the family after Holm's "
            f"correction in {_share(corrected)}."
        )
    wording = nulls["wordings"]
    fixed = _share(wording["any_after_holm"])
    lines.append(
        f"The same meaning in another fixed wording: of {wording['tests']} tests in {wording['contrasts']} contrasts, "
        f"{wording['rejected_uncorrected']:.1%} have an uncorrected p of at most 0.05, and {fixed} of the contrasts "
        "show a difference after correction. Where that is far above 5%, metrics respond to the wording, not only to "
        "the meaning, and a contrast between two prompts should be repeated in several wordings."
    )
    return lines


def _contrast_text(contrast: dict[str, Any]) -> str:
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
        text = f"{name}{length}: {len(shown)} of {len(metrics)} metrics distinguish them"
        text += f"; {len(sized)} with one value per take" + (f" ({listed})" if listed else "")
        text += f", {len(rest)} series or tables."
        silent = [row["title"].lower() for row in metrics if row["places"] == 1 and not row["told_apart"]]
        text += f" No difference in: {', '.join(silent)}." if silent else ""
    latents = [row["told_apart"] for row in rows if row["metric"] in dict(LATENTS)]
    word = "differ" if all(latents) else "are not shown to differ" if not any(latents) else "differ in one of two tests"
    return f"{text} The final latents themselves {word}."


def _size(row: dict[str, Any]) -> float:
    return abs(row["effect"] or 0.0)


def _share(row: dict[str, float]) -> str:
    return f"{row['share']:.1%} (95% Wilson interval {row['low']:.1%} to {row['high']:.1%})"


def as_markdown(report: dict[str, Any]) -> str:
    """Return the report as a Markdown page."""
    own = report["settings"]
    lines = [
        "# Validation of trajectory metrics in marbles",
        "",
        f"`wanscope validate trajectories`: {report['takes']} paths of {own['steps']} steps, not decoded. A "
        f"contrast has {own['pairs']} pairs: a scene described twice with one attribute changed, from the same seed. "
        f"Tests flip the signs of the pairs; all {report['family']} tests of the fixed contrasts are one family, "
        f"corrected by Holm's method (smallest possible uncorrected p: {report['smallest_p']:.2g}). Effects are mean "
        "differences divided by the standard deviation of pair differences, with 95% intervals. Log-volumes are over "
        f"{report['rank']} axes.",
        "",
        f"The machine: {report['machine']}.",
        "",
        "## What the metrics distinguish",
        "",
        *[f"- {line}" for line in report["summary"]],
        "",
        "The results hold for scenes like these and for this model. Where no difference is shown, there may still be "
        "one.",
    ]
    if report["left_out"]:
        lines += ["", f"Left out, because they need the files of a take: {', '.join(report['left_out'])}."]
    lines += ["", "## Metrics with one value per take", ""]
    lines += _matrix(report["contrasts"], lambda row: row["places"] == 1)
    lines += [
        "",
        "## Series and tables",
        "",
        "There is one test for all places of a metric (states, channels, bands): its largest difference is compared "
        "with the largest under flipped signs. The effect is that at the place of the largest difference; its interval "
        "is simultaneous over all places.",
        "",
        *_matrix(report["contrasts"], lambda row: row["places"] > 1),
    ]
    return "\n".join([*lines, "", *_nulls(report)]) + "\n"


def _matrix(contrasts: Sequence[dict[str, Any]], wanted: Callable[[dict[str, Any]], bool]) -> list[str]:
    """Return a table of metrics by contrasts, with significant differences in bold."""
    lines = [
        f"| metric | {' | '.join(contrast['name'] for contrast in contrasts)} |",
        f"|{'---|' * (len(contrasts) + 1)}",
    ]
    rows_of_metrics = zip(*(contrast["rows"] for contrast in contrasts), strict=True)
    lines += [
        f"| `{rows[0]['metric']}` | {' | '.join(map(_cell, rows))} |" for rows in rows_of_metrics if wanted(rows[0])
    ]
    return [*lines, "", "Bold: distinguished (Holm's p at most 0.05)."]


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
        "## Where there is no difference",
        "",
        f"*Labels*: {2 * own['pairs']} takes of `{report['pool_prompt']}`, paired and labeled at random. *Wordings at "
        "random*: for each scene, two of the wordings below, drawn at random, from the same seed. The table has the "
        f"shares of {own['relabelings']} trials in which a test at the 5% level rejects ({own['null_draws']} sign "
        "patterns each), with 95% Wilson intervals; all trials relabel the same pool, and the intervals apply to it.",
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
        "*Fixed wordings*: the same meaning, scene and seed, always with the same change of words. This is a null of "
        "meaning, not of words; it is reported and not assumed to hold. Each contrast is a separate family.",
        "",
        *[f"{i + 1}. {form}" for i, form in enumerate(report["wordings"])],
        "",
        "| contrast | text tokens | distinguished after Holm | by |",
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
