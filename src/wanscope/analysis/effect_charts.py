"""Figures of differences: effect sizes with their intervals, and paired differences over steps with their bands."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from wanscope.analysis.chart import Chart, Series, axis_label
from wanscope.analysis.pairing import Contrast
from wanscope.analysis.result import Analysis
from wanscope.analysis.test_result import Test

FOUND = "What was found"
EACH = "Differences"
ROWS = 16  # in the first figure
CONTRASTS = 3  # in a figure over steps
BAND = (
    "The line is the mean of the paired differences, the band its 95% interval (Student's t, at each step separately). "
    "Large dots: significant after correction for all courses. Group means can lie on top of each other where every "
    "pair differs, because seeds differ more than groups."
)


def effect_charts(analysis: Analysis) -> Iterator[Chart]:
    """Yield the figure that opens the report, then one chart per contrast with every paired test."""
    paired = [test for test in analysis.tests.tests if test.effect is not None]
    contrasts = analysis.comparison.contrasts
    if paired:
        yield _opening(paired, contrasts)
    for number, contrast in enumerate(contrasts):
        tests = [test for test in paired if _of(test, contrast)]
        if tests:
            caption = (
                f"Effect size: mean difference ({contrast.a} minus {contrast.b}) over the standard deviation of the "
                "pairs' differences, with 95% intervals. Filled: significant after correction. At an effect size of 1, "
                "84% of the pairs differ in that direction if the differences are normal; at 2, 98%."
            )
            yield _effects(
                f"effects-{number + 1}",
                EACH,
                f"{contrast.a} against {contrast.b}",
                caption,
                tests,
                [test.name for test in tests],
                number,
            )


def _opening(tests: Sequence[Test], contrasts: Sequence[Contrast]) -> Chart:
    """Return the figure of the tests that are significant, or of those with the smallest p if none is."""
    found = [test for test in tests if test.found]
    chosen = sorted(found or tests, key=lambda test: (test.decisive_p or 0, -abs(test.effect or 0)))[:ROWS]
    several = len(contrasts) > 1
    names = [test.name + (f", {test.a} - {test.b}" if several else "") for test in chosen]
    more = len(found) - len(chosen)
    if found:
        what = "Paired differences that are significant after correction"
        rest = f" {more} more are in the table of tests." if more > 0 else ""
    else:
        what, rest = "No paired difference is significant after correction. Those with the smallest p", ""
    only = f" ({contrasts[0].a} minus {contrasts[0].b})" if len(contrasts) == 1 else ""
    caption = (
        f"{what}: mean difference{only} over the standard deviation of the pairs' differences, with 95% "
        f"intervals.{rest}"
    )
    title = "Significant differences" if found else "Largest differences, none of them significant"
    return _effects("findings", FOUND, title, caption, chosen, names, 0)


def _effects(
    key: str, section: str, title: str, caption: str, tests: Sequence[Test], names: Sequence[str], number: int
) -> Chart:
    order = sorted(range(len(tests)), key=lambda i: tests[i].effect or 0)
    kept = [tests[i] for i in order]
    series = Series(
        title,
        [test.effect or 0.0 for test in kept],
        [names[i] for i in order],
        "interval",
        number % 8,
        False,
        [test.effect_low for test in kept],
        [test.effect_high for test in kept],
        [test.found for test in kept],
        [_p_text(test) for test in kept],
    )
    return Chart(key, section, title, caption, "effect size", "", (series,), height=120 + 24 * len(tests), zero_x=True)


def _p_text(test: Test) -> str:
    if test.p is None or test.decisive_p is None:
        return ""
    return f"p = {test.p:.3g}, corrected {test.decisive_p:.3g}"


def _of(test: Test, contrast: Contrast) -> bool:
    return (test.factor, test.a, test.b) == (contrast.factor, contrast.a, contrast.b)


def course_chart(analysis: Analysis, chart: Chart, metric: str, part: str = "", axis: str = "state") -> Chart | None:
    """Return the chart of a metric's paired differences over the steps (or blocks) of `chart`, or None without any.

    part: the word, for attention. axis: "state" or "block".
    """
    series = []
    for number, contrast in enumerate(analysis.comparison.contrasts[:CONTRASTS]):
        tests = [
            test
            for test in analysis.tests.courses
            if test.metric == metric and test.part == part and _of(test, contrast) and getattr(test, axis) is not None
        ]
        if tests:
            first = 1 if axis == "state" and metric.startswith("attention_") else 0
            places = [getattr(test, axis) + first for test in tests]
            series.append(
                Series(
                    contrast.text,
                    places,
                    [test.difference for test in tests],
                    "band",
                    number,
                    True,
                    [test.low for test in tests],
                    [test.high for test in tests],
                    [test.found for test in tests],
                    [_p_text(test) for test in tests],
                )
            )
    if not series:
        return None
    left_out = len(analysis.comparison.contrasts) - CONTRASTS
    more = f" {left_out} more contrasts are in the table `courses`." if left_out > 0 else ""
    measure = next(test.measure for test in analysis.tests.courses if test.metric == metric)
    name = f"{chart.title}, difference" if not part else f"{chart.title}, difference for {part}"
    return Chart(
        f"{chart.key}-difference" + (f"-{_file_name(part)}" if part else ""),
        chart.section,
        name,
        BAND + more,
        chart.x,
        axis_label("difference", measure),
        tuple(series),
        height=chart.height,
        zero_y=True,
    )


def _file_name(part: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in part).strip("-").lower() or "word"
