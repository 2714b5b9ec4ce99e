"""Study files: YAML read strictly, found by path or by the name of one that ships with the package."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from wanscope.errors import RecipeError


def read_yaml(text: str, source: str = "the study") -> dict[str, Any]:
    """A mapping from YAML text; a key written twice is refused instead of the last one winning."""
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            twice = next((k for i, k in enumerate(keys) if k in keys[:i]), None)
            if twice is not None:
                line = node.start_mark.line + 1
                raise RecipeError(f"{source}: {twice!r} is written twice in the block at line {line}", "", "keep one")
            return super().construct_mapping(node, deep)

    try:
        data = yaml.load(text, Loader=Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "not YAML"
        raise RecipeError(f"{source} cannot be read as YAML{place}", str(problem)) from None
    if not isinstance(data, dict):
        raise RecipeError(f"{source} is not a study", "a study is a YAML mapping", 'prompt: "a [red|blue] circle"')
    return data


def config_names() -> list[str]:
    """Names of the studies that ship with the package."""
    return sorted(path.stem for path in _config_folder().glob("*.yaml"))


def _config_folder() -> Path:
    return Path(__file__).parent / "configs"


def find_study_file(name: str) -> Path:
    """A study file by path, or by the name of one that ships with the package (with or without .yaml)."""
    path = Path(name)
    if path.is_file():
        return path
    packaged = _config_folder() / f"{path.stem}.yaml"
    if packaged.is_file() and str(path.parent) in (".", "configs"):
        return packaged
    known = ", ".join(config_names())
    raise RecipeError(f"there is no study file {name!r}", f"the packaged ones are {known}", "wanscope generate --help")


def load_study_data(name: str) -> dict[str, Any]:
    """The mapping in a study file; paths in it (init, loras, a model file) count from the file's folder."""
    path = find_study_file(name)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"the study file {name!r} cannot be read", str(error)) from None
    data = read_yaml(text, str(name))
    return _anchored(data, path.parent)


def _anchored(data: dict[str, Any], folder: Path) -> dict[str, Any]:
    def anchor(value: Any) -> Any:
        if isinstance(value, str) and not Path(value).is_absolute() and (folder / value).exists():
            return os.path.abspath(folder / value)
        return value

    out = dict(data)
    if isinstance(out.get("model"), str):
        # "high.safetensors + low.safetensors" names two files. A hub id is left alone unless a folder is named so.
        out["model"] = " + ".join(anchor(part.strip()) for part in out["model"].split(" + "))
    for block in ("init", "components"):
        if isinstance(out.get(block), dict):
            out[block] = {key: anchor(value) for key, value in out[block].items()}
    if isinstance(out.get("loras"), list):
        out["loras"] = [_anchored_lora(lora, anchor) for lora in out["loras"]]
    return out


def _anchored_lora(lora: Any, anchor: Any) -> Any:
    """`path`, `path:weight` or a mapping with `path`."""
    if isinstance(lora, dict) and "path" in lora:
        return {**lora, "path": anchor(lora["path"])}
    if isinstance(lora, str):
        path, colon, weight = lora.rpartition(":")
        return f"{anchor(path)}:{weight}" if colon and anchor(path) != path else anchor(lora)
    return lora
