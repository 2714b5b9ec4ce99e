"""Token matrices: what the modules on embeddings share. Checks, alignment, precision.

Shape suffixes: L tokens, D dimension (of the text encoder, or of the context after projection).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from wanscope.errors import RecipeError


def check_rows(embedding_LD: Tensor, name: str = "the embedding") -> None:
    """RecipeError unless it is a matrix [L, D] of finite floating-point numbers with at least one row and column."""
    if not isinstance(embedding_LD, Tensor) or embedding_LD.ndim != 2 or not embedding_LD.is_floating_point():
        shown = (
            f"{embedding_LD.dtype} of shape {list(embedding_LD.shape)}"
            if isinstance(embedding_LD, Tensor)
            else type(embedding_LD).__name__
        )
        raise RecipeError(f"{name} is {shown}", "it should be a float tensor [tokens, dimensions] of one prompt", "")
    if 0 in embedding_LD.shape:
        raise RecipeError(f"{name} is empty", f"its shape is {list(embedding_LD.shape)}", "")
    if not torch.isfinite(embedding_LD).all():
        raise RecipeError(f"{name} has values that are not finite", "NaN or Inf has no meaning in a prompt", "")


def check_same_dim(embeddings: Sequence[Tensor], names: Sequence[str] | None = None) -> None:
    """`check_rows` on each, and RecipeError where their dimensions differ."""
    names = names or [f"embedding {i + 1}" for i in range(len(embeddings))]
    for embedding, name in zip(embeddings, names, strict=True):
        check_rows(embedding, name)
    first = embeddings[0].shape[1]
    for embedding, name in zip(embeddings, names, strict=True):
        if embedding.shape[1] != first:
            raise RecipeError(
                f"{name} has {embedding.shape[1]} dimensions and {names[0]} has {first}",
                "they come from different encoders, or one is projected and the other is not",
                "encode both with the same model",
            )


def real_tokens(embedding_LD: Tensor) -> int:
    """Rows up to the last one that is not all zeros. What follows is padding, whatever length it was padded to."""
    rows = embedding_LD.ne(0).any(dim=-1).nonzero()
    return int(rows[-1]) + 1 if len(rows) else 0


def exact(tensor: Tensor) -> Tensor:
    """In the precision in which everything here is computed: float64 (float32 on devices that have no float64)."""
    return tensor.detach().to(torch.float32 if tensor.device.type == "mps" else torch.float64)


def padded(embedding_LD: Tensor, length: int, pad_D: Tensor | None = None) -> Tensor:
    """[length, D]: the rows, and then rows of zeros, or of `pad_D`."""
    tokens, dim = embedding_LD.shape
    rest_PD = embedding_LD.new_zeros(length - tokens, dim)
    if pad_D is not None:
        rest_PD = rest_PD + pad_D.to(embedding_LD)
    return torch.cat([embedding_LD, rest_PD])


def rounded(exact_LD: Tensor, dtype: torch.dtype) -> Tensor:
    """In `dtype`; RecipeError when that cannot hold the values."""
    out_LD = exact_LD.to(dtype)
    if not torch.isfinite(out_LD).all():
        largest = float(exact_LD.abs().max())
        raise RecipeError(
            "the result has values that are not finite",
            f"the largest is {largest:.3g} and {str(dtype).removeprefix('torch.')} holds at most "
            f"{torch.finfo(dtype).max:.3g}",
            "smaller weights, or embeddings in float32",
        )
    return out_LD
