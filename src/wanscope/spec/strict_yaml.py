"""Strict reading of YAML, and therefore of JSON: the top level is a mapping, and no key occurs twice."""

from __future__ import annotations

from typing import Any

from wanscope.errors import RecipeError

STUDY = "a study", 'prompt: "a [red|blue] circle"'


def read_yaml(text: str, source: str = "the study", what: str = STUDY[0], example: str = STUDY[1]) -> dict[str, Any]:
    """Return the mapping in a YAML text. Raises RecipeError where it is not one, or where a key is written twice.

    source: what errors call the text. what, example: what errors call such a mapping, and one to paste.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            twice = next((k for i, k in enumerate(keys) if k in keys[:i]), None)
            if twice is not None:
                line = node.start_mark.line + 1
                raise RecipeError(f"{source}: {twice!r} is written twice in the block at line {line}", "", "keep one")
            return super().construct_mapping(node, deep)

    try:
        data = yaml.load(text, Loader=Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "not YAML"
        raise RecipeError(f"{source} cannot be read as YAML{place}", str(problem)) from None
    if not isinstance(data, dict):
        raise RecipeError(f"{source} is not {what}", f"{what} is a YAML mapping", example)
    return data
