"""Tests of every contrast on every tested metric: paired differences, intervals, effect sizes, p values.

The tests are corrected in families (correct_tests.py). Tests of hypotheses that were written before the first take,
with their metric and contrast, are confirmatory: they are also corrected separately, and that correction decides.

Shape suffixes: N takes, M columns, n units, k values of a factor, 1 an axis kept at size 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from wanscope.analysis import omnibus
from wanscope.analysis.collection import Collection, Member
from wanscope.analysis.confidence_intervals import mean_interval, t_intervals
from wanscope.analysis.correct_tests import correct_tests
from wanscope.analysis.effect_size import paired_effect
from wanscope.analysis.pairing import Comparison, Contrast, Pairs, find_pairs, is_confirmatory
from wanscope.analysis.permutation_tests import paired_permutation, smallest_p
from wanscope.analysis.table import Table
from wanscope.analysis.test_result import Correction, Draft, Family, Test, TestResults
from wanscope.errors import nearest

RESOLUTION = 1e-7  # relative: smaller differences of fp32 latents are rounding error and count as 0


@dataclass(frozen=True)
class Column:
    """One number per take: a metric, or the part of one, or its value at one state or block."""

    metric: str
    title: str
    measure: str
    part: str = ""
    state: int | None = None
    block: int | None = None


@dataclass(frozen=True)
class Columns:
    """The numbers of one family of paired tests. values_NM: float64 [takes, columns]; NaN where a take has none."""

    family: Family
    columns: tuple[Column, ...]
    values_NM: np.ndarray


def metric_columns(table: Table) -> Columns:
    """Return the tested metrics of the whole path."""
    columns, values_NM = table.tested_columns()
    return Columns(
        "metrics", tuple(Column(metric.name, metric.title, metric.unit, part) for metric, part in columns), values_NM
    )


def run_tests(
    collection: Collection,
    comparison: Comparison,
    metrics: Columns,
    group_drafts: Sequence[Draft] = (),
    attention: Columns | None = None,
    courses: Columns | None = None,
    correction: Correction = "max-t",
) -> TestResults:
    """Run all tests and correct them in families.

    group_drafts: those of groups.py. attention, courses: two more families of paired tests.
    """
    drafts: list[Draft] = []
    for factor, values in omnibus.factors_of(comparison).items():
        blocks = omnibus.blocks_of(collection.members, factor, values, comparison.unit, comparison.scenes)
        whole = [draft for draft in group_drafts if draft.test.kind == "omnibus" and draft.test.factor == factor]
        if blocks.count and metrics.columns:
            whole = [*_of_all(comparison, blocks, metrics), *whole]
        drafts += _with_tokens(collection.members, blocks, whole)
    course_drafts: list[Draft] = []
    for contrast in comparison.contrasts:
        pairs = find_pairs(collection.members, contrast, comparison.scenes)
        if not pairs.cells:
            continue
        if metrics.columns:
            drafts += _paired(collection, comparison, contrast, pairs, metrics)
            drafts += [
                replace(draft, test=_completed(collection, pairs, draft.test))
                for draft in group_drafts
                if (draft.test.factor, draft.test.a, draft.test.b) == (contrast.factor, contrast.a, contrast.b)
            ]
        if attention is not None and attention.columns:
            drafts += _paired(collection, comparison, contrast, pairs, attention)
        if courses is not None and courses.columns:
            course_drafts += _course(comparison, contrast, pairs, courses)
    return TestResults(
        tuple(correct_tests(drafts, correction)),
        comparison.unit,
        correction,
        tuple(correct_tests(course_drafts, correction)),
    )


def _differences(pairs: Pairs, comparison: Comparison, values_NM: np.ndarray) -> np.ndarray:
    """Return the units' differences, [n, M]; differences below rounding count as 0."""
    d_nM = pairs.differences(values_NM, comparison.unit)
    size_M = np.max(np.where(np.isfinite(values_NM), np.abs(values_NM), 0.0), axis=0)
    with np.errstate(invalid="ignore"):
        return np.where(np.abs(d_nM) > RESOLUTION * size_M, d_nM, d_nM * 0)


def _paired(
    collection: Collection, comparison: Comparison, contrast: Contrast, pairs: Pairs, given: Columns
) -> list[Draft]:
    d_nM = _differences(pairs, comparison, given.values_NM)
    units = tuple(dict.fromkeys(pairs.units(comparison.unit)))
    p_M, effect = paired_permutation(d_nM), paired_effect(d_nM)
    with np.errstate(invalid="ignore"):
        mean_a_M, mean_b_M = pairs.means(given.values_NM)
    design = collection.design
    hypotheses = design.hypotheses if design is not None else ()
    tokens = [_tokens(collection.members, side) for side in (pairs.a, pairs.b)]
    out = []
    for m, column in enumerate(given.columns):
        known_n = d_nM[np.isfinite(d_nM[:, m]), m]
        if not len(known_n) and given.family != "metrics":
            continue  # the takes of this contrast do not have the word
        interval = mean_interval(known_n)
        test = Test(
            factor=contrast.factor,
            a=contrast.a,
            b=contrast.b,
            metric=column.metric,
            title=column.title,
            part=column.part,
            measure=column.measure,
            kind="paired",
            unit=comparison.unit,
            units=len(known_n),
            mean_a=_number(mean_a_M[m]),
            mean_b=_number(mean_b_M[m]),
            difference=_number(known_n.mean()) if len(known_n) else None,
            low=_number(interval.low),
            high=_number(interval.high),
            interval=interval.method,
            coverage=interval.coverage,
            effect=_number(effect.size[m]),
            effect_low=_number(effect.low[m]),
            effect_high=_number(effect.high[m]),
            # A single unit is not replicated, so there is nothing to test.
            p=_number(p_M[m]) if len(known_n) > 1 else None,
            smallest_p=smallest_p(len(known_n)),
            confirmatory=is_confirmatory(hypotheses, collection.written, contrast, column.metric),
            tokens_a=tokens[0],
            tokens_b=tokens[1],
            note=interval.note,
            family_name=given.family,
        )
        out.append(Draft(test, units, d_nM[:, m]))
    return out


def _course(comparison: Comparison, contrast: Contrast, pairs: Pairs, given: Columns) -> list[Draft]:
    """Return the tests at each state or block, with Student's t intervals."""
    d_nM = _differences(pairs, comparison, given.values_NM)
    units = tuple(dict.fromkeys(pairs.units(comparison.unit)))
    p_M = paired_permutation(d_nM)
    low_M, high_M = t_intervals(d_nM)
    with np.errstate(invalid="ignore"):
        mean_a_M, mean_b_M = pairs.means(given.values_NM)
    out = []
    for m, column in enumerate(given.columns):
        known_n = d_nM[np.isfinite(d_nM[:, m]), m]
        if not len(known_n):
            continue
        test = Test(
            factor=contrast.factor,
            a=contrast.a,
            b=contrast.b,
            metric=column.metric,
            title=column.title,
            part=column.part,
            measure=column.measure,
            kind="paired",
            unit=comparison.unit,
            units=len(known_n),
            mean_a=_number(mean_a_M[m]),
            mean_b=_number(mean_b_M[m]),
            difference=_number(known_n.mean()),
            low=_number(low_M[m]),
            high=_number(high_M[m]),
            interval="t" if np.isfinite(low_M[m]) else "none",
            coverage=None,
            effect=None,
            effect_low=None,
            effect_high=None,
            p=_number(p_M[m]) if len(known_n) > 1 else None,
            smallest_p=smallest_p(len(known_n)),
            family_name=given.family,
            state=column.state,
            block=column.block,
        )
        out.append(Draft(test, units, d_nM[:, m]))
    return out


def _of_all(comparison: Comparison, blocks: omnibus.Blocks, given: Columns) -> list[Draft]:
    """Test every metric for all values of a factor at once."""
    values_NM = given.values_NM
    given_nkM = blocks.of(values_NM)
    middle_n1M = given_nkM.mean(axis=1, keepdims=True)
    off_nkM = given_nkM - middle_n1M
    size_M = np.nanmax(np.abs(values_NM), axis=0)
    values_nkM = middle_n1M + np.where(np.abs(off_nkM) > RESOLUTION * size_M, off_nkM, off_nkM * 0)
    unknown_M = np.full(len(given.columns), np.nan)
    f_M, p_M, r2_BM = omnibus.permuted_f(values_nkM) if blocks.count > 1 else (unknown_M, unknown_M, unknown_M[None])
    mean_kM = values_nkM.mean(axis=0)
    return [
        Draft(
            omnibus.omnibus_test(
                blocks,
                comparison,
                column.metric,
                column.title,
                column.part,
                column.measure,
                f_M[m],
                p_M[m],
                difference=_number(mean_kM[:, m].max() - mean_kM[:, m].min()),
            ),
            blocks.units,
            r2_BM[:, m],
        )
        for m, column in enumerate(given.columns)
    ]


def _completed(collection: Collection, pairs: Pairs, test: Test) -> Test:
    """Return a test of groups with the fields that follow from its contrast."""
    design = collection.design
    hypotheses = design.hypotheses if design is not None else ()
    return replace(
        test,
        confirmatory=is_confirmatory(
            hypotheses, collection.written, Contrast(test.factor, test.a, test.b), test.metric
        ),
        tokens_a=_tokens(collection.members, pairs.a),
        tokens_b=_tokens(collection.members, pairs.b),
    )


def _with_tokens(members: Sequence[Member], blocks: omnibus.Blocks, drafts: Sequence[Draft]) -> list[Draft]:
    """Return tests with the mean number of text tokens of each value's prompts added to their notes."""
    if not blocks.count:
        return list(drafts)
    counts = [_tokens(members, side) for side in np.concatenate(blocks.members).T]
    if any(count is None for count in counts):
        return list(drafts)
    tokens = f"tokens {', '.join(f'{count:.3g}' for count in counts)}"
    out = []
    for draft in drafts:
        note = "; ".join(part for part in (draft.test.note, tokens) if part)
        out.append(replace(draft, test=replace(draft.test, note=note)))
    return out


def unconfirmed(collection: Collection, comparison: Comparison, tests: Sequence[Test]) -> list[str]:
    """Return one sentence for each hypothesis of the study that has no confirmatory test, with the reason."""
    hypotheses = collection.design.hypotheses if collection.design is not None else ()
    compared = [{contrast.a, contrast.b} for contrast in comparison.contrasts]
    metrics = {test.metric for test in tests if test.kind != "omnibus"}
    out = []
    for hypothesis, early in zip(hypotheses, collection.written, strict=False):
        why = ""
        if not early:
            why = "it was not in the study's file before the first take, so it is exploratory"
        elif hypothesis.metric is None or hypothesis.contrast is None:
            lacking = "metric" if hypothesis.metric is None else "contrast"
            why = f"it names no {lacking}, so no test corresponds to it"
        elif set(hypothesis.contrast) not in compared:
            why = f"{' and '.join(map(repr, hypothesis.contrast))} are not compared here"
        elif metrics and hypothesis.metric not in metrics:
            why = f"there is no test of the metric {hypothesis.metric!r} ({nearest(hypothesis.metric, metrics)})"
        if why:
            out.append(f"the hypothesis {hypothesis.text!r} has no confirmatory test: {why}")
    return out


def _tokens(members: Sequence[Member], side: np.ndarray) -> float | None:
    """Return the mean number of text tokens of the prompts of takes (indices), or None if it is unknown for one."""
    counts = [members[i].take.manifest.prompt_tokens for i in side]
    known = [count for count in counts if count is not None]
    return float(np.mean(known)) if known and len(known) == len(counts) else None


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
