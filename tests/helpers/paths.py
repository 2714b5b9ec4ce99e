"""Takes without a model for tests of analyses: paths whose groups differ in known ways."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from helpers import takes as plain
from wanscope.recipe import Recipe
from wanscope.study.expand import slug
from wanscope.study.study_folder import IndexRow, StudyFolder
from wanscope.take.store import Take
from wanscope.workspace import Workspace

Shift = Callable[[Mapping[str, str], np.ndarray], np.ndarray]


def write_study(
    folder: Path,
    slots: Mapping[str, tuple[str, ...]],
    seeds: int,
    shift: Shift | None = None,
    name: str = "made",
    **changes: Any,
) -> list[Take]:
    """Write a study with every combination of `slots` and seeds. shift: a function that changes a take's states."""
    from itertools import product

    space = Workspace.find(folder)
    rows, made = [], []
    original = plain.path_of
    for number, values in enumerate(product(*slots.values())):
        labels = dict(zip(slots, values, strict=True))
        for seed in range(seeds):
            recipe: Recipe = plain.recipe(seed, " ".join(["a", *values, "circle"]), labels=labels, **changes)

            def states(recipe: Recipe, labels: Mapping[str, str] = labels) -> np.ndarray:
                found = original(recipe)
                return found if shift is None else shift(labels, found).astype(np.float32)

            plain.path_of = states
            try:
                take = plain.write_take(space.takes, recipe)
            finally:
                plain.path_of = original
            made.append(take)
            readable = f"{slug('-'.join(values)) or 'only'}_seed{seed:02d}"
            rows.append(IndexRow(readable, take.id, number, seed, "complete", recipe.prompt, labels))
    StudyFolder(space, name).record(rows)
    return made
