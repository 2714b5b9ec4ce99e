"""The name of `embedding_algebra` in 0.1, kept for scripts that import from here."""

from wanscope.edit.embedding_algebra import Result, difference, interpolate, normalize, product, weighted_sum

__all__ = ["Result", "difference", "interpolate", "normalize", "product", "weighted_sum"]
