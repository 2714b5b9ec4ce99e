"""card.json of an export: what is in it, and checksums of its files and of itself."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from wanscope.catalog.migrations import VERSION
from wanscope.catalog.rows import SHARED
from wanscope.errors import CatalogDamaged, CatalogNewer, TakeNotFound
from wanscope.spec.strict_json import read_json
from wanscope.take.disk import file_sha256

CARD, EMBEDDINGS = "card.json", "embeddings.parquet"
FORMAT = 1


def card_sum(card: dict[str, Any]) -> str:
    """Return the SHA-256 of a card without its own."""
    own = {name: value for name, value in card.items() if name != "card_sha256"}
    return hashlib.sha256(json.dumps(own, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def read_card(folder: Path) -> dict[str, Any]:
    """Return the card of an export whose files are as they were written. Exports of version 0.1 have no checksums.

    Raises TakeNotFound, CatalogDamaged or CatalogNewer.
    """
    if not os.path.isfile(folder / CARD):  # also where no disk takes such a name
        raise TakeNotFound(f"{folder} is not an export", f"it has no {CARD}", "wanscope db export FOLDER")
    try:
        card = read_json((folder / CARD).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CatalogDamaged(f"{folder / CARD} is damaged", str(error)) from None
    if not isinstance(card, dict) or not isinstance(card.get("schema", 0), int):
        raise CatalogDamaged(f"{folder / CARD} is damaged", "it does not describe an export")
    if card.get("format") != FORMAT or card.get("schema", 0) > VERSION:
        raise CatalogNewer(
            f"{folder} was written by another wanscope ({card.get('wanscope')})",
            f"its format is {card.get('format')}, schema {card.get('schema')}; this reads {FORMAT}, up to {VERSION}",
            "pip install --upgrade wanscope",
        )
    if card.get("values") not in ("exact", "fp16"):
        raise CatalogDamaged(f"{folder / CARD} is damaged", "it does not say how values are stored")
    if "card_sha256" in card or "sha256" in card:
        if card.get("card_sha256") != card_sum(card):
            raise CatalogDamaged(f"{folder / CARD} is damaged", "it does not match its own checksum")
        for name in (EMBEDDINGS, *(f"{table}.parquet" for table in SHARED)):
            if (folder / name).is_file() and file_sha256(folder / name) != card["sha256"].get(name):
                raise CatalogDamaged(f"{folder / name} is damaged", f"it does not match its checksum in {CARD}")
    return card
