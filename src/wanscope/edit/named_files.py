"""Lookup of the files and stored embeddings that edits name. They are checked against the model and hashed.

Shape suffixes: L real tokens, D text dim.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wanscope.edit.donor import Donor
from wanscope.errors import RecipeError, RequestError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class CatalogEmbedding:
    """An embedding of the catalog: its full key, the SHA-256 of its content, and its shape [L, D]."""

    key: str
    content: str
    shape: tuple[int, ...]


Find = Callable[[str], CatalogEmbedding]  # by key, label or prompt; raises RequestError if there is none


@dataclass(frozen=True)
class NamedFiles:
    """Finds, checks and hashes the files and stored embeddings that an edit names.

    text_dim: D of the model's text encoder. file_hash: returns the SHA-256 of a file. find: looks up a stored embedding
    that is not a file in the catalog; the edit then names it by its key. where: the edit's name in messages.
    """

    text_dim: int
    file_hash: Callable[[Path], str]
    find: Find | None = None
    where: str = ""

    def donor(self, donor: Donor, where: str = "") -> Donor:
        """Return the donor with the hash of every stored embedding in it. Raises RecipeError; see `with_hashes`."""
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
        """Return the hash of a direction's file. Raises RecipeError if it is not the `recorded` one."""
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
    """Return whether a donor's embedding is a file; otherwise it is in the catalog, by key, label or prompt."""
    name = donor.embedding or ""
    return name.endswith(".safetensors") or os.path.exists(Path(os.path.expanduser(name)))


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
            f"its shape is {list(shape)}, and this model's embeddings are [tokens, {text_dim}]",
            "use an embedding made with this model's own text encoder",
        )


def _file(name: str, where: str, what: str) -> Path:
    path = Path(os.path.expanduser(name))
    if not os.path.isfile(path) or path.suffix != ".safetensors":
        why = "there is no such file" if not os.path.isfile(path) else "it is not a .safetensors file"
        raise RecipeError(f"{where} is {name!r}", f"{why}; {what} is a .safetensors file", "")
    return path


def _stored_shape(path: Path) -> tuple[int, ...]:
    """Return the shape of the one tensor in the file. Only the header is read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            names = list(file.keys())
            if len(names) != 1:
                raise RecipeError(f"{path} contains {len(names)} tensors", "a stored embedding is one token matrix")
            return tuple(file.get_slice(names[0]).get_shape())
    except (OSError, SafetensorError) as error:
        raise RecipeError(f"{path} cannot be read as an embedding", str(error)) from None


def read_stored(donor: Donor, read: Callable[[str], Tensor] | None = None) -> Tensor:
    """Return the token matrix [L, D] of a stored embedding in its stored dtype, trimmed to its real tokens.

    read: returns the catalog's embedding for a key. Raises RecipeError for an embedding that is all zeros, not finite,
    or not a matrix.
    """
    from safetensors.torch import load_file

    from wanscope.edit.token_matrix import check_rows, real_tokens

    assert donor.embedding is not None
    if read is not None and not in_a_file(donor):
        embedding_LD = read(donor.embedding)
    else:
        embedding_LD = next(iter(load_file(Path(os.path.expanduser(donor.embedding))).values()))
    check_rows(embedding_LD, donor.embedding)
    tokens = real_tokens(embedding_LD)
    if not tokens:
        raise RecipeError(f"{donor.embedding} is all zeros", "it has no real tokens", "")
    return embedding_LD[:tokens].contiguous()
