"""The catalogue as the nodes use it: in ComfyUI's user folder, and never in the way of a result."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from wanscope.errors import CatalogBusy, CatalogDamaged, RequestError

if TYPE_CHECKING:
    from wanscope.catalog.catalog import Catalog

ENCODER = "comfyui"


def folder() -> Path | None:
    """ComfyUI's user folder for the catalogue; None outside ComfyUI, where it is the workspace's."""
    paths = sys.modules.get("folder_paths")
    return None if paths is None else Path(paths.get_user_directory()) / "wanscope"


def catalog() -> Catalog:
    """The catalogue. Raises RequestError where its database is not installed."""
    try:
        import duckdb  # noqa: F401
    except ImportError:
        raise RequestError(
            "the catalogue needs duckdb", "it is not installed in ComfyUI's Python", "pip install -r requirements.txt"
        ) from None
    from wanscope.catalog.catalog import Catalog

    place = folder()
    if place is not None:
        place.mkdir(parents=True, exist_ok=True)
    return Catalog(place)


def recorded(operation: str, inputs: Sequence[Tensor], made: Tensor, parameters: Mapping[str, Any]) -> str:
    """Records an operation whose result is at hand, in the catalogue; a sentence on what became of it.

    The catalogue computes the result itself from what it stores, so that it can be computed again from there.
    """
    try:
        stored = catalog().compute(operation, [t.detach().cpu() for t in inputs], **parameters)
    except (CatalogBusy, CatalogDamaged, RequestError) as error:
        return f"Not recorded in the catalogue: {error.what}."
    same = stored.tensor().shape == made.shape and bool((stored.tensor() == made.cpu()).all())
    return f"Recorded in the catalogue as {stored.key[:12]}{'' if same else ' (trimmed of zero rows)'}."
