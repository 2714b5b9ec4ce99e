"""Takes in the catalog: rows that are read from their folders.

The content of a row is in the folder's take.json and in the studies' index.csv, so the same rows can be made again at
any time. Rows that were imported (`origin` is not empty) have no folder here and stay.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wanscope.catalog.connect import Database
from wanscope.catalog.rows import insert
from wanscope.errors import DamagedTake, RecipeError
from wanscope.take.manifest import Manifest, check_sizes, read_manifest
from wanscope.take.study_table import INDEX, read_table
from wanscope.workspace import MANIFEST, Workspace

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

SOURCE = "take.json"
SLOT = "slot:"


@dataclass(frozen=True)
class Indexed:
    """The result of indexing. damaged: what is wrong, by take. unreadable: what is wrong, by study."""

    takes: int
    added: int
    removed: int
    studies: int
    damaged: dict[str, str]
    unreadable: dict[str, str]
    adopted: int = 0
    set_aside: str | None = None


Rows = dict[str, list[dict[str, Any]]]


def take_rows(folder: Path) -> Rows:
    """Return the rows of one take's folder; for a damaged one, whatever can still be read."""
    try:
        manifest = read_manifest(folder)
    except DamagedTake as error:
        return {"takes": [_damaged(folder, error.why or error.what)], "edits": [], "metrics": []}
    try:
        check_sizes(folder, manifest.files)
        damage = ""
    except DamagedTake as error:
        damage = f"{Path(error.what.removesuffix(' is damaged')).name}: {error.why}"
    return manifest_rows(manifest, damage)


def manifest_rows(manifest: Manifest, damage: str = "") -> Rows:
    """Return the rows of a take whose manifest has been read."""
    recipe, env = manifest.recipe, manifest.environment
    video, sampler = recipe.video, recipe.sampler
    guidance = sampler.guidance
    row = {
        "id": manifest.id,
        "status": "damaged" if damage else "complete",
        "damage": damage,
        "folder": f"takes/{manifest.id}",
        "made": datetime.fromisoformat(manifest.made).astimezone(UTC).replace(tzinfo=None),
        "model": recipe.model.name,
        "variant": recipe.model.variant,
        "dtype": recipe.dtype,
        "prompt": recipe.prompt,
        "negative": recipe.negative,
        "seed": recipe.seed,
        "width": video.width,
        "height": video.height,
        "frames": video.frames,
        "fps": video.fps,
        "solver": sampler.solver,
        "steps": sampler.steps,
        "shift": sampler.shift,
        "guidance": json.dumps(guidance if isinstance(guidance, int | float | None) else guidance.model_dump()),
        "latents": manifest.latents is not None,
        "edited": bool(recipe.edits),
        "seconds": manifest.seconds.get("total"),
        "bytes": sum(record.bytes for record in manifest.files),
        "latents_sha256": manifest.latents_sha256,
        "device": env.device,
        "wanscope": env.wanscope,
        "torch": env.packages.get("torch"),
        "recipe": json.dumps(recipe.model_dump(mode="json", exclude_defaults=True), ensure_ascii=False),
        "origin": "",
    }
    return {"takes": [row], "edits": [*_edits(manifest)], "metrics": [*_metrics(manifest)]}


def _damaged(folder: Path, why: str) -> dict[str, Any]:
    return {
        "id": folder.name,
        "status": "damaged",
        "damage": why,
        "folder": f"takes/{folder.name}",
        "latents": False,
        "edited": False,
        "origin": "",
    }


def _edits(manifest: Manifest) -> Iterator[dict[str, Any]]:
    applied = list(manifest.applied_edits)
    for position, edit in enumerate(manifest.recipe.edits):
        data: Any = edit if isinstance(edit, Mapping) else edit.model_dump(mode="json", exclude_defaults=True)
        kind = data.get("kind") or getattr(edit, "kind", "")
        counts = applied[position] if len(applied) == len(manifest.recipe.edits) else None
        yield {
            "take": manifest.id,
            "position": position,
            "kind": kind,
            "edit": json.dumps({"kind": kind, **data}, ensure_ascii=False, default=str),
            "planned": getattr(counts, "planned", None),
            "applied": getattr(counts, "applied", None),
        }


def _metrics(manifest: Manifest) -> Iterator[dict[str, Any]]:
    figures = [(f"{name}_seconds", value, "s") for name, value in manifest.seconds.items()]
    figures += [(f"{name}_peak_bytes", value, "B") for name, value in manifest.peak_bytes.items()]
    figures.append(("evaluations", manifest.evaluations, ""))
    for name, value, unit in figures:
        yield {"take": manifest.id, "name": name, "step": -1, "value": float(value), "unit": unit, "source": SOURCE}


def study_rows(space: Workspace) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Return the rows of every study's table, and what is wrong with tables that cannot be read."""
    rows: list[dict[str, Any]] = []
    unreadable: dict[str, str] = {}
    tables = sorted(space.studies.glob(f"*/{INDEX}")) if space.studies.is_dir() else []
    for path in tables:
        if path.parent.name.startswith("."):
            continue
        try:
            rows += _variations(path)
        except (OSError, ValueError, KeyError, RecipeError) as error:
            why = error.why if isinstance(error, RecipeError) else error
            unreadable[path.parent.name] = f"{path} cannot be read: {why}"
    return rows, unreadable


def _variations(path: Path) -> list[dict[str, Any]]:
    return [
        {
            "study": path.parent.name,
            "name": line["name"],
            "take": line["take"],
            "variation": _whole(line["variation"]),
            "seed": _whole(line["seed"]),
            "status": line["status"],
            "current": line["current"] == "yes",
            "slots": json.dumps(
                {k.removeprefix(SLOT): v for k, v in line.items() if k.startswith(SLOT) and v}, ensure_ascii=False
            ),
            "origin": "",
        }
        for line in read_table(path)
    ]


def _whole(text: str) -> int:
    number = int(text)
    if not -(2**63) <= number < 2**63:
        raise ValueError(f"{text[:40]} does not fit into 64 bits")
    return number


# writing


def add_takes(db: Database, space: Workspace, folders: Iterable[Path]) -> None:
    """Index takes that have just been finished."""
    found = [take_rows(folder) for folder in folders]
    with db.writing() as con:
        for rows in found:
            _replace(con, rows)


def add_studies(db: Database, space: Workspace) -> None:
    """Index the studies' tables as they are now."""
    rows, _ = study_rows(space)
    with db.writing() as con:
        con.execute("DELETE FROM variations WHERE origin = ''")
        insert(con, "variations", rows, new=False)


def _replace(con: DuckDBPyConnection, rows: Rows) -> None:
    ids = [[row["id"] for row in rows["takes"]]]
    con.execute("DELETE FROM edits WHERE take IN (SELECT unnest(?))", ids)
    con.execute(f"DELETE FROM metrics WHERE source = '{SOURCE}' AND take IN (SELECT unnest(?))", ids)
    insert(con, "takes", rows["takes"], new=False)
    insert(con, "edits", rows["edits"], new=False)
    insert(con, "metrics", rows["metrics"], new=False)


def index(db: Database, space: Workspace, *, rebuild: bool = False) -> Indexed:
    """Update the rows of takes and studies from their folders.

    Without `rebuild` only new and removed folders are considered; with it all of them, and every row is made again.
    Metrics that analyses stored are kept for takes that still exist.
    """
    there = _folders(space)
    with db.reading() as con:
        known = {take for (take,) in con.execute("SELECT id FROM takes WHERE origin = ''").fetchall()}
    wanted = there if rebuild else {take: folder for take, folder in there.items() if take not in known}
    found = [take_rows(folder) for folder in wanted.values()]
    gone = sorted(known - set(there))
    variations, unreadable = study_rows(space)
    together: Rows = {name: [row for rows in found for row in rows[name]] for name in ("takes", "edits", "metrics")}
    with db.writing() as con:
        if rebuild:
            _forget(con, sorted(known | set(there)), metrics="")
        _forget(con, gone, metrics="OR true")
        insert(con, "takes", together["takes"], new=False)
        insert(con, "edits", together["edits"], new=False)
        insert(con, "metrics", together["metrics"], new=False)
        con.execute("DELETE FROM variations WHERE origin = ''")
        insert(con, "variations", variations, new=False)
        rows = con.execute("SELECT id, damage FROM takes WHERE status = 'damaged' AND origin = '' ORDER BY id")
        damaged = dict(rows.fetchall())
    studies = len({row["study"] for row in variations})
    return Indexed(len(there), len(set(there) - known), len(gone), studies, damaged, unreadable)


def _forget(con: DuckDBPyConnection, takes: list[str], metrics: str) -> None:
    con.execute("DELETE FROM takes WHERE origin = '' AND id IN (SELECT unnest(?))", [takes])
    con.execute("DELETE FROM edits WHERE take IN (SELECT unnest(?))", [takes])
    con.execute(f"DELETE FROM metrics WHERE (source = '{SOURCE}' {metrics}) AND take IN (SELECT unnest(?))", [takes])


def _folders(space: Workspace) -> dict[str, Path]:
    """Return every take's folder by id; the hidden folders of takes that are being made are left out."""
    if not space.takes.is_dir():
        return {}
    found = {p.name: p for p in sorted(space.takes.iterdir()) if p.is_dir() and not p.name.startswith(".")}
    return {name: p for name, p in found.items() if (p / MANIFEST).exists() or any(p.iterdir())}
