"""A model's tokenizer: transformers' own for a loaded model, and a faster one for checks, without transformers."""

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
    """Return how many text tokens the model takes: the tokenizer's limit, or Wan's 512 where that is smaller."""
    limit = getattr(tokenizer, "model_max_length", None) or DEFAULT_TEXT_LENGTH
    return int(min(limit, DEFAULT_TEXT_LENGTH))


def load_tokenizer(part: Part, text_length: int) -> PreTrainedTokenizerBase:
    """Return transformers' tokenizer, with which a model is loaded.

    text_length: the limit for a tokenizer inside an encoder file, which has none of its own. Raises ModelError where
    it cannot be loaded.
    """
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
    """Return an equivalent tokenizer for counting and finding tokens.

    It is read quickly and without transformers, if `tokenizer_files` knows its layout. Raises what `load_tokenizer`
    raises.
    """
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
    return ModelError(f"{part.path} contains no tokenizer", "pass a folder with tokenizer.json as `tokenizer`")


@contextmanager
def _readable(part: Part) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise ModelError(f"the tokenizer in {part.path} cannot be loaded", str(error).split("\n")[0]) from None
