"""Files that are never opened. No torch here."""

from __future__ import annotations

from pathlib import Path

from wanscope.errors import ModelError

PICKLES = (".pth", ".pt", ".bin", ".ckpt", ".pkl", ".pickle")


def is_pickle(path: Path) -> bool:
    return path.suffix.lower() in PICKLES


def refuse_pickle(path: Path, instead: tuple[str, ...] = ()) -> None:
    """ModelError if the file is a pickle: loading one can run any program. `instead`: files to use."""
    if is_pickle(path):
        names = " or ".join(instead) if instead else f"{path.stem}.safetensors"
        raise ModelError(
            f"{path} will not be opened",
            "it is a pickle, which can run any program when it is loaded",
            f"the same weights as safetensors: {names}",
        )
