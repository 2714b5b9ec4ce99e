"""Builds tokenizers from their files with only the `tokenizers` library, as transformers 5 does from the same files.

transformers takes seconds to import, and a check of prompts needs little of it: token ids, the characters that each
token covers, the unknown token and the length limit. tests/wan/test_wan_tokenizer.py compares both on many texts.

Three layouts are known: a `tokenizer.json` that is used as it is (marbles); a `tokenizer.json` of the T5 family, from
which transformers keeps the vocabulary and the normalizer and rebuilds the rest (Wan); and a SentencePiece model (in
ComfyUI's text encoder files). `from_folder` returns None for a folder whose config has anything that is not known here.
transformers itself then reads it, so that a check never counts tokens other than those that the model will get.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

AS_IT_IS = ("PreTrainedTokenizerFast", "TokenizersBackend")
T5 = ("T5Tokenizer", "T5TokenizerFast")
T5_NAMED = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
T5_SENTINEL, T5_SENTINELS = "<extra_id_", 100
T5_UNKNOWN_ID = 2
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
EXTRA = ("additional_special_tokens", "extra_special_tokens")

READ = {"tokenizer_class", "model_max_length", "added_tokens_decoder", "extra_ids", *NAMED, *EXTRA}
# How text is decoded, padded and truncated, and where the files came from: no effect on the ids of a complete text.
WITHOUT_EFFECT = {
    *("backend", "chat_template", "clean_up_tokenization_spaces", "is_local", "legacy", "local_files_only"),
    *("max_length", "model_input_names", "name_or_path", "pad_to_multiple_of", "pad_token_type_id", "padding_side"),
    *("processor_class", "sp_model_kwargs", "special_tokens_map_file", "stride", "tokenizer_file", "truncation_side"),
    *("truncation_strategy", "unk_id", "use_fast", "vocab_file"),
}
OTHER_FILES = ("config.json", "added_tokens.json")  # transformers reads these too

# SentencePiece's numbers for types of pieces.
CONTROL, USER_DEFINED = 3, 4

Named = dict[str, "str | AddedToken"]


@dataclass(frozen=True)
class TextTokenizer:
    """The part of a tokenizer's interface that `prompt.tokens` needs, with transformers' names."""

    backend: Tokenizer
    unk_token_id: int | None
    model_max_length: int | None
    is_fast: bool = True

    def __call__(
        self,
        text: str,
        *,
        add_special_tokens: bool = True,
        truncation: bool = False,
        return_offsets_mapping: bool = True,
        verbose: bool = False,
    ) -> dict[str, Any]:
        """Return `input_ids` and `offset_mapping` of one text with its end token, without truncation or padding.

        Raises ValueError where truncation is requested.
        """
        if truncation:
            raise ValueError("a tokenizer for checks does not truncate texts")
        encoding = self.backend.encode(text, add_special_tokens=add_special_tokens)
        return {"input_ids": encoding.ids, "offset_mapping": encoding.offsets}

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        """Return the tokens as they are written in the vocabulary."""
        return [str(self.backend.id_to_token(token)) for token in ids]


def from_folder(folder: Path) -> TextTokenizer | None:
    """Return the tokenizer in a folder, or None where transformers has to read it.

    Raises OSError or ValueError for damaged files.
    """
    config_file, whole, pieces = (folder / n for n in ("tokenizer_config.json", "tokenizer.json", "spiece.model"))
    if not config_file.is_file() or any((folder / name).exists() for name in OTHER_FILES):
        return None
    config = json.loads(config_file.read_text(encoding="utf-8"))
    if not set(config) <= READ | WITHOUT_EFFECT:
        return None
    data = json.loads(whole.read_text(encoding="utf-8")) if whole.is_file() else None
    special = _special(config, data, folder / "special_tokens_map.json")
    if special is None:
        return None
    kind, limit = config.get("tokenizer_class"), config.get("model_max_length")
    if kind in AS_IT_IS and data is not None:
        from tokenizers import Tokenizer

        return _finished(Tokenizer.from_file(str(whole)), special, limit)
    if kind in T5 and data is not None and data.get("model", {}).get("type") == "Unigram":
        return _t5(data["model"]["vocab"], _charsmap(data.get("normalizer")), special, limit)
    if kind in T5 and data is None and pieces.is_file():
        return from_sentencepiece(pieces.read_bytes(), limit, special)
    return None


def from_sentencepiece(data: bytes, limit: int | None, special: Special | None = None) -> TextTokenizer:
    """Return a T5 tokenizer for a serialized SentencePiece model.

    limit: its length limit in tokens. Raises ValueError for other data, and ImportError where the library that reads
    it is not installed.
    """
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2
    from tokenizers import AddedToken

    special = special or Special(sentinels=0)
    proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    try:
        proto.ParseFromString(data)
    except DecodeError as error:
        raise ValueError(f"it is not a SentencePiece model: {error}") from None
    if not proto.pieces:
        raise ValueError("it is not a SentencePiece model: it has no pieces")
    sentinels = [f"{T5_SENTINEL}{i}>" for i in range(special.sentinels)]
    vocabulary = [(piece.piece, piece.score) for piece in proto.pieces]
    vocabulary += [(token, 0.0) for token in reversed(sentinels)]
    own = [
        AddedToken(piece.piece, normalized=False, special=piece.type == CONTROL)
        for piece in proto.pieces
        if piece.type in (CONTROL, USER_DEFINED)
    ]
    own_sentinels = sum(T5_SENTINEL in piece.content for piece in own)
    if own_sentinels and special.sentinels not in (0, own_sentinels):
        raise ValueError(f"it has {own_sentinels} sentinels, but its config names {special.sentinels}")
    if special.extra is None:
        special = replace(special, extra=own + ([] if own_sentinels else sentinels))
    return _t5(vocabulary, proto.normalizer_spec.precompiled_charsmap or None, special, limit)


@dataclass(frozen=True)
class Special:
    """Special tokens that the config and the files next to it name.

    named: by their role. indexed: with their flags, by id. extra: further ones; None where the config names none.
    sentinels: how many tokens `<extra_id_0>`, ... the T5 family adds.
    """

    named: Named = field(default_factory=dict)
    indexed: dict[int, AddedToken] = field(default_factory=dict)
    extra: list[Any] | None = None
    sentinels: int = T5_SENTINELS


def _special(config: dict[str, Any], data: dict[str, Any] | None, map_file: Path) -> Special | None:
    """Return the special tokens that transformers would read from a config, or None for a form that is not known."""
    from tokenizers import AddedToken

    named: dict[str, Any] = {key: config[key] for key in NAMED if config.get(key) is not None}
    if "added_tokens_decoder" in config:
        listed = [{"id": index, **token} for index, token in config["added_tokens_decoder"].items()]
    else:
        also = json.loads(map_file.read_text(encoding="utf-8")) if map_file.is_file() else {}
        if not set(also) <= set(NAMED):
            return None
        named |= {
            k: {"__type": "AddedToken", **v, "special": True} if isinstance(v, dict) else v for k, v in also.items()
        }
        listed = [] if data is None else data["added_tokens"]
    indexed = {int(token["id"]): AddedToken(**{k: v for k, v in token.items() if k != "id"}) for token in listed}
    by_content = {token.content: token for token in indexed.values()}
    for key, value in named.items():
        if isinstance(value, dict):
            if value.get("__type") != "AddedToken":
                return None
            value = AddedToken(**{k: v for k, v in value.items() if k != "__type"})
        named[key] = by_content.get(_text(value), value)
    lists = [config[key] for key in EXTRA if config.get(key) is not None]
    if len(lists) > 1 or not all(isinstance(item, str) for each in lists for item in each):
        return None
    if any(isinstance(each, dict) for each in lists):
        return None
    return Special(named, indexed, lists[0] if lists else None, config.get("extra_ids", T5_SENTINELS))


def _charsmap(normalizer: dict[str, Any] | None) -> bytes | None:
    """Return SentencePiece's table of character replacements in a tokenizer.json.

    T5Tokenizer keeps nothing else of its normalizer.
    """
    steps = [] if normalizer is None else normalizer.get("normalizers", [normalizer])
    found = (step["precompiled_charsmap"] for step in steps if step.get("type") == "Precompiled")
    text = next(found, None)
    return None if text is None else base64.b64decode(text)


def _t5(
    vocabulary: Iterable[Sequence[Any]], charsmap: bytes | None, special: Special, limit: int | None
) -> TextTokenizer:
    """Return T5Tokenizer's backend: a Unigram model over words with their leading space, and an end token."""
    from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
    from tokenizers.models import Unigram

    backend = Tokenizer(Unigram([(piece, score) for piece, score in vocabulary], T5_UNKNOWN_ID, byte_fallback=False))
    if charsmap is not None:
        backend.normalizer = normalizers.Precompiled(charsmap)
    words, spaces = pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace("▁", prepend_scheme="always", split=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([words, spaces])
    extra = [f"{T5_SENTINEL}{i}>" for i in range(special.sentinels)] if special.extra is None else special.extra
    special = replace(special, named=T5_NAMED | special.named, extra=extra)
    finished = _finished(backend, special, limit)
    end = backend.token_to_id(_text(special.named["eos_token"]))
    backend.post_processor = processors.TemplateProcessing(
        single=["$A", "</s>"], special_tokens=[("</s>", finished.unk_token_id if end is None else end)]
    )
    return finished


def _finished(backend: Tokenizer, special: Special, limit: int | None) -> TextTokenizer:
    """Add the special tokens that the vocabulary lacks, and those of the config with the config's flags."""
    from tokenizers import AddedToken

    backend.no_truncation()
    backend.no_padding()
    tokens: list[Any] = [token for _, token in sorted(special.indexed.items())]
    known = {token.content for token in (*backend.get_added_tokens_decoder().values(), *tokens)}
    for token in (*(special.named[key] for key in NAMED if key in special.named), *(special.extra or ())):
        if _text(token) not in known and token not in tokens:
            tokens.append(token)
    names = {_text(token) for token in special.named.values()}
    for i, token in enumerate(tokens):
        if isinstance(token, str):
            tokens[i] = AddedToken(token, special=True)
        elif token.content in names:
            token.special = True
    if tokens:
        backend.add_tokens(tokens)
    unknown = special.named.get("unk_token")
    return TextTokenizer(backend, None if unknown is None else backend.token_to_id(_text(unknown)), limit)


def _text(token: Any) -> str:
    return token if isinstance(token, str) else token.content
