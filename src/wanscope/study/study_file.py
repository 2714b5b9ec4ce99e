"""Study files: strict YAML, found by path or by the name of a study that ships with the package."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from wanscope.edit.shorthand import edit_from
from wanscope.errors import RecipeError
from wanscope.spec.strict_yaml import read_yaml_file
from wanscope.wan.experts import split_pair


def config_names() -> list[str]:
    """Return the names of the studies that ship with the package, sorted."""
    return sorted(path.stem for path in _config_folder().glob("*.yaml"))


def _config_folder() -> Path:
    return Path(__file__).parents[1] / "configs"


def find_study_file(name: str) -> Path:
    """Find a study file by path, or by the name of one that ships with the package (with or without .yaml).

    Raises RecipeError where there is none.
    """
    path = Path(name)
    if os.path.isfile(path):  # unlike Path.is_file, also False where no disk takes such a name
        return path
    packaged = _config_folder() / f"{path.stem}.yaml"
    if os.path.isfile(packaged) and str(path.parent) in (".", "configs"):
        return packaged
    known = ", ".join(config_names())
    raise RecipeError(f"there is no study file {name!r}", f"the packaged ones are {known}", "wanscope generate --help")


def load_study_data(name: str) -> dict[str, Any]:
    """Return the mapping in a study file. Relative paths in it (init, loras, edits, a model file) start at its folder.

    Raises RecipeError for a file that cannot be read.
    """
    path = find_study_file(name)
    return _anchored(read_yaml_file(path, str(name)), path.parent)


def _anchored(data: dict[str, Any], folder: Path) -> dict[str, Any]:
    def anchor(value: Any) -> Any:
        if isinstance(value, str) and not Path(value).is_absolute() and os.path.exists(folder / value):
            return os.path.abspath(folder / value)
        return value

    out = dict(data)
    if isinstance(out.get("model"), str):
        # "high.safetensors + low.safetensors" names two files. A hub id stays as it is unless a folder has that name.
        out["model"] = " + ".join(anchor(part) for part in split_pair(out["model"]))
    for block in ("init", "components"):
        if isinstance(out.get(block), dict):
            out[block] = {key: anchor(value) for key, value in out[block].items()}
    if isinstance(out.get("loras"), list):
        out["loras"] = [_anchored_lora(lora, anchor) for lora in out["loras"]]
    if out.get("edits"):
        edits = out["edits"] if isinstance(out["edits"], list) else [out["edits"]]
        out["edits"] = [edit_with_paths(edit, anchor) for edit in edits]
    if isinstance(out.get("sweep"), dict):
        out["sweep"] = {key: _anchored_values(str(key), values, anchor) for key, values in out["sweep"].items()}
    return out


def edit_with_paths(edit: Any, change: Callable[[Any], Any]) -> Any:
    """Return an edit as plain data with `change` applied to every path in it; a one-line edit is parsed first."""
    if isinstance(edit, str):
        edit = edit_from(edit).model_dump(mode="json", exclude_defaults=True)
    if not isinstance(edit, dict):
        return edit
    out = dict(edit)
    if "direction" in out:
        out["direction"] = change(out["direction"])
    return {**out, "donor": _anchored_donor(out["donor"], change)} if "donor" in out else out


def _anchored_donor(donor: Any, change: Callable[[Any], Any]) -> Any:
    """Apply `change` to the paths of a donor. A prompt stays as it is, even where a file has that name."""
    if not isinstance(donor, dict):
        return donor
    out = {**donor, "embedding": change(donor["embedding"])} if "embedding" in donor else dict(donor)
    if isinstance(out.get("names"), dict):
        out["names"] = {name: _anchored_donor(inner, change) for name, inner in out["names"].items()}
    return out


def _anchored_values(key: str, values: Any, change: Callable[[Any], Any]) -> Any:
    if not isinstance(values, list):
        return values
    field = key.rpartition(".")[2]
    if field in ("direction", "embedding"):
        return [change(value) for value in values]
    return [_anchored_donor(value, change) for value in values] if field == "donor" else values


def _anchored_lora(lora: Any, anchor: Any) -> Any:
    """Apply `anchor` to the path of a LoRA, which is `path`, `path:weight` or a mapping with `path`."""
    if isinstance(lora, dict) and "path" in lora:
        return {**lora, "path": anchor(lora["path"])}
    if isinstance(lora, str):
        path, colon, weight = lora.rpartition(":")
        return f"{anchor(path)}:{weight}" if colon and anchor(path) != path else anchor(lora)
    return lora
