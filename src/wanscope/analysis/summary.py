"""The summary of an analysis in plain sentences, which claim no more than the tests allow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from wanscope.analysis.paired_columns import PREFIX
from wanscope.analysis.pairing import MIN_SCENES, Contrast
from wanscope.analysis.power import ALPHA, power_sentence
from wanscope.analysis.result import Analysis
from wanscope.analysis.test_result import CORRECTIONS, FAMILIES, Test, TestResults

LISTED = 12


def summarize(analysis: Analysis) -> str:
    """Return the summary: what was analyzed, what was found, and what cannot be concluded."""
    parts = [
        " ".join(_subject(analysis)),
        *_findings(analysis),
        *_limits(analysis),
    ]
    return "\n\n".join(part for part in parts if part)


def _subject(analysis: Analysis) -> Iterator[str]:
    members = analysis.members
    seeds = {member.seed for member in members}
    groups = {member.group for member in members}
    yield (
        f"Study {analysis.name}: {_count(len(members), 'take')}, {_count(len(groups), 'variation')}, "
        f"{_count(len(seeds), 'seed')}."
    )
    if analysis.left_out:
        names = "; ".join(f"{left.name} ({left.why.rstrip('.')})" for left in analysis.left_out[:LISTED])
        more = len(analysis.left_out) - LISTED
        yield f"Left out: {names}{f'; and {more} more' if more > 0 else ''}."


def _findings(analysis: Analysis) -> Iterator[str]:
    family = analysis.tests
    if not analysis.comparison.contrasts:
        yield "There is nothing to compare: all takes are of one variation. Their paths are described, not tested."
        return
    if not family.tests:
        yield (
            "No pair of takes differs in the factor alone, so nothing was tested. Make every variation with the same "
            "seeds."
        )
        return
    confirmed = [test for test in family.tests if test.confirmatory]
    courses = _courses(family)
    if confirmed:
        lines = [_sentence(test, analysis) for test in confirmed]
        yield "Hypotheses written before the run:\n" + "\n".join(f"- {line}" for line in lines)
    explored = [test for test in family.tests if test.found and not test.confirmatory]
    tested = {(test.factor, test.a, test.b) for test in family.tests if test.p is not None and test.kind != "omnibus"}
    every = len(analysis.comparison.contrasts)
    contrasts = _count(len(tested), "contrast") + (f" of the {every}" if len(tested) < every else "")
    families = family.families
    counts = ", ".join(f"{len(tests)} of {FAMILIES[name]}" for name, tests in families.items() if name != "courses")
    intro = (
        f"{_count(family.size, 'test')} ({contrasts}): {counts}. p values are corrected within each of these families "
        f"by {CORRECTIONS[family.correction]}; the smallest that one test can give is {family.smallest_p:.3g}."
    )
    if family.size == 0:
        yield "Nothing was tested. " + power_sentence(family.units, 1)
        return
    yield intro
    if explored:
        shown = sorted(explored, key=lambda test: test.decisive_p or 0)
        lines = [_sentence(test, analysis) for test in shown[:LISTED]]
        if len(shown) > LISTED:
            lines.append(f"and {len(shown) - LISTED} more in the table of tests")
        yield "Exploratory, significant after correction:\n" + "\n".join(f"- {line}" for line in lines)
        yield from courses
        yield f"Tests that are not listed do not show that there is no difference. {family.power}"
    else:
        what = "Of the other tests none" if confirmed else "None"
        yield (
            f"{what} shows a difference after correction. This does not prove that there is none: "
            + _first_lower(family.power)
        )
        yield from courses
        hints = [t for t in family.tests if t.p is not None and t.p <= ALPHA and not t.confirmatory]
        if hints:
            expected = ALPHA * family.size
            yield (
                f"{_count(len(hints), 'test')} had p of at most 0.05 before correction; about {expected:.1f} would by "
                "chance alone. They are not results, but suggest hypotheses for a new run."
            )


def _courses(results: TestResults) -> list[str]:
    """Return one paragraph on the tests at single steps and blocks, in a list; an empty list if there are none."""
    tests = [test for test in results.courses if test.p is not None]
    if not tests:
        return []
    found: dict[str, list[Test]] = {}
    for test in tests:
        if test.found:
            axis = "step" if test.state is not None else "block"
            found.setdefault(f"{test.name} by {axis}, {test.a} - {test.b}", []).append(test)
    intro = f"Courses: {len(tests)} differences at single steps and blocks were tested as a family of their own; "
    if not found:
        return [intro + "none is significant after correction."]
    lines = [f"{name}: {_places(at)}" for name, at in found.items()]
    more = [f"and {len(lines) - LISTED} more in the table of courses"] if len(lines) > LISTED else []
    count = sum(map(len, found.values()))
    shown = "\n".join(f"- {line}" for line in [*lines[:LISTED], *more])
    return [f"{intro}{count} {'is' if count == 1 else 'are'} significant after correction, at:\n{shown}"]


def _place(test: Test) -> int:
    """Return the block, or the step counted from 1 (a path's state is counted from the noise, which is 0)."""
    if test.state is None:
        assert test.block is not None
        return test.block
    return test.state + (1 if test.metric.startswith(PREFIX) else 0)


def _places(tests: Sequence[Test]) -> str:
    """Return the places of tests as ranges, such as "3 to 7, 12"."""
    places = sorted(_place(test) for test in tests)
    runs: list[list[int]] = []
    for place in places:
        if runs and place == runs[-1][1] + 1:
            runs[-1][1] = place
        else:
            runs.append([place, place])
    return ", ".join(f"{first}" if first == last else f"{first} to {last}" for first, last in runs)


def _sentence(test: Test, analysis: Analysis) -> str:
    """Return a test as a sentence: direction, size, interval, p and the number of units."""
    title = test.title + (f" ({test.part})" if test.part else "")
    p = "not tested" if test.decisive_p is None else f"corrected p = {_p(test.decisive_p)}"
    if test.kind == "omnibus":
        verdict = "differs" if test.found else "is not shown to differ"
        return f"{title} {verdict} among {test.a} ({test.note}; {p}, {_count(test.units, test.unit)})."
    if test.kind == "group":
        verdict = "differ" if test.found else "cannot be distinguished"
        return f"{title}: {test.a} and {test.b} {verdict} ({p}, {_count(test.units, test.unit)})."
    if not test.found or test.difference is None:
        return f"{title}: no difference between {test.a} and {test.b} is shown ({p}, {_count(test.units, test.unit)})."
    word = "higher" if test.difference > 0 else "lower"
    bounds = ""
    if test.low is not None and test.high is not None:
        bounds = f", 95% interval {test.low:.3g} to {test.high:.3g} ({test.interval})"
    effect = "" if test.effect is None else f", {abs(test.effect):.1f} standard deviations of the pairs' differences"
    size = f"{test.difference:+.3g} {_unit(test.measure)}".strip()
    return (
        f"{title} is {word} for {test.a} than for {test.b}: {size}{bounds}{effect}; "
        f"{p}, {_count(test.units, test.unit)}."
    )


def _limits(analysis: Analysis) -> Iterator[str]:
    comparison, family = analysis.comparison, analysis.tests
    lines = []
    if comparison.contrasts and family.tests:
        if comparison.unit == "seed":
            lines.append(
                "The findings hold for these prompts: seeds repeat the noise, not the wording. To generalize to what "
                f"the words mean, put at least {MIN_SCENES} scenes or paraphrases into the prompt as a slot and name "
                "it in design.blocks."
            )
        elif family.units >= MIN_SCENES:  # fewer only if --unit scene asks for it, which a note explains
            lines.append(
                f"Units are {_count(family.units, 'scene')}: the findings hold for scenes like these, made with "
                "these seeds and this model."
            )
        lines += list(_tokens(family.tests, comparison.contrasts))
        lines.append("A difference between paths means that the model moved differently, not that one video is better.")
    lines += [note[:1].upper() + note[1:] + "." * (not note.endswith(".")) for note in analysis.notes]
    if analysis.rank:
        lines.append(f"Log-volumes are over {_count(analysis.rank, 'axis', 'axes')}, the same for all takes.")
    if lines:
        yield "What to keep in mind:\n" + "\n".join(f"- {line}" for line in dict.fromkeys(lines))


def _tokens(tests: Sequence[Test], contrasts: Sequence[Contrast]) -> Iterator[str]:
    """Yield a sentence for each contrast whose prompts differ in length, which confounds their meaning."""
    for contrast in contrasts:
        test = next((t for t in tests if (t.factor, t.a, t.b) == (contrast.factor, contrast.a, contrast.b)), None)
        if test is None or test.tokens_a is None or test.tokens_b is None:
            continue
        if test.tokens_a != test.tokens_b:
            yield (
                f"The prompts of {contrast.a} have {test.tokens_a:.3g} text tokens and those of {contrast.b} "
                f"{test.tokens_b:.3g}: they differ in length as well as in meaning."
            )


def _p(p: float) -> str:
    return f"{p:.2g}" if p >= 0.0001 else "below 0.0001"


def _unit(unit: str) -> str:
    return "" if unit == "1" else unit


def _count(number: int, word: str, plural: str = "") -> str:
    return f"{number} {word if number == 1 else plural or word + 's'}"


def _first_lower(text: str) -> str:
    return text[:1].lower() + text[1:]
