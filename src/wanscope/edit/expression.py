"""Expressions over embeddings: `beach + 0.5*(gothic - regular)`. The parser is hand-written; nothing is passed to eval.

    sum      := product (("+" | "-") product)*
    product  := signed (("*" | "/") signed)*
    signed   := ("+" | "-") signed | atom
    atom     := number | name | ("norm" | "mean") "(" sum ")" | "(" sum ")"

A name is bound to a prompt's or a stored embedding when the expression is evaluated. Values are numbers and embeddings:

    embedding + - * embedding    element by element, the shorter one aligned by rows of zeros
    number * embedding, embedding / number
    norm(x)    x with every token scaled to length 1; tokens that are zero stay zero
    mean(x)    the mean token of x; combined with an embedding, it is broadcast over that embedding's tokens

A number cannot be added to an embedding, and nothing can be divided by an embedding. Parsing does not need torch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from wanscope.edit.expression_nodes import Call, Chain, Name, Negative, Node, Number, walk
from wanscope.errors import ExpressionError, RecipeError, nearest

if TYPE_CHECKING:
    from torch import Tensor

    from wanscope.edit.embedding_algebra import Result

MAX_DEPTH = 50  # of nested parentheses, functions and signs
MAX_CHARACTERS = 10_000
FUNCTIONS = ("norm", "mean")

_token = re.compile(
    r"\s*(?:(?P<number>(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)|(?P<name>[A-Za-z_][A-Za-z0-9_]*)|(?P<sign>[-+*/()]))"
)
_space = re.compile(r"\s*")


@dataclass(frozen=True)
class Expression:
    """A parsed expression. names: those it uses, in order of appearance; each must be bound when it is evaluated."""

    text: str = field(compare=False)
    root: Node
    names: tuple[str, ...]

    def evaluate(self, bindings: Mapping[str, Tensor]) -> Result:
        """Return the embedding that the expression denotes, in the dtype of the embeddings bound to its names.

        bindings: token matrices [L, D] by name, which are not changed; L may differ. Names that the expression does not
        use are ignored. Raises ExpressionError (with a caret) for a name that is not bound and for what cannot be
        computed; RecipeError for embeddings that have different dimensions or are not finite.
        """
        from wanscope.edit.evaluate import evaluate

        self.check_names(bindings)
        return evaluate(self.text, self.root, self.names, bindings)

    def check_names(self, known: Iterable[str]) -> None:
        """Raise ExpressionError for the first name of the expression that is not in `known`."""
        known = set(known)
        for node in walk(self.root):
            if isinstance(node, Name) and node.name not in known:
                hint = nearest(node.name, known) if known else "no name is bound"
                raise ExpressionError(self.text, node.at, f"{node.name!r} is not bound to an embedding ({hint})")

    def __str__(self) -> str:
        return _written(self.root)


def parse_expression(text: str) -> Expression:
    """Parse an expression. Raises ExpressionError, with a caret."""
    if len(text) > MAX_CHARACTERS:
        raise ExpressionError(text, MAX_CHARACTERS, f"an expression has at most {MAX_CHARACTERS} characters")
    parser = _Parser(text)
    root = parser.sum(0)
    parser.end()
    names = tuple(dict.fromkeys(node.name for node in walk(root) if isinstance(node, Name)))
    if not names:
        raise ExpressionError(text, 0, "it does not name an embedding", "beach + 0.5*(gothic - regular)")
    return Expression(text, root, names)


def check_name(name: str) -> None:
    """Raise RecipeError for a name that cannot be used in an expression."""
    if name in FUNCTIONS:
        raise RecipeError(f"{name!r} cannot name an embedding", "it is a function of expressions", f"{name}_1")
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise RecipeError(
            f"{name!r} cannot name an embedding",
            "a name consists of the letters a-z and A-Z, digits and '_', and does not begin with a digit",
            re.sub(r"\W+", "_", name, flags=re.ASCII).lstrip("0123456789") or "beach",
        )


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0  # after the spaces before the next token
        self.kind, self.word = "", ""
        self.next_at = 0
        self.advance()

    def advance(self) -> None:
        match = _token.match(self.text, self.next_at)
        if match:
            self.kind = match.lastgroup or ""
            self.word = match[self.kind]
            self.at, self.next_at = match.start(self.kind), match.end()
            return
        spaces = _space.match(self.text, self.next_at)
        self.at = spaces.end() if spaces else self.next_at
        self.kind, self.word = "", self.text[self.at : self.at + 1]
        if self.word:
            hint = "write * to multiply and parentheses to group"
            allowed = "numbers, names, + - * /, parentheses, norm() and mean()"
            self.fail(f"{self.word!r} is not allowed here; an expression consists of {allowed}", hint)

    def fail(self, why: str, fix: str = "") -> None:
        raise ExpressionError(self.text, self.at, why, fix)

    def end(self) -> None:
        if self.kind == "sign" and self.word == ")":
            self.fail("this ')' has no matching '('")
        if self.kind:
            self.fail(f"an operator is missing before {self.word!r}", f"* {self.word}")

    def chain(self, signs: str, below: Callable[[int], Node], depth: int) -> Node:
        operands, operators, ats = [below(depth)], [], []
        while self.kind == "sign" and self.word in signs:
            operators.append(self.word)
            ats.append(self.at)
            self.advance()
            operands.append(below(depth))
        return Chain(tuple(operands), tuple(operators), tuple(ats)) if operators else operands[0]

    def sum(self, depth: int) -> Node:
        return self.chain("+-", self.product, depth)

    def product(self, depth: int) -> Node:
        return self.chain("*/", self.signed, depth)

    def signed(self, depth: int) -> Node:
        self.guard(depth)
        if self.kind == "sign" and self.word in "+-":
            sign, at = self.word, self.at
            self.advance()
            inside = self.signed(depth + 1)
            return Negative(inside, at) if sign == "-" else inside
        return self.atom(depth)

    def atom(self, depth: int) -> Node:
        at, word = self.at, self.word
        if self.kind == "number":
            value = float(word)
            if not math.isfinite(value):
                self.fail(f"{word} is too large")
            self.advance()
            return Number(value, at)
        if self.kind == "name":
            self.advance()
            called = self.kind == "sign" and self.word == "("
            if word not in FUNCTIONS:
                if called:
                    self.at = at
                    self.fail(f"{word!r} is not a function; there are norm() and mean()", f"{word} * (...)")
                return Name(word, at)
            if not called:
                self.at = at
                self.fail(f"{word!r} is a function and needs parentheses", f"{word}(...)")
            return Call(word, self.parentheses(depth), at)
        if self.kind == "sign" and word == "(":
            return self.parentheses(depth)
        what = f"before {word!r}" if word else "at the end"
        self.fail(f"a number, a name or '(' is missing {what}")
        raise AssertionError

    def parentheses(self, depth: int) -> Node:
        opened = self.at
        self.guard(depth + 1)
        self.advance()
        inside = self.sum(depth + 1)
        if not (self.kind == "sign" and self.word == ")"):
            if self.kind:
                self.fail(f"an operator or ')' is missing before {self.word!r}")
            self.at = opened
            self.fail("this '(' is never closed")
        self.advance()
        return inside

    def guard(self, depth: int) -> None:
        if depth > MAX_DEPTH:
            self.fail(f"parentheses, functions and signs are nested more than {MAX_DEPTH} deep")


def _written(node: Node, tight: bool = False) -> str:
    """Return a node as text, with the parentheses that it needs. tight: whether a chain needs parentheses here."""
    if isinstance(node, Number):
        return f"{node.value:g}" if float(f"{node.value:g}") == node.value else repr(node.value)
    if isinstance(node, Name):
        return node.name
    if isinstance(node, Call):
        return f"{node.function}({_written(node.inside)})"
    if isinstance(node, Negative):
        return f"-{_written(node.inside, tight=True)}"
    is_sum = node.operators[0] in "+-"
    parts = [_operand(node.operands[0], is_sum)]
    for operator, operand in zip(node.operators, node.operands[1:], strict=True):
        parts.append(f" {operator} " if is_sum else operator)
        parts.append(_operand(operand, is_sum))
    text = "".join(parts)
    return f"({text})" if tight else text


def _operand(node: Node, in_sum: bool) -> str:
    """Return an operand of a chain as text. A product in a sum needs no parentheses; every other chain does."""
    if isinstance(node, Chain):
        bare = in_sum and node.operators[0] in "*/"
        return _written(node, tight=not bare)
    return _written(node)
