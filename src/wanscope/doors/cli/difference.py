"""`wanscope difference`: how far apart two prompts are for a model, with a sentence of advice."""

from __future__ import annotations

from typing import Any

from wanscope.doors.cli import output
from wanscope.doors.cli.process import prepare_process
from wanscope.doors.cli.request import absolute_model
from wanscope.errors import RequestError


def run_difference(a: str, b: str, model: str, device: str, json: bool) -> int:
    for name, text in (("A", a), ("B", b)):
        if not text.strip():
            raise RequestError(f"prompt {name} is empty", "there is nothing to compare", "")
    prepare_process()
    from wanscope import api
    from wanscope.edit.difference import render_difference
    from wanscope.study.check_texts import check_length_and_words
    from wanscope.study.recipe_model import ModelKey, place_encoder, tokenizer_of
    from wanscope.wan.load import load
    from wanscope.wan.variants import VARIANTS

    spec = absolute_model(model)
    tokenizer, length = tokenizer_of(ModelKey(spec, "auto"))
    closed = spec in VARIANTS and VARIANTS[spec].closed_vocabulary  # of a folder `api.difference` says it
    check_length_and_words(tokenizer, {"prompt A": a, "prompt B": b}, length, closed)
    loaded = load(spec, device=device)
    place_encoder(loaded)
    found = api.difference(loaded, a, b)
    if json:
        output.document({"model": model, "a": a, "b": b, **found.as_data()})
        return 0
    output.say(f"A: {a}")
    output.say(f"B: {b}")
    output.say(f"model: {loaded.variant.title}")
    output.say()
    output.say(render_difference(found, pieces_a=_pieces(tokenizer, a), pieces_b=_pieces(tokenizer, b)))
    return 0


def _pieces(tokenizer: Any, text: str) -> list[str]:
    from wanscope.prompt.tokens import clean

    return [str(piece) for piece in tokenizer.convert_ids_to_tokens(tokenizer(clean(text))["input_ids"])]
