"""Reading JSON that somebody else may have written: everything that cannot be used is a ValueError."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

SURROGATE = re.compile(r"\\u[dD][89a-fA-F]|[\ud800-\udfff]")
DEEPEST = 64  # lists and mappings inside each other; what reads the result may recurse


def read_json(text: str | bytes, *, finite: bool = False) -> Any:
    """Return what a JSON text says. Raises ValueError where it is not JSON, or nested deeper than anything of ours.

    Half a character (a surrogate alone), which no file can hold as text, is refused too; with `finite`, so are NaN and
    Infinity, which are not JSON but which Python writes.
    """
    try:
        data = json.loads(text, parse_constant=_refused if finite else None)
    except RecursionError:
        raise ValueError("its lists and mappings are nested too deep") from None
    if SURROGATE.search(text if isinstance(text, str) else text.decode(errors="replace")):
        json.dumps(data, ensure_ascii=False).encode()  # its error is a ValueError
    level, depth = _nested([data]), 0
    while level:
        depth += 1
        if depth > DEEPEST:
            raise ValueError("its lists and mappings are nested too deep")
        level = _nested(part for item in level for part in (item.values() if isinstance(item, dict) else item))
    return data


def _refused(name: str) -> Any:
    raise ValueError(f"it contains {name}, which is not a number")


def _nested(values: Iterable[Any]) -> list[Any]:
    return [value for value in values if isinstance(value, dict | list)]
