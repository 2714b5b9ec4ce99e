"""Where 0.1 had `embedding_algebra`. Kept for scripts that import it from here."""

from wanscope.edit.embedding_algebra import Result, difference, interpolate, normalize, product, weighted_sum

__all__ = ["Result", "difference", "interpolate", "normalize", "product", "weighted_sum"]
