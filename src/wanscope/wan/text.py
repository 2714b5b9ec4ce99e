"""Encodes prompts exactly as WanPipeline does, trimmed to real tokens.

Each prompt is encoded alone, so that the last bits of its embedding do not depend on other prompts in a batch. The text
is cleaned as in the pipeline and padded to the text length with a mask, and the padding is then cut off again. `pad`
appends zeros instead, which is what the transformer sees.

Shape suffixes: L real tokens, P text length, D text dimension.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from transformers import PreTrainedTokenizerBase

from wanscope.errors import RecipeError
from wanscope.wan.model import WanModel


def count_tokens(tokenizer: PreTrainedTokenizerBase, prompt: str) -> int:
    """Return the number of tokens of a prompt after cleaning, including the end token, without truncation."""
    return len(tokenizer(prompt_clean(prompt), truncation=False, verbose=False)["input_ids"])  # type: ignore[arg-type]


def check_length(model: WanModel, prompt: str) -> None:
    """Raise RecipeError, with the count, for a prompt with more tokens than the model reads."""
    count = count_tokens(model.tokenizer, prompt)
    if count > model.text_length:
        shown = prompt if len(prompt) <= 60 else prompt[:57] + "..."
        raise RecipeError(
            f"the prompt {shown!r} is too long",
            f"it has {count} tokens and {model.variant.title} reads {model.text_length}. Shorten it by "
            f"{count - model.text_length} tokens",
        )


@torch.no_grad()
def encode(model: WanModel, prompts: Iterable[str]) -> list[torch.Tensor]:
    """Return one embedding [L, D] per prompt, in the encoder's dtype on the encoder's device.

    Equal prompts are encoded once. Raises RecipeError, before any work, for a prompt longer than the text length, and
    ModelError where the text encoder has been freed.
    """
    prompts = list(prompts)
    encoder = model.encoder()
    for prompt in dict.fromkeys(prompts):
        check_length(model, prompt)
    device = next(encoder.parameters()).device
    done: dict[str, torch.Tensor] = {}
    for prompt in prompts:
        if prompt in done:
            continue
        tokens = model.tokenizer(
            [prompt_clean(prompt)],
            padding="max_length",
            max_length=model.text_length,
            truncation=True,
            add_special_tokens=True,
            return_attention_mask=True,
            return_tensors="pt",
        )
        ids_1P, mask_1P = tokens.input_ids.to(device), tokens.attention_mask.to(device)
        hidden_1PD = encoder(ids_1P, mask_1P).last_hidden_state
        done[prompt] = hidden_1PD[0, : int(mask_1P.gt(0).sum())].clone()
    return [done[prompt] for prompt in prompts]


def pad(embedding_LD: torch.Tensor, length: int) -> torch.Tensor:
    """Return an embedding [L, D] with zeros after its real tokens, [length, D].

    Raises ValueError where it has more than `length` tokens.
    """
    tokens, dim = embedding_LD.shape
    if tokens > length:
        raise ValueError(f"{tokens} tokens do not fit into {length}")
    return torch.cat([embedding_LD, embedding_LD.new_zeros(length - tokens, dim)])
