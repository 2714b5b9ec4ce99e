"""Expressions against Python's own arithmetic on NumPy arrays, and everything else refused with a caret."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wanscope.edit.expression import MAX_DEPTH, check_name, parse_expression
from wanscope.errors import ExpressionError, RecipeError

D = 4


def rows(tokens: int, seed: int) -> torch.Tensor:
    return torch.randn(tokens, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


BOUND = {"beach": rows(3, 0), "gothic": rows(3, 1), "regular": rows(3, 2), "_x1": rows(3, 3)}


def norm(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def mean(x: np.ndarray) -> np.ndarray:
    return x.mean(0, keepdims=True)


def by_python(text: str) -> np.ndarray:
    names = {name: x.numpy() for name, x in BOUND.items()}
    return eval(text, {"norm": norm, "mean": mean, "__builtins__": {}}, names)


@pytest.mark.parametrize(
    "text",
    [
        "beach",
        "beach + 0.5*(gothic - regular)",
        "-beach",
        "+beach - -gothic",
        "beach - gothic - regular",
        "beach/2/4*3",
        "(2 - 1 + 0*3) * beach",
        "beach * gothic * .5",
        "1e-1 * beach + 2.*gothic",
        "norm(beach - gothic)*3",
        "mean(beach) + gothic",
        "gothic - mean(gothic)",
        "norm(mean(beach))*gothic",
        "mean(mean(beach) + gothic) * beach",
        "((((beach))))",
        "-(beach + _x1)/2",
    ],
)
def test_values_equal_those_of_python(text):
    np.testing.assert_allclose(parse_expression(text).evaluate(BOUND).embedding.numpy(), by_python(text), atol=1e-14)


def numbers():
    return st.floats(0, 100, allow_subnormal=False).map(repr) | st.integers(0, 9).map(str)


def grown(inner):
    """Return only expressions valid in both: sums of embeddings and products with numbers."""
    return st.one_of(
        st.tuples(inner, st.sampled_from(["+", " - ", "*"]), inner).map("".join),
        inner.map(lambda x: f"({x})"),
        inner.map(lambda x: f"-{x}"),
        st.tuples(numbers(), inner).map(lambda t: f"{t[0]}*({t[1]})"),
        st.tuples(inner, st.integers(1, 9)).map(lambda t: f"({t[0]})/{t[1]}"),
    )


@settings(max_examples=100, deadline=None)
@given(st.recursive(st.sampled_from(list(BOUND)), grown, max_leaves=8))
def test_any_expression_has_pythons_value_and_can_be_written_back(text):
    expression = parse_expression(text)
    expected = by_python(text)
    np.testing.assert_allclose(expression.evaluate(BOUND).embedding.numpy(), expected, rtol=1e-9, atol=1e-9)
    assert parse_expression(str(expression)) == expression


def test_names_in_order_and_inputs_unchanged():
    expression = parse_expression("gothic + beach - gothic")
    assert expression.names == ("gothic", "beach")
    kept = {name: x.clone() for name, x in BOUND.items()}
    out = parse_expression("beach").evaluate(BOUND).embedding
    out.zero_()
    assert all(torch.equal(kept[name], BOUND[name]) for name in BOUND)


def test_unequal_lengths_are_aligned_with_a_note():
    short = rows(1, 7)
    result = parse_expression("beach - 2*short").evaluate({**BOUND, "short": short})
    expected = BOUND["beach"].clone()
    expected[:1] -= 2 * short
    torch.testing.assert_close(result.embedding, expected)
    assert result.note == "Token counts 1, 3: aligned to 3 by rows of zeros."
    # a mean token has no number of tokens
    assert parse_expression("beach - mean(short)").evaluate({**BOUND, "short": short}).note == ""
    assert parse_expression("mean(beach)").evaluate(BOUND).embedding.shape == (1, D)


def test_mean_and_norm_leave_padding_out():
    padded = torch.cat([BOUND["beach"], torch.zeros(5, D)])
    torch.testing.assert_close(
        parse_expression("mean(x)").evaluate({"x": padded}).embedding, BOUND["beach"].mean(0, keepdim=True)
    )
    assert not parse_expression("norm(x)").evaluate({"x": padded}).embedding[3:].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_dtype_is_kept_and_rounded_once(dtype):
    bound = {name: x.to(dtype) for name, x in BOUND.items()}
    result = parse_expression("beach + 0.3*(gothic - regular)/7").evaluate(bound).embedding
    exact = bound["beach"].double() + 0.3 * (bound["gothic"].double() - bound["regular"].double()) / 7
    assert torch.equal(result, exact.to(dtype))


def caret(error: ExpressionError) -> str:
    """Return the text above the caret, to the end of the line."""
    lines = str(error).splitlines()
    at = next(i for i, line in enumerate(lines) if line.strip().rstrip(".") == "^")
    return lines[at - 1][lines[at].index("^") :]


@pytest.mark.parametrize(
    ("text", "at", "says"),
    [
        ("", "", "missing at the end"),
        ("beach +", "", "missing at the end"),
        ("beach + * gothic", "* gothic", "missing before '*'"),
        ("beach gothic", "gothic", "an operator is missing"),
        ("2beach", "beach", "an operator is missing"),
        ("1.2.3*beach", ".3*beach", "an operator is missing"),
        ("(beach", "(beach", "never closed"),
        ("beach)", ")", "has no matching"),
        ("(beach gothic)", "gothic)", "operator or ')'"),
        ("beach ** 2", "* 2", "missing before '*'"),
        ("beach ^ 2", "^ 2", "is not allowed here"),
        ("beach % 2", "% 2", "is not allowed here"),
        ("beach.real", ".real", "is not allowed here"),
        ("beach[0]", "[0]", "is not allowed here"),
        ("'beach'", "'beach'", "is not allowed here"),
        ("__import__('os')", "__import__('os')", "not a function"),
        ("exp(beach)", "exp(beach)", "not a function"),
        ("norm + beach", "norm + beach", "needs parentheses"),
        ("norm()", ")", "missing before ')'"),
        ("mean(beach, gothic)", ", gothic)", "is not allowed here"),
        ("1 + 2", "1 + 2", "does not name an embedding"),
        ("1e999 * beach", "1e999 * beach", "too large"),
        ("beach # comment", "# comment", "is not allowed here"),
        ("bеach", "еach", "is not allowed here"),  # a Cyrillic letter
    ],
)
def test_everything_else_is_refused_with_a_caret(text, at, says):
    with pytest.raises(ExpressionError, match="character") as caught:
        parse_expression(text)
    assert says in str(caught.value)
    assert caret(caught.value) == at
    assert caught.value.exit_status == 2


@pytest.mark.parametrize(
    ("text", "at", "says"),
    [
        ("beech + gothic", "beech + gothic", "did you mean 'beach'"),
        ("beach + 1", "+ 1", "only multiplied"),
        ("1 - beach", "- beach", "only multiplied"),
        ("beach / gothic", "/ gothic", "divided by an embedding"),
        ("2 / beach", "/ beach", "divided by an embedding"),
        ("beach / 0", "/ 0", "divides by zero"),
        ("beach * (1/(1-1))", "/(1-1))", "divides by zero"),
        ("norm(2) * beach", "norm(2) * beach", "this is a number"),
        ("beach * 1e300 * (1e300 * 1e300)", "* 1e300)", "too large"),
    ],
)
def test_impossible_computations_are_refused_with_a_caret(text, at, says):
    with pytest.raises(ExpressionError) as caught:
        parse_expression(text).evaluate(BOUND)
    assert says in str(caught.value)
    assert caret(caught.value) == at


def test_depth_and_length_are_guarded():
    deep = MAX_DEPTH
    parse_expression("(" * deep + "beach" + ")" * deep).evaluate(BOUND)
    parse_expression("-" * deep + "beach").evaluate(BOUND)
    for text in ("(" * 9000, "-" * 9000 + "beach", "norm(" * 1000, "(" * (deep + 1) + "beach" + ")" * (deep + 1)):
        with pytest.raises(ExpressionError, match=f"more than {MAX_DEPTH}"):
            parse_expression(text)
    with pytest.raises(ExpressionError, match="at most 10000 characters"):
        parse_expression("beach+" * 2000 + "beach")
    many = "+".join(["beach"] * 1500)  # long, not deep
    torch.testing.assert_close(parse_expression(many).evaluate(BOUND).embedding, 1500 * BOUND["beach"])


def test_embeddings_that_do_not_fit_are_refused():
    with pytest.raises(RecipeError, match="different encoders"):
        parse_expression("beach + other").evaluate({**BOUND, "other": torch.ones(2, D + 1)})
    with pytest.raises(RecipeError, match="contains NaN or Inf"):
        parse_expression("x").evaluate({"x": torch.full((1, D), float("nan"))})
    with pytest.raises(RecipeError, match="overflows in float16"):
        parse_expression("1000000*x").evaluate({"x": torch.ones(1, D, dtype=torch.float16)})


@settings(deadline=None)
@given(st.text(max_size=20) | st.text("beach+-*/().0norm ", max_size=30))
def test_any_text_is_read_or_refused(text):
    try:
        parse_expression(text)
    except ExpressionError:
        return


def test_names():
    check_name("beach_2")
    for name in ("norm", "mean", "2beach", "a-b", "", "é"):
        with pytest.raises(RecipeError):
            check_name(name)


def test_parsing_needs_no_torch():
    code = (
        "import sys; from wanscope.edit.expression import parse_expression; "
        "parse_expression('a + b'); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
