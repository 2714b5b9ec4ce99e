"""Checks, alignment and precision of token matrices, shared by the modules that work on embeddings.

Shape suffixes: L tokens, D dimension (of the text encoder, or of the context after projection).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from wanscope.errors import RecipeError


def check_rows(embedding_LD: Tensor, name: str = "the embedding") -> None:
    """Raise RecipeError unless it is a matrix [L, D] of finite floating-point numbers with L, D >= 1."""
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
        raise RecipeError(f"{name} contains NaN or Inf", "an embedding must be finite", "")


def check_same_dim(embeddings: Sequence[Tensor], names: Sequence[str] | None = None) -> None:
    """Run `check_rows` on each embedding [L, D], and raise RecipeError if their D differ. L may differ."""
    names = names or [f"embedding {i + 1}" for i in range(len(embeddings))]
    for embedding, name in zip(embeddings, names, strict=True):
        check_rows(embedding, name)
    first = embeddings[0].shape[1]
    for embedding, name in zip(embeddings, names, strict=True):
        if embedding.shape[1] != first:
            raise RecipeError(
                f"{name} has {embedding.shape[1]} dimensions and {names[0]} has {first}",
                "they come from different encoders, or one is projected and the other is not",
                "encode both prompts with the same model",
            )


def real_tokens(embedding_LD: Tensor) -> int:
    """Return the number of rows of [L, D] up to the last one that is not all zeros. The rows after it are padding."""
    rows = embedding_LD.ne(0).any(dim=-1).nonzero()
    return int(rows[-1]) + 1 if len(rows) else 0


def exact(tensor: Tensor) -> Tensor:
    """Convert to the precision of embedding algebra: float64 (float32 on MPS, which has no float64). Any shape."""
    return tensor.detach().to(torch.float32 if tensor.device.type == "mps" else torch.float64)


def padded(embedding_LD: Tensor, length: int, pad_D: Tensor | None = None) -> Tensor:
    """Pad the rows [L, D] to [length, D] with zeros, or with `pad_D`. `length` must be at least L."""
    tokens, dim = embedding_LD.shape
    rest_PD = embedding_LD.new_zeros(length - tokens, dim)
    if pad_D is not None:
        rest_PD = rest_PD + pad_D.to(embedding_LD)
    return torch.cat([embedding_LD, rest_PD])


def rounded(exact_LD: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert [L, D] to `dtype`. Raises RecipeError if a value overflows."""
    out_LD = exact_LD.to(dtype)
    if not torch.isfinite(out_LD).all():
        largest = float(exact_LD.abs().max())
        raise RecipeError(
            f"the result overflows in {str(dtype).removeprefix('torch.')}",
            f"its largest value is {largest:.3g}, and the dtype's maximum is {torch.finfo(dtype).max:.3g}",
            "use smaller weights, or embeddings in float32",
        )
    return out_LD
