"""The files and stored embeddings that edits name: found, checked against the model, and hashed.

Shape suffixes: L real tokens, D text dim.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wanscope.edit.donor import Donor
from wanscope.errors import RecipeError, RequestError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Remembered:
    """An embedding that a catalogue holds: its whole key, the SHA-256 of its content, its shape [L, D]."""

    key: str
    content: str
    shape: tuple[int, ...]


Find = Callable[[str], Remembered]  # by key, label or prompt; RequestError where there is none


@dataclass(frozen=True)
class NamedFiles:
    """How the files and stored embeddings that edits name are found, checked and hashed.

    text_dim: of the model's text encoder. file_hash: SHA-256 of a file. find: looks a stored embedding that is not a
    file up in a catalog; the edit then names it by its key.
    """

    text_dim: int
    file_hash: Callable[[Path], str]
    find: Find | None = None
    where: str = ""

    def donor(self, donor: Donor, where: str = "") -> Donor:
        """A donor with the hash of every stored embedding in it."""
        where = where or self.where
        if donor.embedding is None:
            names = {name: self.donor(inner, f"{where}.{name}") for name, inner in donor.names.items()}
            return donor.model_copy(update={"names": names})
        if self.find is not None and not in_a_file(donor):
            return _found(donor, self.text_dim, self.find, where)
        path = _file(donor.embedding, f"{where}.donor.embedding", "a stored embedding")
        _require_dim(donor.embedding, _stored_shape(path), self.text_dim, where)
        return donor.model_copy(update={"sha256": self._hash(path, donor.sha256, where)})

    def direction(self, name: str, recorded: str | None) -> str:
        """The hash of a direction's file, which has to be the recorded one where there is one."""
        return self._hash(_file(name, f"{self.where}.direction", "a direction"), recorded, self.where)

    def _hash(self, path: Path, recorded: str | None, where: str) -> str:
        found = self.file_hash(path)
        if recorded is not None and recorded != found:
            raise RecipeError(
                f"{where}: {path} is not the file that the recipe was made with",
                f"its SHA-256 is {found[:16]}..., not {recorded[:16]}...",
            )
        return found


def in_a_file(donor: Donor) -> bool:
    """Whether a stored embedding is a file; else it is one of the catalogue's, by key, label or prompt."""
    name = donor.embedding or ""
    return name.endswith(".safetensors") or Path(name).expanduser().exists()


def _found(donor: Donor, text_dim: int, find: Find, where: str) -> Donor:
    name = donor.embedding or ""
    try:
        found = find(name)
    except RequestError as error:
        why = f"{error.what}: {error.why}".rstrip(": ")
        raise RecipeError(
            f"{where}.donor.embedding is {name!r}: it is not a .safetensors file, and not in the catalog",
            why,
            error.fix,
        ) from None
    _require_dim(name, found.shape, text_dim, where)
    if donor.sha256 not in (None, found.content):
        raise RecipeError(
            f"{where}: {name} is not the embedding that the recipe was made with",
            f"the SHA-256 of its content is {found.content[:16]}..., not {donor.sha256[:16]}...",
        )
    return donor.model_copy(update={"embedding": found.key, "sha256": found.content})


def _require_dim(name: str, shape: tuple[int, ...], text_dim: int, where: str) -> None:
    if len(shape) != 2 or shape[1] != text_dim:
        raise RecipeError(
            f"{where}: {name} does not fit this model",
            f"its tensor is {list(shape)}, and an embedding here is [tokens, {text_dim}]",
            "an embedding made with this model's own text encoder",
        )


def _file(name: str, where: str, what: str) -> Path:
    path = Path(name).expanduser()
    if not path.is_file() or path.suffix != ".safetensors":
        why = "there is no such file" if not path.is_file() else "it is not a .safetensors file"
        raise RecipeError(f"{where} is {name!r}", f"{why}; {what} is a .safetensors file", "")
    return path


def _stored_shape(path: Path) -> tuple[int, ...]:
    """Of the one tensor in the file; nothing of it is read but its header."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            names = list(file.keys())
            if len(names) != 1:
                raise RecipeError(f"{path} holds {len(names)} tensors", "a stored embedding is one token matrix")
            return tuple(file.get_slice(names[0]).get_shape())
    except (OSError, SafetensorError) as error:
        raise RecipeError(f"{path} cannot be read as an embedding", str(error)) from None


def read_stored(donor: Donor, read: Callable[[str], Tensor] | None = None) -> Tensor:
    """The token matrix of a stored embedding, [L, D], trimmed to its real tokens, as it was stored.

    read: the catalogue's embedding of a key.
    """
    from safetensors.torch import load_file

    from wanscope.edit.token_matrix import check_rows, real_tokens

    assert donor.embedding is not None
    if read is not None and not in_a_file(donor):
        embedding_LD = read(donor.embedding)
    else:
        embedding_LD = next(iter(load_file(Path(donor.embedding).expanduser()).values()))
    check_rows(embedding_LD, donor.embedding)
    tokens = real_tokens(embedding_LD)
    if not tokens:
        raise RecipeError(f"{donor.embedding} is all zeros", "it has no real token", "")
    return embedding_LD[:tokens].contiguous()
