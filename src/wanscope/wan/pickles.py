"""Pickled weight files, which are never opened."""

from __future__ import annotations

from pathlib import Path

from wanscope.errors import ModelError

PICKLES = (".pth", ".pt", ".bin", ".ckpt", ".pkl", ".pickle")


def is_pickle(path: Path) -> bool:
    """Return whether a file's extension is one that pickled weights have."""
    return path.suffix.lower() in PICKLES


def refuse_pickle(path: Path, instead: tuple[str, ...] = ()) -> None:
    """Raise ModelError if the file is a pickle, because loading one can run any code.

    instead: names of safetensors files with the same weights.
    """
    if is_pickle(path):
        names = " or ".join(instead) if instead else f"{path.stem}.safetensors"
        raise ModelError(
            f"{path} will not be opened",
            "it is a pickle, which can run any code when it is loaded. Use the same weights as safetensors, such as "
            + names,
        )
