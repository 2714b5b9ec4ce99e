"""Weights of marked words, applied to a prompt's text embedding.

Shape suffixes: B batch, L text tokens, D text dimension, R real tokens (L without padding).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

from wanscope.errors import RecipeError
from wanscope.prompt.tokens import Columns

WeightMode = Literal["auto", "multiply", "interpolate", "none"]
ResolvedMode = Literal["multiply", "interpolate", "none"]


def resolve_mode(mode: WeightMode, words: Iterable[Columns]) -> ResolvedMode:
    """What `auto` means for these words: `multiply` where a number was written, `none` elsewhere."""
    if mode == "auto":
        return "multiply" if any(word.weighted for word in words) else "none"
    if mode not in ("multiply", "interpolate", "none"):
        raise RecipeError(f"{mode!r} is not a way to apply weights", "", "weights: auto, multiply, interpolate or none")
    return mode


def column_weights(words: Iterable[Columns]) -> dict[int, float]:
    """The weight of each weighted column; where marks overlap, their weights multiply. Columns of weight 1 are left
    out."""
    weights: dict[int, float] = {}
    for word in words:
        if word.weighted:
            for column in word.columns:
                weights[column] = weights.get(column, 1.0) * word.weight
    return {column: weight for column, weight in sorted(weights.items()) if weight != 1.0}


def apply_weights(embedding: Tensor, words: Iterable[Columns], real_tokens: int, mode: WeightMode = "auto") -> Tensor:
    """The text embedding with the weights of marked words applied. The input is never changed.

    embedding: [L, D] or [B, L, D], of one prompt, as the text encoder gives it (before any projection).
    words: the marks as `tokens.token_columns` found them; those without a number have no weight.
    real_tokens: R, the tokens of the prompt with the end token; rows from R on are padding.

    multiply: e' = w e.
    interpolate: e' = m + w (e - m), rescaled to the norm of e, where m is the mean of the prompt's own R rows (the end
    token's among them, before any weight). So w > 1 turns a token away from what the prompt's tokens share, w < 1
    toward it, and no token becomes longer or shorter.
    none: nothing changes.

    Computed in float32 (float64 for float64 embeddings) and rounded once to the embedding's dtype. Columns of weight
    exactly 1 keep their bits; with none other, the embedding itself is returned. Raises RecipeError for columns outside
    the real tokens, weights that are not finite and above zero, and results that the dtype cannot hold.
    """
    words = list(words)
    resolved = resolve_mode(mode, words)
    weights = column_weights(words)
    length = embedding.shape[-2]
    if not 0 < real_tokens <= length:
        raise RecipeError(f"{real_tokens} real tokens", f"the embedding has {length} rows", f"1 to {length}")
    for word in words:
        if not all(0 <= column < real_tokens for column in word.columns):
            raise RecipeError(
                f"the words {word.text!r} are at token columns {list(word.columns)}",
                f"the prompt has {real_tokens} real tokens",
                "find the columns with this prompt's own text and tokenizer",
            )
    for column, weight in weights.items():
        if not (math.isfinite(weight) and weight > 0):
            raise RecipeError(f"the weight {weight} of token {column}", "a weight is finite and above zero", "1.5")
    if resolved == "none" or not weights:
        return embedding
    exact = torch.float64 if embedding.dtype == torch.float64 else torch.float32
    columns = torch.tensor(list(weights), device=embedding.device)
    w_K1 = torch.tensor(list(weights.values()), dtype=exact, device=embedding.device)[:, None]
    e_KD = embedding[..., columns, :].to(exact)
    if resolved == "multiply":
        new_KD = w_K1 * e_KD
    else:
        new_KD = _away_from_mean(e_KD, embedding[..., :real_tokens, :].to(exact), w_K1)
    new_KD = new_KD.to(embedding.dtype)
    if not torch.isfinite(new_KD).all():
        raise RecipeError(
            "the weights make embeddings that are not finite",
            f"the largest is {max(weights.values()):g} and the embedding is {embedding.dtype}",
            "smaller weights",
        )
    weighted = embedding.clone()
    weighted[..., columns, :] = new_KD
    return weighted


def _away_from_mean(e_KD: Tensor, real_RD: Tensor, w_K1: Tensor) -> Tensor:
    mean_1D = real_RD.mean(dim=-2, keepdim=True)
    moved_KD = mean_1D + w_K1 * (e_KD - mean_1D)
    norm_K1 = torch.linalg.vector_norm(e_KD, dim=-1, keepdim=True)
    moved_norm_K1 = torch.linalg.vector_norm(moved_KD, dim=-1, keepdim=True)
    # A row of zeros has no direction; it stays. Any other that lands on zero is caught as not finite by the caller.
    return torch.where(norm_K1 == 0, e_KD, moved_KD * (norm_K1 / moved_norm_K1))
