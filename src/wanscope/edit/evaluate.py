"""Evaluation of parsed expressions over embeddings. The operations are defined in `expression.py`.

Shape suffixes: L tokens, D dimension; a mean token is [1, D] until it is combined with an embedding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from wanscope.edit.embedding_algebra import Result, alignment_note, unit_rows
from wanscope.edit.expression_nodes import Call, Chain, Name, Negative, Node, Number
from wanscope.edit.token_matrix import check_same_dim, exact, padded, real_tokens, rounded
from wanscope.errors import ExpressionError


@dataclass(frozen=True)
class _Rows:
    """An embedding [L, D], or (spread) one token [1, D] that is broadcast over the rows of the other operand."""

    rows_LD: Tensor
    spread: bool = False


_Value = float | _Rows


@torch.no_grad()
def evaluate(text: str, root: Node, names: Sequence[str], bindings: Mapping[str, Tensor]) -> Result:
    """Compute the embedding of an expression; see `Expression.evaluate` for errors.

    text: the expression as written, for errors. root: its tree. names: those it uses, in order of appearance, each
    bound to a token matrix [L, D] in `bindings`. L may differ; the result has the largest L.
    """
    used = [bindings[name] for name in names]
    check_same_dim(used, [f"the embedding {name!r}" for name in names])
    device, dtype = used[0].device, reduce(torch.promote_types, (e.dtype for e in used))
    rows = {name: exact(e).to(device) for name, e in zip(names, used, strict=True)}
    evaluation = _Evaluation(text, rows)
    value = evaluation.of(root)
    if not isinstance(value, _Rows):  # every operation on an embedding gives an embedding
        raise AssertionError("an expression with a name is an embedding")
    return Result(rounded(value.rows_LD, dtype).clone(), alignment_note(sorted(evaluation.aligned)))


class _Evaluation:
    def __init__(self, text: str, rows: Mapping[str, Tensor]) -> None:
        self.text, self.rows = text, rows
        self.aligned: set[int] = set()  # the token counts of operands that had to be aligned

    def of(self, node: Node) -> _Value:
        if isinstance(node, Number):
            return node.value
        if isinstance(node, Name):
            return _Rows(self.rows[node.name])
        if isinstance(node, Negative):
            return self.scaled(self.of(node.inside), -1.0)
        if isinstance(node, Call):
            return self.call(node)
        assert isinstance(node, Chain)
        value = self.of(node.operands[0])
        for operator, operand, at in zip(node.operators, node.operands[1:], node.ats, strict=True):
            value = self.combined(value, operator, self.of(operand), at)
        return value

    def call(self, node: Call) -> _Rows:
        value = self.of(node.inside)
        if not isinstance(value, _Rows):
            raise ExpressionError(self.text, node.at, f"{node.function}() takes an embedding, and this is a number")
        if node.function == "norm":
            return _Rows(unit_rows(value.rows_LD), value.spread)
        if value.spread:
            return value
        return _Rows(value.rows_LD[: max(1, real_tokens(value.rows_LD))].mean(0, keepdim=True), spread=True)

    def combined(self, a: _Value, operator: str, b: _Value, at: int) -> _Value:
        if isinstance(a, _Rows) and isinstance(b, _Rows):
            if operator == "/":
                raise ExpressionError(self.text, at, "an embedding cannot be divided by an embedding, only by a number")
            return self.elementwise(a, operator, b)
        if operator == "/":
            if isinstance(b, _Rows):
                raise ExpressionError(self.text, at, "a number cannot be divided by an embedding")
            if b == 0:
                raise ExpressionError(self.text, at, "this divides by zero")
            return self.finite(a / b, at) if not isinstance(a, _Rows) else _Rows(a.rows_LD / b, a.spread)
        if operator == "*":
            if isinstance(a, _Rows):
                return self.scaled(a, b) if not isinstance(b, _Rows) else self.elementwise(a, operator, b)
            return self.scaled(b, a) if isinstance(b, _Rows) else self.finite(a * b, at)
        if isinstance(a, _Rows) or isinstance(b, _Rows):
            what = "added" if operator == "+" else "subtracted"
            raise ExpressionError(
                self.text, at, f"numbers and embeddings cannot be {what}, only multiplied", "2 * beach"
            )
        return self.finite(a + b if operator == "+" else a - b, at)

    def scaled(self, value: _Value, factor: float) -> _Value:
        return _Rows(factor * value.rows_LD, value.spread) if isinstance(value, _Rows) else factor * value

    def finite(self, value: float, at: int) -> float:
        if not math.isfinite(value):
            raise ExpressionError(self.text, at, "this number is too large")
        return value

    def elementwise(self, a: _Rows, operator: str, b: _Rows) -> _Rows:
        counts = {len(x.rows_LD) for x in (a, b) if not x.spread}
        if len(counts) > 1:
            self.aligned |= counts
        # a mean token is broadcast over the rows of the other operand
        a_LD, b_LD = (x.rows_LD if x.spread else padded(x.rows_LD, max(counts)) for x in (a, b))
        out_LD = a_LD + b_LD if operator == "+" else a_LD - b_LD if operator == "-" else a_LD * b_LD
        return _Rows(out_LD, a.spread and b.spread)
