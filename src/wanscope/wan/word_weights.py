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
    """Return the mode for these words: `auto` becomes `multiply` where any word has a weight, else `none`.

    Raises RecipeError for a mode that is not known.
    """
    if mode == "auto":
        return "multiply" if any(word.weighted for word in words) else "none"
    if mode not in ("multiply", "interpolate", "none"):
        raise RecipeError(
            f"{mode!r} is not a way to apply weights",
            "the ways are auto, multiply, interpolate and none",
            "weights: multiply",
        )
    return mode


def column_weights(words: Iterable[Columns]) -> dict[int, float]:
    """Return {token column: weight}, without columns of weight 1. Weights of overlapping marks are multiplied."""
    weights: dict[int, float] = {}
    for word in words:
        if word.weighted:
            for column in word.columns:
                weights[column] = weights.get(column, 1.0) * word.weight
    return {column: weight for column, weight in sorted(weights.items()) if weight != 1.0}


def apply_weights(embedding: Tensor, words: Iterable[Columns], real_tokens: int, mode: WeightMode = "auto") -> Tensor:
    """Return the text embedding with the weights of marked words applied, in the same shape. The input is not changed.

    embedding: [L, D] or [B, L, D] of one prompt, as returned by the text encoder (before any projection).
    words: the marks as found by `tokens.token_columns`; those without a number have no weight.
    real_tokens: R, the number of tokens of the prompt including the end token; rows from R on are padding.

    multiply: e' = w e.
    interpolate: e' = m + w (e - m), rescaled to the norm of e, where m is the mean of the prompt's own R rows (with
    the end token, before any weight). A weight w > 1 turns a token away from the mean of the prompt's tokens and w < 1
    toward it, without changing the token's norm.
    none: nothing changes.

    This is computed in float32 (float64 for float64 embeddings) and rounded once to the embedding's dtype. Columns of
    weight exactly 1 keep their bits; where there are no others, the embedding itself is returned.

    Raises RecipeError for columns outside the real tokens, for weights that are not finite and above zero, and for
    results that the dtype cannot represent.
    """
    words = list(words)
    resolved = resolve_mode(mode, words)
    weights = column_weights(words)
    length = embedding.shape[-2]
    if not 0 < real_tokens <= length:
        raise RecipeError(f"there cannot be {real_tokens} real tokens", f"the embedding has {length} rows")
    for word in words:
        if not all(0 <= column < real_tokens for column in word.columns):
            raise RecipeError(
                f"the words {word.text!r} are at token columns {list(word.columns)}",
                f"the prompt has {real_tokens} real tokens. Find the columns with this prompt's own text and tokenizer",
            )
    for column, weight in weights.items():
        if not (math.isfinite(weight) and weight > 0):
            raise RecipeError(f"token {column} has the weight {weight}", "a weight is finite and above zero")
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
            f"the largest is {max(weights.values()):g} and the embedding is {embedding.dtype}. Use smaller weights",
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
