"""Reading JSON that somebody else may have written: everything that cannot be used is a ValueError."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

DEEPEST = 64  # lists and mappings inside each other; what reads the result may recurse


def read_json(text: str | bytes) -> Any:
    """Return what a JSON text says. Raises ValueError where it is not JSON, or nested deeper than anything of ours."""
    try:
        data = json.loads(text)
    except RecursionError:
        raise ValueError("its lists and mappings are nested too deep") from None
    level, depth = _nested([data]), 0
    while level:
        depth += 1
        if depth > DEEPEST:
            raise ValueError("its lists and mappings are nested too deep")
        level = _nested(part for item in level for part in (item.values() if isinstance(item, dict) else item))
    return data


def _nested(values: Iterable[Any]) -> list[Any]:
    return [value for value in values if isinstance(value, dict | list)]
