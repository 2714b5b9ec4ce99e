"""Tests of every contrast on every tested metric: paired differences, intervals, effect sizes, corrected p values.

All tests of an analysis form one family. Tests of hypotheses that were written before the first take, with their metric
and contrast, are confirmatory: they are also corrected separately, and that correction decides.

Shape suffixes: N takes, M metrics, n units, k values of a factor, 1 an axis kept at size 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from wanscope.analysis import omnibus
from wanscope.analysis.collection import Collection, Member
from wanscope.analysis.confidence_intervals import mean_interval
from wanscope.analysis.effect_size import paired_effect
from wanscope.analysis.multiple_testing import benjamini_hochberg, holm
from wanscope.analysis.pairing import Comparison, Contrast, Pairs, confirms, pairs_of
from wanscope.analysis.permutation_tests import paired_permutation, smallest_p
from wanscope.analysis.power import ALPHA, power_sentence
from wanscope.analysis.table import Table
from wanscope.errors import nearest

RESOLUTION = 1e-7  # relative: smaller differences of fp32 latents are rounding error and count as 0


@dataclass(frozen=True)
class Test:
    """One test.

    kind: "paired" (a metric's mean difference a - b), "group" (latents of whole groups) or "omnibus" (all values of a
    factor at once: a lists them, b is empty, difference is the largest mean minus the smallest, statistic is F).
    units: number of units whose signs are flipped; unit: "seed" or "scene". difference, low, high: in the metric's
    unit; interval: method of the bounds; coverage: simulated, of a BCa interval. effect: mean over standard deviation
    of the units' differences. p: uncorrected; smallest_p: the smallest possible with this many units; p_holm, q_bh:
    corrected over all tests; p_confirmatory: Holm over the confirmatory tests. tokens_a, tokens_b: mean number of text
    tokens of the prompts.
    """

    __test__ = False  # pytest must not collect it as a test class

    factor: str
    a: str
    b: str
    metric: str
    title: str
    part: str
    measure: str
    kind: str
    unit: str
    units: int
    mean_a: float | None
    mean_b: float | None
    difference: float | None
    low: float | None
    high: float | None
    interval: str
    coverage: float | None
    effect: float | None
    effect_low: float | None
    effect_high: float | None
    p: float | None
    smallest_p: float
    p_holm: float | None = None
    q_bh: float | None = None
    family: int = 0
    confirmatory: bool = False
    p_confirmatory: float | None = None
    tokens_a: float | None = None
    tokens_b: float | None = None
    note: str = ""
    statistic: float | None = None

    def record(self) -> dict[str, Any]:
        """Return the test as a row of the table `tests`."""
        return asdict(self)

    @property
    def decisive_p(self) -> float | None:
        """The corrected p that decides: over the confirmatory tests for a confirmatory one, else over all tests."""
        return self.p_confirmatory if self.confirmatory else self.p_holm

    @property
    def found(self) -> bool:
        """Whether the test is significant after correction."""
        return self.decisive_p is not None and self.decisive_p <= ALPHA


@dataclass(frozen=True)
class Family:
    """All tests of an analysis. smallest_p: the smallest possible uncorrected p of any of them."""

    tests: tuple[Test, ...]
    unit: str

    @property
    def size(self) -> int:
        """The number of p values that are corrected together."""
        return sum(test.p is not None for test in self.tests)

    @property
    def smallest_p(self) -> float:
        return min((test.smallest_p for test in self.tests), default=1.0)

    @property
    def units(self) -> int:
        return max((test.units for test in self.tests), default=0)

    @property
    def power(self) -> str:
        """One or two sentences about the differences that this many units can detect."""
        whole = [test.smallest_p for test in self.tests if test.kind == "omnibus" and test.p is not None]
        text = power_sentence(self.units, max(self.size, 1), of=" of two values" if whole else "")
        if whole:
            text += f" A test of all values of a factor at once can give p = {min(whole):.2g}, before correction."
        return text


def tested(collection: Collection, comparison: Comparison, table: Table, group_tests: Sequence[Test]) -> Family:
    """Run all tests and correct them together. group_tests: those of groups.py, not corrected yet."""
    found: list[Test] = []
    columns, values_NM = table.tested()
    for factor, values in omnibus.factors_of(comparison).items():
        blocks = omnibus.blocks_of(collection.members, factor, values, comparison.unit, comparison.scenes)
        whole = [test for test in group_tests if test.kind == "omnibus" and test.factor == factor]
        if blocks.count and columns:
            whole = [*_of_all(collection, comparison, blocks, columns, values_NM), *whole]
        found += _with_tokens(collection.members, blocks, whole)
    for contrast in comparison.contrasts:
        pairs = pairs_of(collection.members, contrast, comparison.scenes)
        if not pairs.cells or not columns:
            continue
        found += _paired(collection, comparison, contrast, pairs, columns, values_NM)
        found += [_prepared(collection, pairs, t) for t in group_tests if (t.factor, t.a, t.b) == _key(contrast)]
    return Family(tuple(_corrected(found)), comparison.unit)


def _key(contrast: Contrast) -> tuple[str, str, str]:
    return contrast.factor, contrast.a, contrast.b


def _paired(
    collection: Collection,
    comparison: Comparison,
    contrast: Contrast,
    pairs: Pairs,
    columns: Sequence[tuple[Any, str]],
    values_NM: np.ndarray,
) -> list[Test]:
    d_nM = pairs.differences(values_NM, comparison.unit)
    size_M = np.nanmax(np.abs(values_NM), axis=0)
    d_nM = np.where(np.abs(d_nM) > RESOLUTION * size_M, d_nM, d_nM * 0)
    p_M, effect = paired_permutation(d_nM), paired_effect(d_nM)
    with np.errstate(invalid="ignore"):
        mean_a_M, mean_b_M = pairs.means(values_NM)
    design = collection.design
    hypotheses = design.hypotheses if design is not None else ()
    tokens = [_tokens(collection.members, side) for side in (pairs.a, pairs.b)]
    out = []
    for m, (metric, part) in enumerate(columns):
        known_n = d_nM[np.isfinite(d_nM[:, m]), m]
        interval = mean_interval(known_n)
        out.append(
            Test(
                factor=contrast.factor,
                a=contrast.a,
                b=contrast.b,
                metric=metric.name,
                title=metric.title,
                part=part,
                measure=metric.unit,
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
                confirmatory=confirms(hypotheses, collection.written, contrast, metric.name),
                tokens_a=tokens[0],
                tokens_b=tokens[1],
                note=interval.note,
            )
        )
    return out


def _of_all(
    collection: Collection,
    comparison: Comparison,
    blocks: omnibus.Blocks,
    columns: Sequence[tuple[Any, str]],
    values_NM: np.ndarray,
) -> list[Test]:
    """Test every metric for all values of a factor at once."""
    given_nkM = blocks.of(values_NM)
    middle_n1M = given_nkM.mean(axis=1, keepdims=True)
    off_nkM = given_nkM - middle_n1M
    size_M = np.nanmax(np.abs(values_NM), axis=0)
    values_nkM = middle_n1M + np.where(np.abs(off_nkM) > RESOLUTION * size_M, off_nkM, off_nkM * 0)
    tested = blocks.count > 1
    f_M, p_M = omnibus.permuted_f(values_nkM) if tested else (np.full(len(columns), np.nan),) * 2
    mean_kM = values_nkM.mean(axis=0)
    return [
        omnibus_test(
            blocks,
            comparison,
            metric.name,
            metric.title,
            part,
            metric.unit,
            f_M[m],
            p_M[m],
            difference=_number(mean_kM[:, m].max() - mean_kM[:, m].min()),
        )
        for m, (metric, part) in enumerate(columns)
    ]


def omnibus_test(
    blocks: omnibus.Blocks,
    comparison: Comparison,
    name: str,
    title: str,
    part: str,
    measure: str,
    f: float,
    p: float,
    **numbers: Any,
) -> Test:
    """Return an uncorrected test of all values of a factor."""
    n, k = blocks.count, len(blocks.values)
    blank = dict.fromkeys(
        ("mean_a", "mean_b", "low", "high", "coverage", "effect", "effect_low", "effect_high", "difference")
    )
    freedom = (k - 1, (n - 1) * (k - 1))
    note = f"F = {f:.3g} with {freedom[0]} and {freedom[1]} degrees of freedom" if np.isfinite(f) else ""
    return Test(
        factor=blocks.factor,
        a=", ".join(blocks.values),
        b="",
        metric=name,
        title=title,
        part=part,
        measure=measure,
        kind="omnibus",
        unit=comparison.unit,
        units=n,
        p=_number(p),
        smallest_p=omnibus.smallest_p(n, k),
        interval="none",
        note=note,
        statistic=_number(f),
        **{**blank, **numbers},
    )


def _prepared(collection: Collection, pairs: Pairs, test: Test) -> Test:
    """Return a test of groups with the fields that follow from its contrast."""
    design = collection.design
    hypotheses = design.hypotheses if design is not None else ()
    return replace(
        test,
        confirmatory=confirms(hypotheses, collection.written, Contrast(test.factor, test.a, test.b), test.metric),
        tokens_a=_tokens(collection.members, pairs.a),
        tokens_b=_tokens(collection.members, pairs.b),
    )


def _with_tokens(members: Sequence[Member], blocks: omnibus.Blocks, tests: Sequence[Test]) -> list[Test]:
    """Return tests with the mean number of text tokens of each value's prompts added to their notes."""
    if not blocks.count:
        return list(tests)
    counts = [_tokens(members, side) for side in np.concatenate(blocks.members).T]
    if any(count is None for count in counts):
        return list(tests)
    tokens = f"tokens {', '.join(f'{count:.3g}' for count in counts)}"
    return [replace(test, note="; ".join(part for part in (test.note, tokens) if part)) for test in tests]


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


def _corrected(tests: Sequence[Test]) -> list[Test]:
    p = np.array([np.nan if test.p is None else test.p for test in tests])
    family = int(np.isfinite(p).sum())
    confirm = np.array([test.confirmatory for test in tests], dtype=bool)
    adjusted, bh = holm(p), benjamini_hochberg(p)
    confirmatory = holm(np.where(confirm, p, np.nan)) if confirm.any() else np.full(len(p), np.nan)
    return [
        replace(
            test,
            p_holm=_number(adjusted[i]),
            q_bh=_number(bh[i]),
            p_confirmatory=_number(confirmatory[i]),
            family=family,
        )
        for i, test in enumerate(tests)
    ]


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
