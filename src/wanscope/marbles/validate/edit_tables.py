"""The tables of `wanscope validate edits`: shares with Wilson intervals, displacements, paired comparisons, and how an
edit's success depends on the distance between donor and prompt.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from wanscope.edit.difference import Projection, measure_difference
from wanscope.marbles import readers
from wanscope.marbles.validate.edit_cases import Case
from wanscope.marbles.validate.model import wilson

if TYPE_CHECKING:
    from torch import Tensor

Seen = dict[str, Any]
Found = Iterable[tuple[Case, Seen]]
Table = dict[str, Any]

TITLES = {
    "inject": "A donor that differs in one attribute, injected into the context (mix)",
    "modes": "The three modes on the context, all blocks, color",
    "style": "A short donor that mentions only the background, on a caption that mentions everything, all blocks",
    "hidden": "Hidden states of the donor's own pass, strength 1, color",
    "bend": "Bent maps of the words that describe a still object (object: its size, color and shape)",
    "ablate": "A color's learned direction ablated from prompts that name it (turned: another color is read)",
    "add": "Another color's learned direction added",
    "amplify": "The donor moved away from the prompt first, all blocks, color",
    "distance": "Success at strength 0.5 in all blocks, by the distance between donor and prompt",
}
OTHERS = (*readers.ATTRIBUTES, "background")
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_STILL_PX = 8.0  # the readers' threshold of a motion


def outcome(case: Case, seen: Seen) -> dict[str, float]:
    """Score a case: `turned` is the share of wanted values that were read, and every other attribute 1 if unchanged."""
    wanted = dict(case.wanted)
    away = wanted.pop("not color", None)
    thing = case.scene.things[0]
    out: dict[str, float] = {}
    if away is not None:
        out["turned"] = float(seen["color"] is not None and seen["color"] != away)
    elif wanted:
        out["turned"] = float(np.mean([seen[name] == value for name, value in wanted.items()]))
    changed = {*wanted, *(("color",) if away is not None else ())}
    truth = {name: getattr(thing, name) for name in readers.ATTRIBUTES} | {"background": case.scene.background}
    return out | {name: float(seen[name] == value) for name, value in truth.items() if name not in changed}


def grouped(found: Found) -> dict[str, dict[str, list[tuple[Case, Seen]]]]:
    """Group cases by question, then by condition (as JSON), in their order."""
    out: dict[str, dict[str, list[tuple[Case, Seen]]]] = {}
    for case, seen in found:
        out.setdefault(case.question, {}).setdefault(json.dumps(case.condition), []).append((case, seen))
    return out


def tables(found: Found) -> list[Table]:
    """Return one table per question: title, columns, rows, and notes."""
    out = []
    for question, conditions in grouped(found).items():
        if question == "bend":
            table = bend_table(conditions)
        elif question == "distance":
            table = distance_table([pair for rows in conditions.values() for pair in rows])
        else:
            table = share_table(conditions)
            if question == "amplify":
                table["notes"] = amplify_notes(conditions)
        out.append({"question": question, "title": TITLES[question], **table})
    return out


def share_table(conditions: dict[str, list[tuple[Case, Seen]]]) -> Table:
    """Return, per condition, the share turned with its 95% Wilson interval, and the share of unchanged attributes."""
    settings = [json.loads(condition) for condition in conditions]
    names = list(dict.fromkeys(name for setting in settings for name in setting))
    rows = []
    for setting, pairs in zip(settings, conditions.values(), strict=True):
        scores = [outcome(case, seen) for case, seen in pairs]
        turned = float(np.mean([score["turned"] for score in scores]))
        low, high = wilson(turned, len(scores))
        row = {name: setting.get(name, "") for name in names}
        row |= {"turned": round(turned, 3), "95% interval": f"{low:.2f} to {high:.2f}"}
        if any("not color" in case.wanted for case, _ in pairs):  # the color may be gone because the object is gone
            row["no object read"] = round(float(np.mean([seen["color"] is None for _, seen in pairs])), 3)
        for name in OTHERS:
            kept = [score[name] for score in scores if name in score]
            row[f"{name} kept"] = round(float(np.mean(kept)), 3) if kept else ""
        rows.append(row | {"n": len(scores)})
    return {"columns": list(rows[0]), "rows": rows}


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the mean with its 95% t interval; NaN where there are too few values."""
    from scipy import stats

    if len(values) < 2:
        return float(values[0]) if values else math.nan, math.nan, math.nan
    mean, error = float(np.mean(values)), float(np.std(values, ddof=1)) / math.sqrt(len(values))
    reach = float(stats.t.ppf(0.975, len(values) - 1)) * error
    return mean, mean - reach, mean + reach


def _rounded(value: float, digits: int) -> float | str:
    """Return a table's cell; empty where there is no finite value, which JSON could not represent."""
    return round(value, digits) if math.isfinite(value) else ""


def _between(low: float, high: float, digits: int) -> str:
    return f"{low:.{digits}f} to {high:.{digits}f}" if math.isfinite(low + high) else "too few"


def bend_table(conditions: dict[str, list[tuple[Case, Seen]]]) -> Table:
    """Return how far the object's center moved relative to the same seed unedited, in pixels; negative is left."""
    settings = [(json.loads(condition), pairs) for condition, pairs in conditions.items()]
    base = {case.number: seen for setting, pairs in settings if setting["blocks"] == "none" for case, seen in pairs}
    rows = []
    for setting, pairs in settings:
        if setting["blocks"] == "none":
            continue
        moved = [
            (seen["center"][0] - base[case.number]["center"][0], seen["center"][1] - base[case.number]["center"][1])
            for case, seen in pairs
            if "center" in seen and "center" in base[case.number]
        ]
        x, low, high = mean_interval([dx for dx, _ in moved])
        y = mean_interval([dy for _, dy in moved])[0]
        left = float(np.mean([dx < -_STILL_PX for dx, _ in moved])) if moved else math.nan
        shape = float(np.mean([seen["shape"] == case.scene.things[0].shape for case, seen in pairs]))
        rows.append(
            {
                **setting,
                "moved in x, px": _rounded(x, 1),
                "95% interval": _between(low, high, 1),
                "moved in y, px": _rounded(y, 1),
                f"left by over {_STILL_PX:g} px": _rounded(left, 3),
                "shape kept": round(shape, 3),
                "seen in both": len(moved),
                "n": len(pairs),
            }
        )
    return {"columns": list(rows[0]), "rows": rows}


def amplify_notes(conditions: dict[str, list[tuple[Case, Seen]]]) -> list[str]:
    """Compare amplified with plain donors at equal strength, by pairs in which only one succeeded (exact McNemar)."""
    from scipy import stats

    by: dict[tuple[str, float, float], dict[int, float]] = {}
    for condition, pairs in conditions.items():
        setting = json.loads(condition)
        key = (setting["amplify"], setting["times"], setting["strength"])
        by[key] = {case.number: outcome(case, seen)["turned"] for case, seen in pairs}
    notes = []
    for (way, times, strength), turned in by.items():
        if not way:
            continue
        plain = by["", 1.0, strength]
        better = sum(turned[n] > plain[n] for n in turned)
        worse = sum(turned[n] < plain[n] for n in turned)
        p = float(stats.binomtest(better, better + worse).pvalue) if better + worse else 1.0
        notes.append(
            f"Strength {strength:g}, {times:g} times the difference by {way}: turned in {better} pairs in which the "
            f"plain donor did not, failed in {worse} in which it did (exact McNemar p = {p:.3g})."
        )
    return notes


def distance_table(pairs: list[tuple[Case, Seen]]) -> Table:
    """Return the share of wanted values that were read, by thirds of the projected and of the raw difference."""
    from scipy import stats

    turned = np.array([outcome(case, seen)["turned"] for case, seen in pairs])
    rows, notes = [], []
    for space in ("projected", "raw"):
        values = np.array([case.measured[space] for case, _ in pairs])
        edges = np.quantile(values, [0, 1 / 3, 2 / 3, 1])
        for i in range(3):
            inside = (values >= edges[i]) & ((values < edges[i + 1]) if i < 2 else (values <= edges[3]))
            mean, low, high = mean_interval(turned[inside].tolist())
            rows.append(
                {
                    "difference": space,
                    "from": round(float(edges[i]), 3),
                    "to": round(float(edges[i + 1]), 3),
                    "turned": _rounded(mean, 3),
                    "95% interval": _between(low, high, 2),
                    "n": int(inside.sum()),
                }
            )
        if np.ptp(turned) and np.ptp(values):
            correlation, p = stats.spearmanr(values, turned)
            notes.append(f"Rank correlation of {space} difference and success: {correlation:.2f} (p = {p:.2g}).")
        else:
            notes.append(
                f"{space.capitalize()} difference and success: all values are equal, so there is no correlation."
            )
        notes.append(threshold_note(space, values, turned))
    return {"columns": list(rows[0]), "rows": rows, "notes": notes}


def threshold_note(space: str, values: np.ndarray, turned: np.ndarray) -> str:
    """Return from which difference on 50% and 80% of the wanted values are read, in a sentence.

    These are the points where a logistic curve reaches the shares, with percentile bootstrap intervals over prompt
    pairs. values, turned: the difference and the success of each pair, both [n].
    """
    middle, spread = float(values.mean()), float(values.std())
    if len(values) < 12 or not spread or not turned.std():
        return f"No threshold can be fitted to the {space} difference: too few pairs, or all are equal."
    x = (values - middle) / spread
    rng = np.random.default_rng(0)
    draws = [rng.integers(len(x), size=len(x)) for _ in range(400)]
    fits = np.array([_logistic(x, turned), *(_logistic(x[draw], turned[draw]) for draw in draws)])
    slope = np.quantile(fits[1:, 1], [0.025, 0.975])
    if slope[0] <= 0:
        return (
            f"Success does not surely rise with the {space} difference (slope of a logistic curve for one standard "
            f"deviation: {fits[0, 1]:.2f}, 95% interval {slope[0]:.2f} to {slope[1]:.2f}): no threshold follows."
        )
    parts = []
    for share in (0.5, 0.8):
        places = middle + spread * (math.log(share / (1 - share)) - fits[:, 0]) / fits[:, 1]
        low, high = np.quantile(places[1:], [0.025, 0.975])
        outside = "" if values.min() <= places[0] <= values.max() else ", outside of what was measured"
        parts.append(f"{share:.0%} from {places[0]:.2f} on (95% interval {low:.2f} to {high:.2f}{outside})")
    return f"By the {space} difference, what is wanted is read in {' and in '.join(parts)}."


def _logistic(x: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Fit intercept and slope of a logistic curve, [2], to shares [n] at x [n], by Newton's method.

    A small ridge penalty keeps them finite where the curve would be a step.
    """
    rows = np.stack([np.ones_like(x), x], axis=1)
    found = np.zeros(2)
    for _ in range(50):
        p = 1 / (1 + np.exp(-np.clip(rows @ found, -30, 30)))
        gradient = rows.T @ (share - p) - 1e-2 * found
        step = np.linalg.solve((rows * (p * (1 - p))[:, None]).T @ rows + 1e-2 * np.eye(2), gradient)
        found = found + np.clip(step, -2, 2)
        if np.abs(step).max() < 1e-8:
            break
    return found


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return a 95% interval of the median from order statistics (conservative, for continuous values)."""
    from scipy import stats

    ordered, count = sorted(values), len(values)
    first = int(stats.binom.ppf(0.025, count, 0.5))  # by chance, this few values may lie below the median
    if first < 1:
        return math.nan, math.nan
    return float(ordered[first - 1]), float(ordered[count - first])


def difference_figures(
    pairs: list[tuple[str, str]], encoded: Callable[[str], Tensor], projection: Projection
) -> dict[str, Any]:
    """Does the projection reduce differences? Return `QUANTILES` of raw and projected differences over prompt pairs.

    encoded: returns the raw embedding [L, D] of a text. projection: the model's text projection.
    """
    from scipy import stats

    columns: dict[str, list[float]] = {}
    for a, b in pairs:
        found = measure_difference(encoded(a), encoded(b), projection)
        assert found.projected is not None
        for name, space in (("raw", found.raw), ("projected", found.projected)):
            columns.setdefault(f"{name} relative L2", []).append(space.matrix.relative_l2 or 0.0)
            columns.setdefault(f"{name} cosine distance", []).append(space.matrix.cosine or 0.0)
            columns.setdefault(f"{name} percent changed (legacy)", []).append(space.legacy.percent_changed)
    raw, projected = (np.array(columns[f"{name} relative L2"]) for name in ("raw", "projected"))
    nonzero = raw > 0
    ratio = projected[nonzero] / raw[nonzero]
    columns["projected / raw relative L2"] = ratio.tolist()
    correlation = np.corrcoef(stats.rankdata(raw), stats.rankdata(projected))[0, 1]  # Spearman's
    return {
        "pairs": len(pairs),
        "quantiles": {
            name: [round(float(q), 4) for q in np.quantile(values, QUANTILES)] for name, values in columns.items()
        },
        "intervals": {name: [round(value, 4) for value in median_interval(values)] for name, values in columns.items()},
        "rank correlation": round(float(correlation), 3),
    }


def as_markdown(report: dict[str, Any]) -> str:
    """Return the report as a Markdown page."""
    own, missing = report["settings"], report.get("missing", 0)
    partial = (
        [f"**Partial**: {missing:,} videos are still to be made. `n` is the number of pairs in a row.", ""]
        if missing
        else []
    )
    lines = [
        "# Validation of edits in marbles",
        "",
        *partial,
        f"`wanscope validate edits`: {report['videos']:,} videos of {own['frames']} frames in {own['steps']} steps, "
        f"{own['pairs']} pairs per condition{' when complete' if missing else ''}, read from their pixels. "
        "Shares have 95% Wilson intervals, means t intervals. `kept` is the share in which an attribute is as in the "
        "prompt; the rows without an edit show what the model itself gets right.",
        "",
        f"The machine: {report['machine']}.",
    ]
    for table in report["tables"]:
        lines += ["", f"## {table['title']}", "", f"| {' | '.join(table['columns'])} |"]
        lines.append(f"|{'---|' * len(table['columns'])}")
        lines += [f"| {' | '.join(_cell(row, column) for column in table['columns'])} |" for row in table["rows"]]
        lines += ["", *table["notes"]] if table.get("notes") else []
    figures = report["difference"]
    lines += ["", "## Does the projection reduce differences?", "", f"{figures['pairs']} prompt pairs.", ""]
    heads = ["figure", *(f"{q:.0%}" for q in QUANTILES), "median's 95% interval"]
    lines += [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for name, values in figures["quantiles"].items():
        low, high = figures["intervals"][name]
        cells = [name, *map(str, values), _between(low, high, 4)]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", f"Rank correlation of raw and projected relative L2: {figures['rank correlation']}."]
    return "\n".join(lines) + "\n"


def _cell(row: Table, column: str) -> str:
    """Return the cell's text: a share that was kept with its interval, anything else as it is."""
    value = row[column]
    if not column.endswith(" kept") or value == "":
        return str(value)
    low, high = wilson(value, row["n"])
    return f"{value} ({low:.2f} to {high:.2f})"
