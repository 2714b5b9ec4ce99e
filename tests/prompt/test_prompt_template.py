"""Templates against two independent expanders: one that rewrites strings, one that walks a tree drawn at random."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wanscope.errors import RecipeError, TemplateError
from wanscope.prompt import Mark, count, escape, expand, parse


def texts(template: str) -> list[str]:
    return [variation.text for variation in expand(template)]


# the meaning of the language, by example


def test_alternatives_multiply_and_the_first_varies_slowest():
    assert texts("a [red|blue] ball moves [left|right]") == [
        "a red ball moves left",
        "a red ball moves right",
        "a blue ball moves left",
        "a blue ball moves right",
    ]


def test_nested_alternatives_are_counted_only_where_they_are_chosen():
    template = parse("[[a|b] x|c] [d|e]")
    assert template.count == 6
    assert [v.text for v in template.expand()] == ["a x d", "a x e", "b x d", "b x e", "c d", "c e"]
    assert template.variation(0).bindings == {"1": "a x", "2": "a", "3": "d"}
    assert template.variation(4).bindings == {"1": "c", "3": "d"}


def test_marks_and_alternatives_hold_each_other():
    first, second = expand("[(flower:2.5) near a tree|(tree:3) next to a flower]")
    assert first.text == "flower near a tree"
    assert first.marks == (Mark("flower", 0, 6, 2.5, True),)
    assert second.marks == (Mark("tree", 0, 4, 3.0, True),)
    assert [v.marks for v in expand("a ([red|dark blue] ball)")] == [
        (Mark("red ball", 2, 10),),
        (Mark("dark blue ball", 2, 16),),
    ]


def test_a_mark_without_a_number_or_with_1_is_not_weighted():
    (variation,) = expand("(a) (b:1) (c: .5 ) (d:2.)")
    assert [(m.text, m.weight, m.weighted) for m in variation.marks] == [
        ("a", 1.0, False),
        ("b", 1.0, False),
        ("c", 0.5, True),
        ("d", 2.0, True),
    ]


def test_only_the_last_colon_of_a_mark_starts_a_weight():
    (variation,) = expand(r"(16:9 ratio:1.5) at 10:30 (4\:3)")
    assert variation.text == "16:9 ratio at 10:30 4:3"
    assert [(m.text, m.weight) for m in variation.marks] == [("16:9 ratio", 1.5), ("4:3", 1.0)]


def test_nested_marks_stay_separate_and_equal_ones_are_merged():
    (variation,) = expand("a (red (circle:2):1.5)")
    assert variation.marks == (Mark("red circle", 2, 12, 1.5, True), Mark("circle", 6, 12, 2.0, True))
    assert [v.marks for v in expand("([(a:3)|b]:2)")] == [(Mark("a", 0, 1, 6.0, True),), (Mark("b", 0, 1, 2.0, True),)]
    assert [v.marks for v in expand("([(a)|b]:2)")] == [(Mark("a", 0, 1, 2.0, True),), (Mark("b", 0, 1, 2.0, True),)]


def test_a_mark_that_is_empty_in_one_variation_is_absent_there():
    assert [v.marks for v in expand("a ([|big]) ball")] == [(), (Mark("big", 2, 5),)]


def test_marked_spans_leave_out_spaces_around_the_words():
    (variation,) = expand("a ( red ball ) here")
    assert variation.marks == (Mark("red ball", 3, 11),)
    assert variation.text == "a  red ball  here"


def test_a_named_slot_is_bound_once():
    template = parse("[@who: two men|[young|old] women] walk; @who's dog [barks|sleeps] by @who")
    assert template.count == 6
    assert [(slot.name, slot.named, slot.values, slot.count) for slot in template.slots] == [
        ("who", True, ("two men", "[young|old] women"), 3),
        ("1", False, ("young", "old"), 2),
        ("2", False, ("barks", "sleeps"), 2),
    ]
    assert template.variation(3).text == "young women walk; young women's dog sleeps by young women"
    assert template.variation(3).bindings == {"who": "young women", "1": "young", "2": "sleeps"}
    assert list(template.variation(0).bindings) == ["who", "2"]


def test_a_reference_repeats_the_marks_of_its_value():
    first, second = expand("[@a: (x:2)|y] and (@a z)")
    assert first.marks == (Mark("x", 0, 1, 2.0, True), Mark("x z", 6, 9), Mark("x", 6, 7, 2.0, True))
    assert second.marks == (Mark("y z", 6, 9),)


def test_a_name_ends_where_other_scripts_begin():
    assert texts("[@who: 两个男人|猫]在走，@who在笑") == ["两个男人在走，两个男人在笑", "猫在走，猫在笑"]


def test_names_reach_through_marks_and_into_alternatives_but_not_out_of_them():
    assert texts("([@w: a|b]) [@w x|y]") == ["a a x", "a y", "b b x", "b y"]
    assert texts("[[@w: a|b] @w|c]") == ["a a", "b b", "c"]
    with pytest.raises(TemplateError, match="inside one alternative"):
        parse("[[@w: a|b]|c] @w")
    with pytest.raises(TemplateError, match="inside one alternative"):
        parse("[[@w: a|b]|@w]")
    with pytest.raises(TemplateError, match="inside one alternative"):
        parse("[(x [@w: a|b])|c] @w")


def test_a_slot_may_refer_to_an_earlier_one():
    assert texts("[@a: x|y] [@b: @a!|z] @b") == ["x x! x!", "x z z", "y y! y!", "y z z"]


def test_escapes_are_literal():
    assert texts(r"\[x\] \(y\) \| \@ \\ \:") == ["[x] (y) | @ \\ :"]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("a [|big ]ball", ["a ball", "a big ball"]),
        ("a [|big] ball", ["a ball", "a big ball"]),
        ("[|big] ball", ["ball", "big ball"]),
        ("a ball [|here]", ["a ball", "a ball here"]),
        ("a ball [|here].", ["a ball.", "a ball here."]),
        ("a ball[|, red], here", ["a ball, here", "a ball, red, here"]),
        ("a [|x] [|y] [|z] b", ["a b", "a z b", "a y b", "a y z b", "a x b", "a x z b", "a x y b", "a x y z b"]),
        ("a [ red | blue ] ball", ["a red ball", "a blue ball"]),
        ("[|[|x]]", ["", "", "x"]),
        ("one\n[|x] two", ["one\ntwo", "one\nx two"]),
        ("a [|x]\ntwo", ["a\ntwo", "a x\ntwo"]),
        ("two  spaces stay [a|b]", ["two  spaces stay a", "two  spaces stay b"]),
        ("ballon [|rouge] !", ["ballon !", "ballon rouge !"]),
        ("[@b: |big ]ball, @b box", ["ball, box", "big ball, big box"]),
    ],
)
def test_leftover_spaces_at_brackets_are_removed(template: str, expected: list[str]):
    assert texts(template) == expected


def test_marks_are_right_after_spaces_were_removed():
    for variation in expand("[|very] [|big] (red [|shiny] ball) [|x] (here)"):
        assert [mark.text.split()[0] for mark in variation.marks] == ["red", "here"]
        assert all(variation.text[m.start : m.end] == m.text for m in variation.marks)


def test_counting_does_not_expand():
    template = "[a|b|c]" * 5000
    assert count(template) == 3**5000
    parsed = parse(template)
    assert parsed.variation(3**5000 - 1).text == "c" * 5000
    assert [v.text for v in islice(parsed.expand(), 2)] == ["a" * 5000, "a" * 4999 + "b"]


def test_a_variation_that_does_not_exist_is_refused():
    template = parse("[a|b]")
    for index in (-1, 2):
        with pytest.raises(RecipeError, match=f"no variation {index}.*0 to 1"):
            template.variation(index)


# errors


@pytest.mark.parametrize(
    ("template", "position", "why"),
    [
        ("a [red|blue", 2, "never closed"),
        ("a (red", 2, "never closed"),
        ("a [b (c", 5, "never closed"),
        ("a] b", 1, "closes nothing"),
        ("a) b", 1, "closes nothing"),
        ("[a (b] c)", 5, "'(' at character 4 is still open"),
        ("(a [b) c]", 5, "'[' at character 4 is still open"),
        ("red|blue", 3, "no '[' is open"),
        ("(a|b)", 2, "their own brackets"),
        ("a \\n", 2, "not an escape"),
        ("a\\", 1, "escapes nothing"),
        ("a @ b", 2, "must be followed by the name"),
        ("@1", 0, "must be followed by the name"),
        ("[@: a|b]", 1, "must be followed by the name"),
        ("me@home", 2, "no slot is named @home"),
        ("[@who a|b]", 1, "to define one, put a ':' after it"),
        ("[@who: a|b] @woh", 12, "did you mean 'who'?"),
        ("@who [@who: a|b]", 0, "before it is defined"),
        ("[@who: a|@who]", 9, "inside its own definition"),
        ("[@w: a|b] [@w: c|d]", 11, "defined already, at character 1"),
        ("[[@w: a|b]|[@w: c|d]]", 12, "defined already, at character 2"),
        ("a [] b", 2, "no alternatives"),
        ("a [@w: ] b", 2, "no alternatives"),
        ("a () b", 2, "no words"),
        ("( )", 0, "no words"),
        ("(:1.5)", 0, "no words"),
        ("((a))", 0, "marked twice"),
        ("( (a:2) :3)", 0, "marked twice"),
        ("(a:x)", 3, "'x' is not a weight"),
        ("(a:)", 3, "missing"),
        ("(a: -1)", 4, "above zero"),
        ("(a:0)", 3, "above zero"),
        ("(a:0.0)", 3, "above zero"),
        ("(a:nan)", 3, "finite"),
        ("(a:-inf)", 3, "finite"),
        ("(a:+-1)", 3, "not a weight"),
        ("(a:1e3)", 3, "not a weight"),
        ("(a:1_0)", 3, "not a weight"),
        ("(a:１)", 3, "not a weight"),
        ("(a:1.5.2)", 3, "not a weight"),
        ("(a:" + "9" * 400 + ")", 3, "finite"),
        ("(a:0." + "0" * 400 + "1)", 3, "above zero"),
        ("(a:[1|2])", 3, "not a weight"),
        ("[" * 10_000, 200, "more than 200 deep"),
        ("(" * 10_000, 200, "more than 200 deep"),
        ("[a|" * 5000 + "]" * 5000, 600, "more than 200 deep"),
        ("[a|b]" * 15_000, 0, "more than 10^4214 variations"),
        ("x" * 100_001, 0, "longer than 100,000 characters"),
    ],
)
def test_errors_point_at_the_character(template: str, position: int, why: str):
    with pytest.raises(TemplateError) as caught:
        parse(template)
    assert caught.value.position == position
    assert why in caught.value.why
    assert caught.value.fix
    caret = str(caught.value).splitlines()[-2]
    assert caret.strip() == "^"


def test_the_caret_is_below_the_character():
    with pytest.raises(TemplateError) as caught:
        parse("first line\na 猫 [red")
    line, caret, fix = str(caught.value).splitlines()[-3:]
    assert line == "  a 猫 [red"
    assert caret == "  " + " " * 5 + "^"  # 猫 is two columns wide
    assert fix.startswith("Try: ")
    with pytest.raises(TemplateError) as caught:
        parse("\tlong " * 100 + "[red")
    line, caret = str(caught.value).splitlines()[-3:-1]
    assert line[len(caret) - 1] == "["
    assert len(line) < 130


def test_references_to_references_cannot_grow_without_limit():
    template = "[@a0: x|y]" + "".join(f"[@a{i}: @a{i - 1}@a{i - 1}|z]" for i in range(1, 60))
    with pytest.raises(TemplateError, match="longer than"):
        parse(template)
    empty = "[@a0: |y]" + "".join(f"[@a{i}: @a{i - 1}@a{i - 1}|]" for i in range(1, 60))
    with pytest.raises(TemplateError, match="longer than"):
        parse(empty)


def test_depth_up_to_the_limit_works():
    template = parse("[a|" * 200 + "b" + "]" * 200)
    assert template.count == 201
    assert template.variation(200).text == "b"


def test_expand_refuses_before_the_first_variation_is_asked_for():
    with pytest.raises(TemplateError):
        expand("[")


# an expander on strings: no tree, no counting; the leftmost bracket is replaced by each of its parts


def brute_force(template: str) -> list[str]:
    start = template.find("[")
    if start < 0:
        return [template]
    depth, parts, part = 0, [], ""
    for end in range(start, len(template)):
        character = template[end]
        depth += {"[": 1, "]": -1}.get(character, 0)
        if depth == 0:
            break
        if depth == 1 and character == "|":
            parts.append(part)
            part = ""
        elif end > start:
            part += character
    parts.append(part)
    return [text for part in parts for text in brute_force(template[:start] + part + template[end + 1 :])]


alternatives = st.recursive(
    st.text("abc", max_size=3),
    lambda inner: st.one_of(
        st.lists(inner, min_size=2, max_size=3).map(lambda parts: "[" + "|".join(parts) + "]"),
        st.lists(inner, min_size=2, max_size=3).map("".join),
    ),
    max_leaves=12,
)


@given(alternatives)
@settings(deadline=None)
def test_expansion_equals_brute_force(template: str):
    expected = brute_force(template)
    parsed = parse(template)
    assert texts(template) == expected
    assert parsed.count == len(expected)
    assert [parsed.variation(index).text for index in range(parsed.count)] == expected


# an expander on a tree: names, marks and bindings


@dataclass
class Draft:
    """A randomly drawn template: its text and its expected expansion."""

    kind: str  # text, choice, name, reference, mark
    text: str = ""
    parts: tuple = ()
    number: str = ""


@st.composite
def drafts(draw, depth: int = 3, names: list[str] | None = None, fresh: list[int] | None = None):
    names = [] if names is None else names  # those that can be used here; appended to in place
    fresh = [0] if fresh is None else fresh
    series = []
    for _ in range(draw(st.integers(1, 3))):
        kinds = ["text"] + (["reference"] if names else []) + (["choice", "name", "mark"] if depth else [])
        kind = draw(st.sampled_from(kinds))
        if kind == "text":
            series.append(Draft(kind, draw(st.text("ab[]()|@:\\猫", min_size=1, max_size=3))))
        elif kind == "reference":
            # the bar keeps a letter that follows from joining the name
            series += [Draft(kind, draw(st.sampled_from(names))), Draft("text", "|")]
        elif kind == "mark":
            inner = (Draft("text", "m"), *draw(drafts(depth - 1, names, fresh)))
            series.append(Draft(kind, parts=inner, number=draw(st.sampled_from(["", "0.5", "2", " 1.25 "]))))
        else:
            name = ""
            if kind == "name":
                fresh[0] += 1
                name = f"n{fresh[0]}"
            branches = [draw(drafts(depth - 1, list(names), fresh)) for _ in range(draw(st.integers(1, 3)))]
            series.append(Draft(kind, name, tuple(branches)))
            if name:
                names.append(name)
    return tuple(series)


def written(series: tuple) -> str:
    out = ""
    for draft in series:
        if draft.kind == "text":
            out += re.sub(r"[][()|@:\\]", r"\\\g<0>", draft.text)
        elif draft.kind == "reference":
            out += "@" + draft.text
        elif draft.kind == "mark":
            out += "(" + written(draft.parts) + (":" + draft.number if draft.number else "") + ")"
        else:
            head = f"@{draft.text}: " if draft.kind == "name" else ""
            out += "[" + head + "|".join(written(branch) for branch in draft.parts) + "]"
    return out


@dataclass
class Outcome:
    text: str
    marks: tuple  # (start, end, weight, weighted)
    bound: dict  # name or id -> Outcome, in order


def numbered(series: tuple, numbers: dict[int, str]) -> None:
    for draft in series:
        if draft.kind == "choice":
            numbers[id(draft)] = str(len(numbers) + 1)
        for part in draft.parts:
            numbered(part if isinstance(part, tuple) else (part,), numbers)


def outcomes(series: tuple, bound: dict, numbers: dict[int, str]) -> list[Outcome]:
    results = [Outcome("", (), bound)]
    for draft in series:
        longer = []
        for sofar in results:
            if draft.kind == "text":
                own = [Outcome(draft.text, (), sofar.bound)]
            elif draft.kind == "reference":
                value = sofar.bound[draft.text]
                own = [Outcome(value.text, value.marks, sofar.bound)]
            elif draft.kind == "mark":
                own = [
                    Outcome(o.text, ((0, len(o.text), float(draft.number or 1), bool(draft.number)), *o.marks), o.bound)
                    for o in outcomes(draft.parts, sofar.bound, numbers)
                ]
            else:
                key = draft.text or numbers[id(draft)]
                own = []
                for branch in draft.parts:
                    for o in outcomes(branch, {**sofar.bound, key: None}, numbers):
                        own.append(Outcome(o.text, o.marks, {**o.bound, key: Outcome(o.text, o.marks, {})}))
            for o in own:
                at = len(sofar.text)
                moved = tuple((start + at, end + at, weight, given) for start, end, weight, given in o.marks)
                longer.append(Outcome(sofar.text + o.text, sofar.marks + moved, o.bound))
        results = longer
    return results


def merged(marks: tuple) -> list[tuple]:
    """Marks of the same words become one; a weight of 1, written or not, is none."""
    found: dict = {}
    for start, end, weight, _ in marks:
        found[start, end] = found.get((start, end), 1.0) * weight
    return [(*span, weight, weight != 1.0) for span, weight in found.items()]


@given(drafts())
@settings(max_examples=120, deadline=None)
def test_names_marks_and_bindings_equal_the_reference(series: tuple):
    template = written(series)
    numbers: dict[int, str] = {}
    numbered(series, numbers)
    parsed = parse(template)
    if parsed.count > 500:
        return
    expected = outcomes(series, {}, numbers)
    variations = list(parsed.expand())
    assert len(variations) == parsed.count == len(expected)
    for index, (variation, wanted) in enumerate(zip(variations, expected, strict=True)):
        assert variation.index == index
        assert variation == parsed.variation(index)
        assert variation.text == wanted.text
        assert list(variation.bindings.items()) == [(name, value.text) for name, value in wanted.bound.items()]
        assert [(m.start, m.end, m.weight, m.weighted) for m in variation.marks] == merged(wanted.marks)


# properties of any string

specials = st.text("[]()|@:\\ \n.,-aw1猫é", max_size=40)


spaced = st.recursive(
    st.text("ab  ,.", max_size=4) | st.sampled_from([" @w ", "@w ", "@w,"]),
    lambda inner: st.one_of(
        st.lists(inner, min_size=2, max_size=3).map(lambda parts: "[" + "|".join(parts) + "]"),
        st.lists(inner, min_size=2, max_size=4).map("".join),
        inner.map(lambda words: f"(m {words}:2)"),
    ),
    max_leaves=10,
).map(lambda template: "[@w: p|q r | |[s| t]]" + template)


@given(spaced)
@settings(max_examples=300, deadline=None)
def test_spaces_are_removed_as_by_rewriting_with_visible_edges(template: str):
    """Expand with a visible sign for every edge, then remove spaces by rewriting the signs."""
    parsed = parse(template)
    edge = "\ue000"
    # with a sign at every edge no bracket touches a space, so no space is removed
    signed = re.sub(r"\[@w: ", f"{edge}[@w: {edge}", template)
    signed = re.sub(r"\[(?!@w:)", f"{edge}[{edge}", signed)
    signed = signed.replace("|", f"{edge}|{edge}").replace("]", f"{edge}]{edge}")
    signed = re.sub(r"(?<!\[)@w", f"{edge}@w{edge}", signed)
    for plain, marked in islice(zip(parsed.expand(), expand(signed), strict=True), 200):
        assert plain.text == tidied(marked.text, edge)


def tidied(text: str, edge: str) -> str:
    def run(match: re.Match) -> str:
        found = match.group()
        spaces = [part for part in found.split(edge) if part]
        at_an_end = match.start() == 0 or match.end() == len(text)
        before_punctuation = found.endswith(edge) and text[match.end() : match.end() + 1] in tuple(",.;:!?")
        return "" if at_an_end or before_punctuation or not spaces else spaces[0]

    return re.sub(rf"\s*{edge}[\s{edge}]*", run, text)


@st.composite
def damaged(draw):
    template = draw(spaced)
    at = draw(st.integers(0, len(template)))
    return template[:at] + draw(st.text("[]()|@:\\ a", max_size=1)) + template[at + draw(st.integers(0, 1)) :]


@given(st.one_of(specials, st.text(max_size=60), damaged()))
@settings(max_examples=1000, deadline=None)
def test_any_string_is_read_or_raises_a_template_error(template: str):
    try:
        parsed = parse(template)
    except TemplateError as refused:
        error = refused
        parsed = None
    if parsed is None:
        assert 0 <= error.position <= len(template)
        assert str(error).splitlines()[-2].strip() == "^"
        return
    slots = [slot.name for slot in parsed.slots]
    shown = list(islice(parsed.expand(), 300))
    assert len(shown) == min(parsed.count, 300)
    for variation in [*shown, parsed.variation(parsed.count - 1)]:
        assert all(variation.text[m.start : m.end] == m.text == m.text.strip() != "" for m in variation.marks)
        assert [name for name in slots if name in variation.bindings] == list(variation.bindings)
        assert all(value in variation.text and value == value.strip() for value in variation.bindings.values())


@given(st.one_of(st.text(), specials))
@settings(max_examples=400, deadline=None)
def test_escaped_text_comes_back(text: str):
    template = escape(text)
    assert count(template) == 1
    (variation,) = expand(template)
    assert (variation.text, variation.bindings, variation.marks) == (text, {}, ())


@given(specials.filter(str.strip))
@settings(deadline=None)
def test_escaped_text_is_safe_anywhere_in_a_template(text: str):
    (variation, other) = expand(f"[@w: ({escape(text)}:1.5)|x]")
    assert variation.bindings == {"w": text.strip()}
    assert [(mark.text, mark.weight) for mark in variation.marks] == [(text.strip(), 1.5)]
    assert other.text == "x"


def test_prompts_need_no_torch_and_no_transformers():
    code = (
        "import sys, wanscope.prompt, wanscope.prompt.tokens as t; t.clean('a&amp;b');"
        "print([m for m in ('torch', 'transformers', 'diffusers', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
