"""Which of Wan 2.2's two experts a file is, from the words of its name. No torch.

wan2.2_t2v_high_noise_14B_fp8_scaled.safetensors        high
Wan2_2-T2V-A14B-LOW_fp8_e4m3fn_scaled_KJ.safetensors    low
low_noise_model/diffusion_pytorch_model.safetensors     low
style_HighNoise.safetensors                             high
Wan2.2-T2V-A14B-LOW-Q4_K_M.gguf                         low
high_quality.safetensors                                neither
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from wanscope.errors import ModelError
from wanscope.wan.pickles import PICKLES

SUFFIXES = (".safetensors", ".gguf")
Expert = Literal["high", "low"]

OTHER: dict[Expert, Expert] = {"high": "low", "low": "high"}
LEVELS = 3  # the file's name and those of two folders above it
# "high" and "low" also describe other things than the noise.
OTHER_USES = (
    *("quality", "res", "resolution", "vram", "ram", "mem", "memory", "rank", "dim", "step", "steps", "fps", "motion"),
    *("detail", "details", "detailed", "contrast", "cfg", "key", "speed", "light", "angle", "poly", "def", "lr", "q"),
)
# A word begins here ("slow", "thigh" and "follow" do not), or right after the end of a model's name ("t2vlow").
BEGIN = r"(?:(?<![a-z])|(?<=[ti]2v)|(?<=wan))"
# Before "noise", it may end another word ("stylelownoise"), but not that of an English one ("slow", "below", "thigh").
WITH_NOISE = re.compile(r"(?<![bfglps])(?<!be)(?<!\bt)(?<!_t)(high|low)[ _.-]?noise")
WORD = re.compile(rf"{BEGIN}(high|low)(?![a-z])")
# With a number right after it, such a word is a field of its own: "LOW-Q4_K_M" and "high_rank32" say the expert.
ALONE = re.compile(rf"{WORD.pattern}(?![ _.-]?(?:{'|'.join(OTHER_USES)})(?![a-z0-9]))")
# A folder that says nothing else, or that is of Wan 2.2.
FOLDER = re.compile(r"(?:high|low)(?:[ _.-]?(?:model|expert|transformer))?|.*(?:2[ _.-]?2|a14b).*")


def expert_of_name(name: str) -> Expert | None:
    """Return the expert that one name says, or None if it says none or both."""
    return _said(name, WITH_NOISE, ALONE)


def _said(name: str, *patterns: re.Pattern[str]) -> Expert | None:
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
    for pattern in patterns:
        found = set(pattern.findall(words)) | set(pattern.findall(name.lower()))
        if found:
            return found.pop() if len(found) == 1 else None
    return None


def _names(path: Path) -> list[str]:
    """Return the names that may say the expert: of the file without its suffix, and of the folders above it."""
    absolute = path.absolute()
    return [path.name.removesuffix(path.suffix), *(folder.name for folder in absolute.parents[: LEVELS - 1])]


def expert_of_file(path: Path) -> Expert | None:
    """Return the expert that a file's name says, or the nearest folder's that says one, or None."""
    return next((found for name in _names(path) if (found := expert_of_name(name))), None)


def expert_of_lora(path: Path) -> Expert | None:
    """Return the expert that a LoRA is named for: by its file, or by the folder it is in where that is an expert's."""
    own = expert_of_name(path.name.removesuffix(path.suffix))
    return own or _expert_of_folder(path)


def _expert_of_folder(path: Path) -> Expert | None:
    """Return the expert of the file's folder, if that is the folder of an expert (FOLDER) or names the noise."""
    folder = path.absolute().parent.name
    found = FOLDER.fullmatch(folder.lower()) or WITH_NOISE.search(folder.lower())
    return expert_of_name(folder) if found else None


def in_order(first: Path, second: Path) -> tuple[tuple[Path, Path], bool]:
    """Return the high-noise file and the low-noise file of two, and whether their names say which is which.

    Where they do not, the first one is the high-noise file. Raises ModelError if both are named for the same expert, or
    are one file.
    """
    if first.resolve() == second.resolve():
        raise ModelError(
            f"{first} and {second} are the same file", "the two experts of a Wan 2.2 model are two files, high and low"
        )
    levels = list(zip(_names(first), _names(second), strict=True))
    said: list[tuple[Expert | None, Expert | None]] = [(expert_of_name(a), expert_of_name(b)) for a, b in levels]
    # Words that mean something else alone ("low_rank") say the expert where the other name has the other word there.
    words: list[tuple[Expert | None, Expert | None]] = [(_said(a, WORD), _said(b, WORD)) for a, b in levels]
    said += [pair for pair in words if set(pair) == {"high", "low"}]
    # The first level at which the names differ in it: the files' own names, or those of the folders they are in.
    for a, b in said:
        if a != b:
            high_first = a == "high" or (a is None and b == "low")
            return ((first, second) if high_first else (second, first)), True
    both: Expert | None = next((a for a, _ in said if a is not None), None)
    if both is not None:
        raise ModelError(
            f"{first.name} and {second.name} are both named as the {both}-noise expert",
            f"a Wan 2.2 model needs one file of each, and the {OTHER[both]}-noise one is missing",
            f'model: "{first} + {_renamed(second, both)}"',
        )
    return (first, second), False


def refuse_half(path: Path) -> None:
    """Raise ModelError if a file is one of two experts by its own name or by that of a folder.

    A folder whose name has the word among others (`high-speed disk`) is not enough, unless it names the noise or Wan
    2.2, or the file of the other expert is where its name would be.
    """
    own = expert_of_name(path.name.removesuffix(path.suffix))
    expert = own or expert_of_file(path)
    if expert is None:
        return
    other = _renamed(path, expert)
    named = _expert_of_folder(path) or any(WITH_NOISE.search(name.lower()) for name in _names(path)[1:])
    if own is None and not named and not other.is_file():
        return
    pair = (path, other) if expert == "high" else (other, path)
    shown = path.name if own else f"{path.parent.name}/{path.name}"
    raise ModelError(
        f"{shown} is one of Wan 2.2's two experts",
        f"the {OTHER[expert]}-noise file is needed as well. A model with one expert has wan2.1 in its file's name",
        f'model: "{pair[0]} + {pair[1]}"',
    )


def _renamed(path: Path, expert: Expert) -> Path:
    """Return the path with its nearest word for one expert replaced by the other's, in the same letter case."""
    parts = list(path.parts)
    for i in range(len(parts) - 1, max(len(parts) - 1 - LEVELS, -1), -1):
        if expert_of_name(parts[i].removesuffix(path.suffix)) == expert:
            parts[i] = re.sub(expert, lambda found: _like(found[0], OTHER[expert]), parts[i], flags=re.IGNORECASE)
            break
    return Path(*parts)


def _like(pattern: str, word: str) -> str:
    """Return the word in the letter case of `pattern`."""
    return word.upper() if pattern.isupper() else word.capitalize() if pattern[0].isupper() else word


def split_pair(spec: str) -> Sequence[str]:
    """Return the paths in "high.safetensors + low.safetensors"; a path that contains " + " itself is left whole.

    The text is split only where every part is a file or ends in a known suffix of one.
    """
    if " + " not in spec or os.path.exists(os.path.expanduser(spec)):
        return [spec]
    pieces = spec.split(" + ")
    out: list[str] = []
    for piece in pieces:
        # A piece belongs to the path before it while that is not a file yet.
        if out and not _is_file(out[-1]):
            out[-1] = f"{out[-1]} + {piece}"
        else:
            out.append(piece)
    return [part.strip() for part in out]


def _is_file(text: str) -> bool:
    path = Path(os.path.expanduser(text.strip()))
    return os.path.isfile(path) or path.suffix.lower() in (*SUFFIXES, *PICKLES)
