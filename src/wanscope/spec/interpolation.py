"""Interpolation between keyframes: constant before the first key and after the last one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

INTERPOLATIONS = ("linear", "step", "cosine")


def value_at(keys: Sequence[tuple[float, float]], place: float, interpolate: str) -> float:
    """Return the value at a place.

    keys: (place, value), places ascending; of two keys at the same place the later one counts.
    interpolate: `linear`; `step`, which holds a value until the next key; or `cosine`, which eases in and out:
    (1 - cos(pi s)) / 2 at the fraction s of the way.
    """
    if place < keys[0][0]:
        return keys[0][1]
    for (start, a), (end, b) in pairwise(keys):
        if place < end:
            share = (place - start) / (end - start)
            if interpolate == "step":
                return a
            if interpolate == "cosine":
                share = (1 - math.cos(math.pi * share)) / 2
            return a + (b - a) * share
    return keys[-1][1]
