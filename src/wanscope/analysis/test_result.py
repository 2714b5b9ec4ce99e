"""The record of one test, and of all tests of an analysis.

Tests of one kind of question form a family, within which p values are corrected for multiple testing. Each family keeps
its own error rate: at level 0.05, at most one analysis in twenty reports a false difference in that family.

Shape suffixes: n units, B patterns.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from wanscope.analysis.permutation_tests import EXACT_PAIRS
from wanscope.analysis.power import ALPHA, power_sentence

Correction = Literal["max-t", "holm", "bh"]
CORRECTIONS: dict[Correction, str] = {
    "max-t": "the step-down max-T method of Westfall and Young",
    "holm": "Holm's method",
    "bh": "the method of Benjamini and Hochberg, which controls the false discovery rate",
}

Family = Literal["metrics", "latents", "values", "attention", "courses"]
FAMILIES: dict[Family, str] = {
    "metrics": "metrics of paths and results, in pairs",
    "latents": "final latents of whole groups",
    "values": "all values of a factor at once",
    "attention": "attention to words, in pairs",
    "courses": "courses over steps and blocks, in pairs",
}


@dataclass(frozen=True)
class Test:
    """One test.

    kind: "paired" (a metric's mean difference a - b), "group" (latents of whole groups) or "omnibus" (all values of a
    factor at once: a lists them, b is empty, difference is the largest mean minus the smallest, statistic is F).
    units: number of units whose signs are flipped; unit: "seed" or "scene". difference, low, high: in the metric's
    unit, `measure`; interval: method of the bounds; coverage: simulated, of a BCa interval; expected: of a group test,
    the difference that is expected when a and b do not differ. effect: mean over standard deviation of the units'
    differences. p: uncorrected; smallest_p: the smallest possible with this many units. family_name: a key of FAMILIES;
    family: the number of p values in it. correction: a key of CORRECTIONS, the method of p_corrected and
    p_confirmatory. p_corrected, p_holm, q_bh: corrected over the family; p_confirmatory: over all confirmatory tests of
    the analysis. tokens_a, tokens_b: mean number of text tokens of the prompts. state, block: where on a course.
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
    family_name: Family = "metrics"
    correction: Correction = "max-t"
    p_corrected: float | None = None
    state: int | None = None
    block: int | None = None
    expected: float | None = None

    def record(self) -> dict[str, Any]:
        """Return the test as a row of the table `tests`."""
        return asdict(self)

    @property
    def decisive_p(self) -> float | None:
        """The corrected p that decides: over the confirmatory tests for a confirmatory one, else over the family."""
        return self.p_confirmatory if self.confirmatory else self.p_corrected

    @property
    def found(self) -> bool:
        """Whether the test is significant after correction."""
        return self.decisive_p is not None and self.decisive_p <= ALPHA

    @property
    def name(self) -> str:
        """The title, with the part if there are several."""
        return self.title + (f" ({self.part})" if self.part else "")


@dataclass(frozen=True)
class Draft:
    """A test that is not corrected yet, with the data that max-T needs. units: names of the units, n of them.

    data: differences [n] of a paired test, the quadratic form [n, n] of a group test, or the statistics [B] of an
    omnibus test under all patterns, the observed one first; None if there is nothing to test.
    """

    test: Test
    units: tuple[str, ...] = ()
    data: np.ndarray | None = None


@dataclass(frozen=True)
class TestResults:
    """All tests of an analysis. unit: "seed" or "scene". courses: tests at single steps and blocks."""

    __test__ = False

    tests: tuple[Test, ...]
    unit: str
    correction: Correction = "max-t"
    courses: tuple[Test, ...] = ()

    @property
    def families(self) -> dict[Family, list[Test]]:
        """The tests with a p value, by family, in the order of FAMILIES."""
        every = [test for test in (*self.tests, *self.courses) if test.p is not None]
        found: dict[Family, list[Test]] = {name: [t for t in every if t.family_name == name] for name in FAMILIES}
        return {name: tests for name, tests in found.items() if tests}

    @property
    def size(self) -> int:
        """The number of p values, without those of the courses."""
        return sum(test.p is not None for test in self.tests)

    @property
    def smallest_p(self) -> float:
        """The smallest possible uncorrected p of any test."""
        return min((test.smallest_p for test in self.tests), default=1.0)

    @property
    def units(self) -> int:
        """The largest number of units of any test."""
        return max((test.units for test in self.tests), default=0)

    @property
    def power(self) -> str:
        """One or two sentences about the differences that this many units can detect."""
        families = self.families
        whole = [test.smallest_p for test in families.get("values", ())]
        size = len(families.get("metrics", ()))
        text = power_sentence(
            self.units, max(size, 1), of=" of two values" if whole else "", correction=self.correction
        )
        if whole:
            text += f" A test of all values of a factor at once can give p = {min(whole):.2g}, before correction."
        return text

    @property
    def exact(self) -> bool:
        """Whether all sign patterns were enumerated."""
        return self.units <= EXACT_PAIRS
