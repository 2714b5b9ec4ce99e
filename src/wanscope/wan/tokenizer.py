"""A model's tokenizer: as the model is loaded with it, and as it is read for checks, without transformers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from wanscope.errors import ModelError
from wanscope.wan import tokenizer_files
from wanscope.wan.locate import Part
from wanscope.wan.tokenizer_files import TextTokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DEFAULT_TEXT_LENGTH = 512


def text_length_of(tokenizer: Any) -> int:
    """How many tokens the model's text takes: the tokenizer's limit where it names a sensible one, else Wan's 512."""
    limit = getattr(tokenizer, "model_max_length", None) or DEFAULT_TEXT_LENGTH
    return int(min(limit, DEFAULT_TEXT_LENGTH))


def load_tokenizer(part: Part, text_length: int) -> PreTrainedTokenizerBase:
    """The tokenizer that the model is loaded with, of transformers. text_length: of one that does not say itself how
    many tokens the model reads."""
    if part.kind == "file":
        from wanscope.wan import encoder_file

        tokenizer = encoder_file.tokenizer_in(part.path, text_length)
        if tokenizer is None:
            raise _none_in(part)
        return tokenizer
    from transformers import AutoTokenizer

    with _readable(part):
        return AutoTokenizer.from_pretrained(part.path, local_files_only=True)


def read_tokenizer(part: Part, text_length: int) -> TextTokenizer | PreTrainedTokenizerBase:
    """The same tokenizer for counting and finding tokens: in a moment, without transformers where its layout is one
    that `tokenizer_files` knows. Raises what `load_tokenizer` raises."""
    if part.kind == "file":
        from wanscope.wan import encoder_file

        data = encoder_file.sentencepiece_in(part.path)
        if data is None:
            raise _none_in(part)
        with encoder_file.readable_tokenizer(part.path):
            return tokenizer_files.from_sentencepiece(data, text_length)
    with _readable(part):
        found = tokenizer_files.from_folder(part.path)
    return load_tokenizer(part, text_length) if found is None else found


def _none_in(part: Part) -> ModelError:
    return ModelError(f"{part.path} holds no tokenizer", "give a folder with tokenizer.json")


@contextmanager
def _readable(part: Part) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise ModelError(f"the tokenizer in {part.path} cannot be loaded", str(error).split("\n")[0]) from None
