"""The catalog that the nodes use: it is in ComfyUI's user folder, and a fault in it never prevents a result."""

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
    """Return the catalog's folder in ComfyUI's user folder; None outside ComfyUI, where the workspace's is used."""
    paths = sys.modules.get("folder_paths")
    return None if paths is None else Path(paths.get_user_directory()) / "wanscope"


def catalog() -> Catalog:
    """Return the catalog. Raises RequestError if duckdb is not installed."""
    try:
        import duckdb  # noqa: F401
    except ImportError:
        raise RequestError(
            "the catalog needs duckdb", "it is not installed in ComfyUI's Python", "pip install -r requirements.txt"
        ) from None
    from wanscope.catalog.catalog import Catalog

    place = folder()
    if place is not None:
        place.mkdir(parents=True, exist_ok=True)
    return Catalog(place)


def record_operation(operation: str, inputs: Sequence[Tensor], made: Tensor, parameters: Mapping[str, Any]) -> str:
    """Record an operation on token matrices [L, D] in the catalog and return a sentence for the node's report.

    made: the result [L, D] that the node returns. The catalog computes its own from the inputs it stores, so that the
    operation can be repeated from the catalog alone.
    """
    try:
        stored = catalog().compute(operation, [t.detach().cpu() for t in inputs], **parameters)
    except (CatalogBusy, CatalogDamaged, RequestError) as error:
        return f"Not recorded in the catalog: {error.what}."
    same = stored.tensor().shape == made.shape and bool((stored.tensor() == made.cpu()).all())
    return f"Recorded in the catalog as {stored.key[:12]}{'' if same else ' (without its rows of zeros)'}."
