"""What the edits of a recipe read of the text encoder: which texts, whether the tokenizer can take them, and, once all
are encoded, each donor's embedding.

    texts_of(edits)                 every text that has to be encoded, and what it is
    check_texts(tokenizer, ...)     lengths and words, before any work
    DonorTexts                      the encoded texts of one recipe; `donor(edit)` is an injection's embedding

Embeddings are raw (the encoder's output, before the transformer's projection), [L, D] of the real tokens, in the
encoder's dtype. Shape suffixes: L real tokens, D text dim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wanscope.edit.edits import Bend, Donor, Edit, Inject, Prompts, Steer
from wanscope.errors import RecipeError, RequestError
from wanscope.prompt.tokens import check_length, find_words

if TYPE_CHECKING:
    from torch import Tensor

    from wanscope.edit.amplify import Amplified

Columns = tuple[int, ...]
Places = dict[str, Columns]


def texts_of(edits: Iterable[Edit]) -> dict[str, str]:
    """Every text that the edits need encoded, each once, and what errors call it."""
    out: dict[str, str] = {}
    for edit in edits:
        for text, name in edit.texts().items():
            out.setdefault(text, name)
    return out


def check_texts(tokenizer: Any, prompt: str, edits: Sequence[Edit], text_length: int) -> None:
    """RecipeError for a donor that is longer than the model reads, and for words that occur nowhere."""
    for text, name in texts_of(edits).items():
        check_length(tokenizer, text, text_length, name)
    for index in range(len(edits)):
        word_places(tokenizer, prompt, edits, index, text_length)


def word_places(tokenizer: Any, prompt: str, edits: Sequence[Edit], index: int, text_length: int) -> dict[str, Places]:
    """For each word that edit `index` names, its token columns in each text of the recipe that holds it.

    The texts are the prompt, the donors and the prompts of later steps. {} for an edit without words.
    Raises RecipeError for a word that occurs in none of them.
    """
    edit = edits[index]
    others = [text for e in edits for text in _read_beside(e)]
    places: dict[str, Places] = {}
    for word in edit.words if isinstance(edit, Bend | Inject) else ():
        missing: RecipeError | None = None
        found: dict[str, tuple[int, ...]] = {}
        for text in dict.fromkeys((prompt, *others)):
            try:
                found[text] = tuple(find_words(tokenizer, text, [word], text_length)[0].columns)
            except RecipeError as error:
                missing = missing or error
        if not found and missing is not None:
            beside = ", nor in a donor" if others else ""
            raise RecipeError(f"edits.{index}: {missing.what}{beside}", missing.why, missing.fix)
        places[word] = found
    return places


def united(places: Mapping[str, Places]) -> Places:
    """The columns of any of the words, in each text that holds one."""
    columns: dict[str, set[int]] = {}
    for found in places.values():
        for text, own in found.items():
            columns.setdefault(text, set()).update(own)
    return {text: tuple(sorted(own)) for text, own in columns.items()}


def _read_beside(edit: Edit) -> list[str]:
    """The texts whose tokens cross-attention reads beside, or instead of, the prompt's."""
    if isinstance(edit, Inject):
        return [edit.donor.prompt] if edit.donor.prompt is not None else []
    return list(edit.keys.values()) if isinstance(edit, Prompts) else []


def check_edits(edits: Sequence[Edit], blocks: int, steps: int, heads: int) -> None:
    """RecipeError, naming the edit, for what a model of so many blocks and heads cannot do in so many steps."""
    for i, edit in enumerate(edits):
        try:
            edit.check(blocks, steps, heads)
        except RequestError as error:
            raise RecipeError(f"edits.{i}: {error.what}", error.why, error.fix) from None


# files


@dataclass(frozen=True)
class Remembered:
    """An embedding that a catalogue holds: its whole key, the SHA-256 of its content, its shape [L, D]."""

    key: str
    content: str
    shape: tuple[int, ...]


Find = Callable[[str], Remembered]  # by key, label or prompt; RequestError where there is none


def with_hashes(
    edits: Iterable[Edit], text_dim: int, file_hash: Callable[[Path], str], find: Find | None = None
) -> tuple[Edit, ...]:
    """The edits with the hash of every file that they name, which is what a recipe's id covers instead of its path.

    find: looks a stored embedding that is no file up in a catalogue; the edit then names it by its key. Raises
    RecipeError for a file or embedding that is not there, is none of this model, or is not the one recorded.
    """
    out = []
    for i, edit in enumerate(edits):
        where = f"edits.{i}"
        if isinstance(edit, Inject) and edit.donor.files():
            edit = edit.model_copy(update={"donor": _donor_with_hashes(edit.donor, text_dim, file_hash, find, where)})
        elif isinstance(edit, Steer):
            path = _file(edit.direction, f"{where}.direction", "a direction")
            edit = edit.model_copy(update={"sha256": _hash(path, edit.sha256, file_hash, where)})
        out.append(edit)
    return tuple(out)


def _donor_with_hashes(
    donor: Donor, text_dim: int, file_hash: Callable[[Path], str], find: Find | None, where: str
) -> Donor:
    if donor.embedding is None:
        names = {n: _donor_with_hashes(d, text_dim, file_hash, find, f"{where}.{n}") for n, d in donor.names.items()}
        return donor.model_copy(update={"names": names})
    if find is not None and not in_a_file(donor):
        return _found(donor, text_dim, find, where)
    path = _file(donor.embedding, f"{where}.donor.embedding", "a stored embedding")
    _require_dim(donor.embedding, _stored_shape(path), text_dim, where)
    return donor.model_copy(update={"sha256": _hash(path, donor.sha256, file_hash, where)})


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
            f"{where}.donor.embedding is {name!r}: it is no .safetensors file, and not in the catalogue", why, error.fix
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
        why = "there is no such file" if not path.is_file() else "it is no .safetensors file"
        raise RecipeError(f"{where} is {name!r}", f"{why}; {what} is a .safetensors file", "")
    return path


def _hash(path: Path, recorded: str | None, file_hash: Callable[[Path], str], where: str) -> str:
    found = file_hash(path)
    if recorded is not None and recorded != found:
        raise RecipeError(
            f"{where}: {path} is not the file that the recipe was made with",
            f"its SHA-256 is {found[:16]}..., not {recorded[:16]}...",
        )
    return found


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


def stored_of(edits: Iterable[Edit]) -> list[Donor]:
    """The stored embeddings that the edits name."""
    return [donor for edit in edits if isinstance(edit, Inject) for donor in edit.donor.files()]


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


# encoded


@dataclass(frozen=True, eq=False)
class DonorText:
    """A donor's embedding [L, D]. note: what should be known of it. amplified: how it was moved, where it was."""

    embedding: Tensor
    note: str = ""
    amplified: Amplified | None = None


@dataclass(frozen=True, eq=False)
class DonorTexts:
    """The encoded texts of one recipe, on the CPU. Nothing that it hands out may be changed in place.

    main, uncond: what the loop reads, weights of marked words applied. raw: by text, as encoded. stored: by the
    file's hash. places: for each edit that names words (by its place in the list), their columns in each text.
    word_texts: and the texts that hold each of its words.
    """

    prompt: str
    negative: str
    main: Tensor
    uncond: Tensor
    raw: Mapping[str, Tensor]
    text_length: int
    stored: Mapping[str, Tensor] = field(default_factory=dict)
    places: Mapping[int, Places] = field(default_factory=dict)
    word_texts: Mapping[int, Mapping[str, frozenset[str]]] = field(default_factory=dict)

    def donor(self, edit: Inject) -> DonorText:
        """The embedding that `edit` injects, at the difference that it asks for.

        Raises RecipeError where that difference cannot be reached, or the donor has more tokens than the model reads.
        """
        donor, note = edit.donor, ""
        if donor.expression is not None:
            from wanscope.edit.expression import parse_expression

            bindings = {name: self._plain(inner) for name, inner in donor.names.items()}
            result = parse_expression(donor.expression).evaluate(bindings)
            embedding_LD, note = result.embedding, result.note
        else:
            embedding_LD = self._plain(donor)
        if len(embedding_LD) > self.text_length:
            raise RecipeError(
                f"the donor has {len(embedding_LD)} tokens", f"the model reads {self.text_length}", "a shorter donor"
            )
        if edit.difference is None:
            return DonorText(embedding_LD, note)
        from wanscope.edit.amplify import amplify

        try:
            moved = amplify(self.main, embedding_LD, edit.difference, mode=edit.amplify, keep_norm=bool(edit.keep_norm))
        except RecipeError as error:  # the target has another name in an edit
            raise RecipeError(error.what, error.why, error.fix.replace("target: ", "difference: ")) from None
        return DonorText(moved.embedding, " ".join(filter(None, (note, moved.describe()))), moved)

    def negative_donor(self, edit: Inject) -> Tensor | None:
        """What `edit` injects into the uncond pass; None where it names nothing else than the donor."""
        return None if edit.donor_negative is None else self.raw[edit.donor_negative]

    def keyed(self, edit: Prompts) -> dict[int, Tensor]:
        """The embeddings of the prompts of later steps, by step."""
        return {step: self.raw[text] for step, text in edit.keys.items()}

    def _plain(self, donor: Donor) -> Tensor:
        if donor.prompt is not None:
            return self.raw[donor.prompt]
        assert donor.sha256 is not None, "hashes are filled in when a study is expanded"
        return self.stored[donor.sha256]
