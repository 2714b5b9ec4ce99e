"""A prompt template and its variations: `a [red|blue] (ball:1.5)` is two prompts, each with one marked word.

Expansion is lazy: `count` is arithmetic on the tree, and any variation can be made from its index. `docs/prompts.md`
describes the language.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate

from wanscope.errors import RecipeError
from wanscope.prompt.grammar import SPECIAL, Choice, Literal, Marked, Node, Reference, Series, parse_tree

_no_space_before = ",.;:!?"
_space = re.compile(r"\s+")
_special = re.compile(f"[{re.escape(SPECIAL)}]")


@dataclass(frozen=True)
class Mark:
    """Marked words of one variation: `text` is the variation's `text[start:end]`, without surrounding spaces.

    weighted: whether the weight is another than 1.
    """

    text: str
    start: int
    end: int
    weight: float = 1.0
    weighted: bool = False


@dataclass(frozen=True)
class Variation:
    """One prompt of a template.

    bindings: the value of each slot, in order of appearance: named slots by name, others by number ("1", "2",
    ... counted over the whole template, so a number means the same slot in every variation). A slot inside an
    alternative that was not chosen has no binding. Values have no surrounding spaces.
    marks: in reading order, outer ones before inner ones.
    """

    index: int
    text: str
    bindings: dict[str, str]
    marks: tuple[Mark, ...]


@dataclass(frozen=True)
class Slot:
    """One bracket of a template.

    values: each alternative as its binding reads, or as written in the template where it contains further brackets or
    names.
    count: the number of variations of the bracket alone, including nested ones.
    """

    name: str
    named: bool
    values: tuple[str, ...]
    count: int
    position: int


@dataclass(frozen=True)
class Template:
    """A parsed template; make one with `parse`. `slots` are in order of appearance."""

    source: str
    count: int
    slots: tuple[Slot, ...]
    _tree: Series = field(repr=False, compare=False)

    def variation(self, index: int) -> Variation:
        """Return the variation with this index, counted from 0. The cost depends on the template's length only.

        Raises RecipeError where the index is out of range.
        """
        if not 0 <= index < self.count:
            have = "only variation 0" if self.count == 1 else f"variations 0 to {self.count - 1}"
            raise RecipeError(f"there is no variation {index}", f"the template has {have}", "an index in that range")
        return _render(self._tree, index)

    def expand(self) -> Iterator[Variation]:
        """Yield all variations in order, making one at a time; the first slot varies slowest."""
        index = 0
        while index < self.count:
            yield _render(self._tree, index)
            index += 1


def parse(template: str) -> Template:
    """Parse a template. Raises TemplateError, pointing at the character, where it is not valid."""
    tree, choices = parse_tree(template)
    slots = tuple(
        Slot(choice.name, choice.named, tuple(_values(choice)), choice.count, choice.position) for choice in choices
    )
    return Template(template, tree.count, slots, tree)


def count(template: str) -> int:
    """Return the number of variations without making any. Raises TemplateError where the template is not valid."""
    return parse(template).count


def expand(template: str) -> Iterator[Variation]:
    """Return a lazy iterator over the variations of a template.

    Raises TemplateError immediately, not on iteration, where the template is not valid.
    """
    return parse(template).expand()


def escape(text: str) -> str:
    """Return a template that produces exactly this text, wherever in a template it is inserted."""
    return _special.sub(r"\\\g<0>", text)


def _values(choice: Choice) -> Iterator[str]:
    for branch, source in zip(choice.branches, choice.sources, strict=True):
        flat = _plain_text(branch)
        yield (source if flat is None else flat).strip()


def _plain_text(series: Series) -> str | None:
    """Return the text of a series that has only one variation and uses no other slot, or else None."""
    pieces: list[str] = []
    pending: list[Node] = list(reversed(series.items))
    while pending:
        node = pending.pop()
        if isinstance(node, Literal):
            pieces.append(node.text)
        elif isinstance(node, Marked):
            pending.extend(reversed(node.body.items))
        else:
            return None
    return "".join(pieces)


@dataclass(slots=True)
class _Span:
    """The range of a slot or mark in the text that is being made."""

    start: int
    end: int = -1
    mark: Marked | None = None


def _render(tree: Series, index: int) -> Variation:
    """Render the variation: read `index` as a mixed-radix number with one digit for each choice of a branch."""
    pieces: list[str] = []
    length = 0
    edges: list[int] = []  # where brackets and references begin and end; spaces are tidied only there
    slots: dict[str, _Span] = {}
    marks: list[_Span] = []
    chosen: dict[Choice, int] = {}
    todo: list[tuple[Node | Series | _Span, int]] = [(tree, index)]  # what to write next, and its digit
    while todo:
        node, digit = todo.pop()
        if isinstance(node, Literal):
            pieces.append(node.text)
            length += len(node.text)
        elif isinstance(node, Series):
            for item in reversed(node.items):
                digit, own = divmod(digit, item.count)
                todo.append((item, own))
        elif isinstance(node, Marked):
            span = _Span(length, mark=node)
            marks.append(span)
            todo += [(span, 0), (node.body, digit)]
        elif isinstance(node, Choice):
            span = _Span(length)
            edges.append(length)
            chosen[node] = digit
            slots.setdefault(node.name, span)  # a reference renders the slot again; the first span counts
            branch = bisect_right(node.ends, digit)
            before = node.ends[branch - 1] if branch else 0
            todo += [(span, 0), (node.branches[branch], digit - before)]
        elif isinstance(node, Reference):
            todo.append((node.choice, chosen[node.choice]))
        else:
            node.end = length
            if node.mark is None:
                edges.append(length)
    text, moved = _tidy("".join(pieces), edges)
    bindings = {name: text[moved[span.start] : moved[span.end]].strip() for name, span in slots.items()}
    return Variation(index, text, bindings, _finish_marks(text, moved, marks))


def _finish_marks(text: str, moved: list[int], spans: list[_Span]) -> tuple[Mark, ...]:
    """Return the marks without surrounding spaces.

    Empty marks are dropped; two marks on the same words become one, and their weights multiply.
    """
    found: dict[tuple[int, int], Mark] = {}
    for span in spans:
        assert span.mark is not None
        start, end = moved[span.start], moved[span.end]
        words = text[start:end].strip()
        if not words:
            continue
        start += len(text[start:end]) - len(text[start:end].lstrip())
        end = start + len(words)
        same = found.get((start, end))
        weight = span.mark.weight * (same.weight if same else 1.0)
        # A weight of 1 changes nothing: `(cat:1.0)` and `(cat)` are one take.
        found[start, end] = Mark(words, start, end, weight, weight != 1.0)
    return tuple(found.values())


def _tidy(text: str, edges: list[int]) -> tuple[str, list[int]]:
    """Remove the spaces that brackets leave behind; return the text and where each position of `text` has moved.

    Only runs of spaces that touch an edge of a bracket change. Where an edge splits a run, one part of it is kept; at
    the beginning and end of the text no part is kept, nor where a bracket ends right before a punctuation mark.
    """
    edges = sorted(set(edges))
    removed = bytearray(len(text))
    for run in _space.finditer(text) if edges else ():
        start, end = run.span()
        cuts = edges[bisect_left(edges, start) : bisect_right(edges, end)]
        if not cuts:
            continue
        removed[start:end] = b"\1" * (end - start)
        if start == 0 or end == len(text) or (cuts[-1] == end and text[end] in _no_space_before):
            continue
        parts = [part for part in zip([start, *cuts], [*cuts, end], strict=True) if part[0] < part[1]]
        kept = max(parts, key=lambda part: text.count("\n", *part))  # the first, unless another breaks the line
        removed[kept[0] : kept[1]] = bytes(kept[1] - kept[0])
    moved = [position - before for position, before in enumerate(accumulate(removed, initial=0))]
    return "".join(character for character, drop in zip(text, removed, strict=True) if not drop), moved
