"""The nodes of a parsed expression. `at` is where a node begins in the text, for carets; comparisons ignore it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Union


@dataclass(frozen=True)
class Number:
    value: float
    at: int = field(compare=False)


@dataclass(frozen=True)
class Name:
    name: str
    at: int = field(compare=False)


@dataclass(frozen=True)
class Call:
    function: str
    inside: Node
    at: int = field(compare=False)


@dataclass(frozen=True)
class Negative:
    inside: Node
    at: int = field(compare=False)


@dataclass(frozen=True)
class Chain:
    """Operands of one precedence, from left to right. operators[i] comes before operands[i + 1], at ats[i]."""

    operands: tuple[Node, ...]
    operators: tuple[str, ...]
    ats: tuple[int, ...] = field(compare=False)


Node = Union[Number, Name, Call, Negative, Chain]  # noqa: UP007  forward references


def walk(node: Node) -> Iterable[Node]:
    """Yield a node and all its descendants, from left to right."""
    yield node
    below = node.operands if isinstance(node, Chain) else (node.inside,) if isinstance(node, Call | Negative) else ()
    for child in below:
        yield from walk(child)
