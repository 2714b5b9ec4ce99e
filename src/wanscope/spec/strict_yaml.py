"""Strict reading of YAML, and therefore of JSON: the top level is a mapping, and no key occurs twice.

A text may come from somebody else. What would take long or cannot be written out again is refused: deep nesting, and
aliases that multiply or contain themselves.
"""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

from wanscope.errors import RecipeError

STUDY = "a study", 'prompt: "a [red|blue] circle"'
DEEPEST = 64  # blocks inside blocks
MOST_VALUES = 1_000_000  # counted where aliases repeat them, too


def read_yaml(text: str, source: str = "the study", what: str = STUDY[0], example: str = STUDY[1]) -> dict[str, Any]:
    """Return the mapping in a YAML text. Raises RecipeError where it is not one, or where a key is written twice.

    source: what errors call the text. what, example: what errors call such a mapping, and one to paste.
    """
    import yaml

    def refused(node: Any, problem: str, fix: str = "") -> RecipeError:
        mark = node.start_mark
        place = f" at line {mark.line + 1}, column {mark.column + 1}"
        return RecipeError(f"{source} cannot be read as YAML{place}", problem, fix)

    class Loader(yaml.SafeLoader):
        depth = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            self.depth += 1
            if self.depth > DEEPEST:
                raise refused(self.peek_event(), f"blocks are nested more than {DEEPEST} deep")
            node = super().compose_node(parent, index)
            self.depth -= 1
            return node

        def construct_object(self, node: Any, deep: bool = False) -> Any:
            try:
                return super().construct_object(node, deep)
            except (
                ValueError,
                LookupError,
                TypeError,
                AttributeError,
                OverflowError,
            ):  # a date of month 13, for example
                kind = str(node.tag).rpartition(":")[2]
                raise refused(node, f"this is not a valid {kind}", "put it into quotes, if it is text") from None

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            seen: set[Any] = set()
            for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
                key = self.construct_object(key_node, deep=True)
                if not isinstance(key, Hashable):
                    continue  # its error comes below
                if key in seen:
                    line = node.start_mark.line + 1
                    raise RecipeError(f"{source}: {key!r} is written twice in the block at line {line}", "", "keep one")
                seen.add(key)
            return super().construct_mapping(node, deep)

    try:
        data = yaml.load(text, Loader=Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "not YAML"
        raise RecipeError(f"{source} cannot be read as YAML{place}", str(problem)) from None
    if not isinstance(data, dict):
        raise RecipeError(f"{source} is not {what}", f"{what} is a YAML mapping", example)
    if _values(data, {}) > MOST_VALUES:
        why = "it is too long, or its aliases (*name) repeat or contain themselves"
        raise RecipeError(f"{source} has more than {MOST_VALUES} values", why)
    return data


def read_yaml_file(path: Path, source: str = "", what: str = STUDY[0], example: str = STUDY[1]) -> dict[str, Any]:
    """Return the mapping in a YAML file. Raises RecipeError as `read_yaml`, and where it is not text."""
    source = source or str(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = "there is no such file" if isinstance(error, FileNotFoundError) else str(error)
        raise RecipeError(f"{source} cannot be read", why) from None
    return read_yaml(text, source, what, example)


def _values(data: Any, known: dict[int, float]) -> float:
    """Return how many values there are when every alias is written out: infinitely many where one contains itself."""
    if not isinstance(data, dict | list | tuple | set):
        return 1
    if id(data) not in known:
        known[id(data)] = float("inf")  # until it is counted: whoever asks meanwhile is inside it
        parts = [*data, *data.values()] if isinstance(data, dict) else data
        known[id(data)] = 1 + sum(_values(part, known) for part in parts)
    return known[id(data)]
