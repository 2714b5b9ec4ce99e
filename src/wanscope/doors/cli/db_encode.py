"""Encode a text that is not stored, to search with it. Only the text encoder is loaded."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

from wanscope.catalog.catalog import Catalog
from wanscope.catalog.content import Tokens
from wanscope.catalog.embeddings import Embedding
from wanscope.errors import EmbeddingNotFound
from wanscope.study.embedding_reuse import CUSTOM


def encoded(catalog: Catalog, text: str, model: str | None) -> tuple[Embedding, str]:
    """Return the text as an embedding that is not stored, and the name of what encoded it.

    model: the model whose encoder is used; None selects the one that made most embeddings. Raises EmbeddingNotFound
    where no stored embedding names a model.
    """
    made = [
        (row["model"], row["encoder"], row["dtype"])
        for row in catalog.sql(
            "SELECT model, encoder, dtype FROM embeddings "
            "WHERE encoder <> '' AND space = 'text' AND source <> 'operation'"
        ).to_pylist()
    ]
    chosen = model or ""
    if model is None:
        named = Counter(row for row in made if row[0] and row[0] != CUSTOM)
        if not named:
            raise EmbeddingNotFound(
                f"{text!r} is not stored", "and no stored embedding says which model could encode it", "--model marbles"
            )
        chosen = named.most_common(1)[0][0][0]
    dtypes = Counter(dtype for name, _, dtype in made if name == chosen)
    dtype = dtypes.most_common(1)[0][0] if dtypes else "float32" if chosen == "marbles" else "bfloat16"
    values, encoder = _encode(text, chosen, dtype)
    tokens = Tokens.of(values)
    key = tokens.key(chosen, encoder)
    return Embedding(key, tokens, {"encoder": encoder, "space": "text"}), f"{chosen}'s text encoder"


def _encode(text: str, model: str, dtype: str) -> tuple[Any, str]:
    from wanscope.doors.cli.process import prepare_process

    prepare_process()
    from wanscope import events
    from wanscope.study.check_texts import check_length_and_words
    from wanscope.study.embedding_reuse import encoder_hash
    from wanscope.study.recipe_model import ModelKey, find
    from wanscope.wan.tokenizer import load_tokenizer, read_tokenizer, text_length_of

    source = find(ModelKey(model, "fp32"), events.ignore)
    part, own_length = source.parts["tokenizer"], source.variant.text_length
    tokenizer = read_tokenizer(part, own_length)
    length = text_length_of(tokenizer)
    check_length_and_words(tokenizer, {"text": text}, length, source.variant.closed_vocabulary)

    import torch

    from wanscope.wan.load import load_encoder
    from wanscope.wan.text import encode

    module = load_encoder(source, getattr(torch, dtype))
    reader: Any = SimpleNamespace(
        tokenizer=load_tokenizer(part, own_length),
        text_length=length,
        variant=source.variant,
        encoder=lambda: module,
    )
    identity = source.identity()
    return encode(reader, [text])[0], encoder_hash(identity["text_encoder"], identity["tokenizer"], dtype)
