"""The parser of prompt templates, which turns a template's text into a tree. `docs/prompts.md` describes the language.

The parser keeps its own stack, so that the depth is limited by `MAX_DEPTH` and not by Python's recursion limit. The
number of variations is computed as soon as a bracket closes; nothing is expanded here.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from itertools import accumulate
from typing import NoReturn

from wanscope.errors import TemplateError, nearest

MAX_DEPTH = 200  # nested brackets and marks
MAX_CHARACTERS = 100_000  # of the longest variation; references to references could otherwise grow without bound
MAX_COUNT_BITS = 14_000  # the largest count that Python can print (4,300 digits)

SPECIAL = "\\[]()|@:"

_plain = re.compile(r"[^\\\[\]()|@:]+")
_name = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_number = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)")
_name_end = re.compile(r"\s*:\s*")
_word_before = re.compile(r"([^\s\\\[\]()|@:]*)\s*$")
_word_after = re.compile(r"\s*([^\s\\\[\]()|@:]*)")


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Literal:
    """Plain text with its escapes resolved."""

    text: str
    count = 1

    @property
    def size(self) -> int:
        return len(self.text)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Series:
    """A sequence of nodes. Independent choices multiply, and the first one varies slowest.

    size: an upper bound on the characters, and on the work, of one variation.
    """

    items: tuple[Node, ...]
    count: int
    size: int


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Choice:
    """`[a|b]` or `[@name: a|b]`. `ends[i]` is the number of variations in the branches 0 to i."""

    name: str
    named: bool
    position: int
    branches: tuple[Series, ...]
    sources: tuple[str, ...]
    ends: tuple[int, ...]
    count: int
    size: int


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Reference:
    """`@name`: the value of that slot in the same variation."""

    choice: Choice
    count = 1

    @property
    def size(self) -> int:
        return self.choice.size


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Marked:
    """`(words)` or `(words:1.5)`."""

    body: Series
    weight: float
    weighted: bool

    @property
    def count(self) -> int:
        return self.body.count

    @property
    def size(self) -> int:
        return self.body.size


Node = Literal | Choice | Reference | Marked


@dataclass(slots=True)
class _Frame:
    """A bracket, a mark or the whole template that is still open."""

    opener: str  # "[", "(" or "" for the template
    position: int
    items: list[Node] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    defined: list[str] = field(default_factory=list)  # names that the current branch defines
    # only for a bracket
    name: str = ""
    named: bool = False
    branches: list[Series] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    branch_start: int = 0
    # only for a mark: the position of its last ':' in the source, and how many items come before it
    colon: int | None = None
    colon_items: int = 0


@dataclass(slots=True)
class _Name:
    position: int
    choice: Choice | None = None  # None while its bracket is open
    hidden: bool = False  # defined inside an alternative that has ended


def parse_tree(source: str) -> tuple[Series, tuple[Choice, ...]]:
    """Return the tree of a template and its slots in order of appearance. Raises TemplateError and nothing else."""
    return _Parser(source).parse()


class _Parser:
    def __init__(self, source: str) -> None:
        self.source = source
        self.at = 0
        self.frames = [_Frame("", 0)]
        self.names: dict[str, _Name] = {}
        self.choices: list[Choice] = []
        self.anonymous = 0

    def parse(self) -> tuple[Series, tuple[Choice, ...]]:
        step = {"\\": self.escape, "[": self.open_bracket, "]": self.close_bracket, "(": self.open_mark}
        step |= {")": self.close_mark, "|": self.next_branch, "@": self.reference, ":": self.colon}
        while self.at < len(self.source):
            plain = _plain.match(self.source, self.at)
            if plain:
                self.frames[-1].text.append(plain.group())
                self.at = plain.end()
            else:
                step[self.source[self.at]]()
        frame = self.frames[-1]
        if frame.opener == "[":
            self.fail(
                "this '[' is never closed", r"add ']' after the last alternative, or write \[ for a literal '['", frame
            )
        if frame.opener == "(":
            self.fail(
                "this '(' is never closed; a '(' always marks words",
                r"add ')' after the marked words, or write \( and \) for literal parentheses",
                frame,
            )
        return self.finish_series(frame), tuple(sorted(self.choices, key=lambda choice: choice.position))

    def fail(self, why: str, fix: str, where: int | _Frame | None = None) -> NoReturn:
        position = self.at if where is None else where if isinstance(where, int) else where.position
        raise TemplateError(self.source, position, why, fix)

    # characters

    def escape(self) -> None:
        escaped = self.source[self.at + 1 : self.at + 2]
        if not escaped or escaped not in SPECIAL:
            what = f"'\\{escaped}' is not an escape" if escaped.strip() else "this backslash escapes nothing"
            self.fail(what, r"write \\ for a literal backslash; the escapes are \[ \] \( \) \| \@ \: \\")
        self.frames[-1].text.append(escaped)
        self.at += 2

    def colon(self) -> None:
        frame = self.frames[-1]
        if frame.opener == "(":
            self.flush(frame)
            frame.colon, frame.colon_items = self.at, len(frame.items)
        frame.text.append(":")
        self.at += 1

    def flush(self, frame: _Frame) -> None:
        if frame.text:
            frame.items.append(Literal("".join(frame.text)))
            frame.text = []

    def push(self, frame: _Frame) -> None:
        if len(self.frames) > MAX_DEPTH:
            self.fail(
                f"brackets and marks are nested more than {MAX_DEPTH} deep",
                r"close some of them earlier, or write \[ and \( for literal ones",
            )
        self.flush(self.frames[-1])
        self.frames.append(frame)

    def finish_series(self, frame: _Frame) -> Series:
        """Return what the frame holds since its last separator as one Series, after checking both bounds."""
        self.flush(frame)
        size = 1 + sum(item.size for item in frame.items)
        if size > MAX_CHARACTERS:
            self.fail(
                f"a prompt made from this can be longer than {MAX_CHARACTERS:,} characters",
                "shorten it; Wan reads at most 512 tokens of a prompt, about 2,500 characters",
                frame,
            )
        count = math.prod(item.count for item in frame.items)
        if count.bit_length() > MAX_COUNT_BITS:
            self.fail(
                f"this has more than 10^{int(MAX_COUNT_BITS * math.log10(2))} variations",
                "use fewer alternatives or brackets",
                frame,
            )
        series = Series(tuple(frame.items), count, size)
        frame.items = []
        return series

    # alternatives

    def open_bracket(self) -> None:
        frame = _Frame("[", self.at)
        self.push(frame)
        self.at += 1
        if self.source.startswith("@", self.at):
            self.definition(frame)
        if not frame.named:
            self.anonymous += 1
            frame.name = str(self.anonymous)
        frame.branch_start = self.at

    def definition(self, frame: _Frame) -> None:
        """`[@name:` starts a named slot; `[@name` without the colon is a reference in an ordinary alternative."""
        name = _name.match(self.source, self.at + 1)
        colon = _name_end.match(self.source, name.end()) if name else None
        if name is None or colon is None:
            return
        if name.group() in self.names:
            earlier = self.names[name.group()].position
            self.fail(
                f"the name @{name.group()} is defined already, at character {earlier + 1}",
                f"write @{name.group()} to use that value again, or give this slot another name",
            )
        frame.name, frame.named = name.group(), True
        self.names[frame.name] = _Name(frame.position)
        self.at = colon.end()

    def end_branch(self, frame: _Frame) -> None:
        frame.sources.append(self.source[frame.branch_start : self.at])
        frame.branches.append(self.finish_series(frame))
        for name in frame.defined:
            self.names[name].hidden = True
        frame.defined = []
        self.at += 1
        frame.branch_start = self.at

    def next_branch(self) -> None:
        frame = self.frames[-1]
        if frame.opener == "[":
            self.end_branch(frame)
            return
        if frame.opener == "(":
            self.fail(
                "alternatives inside a mark need their own brackets",
                r"([red|blue]) instead of (red|blue), or \| for a literal '|'",
            )
        before = _word_before.search(self.source[max(0, self.at - 40) : self.at])
        after = _word_after.match(self.source, self.at + 1, self.at + 40)
        pair = f"{before[1] if before else ''}|{after[1] if after else ''}"
        self.fail(
            "a '|' separates alternatives inside [ ], and no '[' is open here", rf"[{pair}], or \| for a literal '|'"
        )

    def close_bracket(self) -> None:
        frame = self.frames[-1]
        if frame.opener != "[":
            self.wrong_closer(frame, "]")
        if not frame.branches and not self.source[frame.branch_start : self.at].strip():
            self.fail(
                "these brackets contain no alternatives",
                r"[red|blue], or [|big ] to choose between nothing and 'big ', or \[\] for literal brackets",
                frame,
            )
        self.end_branch(frame)
        ends = tuple(accumulate(branch.count for branch in frame.branches))
        size = 1 + max(branch.size for branch in frame.branches)
        choice = Choice(
            frame.name, frame.named, frame.position, tuple(frame.branches), tuple(frame.sources), ends, ends[-1], size
        )
        self.choices.append(choice)
        self.frames.pop()
        self.frames[-1].items.append(choice)
        if frame.named:
            self.names[frame.name].choice = choice
            self.frames[-1].defined.append(frame.name)

    def wrong_closer(self, frame: _Frame, closer: str) -> NoReturn:
        if not frame.opener:
            self.fail(f"this '{closer}' closes nothing", rf"remove it, or write \{closer} for a literal '{closer}'")
        other = "]" if frame.opener == "[" else ")"
        self.fail(
            f"this '{closer}' comes while the '{frame.opener}' at character {frame.position + 1} is still open",
            rf"close that first with '{other}', or write \{frame.opener} if it is literal, or \{closer} if this one is",
        )

    def reference(self) -> None:
        match = _name.match(self.source, self.at + 1)
        if match is None:
            self.fail(
                "'@' must be followed by the name of a slot (letters a-z, digits and _, not starting with a digit)",
                r"@who, defined before it as [@who: two men|two women], or \@ for a literal '@'",
            )
        known = self.names.get(match.group())
        if known is None or known.hidden or known.choice is None:
            self.bad_reference(match.group(), known)
        self.flush(self.frames[-1])
        self.frames[-1].items.append(Reference(known.choice))
        self.at = match.end()

    def bad_reference(self, name: str, known: _Name | None) -> NoReturn:
        definition = f"[@{name}: two men|two women]"
        literal = r"or \@ for a literal '@'"
        if known is not None and known.hidden:
            self.fail(
                f"@{name} is defined inside one alternative (character {known.position + 1}), so it has no value when"
                " another one is chosen",
                f"define [@{name}: ...] before and outside that alternative, {literal}",
            )
        if known is not None:
            self.fail(f"@{name} is used inside its own definition", f"use another name here, {literal}")
        if re.search(rf"\[@{name}\s*:", self.source[self.at :]):
            self.fail(
                f"@{name} is used before it is defined", f"swap them: [@{name}: ...] first, @{name} after it, {literal}"
            )
        if self.source[self.at - 1 : self.at] == "[":
            self.fail(f"no slot is named @{name}; to define one, put a ':' after it", f"{definition}, {literal}")
        usable = [other for other, state in self.names.items() if state.choice is not None and not state.hidden]
        known_names = f" ({nearest(name, usable)})" if usable else ""
        self.fail(f"no slot is named @{name}{known_names}", f"define it before its use, as {definition}, {literal}")

    # marks

    def open_mark(self) -> None:
        self.push(_Frame("(", self.at))
        self.at += 1

    def close_mark(self) -> None:
        frame = self.frames[-1]
        if frame.opener != "(":
            self.wrong_closer(frame, ")")
        self.flush(frame)
        weight = 1.0
        if frame.colon is not None:
            weight = self.weight(frame.colon + 1)
            del frame.items[frame.colon_items :]
        held = [item for item in frame.items if not (isinstance(item, Literal) and not item.text.strip())]
        if not held:
            self.fail("this mark contains no words", r"(word), or \(\) for literal parentheses", frame)
        if len(held) == 1 and isinstance(held[0], Marked):
            self.fail(
                "these words are marked twice; doubled parentheses are not a weight here",
                r"(word) to mark it, (word:1.2) to weight it, or \( and \) for literal parentheses",
                frame,
            )
        self.frames.pop()
        parent = self.frames[-1]
        parent.defined += frame.defined
        parent.items.append(Marked(self.finish_series(frame), weight, frame.colon is not None))
        self.at += 1

    def weight(self, start: int) -> float:
        raw = self.source[start : self.at]
        number = raw.strip()
        position = start + len(raw) - len(raw.lstrip()) if number else start
        literal = r"(words:1.5), or \: for a literal ':' inside a mark"
        shown = number if len(number) <= 40 else number[:37] + "..."
        if number.lower().lstrip("+-") in ("nan", "inf", "infinity"):
            self.fail(f"a weight must be a finite number above zero, not {number}", literal, position)
        if not _number.fullmatch(number):
            what = f"{shown!r} is not a weight" if number else "the weight after ':' is missing"
            self.fail(f"{what}; in a mark, the last ':' must be followed by a plain number", literal, position)
        value = float(number)
        if not (math.isfinite(value) and value > 0):
            self.fail(
                f"a weight must be a finite number above zero, not {shown}",
                "(words:0.1) for a small weight; to leave words out, use an empty alternative: [(words)|]",
                position,
            )
        return value
