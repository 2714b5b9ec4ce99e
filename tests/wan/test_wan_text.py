"""Prompts are encoded as WanPipeline encodes them, bit for bit."""

from __future__ import annotations

import pytest
import torch

from helpers.tiny import TEXT_DIM, tiny_model
from wanscope.errors import ModelError, RecipeError
from wanscope.wan import text

torch.set_num_threads(1)
PROMPTS = ["a red circle moves left", "", "  two   women &amp; a\ncat ", "xyz, \u201cblue\u201d"]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_equals_the_pipeline(prompt):
    model = tiny_model()
    want, negative = model.to_pipeline().encode_prompt(prompt, "large", max_sequence_length=model.text_length)
    got = text.encode(model, ["something else", prompt, "large"])
    assert torch.equal(text.pad(got[1], model.text_length), want[0])
    assert torch.equal(text.pad(got[2], model.text_length), negative[0])


def test_trimmed_to_real_tokens():
    model = tiny_model()
    embedding = text.encode(model, ["a red circle"])[0]
    assert embedding.shape == (4, TEXT_DIM)  # three words and the end
    assert text.count_tokens(model.tokenizer, "a red circle") == 4
    padded = text.pad(embedding, 16)
    assert padded.shape == (16, TEXT_DIM) and not padded[4:].any()
    with pytest.raises(ValueError, match="do not fit"):
        text.pad(embedding, 3)


def test_an_embedding_does_not_depend_on_the_other_prompts():
    model = tiny_model()
    alone = text.encode(model, ["a red circle"])[0]
    among = text.encode(model, ["blue", "a red circle", "", "a red circle"])
    assert torch.equal(alone, among[1]) and among[1] is among[3]


def test_a_prompt_that_is_too_long_is_an_error_before_any_work():
    model = tiny_model()
    fits = " ".join(["red"] * 15)
    assert text.encode(model, [fits])[0].shape[0] == 16
    with pytest.raises(RecipeError, match=r"it has 17 tokens .* reads 16"):
        text.encode(model, ["fine", fits + " red"])


def test_after_the_encoder_is_freed():
    model = tiny_model()
    model.free_encoder()
    with pytest.raises(ModelError, match="has been freed"):
        text.encode(model, ["red"])
