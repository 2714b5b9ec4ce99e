"""A take's recipe as a study, so that it can be made with changes: other seeds, another model, a second pass."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from wanscope.prompt.template import escape
from wanscope.recipe import Recipe


def template_of(recipe: Recipe) -> str:
    """Return a template with one variation: the recipe's prompt, with its marked words marked again."""
    opening: dict[int, list[str]] = {}
    closing: dict[int, list[str]] = {}
    # Outer marks open first and close last.
    for mark in sorted(recipe.marks, key=lambda mark: (mark.start, -mark.end)):
        opening.setdefault(mark.start, []).append("(")
        weight = f":{Decimal(repr(mark.weight)):f}" if mark.weighted else ""
        closing.setdefault(mark.end, []).insert(0, f"{weight})")
    pieces = []
    for i in range(len(recipe.prompt) + 1):
        pieces += [*closing.get(i, ()), *opening.get(i, ()), escape(recipe.prompt[i : i + 1])]
    return "".join(pieces)


def study_data(recipe: Recipe) -> dict[str, Any]:
    """Return the mapping of a study that has this recipe as its only take."""
    data = recipe.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    model, labels = data.pop("model"), data.pop("labels", None)  # a single variation has no slots to label
    for key in ("marks", "seed", "version"):
        data.pop(key, None)
    del labels
    data |= {"model": model["name"], "prompt": template_of(recipe), "seeds": [recipe.seed], "negative": recipe.negative}
    if "components" in model:
        data["components"] = model["components"]
    for lora in data.get("loras", ()):
        lora.pop("sha256", None)  # recomputed from the file that is there now
    if "edits" in data:
        data |= {"edits": [_without_hashes(edit) for edit in data["edits"]], "baseline": False}
    return data


def _without_hashes(data: Any) -> Any:
    if not isinstance(data, dict):
        return data
    return {key: _without_hashes(value) for key, value in data.items() if key != "sha256"}
